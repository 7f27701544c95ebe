# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence

import pytest

from warmup_plugin.generation.reranking import rank_by_metric, rank_by_utility
from warmup_plugin.metrics.base import References

_SOURCES = ["s", "tt"]

_CANDIDATES = [["a", "bbb", "a", "cc"], ["d"]]


class FakeMetric:
    """A score that depends on which text is what."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(
        self,
        hypotheses: Sequence[str],
        references: References,
        sources: Sequence[str],
    ) -> Sequence[float]:
        self.num_calls += 1

        return [
            score(h, r[0] if r else None, s)
            for h, r, s in zip(hypotheses, references, sources, strict=True)
        ]


def score(hypothesis: str, reference: str | None, source: str) -> float:
    value = len(hypothesis) + 10.0 * len(source)

    return value if reference is None else value / (1 + len(reference) ** 2)


def test_quality_ranks_distinct_outputs() -> None:
    metric = FakeMetric()

    first, second = rank_by_metric(metric, _SOURCES, _CANDIDATES)

    assert [(o.text, o.score, o.weight) for o in first] == [
        ("bbb", 13.0, 0.25),
        ("cc", 12.0, 0.25),
        ("a", 11.0, 0.5),
    ]

    assert [(o.text, o.score, o.weight) for o in second] == [("d", 21.0, 1.0)]

    assert metric.num_calls == 1


def test_utility_is_mean_over_all_candidates() -> None:
    metric = FakeMetric()

    first, second = rank_by_utility(metric, _SOURCES, _CANDIDATES)

    expected = {
        text: sum(score(text, other, "s") for other in _CANDIDATES[0]) / 4
        for text in ("bbb", "cc", "a")
    }

    assert {o.text: o.score for o in first} == pytest.approx(expected)

    # Best first.
    assert [o.text for o in first] == ["bbb", "cc", "a"]
    assert [o.weight for o in first] == [0.25, 0.25, 0.5]

    assert [(o.text, o.score) for o in second] == [("d", score("d", "d", "tt"))]

    assert metric.num_calls == 1


def test_nothing_is_ranked_without_candidates() -> None:
    for rank in (rank_by_metric, rank_by_utility):
        assert rank(FakeMetric(), [], []) == []
