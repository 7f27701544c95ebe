# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.report.cases import (
    SOURCES,
    write_data,
    write_run,
    write_scores,
    write_translations,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes import jobs
from warmup_plugin.recipes.job_options import ScoreOptions
from warmup_plugin.report.runs import CollectOptions, collect_runs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


ReplaceScore = Callable[[Callable[[Path], object]], list[ScoreOptions]]


@pytest.fixture
def replace_score(monkeypatch: pytest.MonkeyPatch) -> ReplaceScore:
    """Replaces the job that scores, which needs a model, and records its options."""

    def replace(write: Callable[[Path], object]) -> list[ScoreOptions]:
        calls: list[ScoreOptions] = []

        def score(options: ScoreOptions) -> int:
            calls.append(options)

            write(options.run_dir)

            return 0 if options.data_dir is None else 2

        monkeypatch.setattr(jobs, "score", score)

        return calls

    return replace


class TestCollectRuns:
    def test_call_reads_what_is_there(self, tmp_path: Path, data: Path) -> None:
        paths = [
            write_run(tmp_path / "sft", data),
            write_run(tmp_path / "warmup", data, is_warmup=True),
        ]

        sft, warmup = collect_runs(paths, CollectOptions())

        assert (sft.name, sft.split, sft.checkpoint_step) == ("sft", "test", 40)
        assert not sft.has_warmup and warmup.has_warmup
        assert list(sft.curves.valid) == ["BLEU", "chrF++", "NLL Loss"]
        assert [start["git_commit"] for start in sft.starts] == ["0123456789abcd"]

        assert sft.translations is not None and warmup.translations is not None

        # The name of the run, not its path.
        assert warmup.translations.system.name == "warmup"
        assert [line.source for line in warmup.translations.lines] == list(SOURCES)
        assert warmup.translations.scores is not None
        assert sft.translations.scores is None
        assert sft.translations.no_scores == "the run has no warmups"

    def test_call_shows_curves_of_run_without_checkpoint(
        self, tmp_path: Path, data: Path
    ) -> None:
        path = write_run(
            tmp_path / "run", data, has_checkpoint=False, has_translations=False
        )

        [run] = collect_runs([path], CollectOptions())

        assert run.translations is None
        assert run.no_translations == "it has no checkpoint yet"
        assert run.checkpoint_step is None
        assert not run.curves.is_empty()

    def test_call_reads_translations_whose_checkpoint_is_gone(
        self, tmp_path: Path, data: Path
    ) -> None:
        path = write_run(tmp_path / "run", data, has_checkpoint=False)

        [run] = collect_runs([path], CollectOptions())

        assert run.translations is not None
        assert run.checkpoint_step is None

    def test_call_leaves_translations_out_if_told(
        self, tmp_path: Path, data: Path
    ) -> None:
        path = write_run(tmp_path / "run", data, has_translations=False)

        [run] = collect_runs([path], CollectOptions(translate=False))

        assert run.translations is None
        assert run.no_translations == "translations were left out by `--curves-only`"

    @pytest.mark.parametrize(
        "prepare,message",
        [
            (lambda path, data: None, "does not exist; name the output directory"),
            (lambda path, data: path.mkdir(), "is not a run directory"),
            (
                lambda path, data: write_run(
                    path,
                    data,
                    has_checkpoint=False,
                    has_metrics=False,
                    has_translations=False,
                ),
                "has neither metrics nor a checkpoint yet",
            ),
        ],
    )
    def test_call_refuses_what_has_nothing_to_show(
        self,
        tmp_path: Path,
        data: Path,
        prepare: Callable[[Path, Path], object],
        message: str,
    ) -> None:
        prepare(tmp_path / "run", data)

        with pytest.raises(WarmupError, match=message):
            collect_runs([tmp_path / "run"], CollectOptions())

    def test_call_refuses_all_before_it_translates_one(
        self, tmp_path: Path, data: Path
    ) -> None:
        good = write_run(tmp_path / "good", data, has_translations=False)

        with pytest.raises(WarmupError, match="bad` does not exist"):
            collect_runs([good, tmp_path / "bad"], CollectOptions())


class TestScores:
    def test_call_computes_missing_scores(
        self, tmp_path: Path, data: Path, replace_score: ReplaceScore
    ) -> None:
        calls = replace_score(write_scores)

        path = write_run(tmp_path / "run", data, is_warmup=True, has_scores=False)

        [run] = collect_runs([path], CollectOptions())

        assert calls == [ScoreOptions(run_dir=path, split="test")]
        assert run.translations is not None and run.translations.scores is not None

    @pytest.mark.parametrize("is_older", [False, True])
    def test_call_computes_scores_of_other_text_or_model_again(
        self, tmp_path: Path, data: Path, replace_score: ReplaceScore, is_older: bool
    ) -> None:
        calls = replace_score(write_scores)

        path = write_run(tmp_path / "run", data, is_warmup=True)

        file = write_scores(path, SOURCES if is_older else ["other", *SOURCES[1:]])

        if is_older:
            os.utime(file, (0, 0))

        collect_runs([path], CollectOptions())

        assert len(calls) == 1

    def test_call_leaves_scores_out_if_told(
        self, tmp_path: Path, data: Path, replace_score: ReplaceScore
    ) -> None:
        calls = replace_score(write_scores)

        path = write_run(tmp_path / "run", data, is_warmup=True, has_scores=False)

        [run] = collect_runs([path], CollectOptions(score=False))

        assert calls == []
        assert run.translations is not None and run.translations.scores is None
        assert run.translations.no_scores == "it was left out by `--no-score`"

    def test_call_does_not_score_run_without_checkpoint(
        self, tmp_path: Path, data: Path, replace_score: ReplaceScore
    ) -> None:
        calls = replace_score(write_scores)

        path = write_run(
            tmp_path / "run",
            data,
            is_warmup=True,
            has_checkpoint=False,
            has_scores=False,
        )

        [run] = collect_runs([path], CollectOptions())

        assert calls == []
        assert run.translations is not None
        assert run.translations.no_scores == "the run has no checkpoint any more"

    def test_call_reports_failed_scoring(
        self, tmp_path: Path, data: Path, replace_score: ReplaceScore
    ) -> None:
        calls = replace_score(lambda path: None)

        path = write_run(tmp_path / "run", data, is_warmup=True, has_scores=False)

        with pytest.raises(WarmupError, match="does not hold the test split after"):
            collect_runs([path], CollectOptions())

        with pytest.raises(WarmupError, match="cannot be scored with .* `--no-score`"):
            collect_runs([path], CollectOptions(data=data))

        assert calls[1].data_dir == data

    def test_call_reads_translations_without_hypotheses(
        self, tmp_path: Path, data: Path
    ) -> None:
        path = write_run(tmp_path / "run", data, is_warmup=True)

        write_translations(path, is_warmup=True, has_hypotheses=False)

        [run] = collect_runs([path], CollectOptions())

        assert run.translations is not None
        assert run.translations.lines[0].hypotheses == []
