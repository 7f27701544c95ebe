# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Intervals and significance tests of corpus scores, by resampling sentences.

All metrics and systems see the same resamples. These are the ones that sacreBLEU draws
from the same seed, and where no two resamples tie the p-values of BLEU, chrF++ and TER
are those of its ``PairedTest``. But the statistics of the sentences are extracted once,
for scores, intervals and both tests, and every metric is tested alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Final

import numpy as np

from warmup_plugin.errors import check_least
from warmup_plugin.metrics.base import FloatArray, Measurement

DEFAULT_SEED: Final = 12345
"""The seed of all resampling; sacreBLEU's own default."""

LEAST_SEED: Final = 1
"""sacreBLEU reads a seed of 0 as no seed."""

NUM_TRIALS: Final = 10_000
"""The number of trials of the approximate randomization, in every command."""

MIN_SENTENCES: Final = 100
"""From so many sentences on, intervals and p-values are shown without a warning."""


def warn_of_few_sentences(num_sentences: int) -> str | None:
    """Returns what is to be said of resampling so many sentences; ``None`` if they are
    enough."""
    if num_sentences == 1:
        return "One sentence has no interval and no p-value."

    if num_sentences < MIN_SENTENCES:
        return (
            f"Only {num_sentences} sentences: intervals are too narrow and p-values "
            f"uncertain with fewer than {MIN_SENTENCES}."
        )

    return None


# The most numbers that one block of resamples holds at a time, 32 MB.
_BLOCK_SIZE: Final = 4_000_000

# Scores are at most about 100; what is closer than this differs by rounding.
_TOLERANCE: Final = 1e-9


def resample_scores(
    measurements: Sequence[Measurement],
    num_samples: int,
    *,
    seed: int = DEFAULT_SEED,
) -> list[FloatArray]:
    """
    Scores bootstrap resamples: as many sentences, drawn with replacement.

    :param measurements: All of the same sentences.

    :returns: For each measurement, the scores of the resamples. *Shape:* :math:`(R)`.
    """
    check_least("num_samples", num_samples, 1)
    check_least("seed", seed, LEAST_SEED)

    num_sentences = len(measurements[0].stats)

    rng = np.random.default_rng(seed)

    scores: list[list[FloatArray]] = [[] for _ in measurements]

    for num_rows in _split(num_samples, num_sentences):
        # (R, N)
        drawn = rng.choice(num_sentences, size=(num_rows, num_sentences))

        # Each row counts in a range of its own.
        drawn += np.arange(num_rows)[:, None] * num_sentences

        counts = np.bincount(drawn.ravel(), minlength=drawn.size)

        # How often each sentence was drawn: a product then sums the statistics without
        # a copy of them.
        # (R, N)
        weights = counts.reshape(drawn.shape).astype(np.float64)

        for measurement, blocks in zip(measurements, scores):
            # (R, N) x (N, D) -> (R)
            blocks.append(measurement.score_sums(weights @ measurement.stats))

    return [np.concatenate(blocks) for blocks in scores]


def bootstrap_interval(scores: FloatArray) -> tuple[float, float]:
    """Returns the 95% interval of the scores of resamples, by their percentiles."""
    # sacreBLEU's own is half a range around the mean, hence symmetric.
    low, high = np.percentile(scores, [2.5, 97.5])

    return float(low), float(high)


def bootstrap_p_value(
    baseline: Measurement,
    system: Measurement,
    baseline_scores: FloatArray,
    system_scores: FloatArray,
) -> float:
    """
    Tests by paired bootstrap (Koehn, 2004) whether two systems differ.

    As in sacreBLEU and multeval: the share of resamples whose absolute difference lies
    above the mean of all by at least the observed one, which is counted as one of them.
    Since the absolute value is taken before the mean is subtracted, p is about half of
    what a two-sided test gives; :func:`randomization_p_values_of_groups` is two-sided. A system
    whose score is that of the baseline has p = 1.

    :param baseline_scores: Of :func:`resample_scores`, as ``system_scores``.
    """
    difference = abs(baseline.score - system.score)

    if difference == 0.0:
        return 1.0

    differences = np.abs(system_scores - baseline_scores)

    return _count_extreme(differences - differences.mean(), difference)


