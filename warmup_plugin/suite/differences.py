# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The differences of systems from baselines, and their tests over sentences and seeds."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

from warmup_plugin.metrics.base import Measurement
from warmup_plugin.metrics.resampling import randomization_p_values_of_groups

# All signs of so many differences are tried out; of more, none.
_MAX_SIGN_FLIPS: Final = 14

# Scores are at most about 100; what is closer than this differs by rounding.
_TOLERANCE: Final = 1e-9


Pair: TypeAlias = tuple[Measurement, Measurement]
"""A baseline and a system that were trained with one seed."""


@final
@dataclass(frozen=True)
class SeedDifference:
    """Holds the difference of two systems that were trained with one seed."""

    difference: float

    p_randomization: float | None

    pairs: Sequence[Pair]
    """What it is tested by, one a direction; empty if that is not known."""


@final
@dataclass(frozen=True)
class Difference:
    """Holds the difference of a system from a baseline by one metric."""

    by_seed: Mapping[int, SeedDifference]

    p_sentences: float | None
    """Of approximate randomization over the sentences, all seeds together."""

    @property
    def differences(self) -> list[float]:
        return [entry.difference for entry in self.by_seed.values()]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def deviation(self) -> float | None:
        return deviation(self.differences)

    @property
    def p_seeds(self) -> float | None:
        """Of all sign flips of the differences of the seeds; see the function."""
        return sign_flip_p_value(self.differences)

    @property
    def p_range(self) -> tuple[float, float] | None:
        """The least and the largest p-value of a seed."""
        values = [
            entry.p_randomization
            for entry in self.by_seed.values()
            if entry.p_randomization is not None
        ]

        return (min(values), max(values)) if values else None


def make_difference(
    by_seed: Mapping[int, SeedDifference], num_directions: int = 1
) -> Difference:
    """Tests all seeds together."""
    entries = list(by_seed.values())

    # One seed has been tested already.
    if len(entries) == 1:
        return Difference(by_seed, entries[0].p_randomization)

    pairs = [pair for entry in entries for pair in entry.pairs]

    return Difference(by_seed, _test(pairs, len(entries) * num_directions))


def average_differences(
    parts: Sequence[Mapping[str, Difference]],
) -> dict[str, Difference]:
    """
    Averages the differences of a system from a baseline.

    :param parts: Those of each direction, by the key of the score.
    """
    averages = {}

    for key in parts[0]:
        if not all(key in part for part in parts):
            continue

        by_seeds = [part[key].by_seed for part in parts]

        by_seed = {}

        for seed in by_seeds[0]:
            if all(seed in entry for entry in by_seeds):
                each = [entry[seed] for entry in by_seeds]

                pairs = [pair for entry in each for pair in entry.pairs]

                by_seed[seed] = SeedDifference(
                    statistics.fmean(entry.difference for entry in each),
                    _test(pairs, len(parts)),
                    pairs,
                )

        if by_seed:
            averages[key] = make_difference(by_seed, len(parts))

    return averages


def _test(pairs: Sequence[Pair], num_pairs: int) -> float | None:
    """:returns: ``None`` if there are not as many pairs, or no more than a sentence."""
    if len(pairs) != num_pairs or all(len(base.stats) < 2 for base, _ in pairs):
        return None

    [p_value] = randomization_p_values_of_groups([pairs])

    return p_value


def sign_flip_p_value(differences: Sequence[float]) -> float | None:
    """
    Tests whether the mean of paired differences could be 0, by all their sign flips.

    The exact test of paired trainings: the share of the :math:`2^n` ways to exchange
    the two of a pair whose mean is at least as far from 0. With n pairs it is at least
    :math:`2^{1-n}`: 0.25 with three.

    :returns: ``None`` if there are too many differences, or none.
    """
    if not 1 <= len(differences) <= _MAX_SIGN_FLIPS:
        return None

    observed = abs(sum(differences)) - _TOLERANCE

    signs = itertools.product((1.0, -1.0), repeat=len(differences))

    num_extreme = sum(
        abs(sum(s * d for s, d in zip(row, differences))) >= observed for row in signs
    )

    return num_extreme / 2.0 ** len(differences)


def deviation(values: Sequence[float]) -> float | None:
    """Returns the sample standard deviation; ``None`` of less than two values."""
    return statistics.stdev(values) if len(values) > 1 else None
