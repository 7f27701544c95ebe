# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Final

import pytest
import torch

from tests.common import assert_close, create_candidates, device
from warmup_plugin.criteria.health import CollapseDetector, WarmupShares, repetition

EINE, GRUPPE, ZWEI, PERSONEN, MANN, UND, HUND, MIT = range(10, 18)


class TestRepetition:
    def test_call_works(self) -> None:
        warmups = [
            # "Eine Gruppe Eine Gruppe (Eine Gruppe)", "Zwei Personen Personen Personen"
            [EINE, GRUPPE, EINE, GRUPPE],
            [EINE, GRUPPE, EINE, GRUPPE, EINE, GRUPPE],
            [ZWEI, PERSONEN, PERSONEN, PERSONEN],
            # The same pair in the middle of others.
            [MIT, EINE, GRUPPE, UND, EINE, GRUPPE, HUND, MANN],
            # Words that return, but with another neighbour.
            [EINE, MANN, UND, EINE, HUND, MIT, EINE, GRUPPE],
            [EINE, GRUPPE],
            [PERSONEN, PERSONEN],
            [MANN],
            [],
        ]

        shares = repetition(create_candidates([warmups], max_warmup_len=8))

        assert_close(shares, [[2 / 4, 4 / 6, 2 / 4, 2 / 8, 0.0, 0.0, 1 / 2, 0.0, 0.0]])

    def test_call_keeps_sources_apart(self) -> None:
        warmups = [[[EINE, GRUPPE], [EINE, GRUPPE]], [[MANN, MANN], [HUND]]]

        shares = repetition(create_candidates(warmups, max_warmup_len=8))

        # That candidates are equal is no repetition.
        assert_close(shares, [[0.0, 0.0], [0.5, 0.0]])

    @pytest.mark.parametrize("warmups", [[[[], []]], [[[MANN], []]]])
    def test_call_returns_zero_when_no_warmup_has_two_tokens(
        self, warmups: list[list[list[int]]]
    ) -> None:
        shares = repetition(create_candidates(warmups, max_warmup_len=8))

        assert_close(shares, [[0.0, 0.0]])

    def test_call_meets_plain_loop(self) -> None:
        torch.manual_seed(0)

        lens = torch.randint(0, 13, (4, 6), device=device).tolist()

        # Three words only, so that they meet again.
        warmups = [
            [torch.randint(5, 8, (n,), device=device).tolist() for n in source]
            for source in lens
        ]

        def count(warmup: list[int]) -> float:
            pairs = list(zip(warmup, warmup[1:]))

            repeats = set()

            for i, pair in enumerate(pairs):
                if pair in pairs[:i]:
                    repeats |= {i, i + 1}

                if pair[0] == pair[1]:
                    repeats.add(i + 1)

            return len(repeats) / max(len(warmup), 1)

        shares = repetition(create_candidates(warmups, max_warmup_len=12))

        assert_close(shares, [[count(warmup) for warmup in ws] for ws in warmups])


HEALTHY: Final = WarmupShares(empty=0.1, cut=0.3, duplicate=0.2, repetition=0.01)


class TestCollapseDetector:
    @staticmethod
    def run(
        caplog: pytest.LogCaptureFixture,
        shares: WarmupShares,
        *,
        num_steps: int = 300,
        first_step_nr: int = 1,
        num_warmups: int = 4,
    ) -> list[str]:
        """Updates a detector with the same shares at each step."""
        detector = CollapseDetector(num_warmups, max_warmup_len=8)

        caplog.clear()

        with caplog.at_level(logging.WARNING, logger="fairseq2"):
            for step_nr in range(first_step_nr, first_step_nr + num_steps):
                detector.update(step_nr, shares)

        return caplog.messages

    def test_update_warns_once(self, caplog: pytest.LogCaptureFixture) -> None:
        shares = WarmupShares(empty=0.0, cut=0.97, duplicate=0.1, repetition=0.6)

        messages = self.run(caplog, shares)

        assert len(messages) == 1

        for words in (
            "last 50 batches, up to step 100",
            "60 % of their tokens are repetitions, 97 % are cut at 8 tokens.",
            "`init_from`",
            "`warmup.sft_weight`",
            "`warmup.entropy_weight`",
            "`warmup.max_warmup_len`",
            "`warmup.weight_temperature`",
        ):
            assert words in messages[0]

        for words in ("empty", "equal"):
            assert words not in messages[0]

    @pytest.mark.parametrize(
        ("shares", "words"),
        [
            (replace(HEALTHY, empty=0.9), "90 % are empty"),
            (replace(HEALTHY, duplicate=0.7), "70 % equal an earlier one"),
            (replace(HEALTHY, repetition=0.3), "30 % of their tokens are repetitions"),
        ],
    )
    def test_update_warns_when_one_share_is_high(
        self, caplog: pytest.LogCaptureFixture, shares: WarmupShares, words: str
    ) -> None:
        (message,) = self.run(caplog, shares)

        assert f"look like a collapse: {words}" in message

        assert "are cut" not in message

    @pytest.mark.parametrize(
        "shares",
        [
            HEALTHY,
            replace(HEALTHY, cut=0.9),
            replace(HEALTHY, empty=0.6, duplicate=0.5),
            replace(HEALTHY, repetition=0.1),
        ],
    )
    def test_update_does_not_warn_when_warmups_are_healthy(
        self, caplog: pytest.LogCaptureFixture, shares: WarmupShares
    ) -> None:
        assert not self.run(caplog, shares)

    def test_update_gives_models_time_to_learn_the_separator(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        # What a model from SFT writes at first.
        shares = replace(HEALTHY, cut=1.0)

        assert not self.run(caplog, shares, num_steps=200)

        (message,) = self.run(caplog, shares, num_steps=201)

        assert "look like a collapse: 100 % are cut at 8 tokens." in message

    def test_update_judges_duplicates_by_num_warmups(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Of two equal candidates one is a duplicate: there cannot be more.
        shares = replace(HEALTHY, duplicate=0.5)

        assert self.run(caplog, shares, num_warmups=2)

        assert not self.run(caplog, shares, num_warmups=8)

        assert not self.run(caplog, replace(HEALTHY, duplicate=0.0), num_warmups=1)

    def test_update_does_not_warn_in_first_window(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        shares = replace(HEALTHY, repetition=0.6)

        assert not self.run(caplog, shares, num_steps=99)

        assert self.run(caplog, shares, num_steps=100)

        # A run that resumes later has its start behind it.
        assert not self.run(caplog, shares, num_steps=49, first_step_nr=3001)

        assert self.run(caplog, shares, num_steps=50, first_step_nr=3001)

    def test_update_forgets_steps_before_window(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        detector = CollapseDetector(4, max_warmup_len=8)

        sick = replace(HEALTHY, repetition=0.6)

        with caplog.at_level(logging.WARNING, logger="fairseq2"):
            # Bad at the start, then well for long: forgiven.
            for step_nr in range(1, 400):
                detector.update(step_nr, sick if step_nr <= 60 else HEALTHY)

            assert not caplog.messages

            # The mean passes 0.15 when more than 0.14 / 0.59 of 50 are bad.
            for step_nr in range(400, 411):
                detector.update(step_nr, sick)

            assert not caplog.messages

            detector.update(411, sick)

            assert len(caplog.messages) == 1
