# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.report.cases import write_data, write_run
from warmup_plugin.metrics.base import Comparison, Evaluation, MetricScore
from warmup_plugin.report.results import (
    build_log_prob_row,
    build_score_table,
    compare_settings,
    summarize,
)
from warmup_plugin.report.runs import CollectOptions, ReportRun, collect_runs
from warmup_plugin.runs.records import Draw, ScoredPair


def create_score(score: float | None, *, reason: str | None = None) -> MetricScore:
    low, high = (None, None) if score is None else (score - 1, score + 1)

    signature = "" if score is None else "tok:13a"

    return MetricScore("BLEU", score, signature, low, high, 3, "bleu", reason=reason)


class TestScoreTable:
    def test_call_compares_with_the_baseline(self) -> None:
        comet = MetricScore(
            "COMET", None, "", None, None, 3, "comet", reason="it is not installed"
        )

        evaluation = Evaluation(
            {
                "b": [create_score(20.0), comet],
                "a": [create_score(18.5), comet],
                "c": [create_score(20.25), comet],
            },
            [
                Comparison("a", "BLEU", 18.5, 20.0, 0.0004, "tok:13a", key="bleu"),
                Comparison("c", "BLEU", 20.25, 20.0, 0.051, "tok:13a", key="bleu"),
            ],
        )

        # `b` was given last.
        table = build_score_table(
            evaluation,
            {"a": 0, "c": 1, "b": 2},
            {0: [1.0, 3.0, 2.0], 1: [1.0, 2.0, 3.001], 2: [1.0, 2.0, 3.0]},
            baseline=2,
        )

        assert table.metrics == ["BLEU", "COMET"]
        assert [row.run_idx for row in table.rows] == [2, 0, 1]
        assert [row.is_baseline for row in table.rows] == [True, False, False]
        assert [row.better for row in table.rows] == ["", "1 / 1 / 1", "0 / 3 / 0"]

        b, a, c = (row.cells[0] for row in table.rows)

        assert (b.score, b.interval, b.difference) == ("20.00", "19.00 to 21.00", "")
        assert (a.difference, a.p_value, a.is_significant) == ("−1.50", "< 0.001", True)
        assert (c.difference, c.p_value, c.is_significant) == ("+0.25", "0.051", False)

        missing = table.rows[0].cells[1]

        assert (missing.score, missing.reason) == ("–", "it is not installed")

        assert table.signatures == [("BLEU", "tok:13a")]
        assert table.reasons == [("COMET", "it is not installed")]

        assert summarize(table, ["a", "c", "b"]) == [
            (2, "20.00 BLEU."),
            (0, "18.50 BLEU (−1.50, p\u00a0<\u00a00.001), against b."),
            (1, "20.25 BLEU (+0.25, p\u00a0=\u00a00.051), against b."),
        ]

    def test_call_needs_no_tests(self) -> None:
        score = replace(create_score(20.0), ci_low=None, ci_high=None)

        table = build_score_table(
            Evaluation({"a": [score], "b": [score]}, []),
            {"a": 0, "b": 1},
            {0: [1.0], 1: [1.0]},
            baseline=0,
        )

        assert not table.has_p_values
        assert table.rows[1].cells[0].interval == ""
        assert summarize(table, ["a", "b"])[1] == (1, "20.00 BLEU (+0.00), against a.")


class TestLogProbRow:
    def test_call_matches_numbers_by_hand(self) -> None:
        draws = [Draw("a", -1.0, -2.0, 0.5, 3), Draw("b", -1.0, -2.0, 0.5, 1)]

        pairs = [
            ScoredPair("", 4, -10.0, -8.0, 2.0, 1.5, draws),
            ScoredPair("", 6, -12.0, -13.0, -1.0, 2.0, draws),
            # An empty source.
            ScoredPair("", 0, None, None, None, None, []),
        ]

        row = build_log_prob_row(3, pairs)

        assert (row.run_idx, row.num_pairs) == (3, 3)
        assert (row.plain, row.marginal) == ("−2.200", "−2.100")
        # Variance 4.5; 1.96 * sqrt(4.5 / 2) = 2.94
        assert row.gain == "+0.50 (−2.44 to +3.44)"
        assert row.num_better == "50.0 %"
        assert row.effective_sample_size == "1.75 of 4"

    def test_call_leaves_out_what_is_missing(self) -> None:
        row = build_log_prob_row(0, [ScoredPair("", 4, -2.0, None, None, None, [])])

        assert row.plain == "−0.500"
        assert (row.marginal, row.gain, row.num_better) == ("–", "–", "–")
        assert row.effective_sample_size == "–"


class TestCompareSettings:
    @pytest.fixture
    def runs(self, tmp_path: Path) -> list[ReportRun]:
        data = write_data(tmp_path / "data")

        paths = [
            write_run(tmp_path / "a", data, config={"num_steps": 10}),
            write_run(tmp_path / "b", data, is_warmup=True),
            write_run(tmp_path / "c", data, is_warmup=True),
        ]

        return collect_runs(paths, CollectOptions(translate=False))

    def test_call_lists_what_differs(self, runs: list[ReportRun]) -> None:
        assert compare_settings(runs) == [
            ("criterion.name", ["sft", "warmup", "warmup"]),
            ("regime.num_steps", ["10", "40", "40"]),
        ]

    def test_call_compares_warmups_among_those_that_have_them(
        self, runs: list[ReportRun]
    ) -> None:
        config = {**runs[2].config, "warmup": {"num_warmups": 4, "max_warmup_len": 3}}

        rows = dict(compare_settings([*runs[:2], replace(runs[2], config=config)]))

        assert rows["warmup.num_warmups"] == ["–", "2", "4"]
        assert rows["warmup.objective.name"] == ["–", "marginal", "–"]
        assert "warmup.max_warmup_len" not in rows

    def test_call_shows_last_part_of_paths(self, runs: list[ReportRun]) -> None:
        a, b = (
            replace(run, config={"init_from": value, "tokenizer": {"path": value}})
            for run, value in zip(runs, ["/home/me/runs/sft", None])
        )

        assert compare_settings([a, b]) == [("init_from", ["sft", "none"])]

    def test_call_tells_same_model_however_it_is_given(
        self, runs: list[ReportRun]
    ) -> None:
        a, b = (
            replace(run, config={"model": {"arch": arch}}, model={"family": "nllb"})
            for run, arch in zip(runs, ["tiny", None])
        )

        assert compare_settings([a, b]) == []

        assert compare_settings([a, replace(b, model={"family": "t5"})]) == [
            ("model.arch", ["tiny", "none"])
        ]
