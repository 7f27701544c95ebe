# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from warmup_plugin.metrics.base import Measurement, measure_mean
from warmup_plugin.metrics.wins import compare_sentences, measure_lengths


def _mean(scores: Sequence[float]) -> Measurement:
    return measure_mean("x", "X", scores, "nrefs:1")


class TestCompareSentences:
    def test_call_counts_wins_ties_and_losses(self) -> None:
        baseline = _mean([1, 1, 1, 1, 1])

        # What differs by less than rounding is a tie.
        system = _mean([2, 1 + 1e-7, 1, 0.5, 4])

        comparison = compare_sentences(baseline, system, [1] * 5)

        assert comparison is not None

        total = comparison.total

        assert (total.wins, total.ties, total.losses) == (2, 2, 1)
        assert total.num_sentences == 5
        assert total.baseline_score == 1.0
        assert total.score == pytest.approx(1.7)
        assert total.min_length is total.max_length is None

        assert comparison.largest_gains == [4, 0]
        assert comparison.largest_losses == [3]
        assert comparison.differences == pytest.approx([1, 0, 0, -0.5, 3], abs=1e-6)

    def test_lower_scores_win_when_lower_is_better(self) -> None:
        baseline, system = (
            replace(_mean(scores), higher_is_better=False)
            for scores in ([1, 1, 1], [0, 0, 2])
        )

        comparison = compare_sentences(baseline, system, [1] * 3)

        assert comparison is not None
        assert (comparison.total.wins, comparison.total.losses) == (2, 1)
        assert comparison.largest_losses == [2]

    def test_call_splits_by_length(self) -> None:
        lengths = [8, 1, 2, 7, 3, 6, 4, 5]

        # One better where the length is above 4.
        system = _mean([length > 4 for length in lengths])

        comparison = compare_sentences(_mean([0.5] * 8), system, lengths)

        assert comparison is not None

        rows = [
            (b.min_length, b.max_length, b.num_sentences, b.wins, b.score)
            for b in comparison.buckets
        ]

        assert sum(b.num_sentences for b in comparison.buckets) == 8

        assert rows == [(1, 2, 2, 0, 0.0), (3, 4, 2, 0, 0.0)] + [
            (5, 6, 2, 2, 1.0),
            (7, 8, 2, 2, 1.0),
        ]

    @pytest.mark.parametrize(
        "lengths,ranges",
        [
            ([3] * 6, [(3, 3)]),
            ([1, 1, 1, 1, 1, 9], [(1, 1), (9, 9)]),
            ([1, 2], [(1, 1), (2, 2)]),
            ([5], [(5, 5)]),
        ],
    )
    def test_sentences_of_equal_length_share_a_bucket(
        self, lengths: list[int], ranges: list[tuple[int, int]]
    ) -> None:
        scores = _mean(lengths)

        comparison = compare_sentences(scores, scores, lengths)

        assert comparison is not None
        assert [(b.min_length, b.max_length) for b in comparison.buckets] == ranges

    def test_examples_are_as_many_as_asked_for(self) -> None:
        comparison = compare_sentences(
            _mean([0] * 9),
            _mean([1, 2, 3, 4, 4, -1, -2, -3, -3]),
            [1] * 9,
            num_examples=2,
        )

        assert comparison is not None

        # Of equal ones the first.
        assert comparison.largest_gains == [3, 4]
        assert comparison.largest_losses == [7, 8]

    def test_call_returns_none_when_sentences_have_no_scores(self) -> None:
        scores = replace(_mean([1, 2]), sentence_fn=None)

        assert compare_sentences(scores, scores, [1, 1]) is None


class TestMeasureLengths:
    def test_words_are_counted_where_there_are_spaces(self) -> None:
        # A long word, and a line that holds what is no line end.
        lines = ["a b  c", "", "Donaudampfschifffahrtsgesellschaft", "a\u2028b\tc " * 9]

        assert measure_lengths(lines) == ("words", [3, 0, 1, 27])

    def test_characters_are_counted_where_there_are_none(self) -> None:
        lines = ["我喜欢吃苹果我喜欢吃苹果我喜欢吃苹果我喜欢吃", "你好"]

        assert measure_lengths(lines) == ("characters", [22, 2])
