# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any

import pytest

from warmup_plugin.warmup_lens import (
    get_max_warmup_len,
    has_empty_warmup,
    interpolate_len,
    writes_warmups,
)

SCHEDULE = [[200, 24], [600, 0], [700, 0], [800, 10]]


class TestWritesWarmups:
    @pytest.mark.parametrize(
        "section,expected",
        [
            # Runs of earlier versions have no more.
            ({"name": "sft"}, False),
            ({"name": "warmup"}, True),
            ({"name": "warmup", "writes_warmups": None}, True),
            ({"name": "mine", "writes_warmups": False}, False),
            ({"name": "mine", "writes_warmups": True}, True),
        ],
    )
    def test_call_knows_what_run_learns(
        self, section: dict[str, Any], expected: bool
    ) -> None:
        assert writes_warmups({"criterion": section}) == expected


class TestInterpolateLen:
    @pytest.mark.parametrize(
        ("step_nr", "length"),
        [
            (0, 24),
            (1, 24),
            (200, 24),
            # A token less every 16 2/3 steps.
            (201, 23),
            (216, 23),
            (217, 22),
            (400, 12),
            (599, 0),
            (600, 0),
            (650, 0),
            (709, 0),
            (710, 1),
            (800, 10),
            (9999, 10),
        ],
    )
    def test_length_changes_evenly(self, step_nr: int, length: int) -> None:
        assert interpolate_len(30, SCHEDULE, step_nr) == length

    @pytest.mark.parametrize("schedule", [None, []])
    def test_length_is_the_same_without_schedule(self, schedule: Any) -> None:
        assert interpolate_len(30, schedule, 5) == 30

    def test_one_pair_is_a_length(self) -> None:
        assert [interpolate_len(9, [[5, 3]], n) for n in (0, 5, 9)] == [3, 3, 3]


class TestGetMaxWarmupLen:
    def test_run_of_earlier_version_has_no_schedule(self) -> None:
        assert get_max_warmup_len({"max_warmup_len": 8}, 500) == 8

    def test_schedule_of_run_is_followed(self) -> None:
        warmup = {"max_warmup_len": 30, "len_schedule": SCHEDULE}

        assert get_max_warmup_len(warmup, 400) == 12


class TestHasEmptyWarmup:
    @pytest.mark.parametrize(
        ("criterion", "warmup", "expected"),
        [
            ("warmup", {"plain_path": "empty"}, True),
            ("mine", {"plain_path": "empty"}, True),
            ("warmup", {"plain_path": "bare"}, False),
            # Of an earlier version.
            ("warmup", {}, False),
            ("sft", {"plain_path": "empty"}, False),
        ],
    )
    def test_call_works(
        self, criterion: str, warmup: dict[str, str], expected: bool
    ) -> None:
        config = {
            "criterion": {"name": criterion},
            "warmup": {"max_warmup_len": 8, **warmup},
        }

        assert has_empty_warmup(config) is expected

    def test_all_warmups_are_empty_at_the_end_of_a_curriculum(self) -> None:
        warmup = {"plain_path": "bare", "max_warmup_len": 0}

        for criterion, expected in (("warmup", True), ("sft", False)):
            config = {"criterion": {"name": criterion}, "warmup": warmup}

            assert has_empty_warmup(config) is expected
