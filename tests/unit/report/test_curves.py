# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

from tests.unit.report.cases import Row, write_lines, write_rows
from warmup_plugin.report.curves import LOSS, MAX_NUM_POINTS, Curve, read_curves


def write_train(run_dir: Path, rows: list[Row]) -> None:
    write_rows(run_dir / "metrics" / "train.jsonl", rows)


class TestReadCurves:
    def test_call_returns_nothing_before_training(self, tmp_path: Path) -> None:
        assert read_curves(tmp_path, "dev").is_empty()

    def test_call_reads_both_files(self, tmp_path: Path) -> None:
        write_train(
            tmp_path,
            [
                {"Time": "b", "Step": 10, LOSS: 4.0, "Total Time": 5.0},
                {"Time": "c", "Step": 20, LOSS: 3, "Total Time": 25.0},
            ],
        )

        write_rows(
            tmp_path / "metrics" / "valid" / "dev.jsonl",
            [{"Time": "d", "Step": 15, "BLEU": 7.0}, {"Step": 25, "BLEU": 8.0}],
        )

        found = read_curves(tmp_path, "dev")

        assert found.train == {LOSS: Curve([10.0, 20.0], [5.0, 25.0], [4.0, 3.0])}

        # Between two records of training, and after the last one.
        assert found.valid == {"BLEU": Curve([15.0, 25.0], [15.0, 25.0], [7.0, 8.0])}

        assert (found.last_step, found.total_time) == (25, 25.0)
        assert (found.begin, found.end) == ("b", "d")
        assert found.unreadable == []

        assert read_curves(tmp_path, "other").valid == {}

    def test_call_finds_test_set(self, tmp_path: Path) -> None:
        write_rows(
            tmp_path / "metrics" / "valid" / "sacrebleu-wmt21-dev.jsonl",
            [{"Step": 15, "BLEU": 7.0}],
        )

        assert read_curves(tmp_path, "sacrebleu:wmt21/dev").valid

    def test_call_drops_what_a_resumed_run_repeats(self, tmp_path: Path) -> None:
        steps = [10, 20, 30, 20, 30, 40]

        write_train(
            tmp_path, [{"Step": s, LOSS: float(i)} for i, s in enumerate(steps)]
        )

        curve = read_curves(tmp_path, "dev").train[LOSS]

        assert curve.steps == [10.0, 20.0, 30.0, 40.0]
        assert curve.values == [0.0, 3.0, 4.0, 5.0]
        assert curve.times == [None] * 4

    def test_loss_with_label_smoothing_is_a_loss(self, tmp_path: Path) -> None:
        # Resumed with a version that tells the two apart.
        write_train(
            tmp_path,
            [{"Step": 1, LOSS: 3.0}, {"Step": 2, "Label-Smoothed Loss": 2.0}],
        )

        assert read_curves(tmp_path, "dev").train[LOSS].values == [3.0, 2.0]

    def test_call_skips_and_counts_broken_lines(self, tmp_path: Path) -> None:
        lines = ['{"Step": 1, "NLL Loss": 2.0}', "[]", '{"Step": 2, "NLL', "{}"]

        write_lines(tmp_path / "metrics" / "train.jsonl", lines)

        found = read_curves(tmp_path, "dev")

        assert found.train[LOSS].values == [2.0]
        assert found.unreadable == ["3 line(s) of metrics/train.jsonl"]

    def test_call_leaves_out_values_that_are_no_numbers(self, tmp_path: Path) -> None:
        lines = [
            f'{{"Step": {step}, "NLL Loss": {value}}}'
            for step, value in enumerate(
                ["NaN", "Infinity", "null", '"x"', "true", "3"]
            )
        ]

        write_lines(tmp_path / "metrics" / "train.jsonl", lines)

        assert read_curves(tmp_path, "dev").train[LOSS].values == [3.0]

    def test_call_averages_neighbours_of_long_curves(self, tmp_path: Path) -> None:
        num = 2 * MAX_NUM_POINTS + 2

        write_train(tmp_path, [{"Step": s, LOSS: float(s)} for s in range(1, num + 1)])

        curve = read_curves(tmp_path, "dev").train[LOSS]

        assert len(curve.steps) <= MAX_NUM_POINTS
        assert (curve.steps[0], curve.values[0]) == (3.0, 2.0)
        assert curve.steps[-1] == num
