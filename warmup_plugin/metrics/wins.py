# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Where two systems differ: sentence by sentence, and by length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

from warmup_plugin.metrics.base import Measurement

# COMET's scores of one sentence differ by 1e-7 with the batch it was in.
_TOLERANCE: Final = 1e-6


@final
@dataclass(frozen=True)
class Outcome:
    """Counts the sentences at which a system is better or worse than the baseline."""

    num_sentences: int

    wins: int

    ties: int

    losses: int

    baseline_score: float
    """The corpus score of these sentences."""

    score: float

    min_length: int | None = None
    """The least length of a source here; ``None`` for all sentences."""

    max_length: int | None = None


@final
@dataclass(frozen=True)
class SentenceComparison:
    """Holds the comparison of a system with the baseline by one metric."""

    total: Outcome

    buckets: Sequence[Outcome]
    """The same by the length of the source, from the shortest to the longest."""

    largest_gains: Sequence[int]
    """The indices of the sentences that a system wins most clearly."""

    largest_losses: Sequence[int]

    differences: Sequence[float]
    """By sentence; above 0 where the system is better."""


def compare_sentences(
    baseline: Measurement,
    system: Measurement,
    lengths: Sequence[int],
    *,
    num_buckets: int = 4,
    num_examples: int = 3,
) -> SentenceComparison | None:
    """
    Compares two systems sentence by sentence.

    :param lengths: The lengths of the sources. Buckets are cut at their quantiles, so
        that they hold about as many sentences each, and never apart equal lengths.

    :returns: ``None`` if the metric scores no single sentences.
    """
    baseline_scores, scores = baseline.sentence_scores(), system.sentence_scores()

    if baseline_scores is None or scores is None:
        return None

    differences = scores - baseline_scores

    if not system.higher_is_better:
        differences = -differences

    # Equally long sentences have to share a bucket.
    edges = np.unique(
        np.quantile(lengths, np.arange(1, num_buckets) / num_buckets, method="lower")
    )

    bucket_indices = np.searchsorted(edges, lengths, side="left")

    def summarize(mask: NDArray[np.bool_], *, has_length: bool) -> Outcome:
        chosen = np.asarray(lengths)[mask]

        return Outcome(
            int(mask.sum()),
            int((differences[mask] > _TOLERANCE).sum()),
            int((np.abs(differences[mask]) <= _TOLERANCE).sum()),
            int((differences[mask] < -_TOLERANCE).sum()),
            baseline.score_subset(mask),
            system.score_subset(mask),
            int(chosen.min()) if has_length else None,
            int(chosen.max()) if has_length else None,
        )

    order = np.argsort(differences, kind="stable")

    losses = [int(n) for n in order[:num_examples] if differences[n] < -_TOLERANCE]

    # Of equal gains the first in the file.
    order = np.argsort(-differences, kind="stable")

    gains = [int(n) for n in order[:num_examples] if differences[n] > _TOLERANCE]

    return SentenceComparison(
        summarize(np.ones(len(lengths), dtype=np.bool_), has_length=False),
        [
            summarize(bucket_indices == idx, has_length=True)
            for idx in np.unique(bucket_indices)
        ],
        gains,
        losses,
        differences.tolist(),
    )


def measure_lengths(lines: Sequence[str]) -> tuple[str, list[int]]:
    """
    Measures the lengths of texts.

    :returns: ``words``, or ``characters`` if the writing separates no words, and the
        lengths.
    """
    # Even a short sentence of words has a space within so many characters.
    long_lines = [line for line in lines if len(line) > 20]

    num_unspaced = sum(" " not in line for line in long_lines)

    if 2 * num_unspaced > len(long_lines):
        return "characters", [len(line) for line in lines]

    return "words", [len(line.split()) for line in lines]