def randomization_p_values_of_groups(
    groups: Sequence[Sequence[tuple[Measurement, Measurement]]],
    num_trials: int = NUM_TRIALS,
    *,
    seed: int = DEFAULT_SEED,
) -> list[float]:
    """
    Tests by approximate randomization (Riezler and Maxwell, 2005) whether systems differ
    from their baselines, in either direction, by the mean of the differences of a group.

    If they did not, nothing would change when the two outputs of a sentence are
    swapped. Each trial swaps those of every other sentence or so; the p-value is the
    share of trials whose difference is at least the observed one, which is counted as
    one of them.

    Unlike sacreBLEU, equal differences count: where they are common, as with accuracy
    or systems that differ in few sentences, leaving them out makes any difference
    significant. A system tested against itself has p = 1.

    As in MultEval (Clark et al., 2011) several trainings of each are tested together.
    But a trial swaps the two outputs of a sentence in all of them at once: the outputs
    for one sentence are alike, so that n trainings are not n times as many sentences.
    The p-value is about other sentences, not about other trainings.

    Of a group with several test sets, such as those of several directions, a trial swaps
    the outputs of line n in all of them, whose lines may be translations of each other,
    and the mean counts each test set alike.

    :param groups: Pairs of a baseline and a system, one a training and test set.
    """
    check_least("num_trials", num_trials, 1)
    check_least("seed", seed, LEAST_SEED)

    if not groups:
        return []

    num_sentences = max(
        len(baseline.stats) for group in groups for baseline, _ in group
    )

    rng = np.random.default_rng(seed)

    differences: list[list[FloatArray]] = [[] for _ in groups]

    for num_rows in _split(num_trials, num_sentences):
        # (R, N)
        keeps = rng.integers(2, size=(num_rows, num_sentences), dtype=np.bool_)

        weights = keeps.astype(np.float64)

        for group, blocks in zip(groups, differences):
            # (R)
            total: FloatArray = np.zeros(num_rows)

            for baseline, system in group:
                # What the first of the two gains over being the system throughout.
                # (R, N) x (N, D) -> (R, D)
                moved = weights[:, : len(system.stats)] @ (
                    baseline.stats - system.stats
                )

                total += system.score_sums(system.stats.sum(axis=0) + moved)
                total -= system.score_sums(baseline.stats.sum(axis=0) - moved)

            blocks.append(np.abs(total / len(group)))

    return [
        _count_extreme(
            np.concatenate(blocks), abs(fmean(a.score - b.score for a, b in group))
        )
        for group, blocks in zip(groups, differences)
    ]


def sign_with_test(signature: str, test: str, num_samples: int, seed: int) -> str:
    """
    Adds a test to a signature, as sacreBLEU does.

    :param test: ``bs`` for the bootstrap, ``ar`` for approximate randomization.
    """
    head, _, tail = signature.partition("|")

    return f"{head}|{test}:{num_samples}|seed:{seed}|{tail}"


def _count_extreme(stats: FloatArray, difference: float) -> float:
    num_extreme = int(np.count_nonzero(stats >= difference - _TOLERANCE))

    return (num_extreme + 1) / (len(stats) + 1)


def _split(num_rows: int, row_size: int) -> Iterator[int]:
    """Splits resamples into blocks that fit in memory."""
    # NumPy draws 32 truth values at a time and drops what is left of them: with blocks
    # of whole 32 rows their number changes nothing.
    max_rows = max(_BLOCK_SIZE // (32 * row_size), 1) * 32

    while num_rows > 0:
        yield min(num_rows, max_rows)

        num_rows -= max_rows
