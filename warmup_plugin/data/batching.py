# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

SORT_WINDOW: Final = 65_536
"""The number of shuffled pairs that are sorted by length together."""


def sorted_batches(
    lens: NDArray[np.int64], max_num_tokens: int
) -> list[NDArray[np.int64]]:
    """
    Cuts rows, sorted by length, into batches within a token budget.

    The longest rows come first, so that a batch that does not fit in memory fails at
    the start.

    :param lens: The length of each row; that of its longer side, if it has two.
        *Shape:* :math:`(N)`.
    :param max_num_tokens: The limit of rows times the longest of them. A row that is
        longer than that is a batch of its own.

    :returns: The rows of each batch; each row is in one batch.
    """
    return _cut_batches(_sort_longest_first(lens), lens, max_num_tokens)


def shuffled_batches(
    source_lens: NDArray[np.int64],
    target_lens: NDArray[np.int64],
    max_num_tokens: int,
    *,
    seed: int,
    epoch: int,
) -> list[NDArray[np.int64]]:
    """
    Cuts rows into batches of similar lengths, in a new random order every epoch.

    Rows are shuffled, sorted by length within windows of ``SORT_WINDOW``, cut, and the
    batches shuffled. The result depends on the arguments only, so that ranks agree on
    it without talking to each other.

    :param source_lens: The length of each source. *Shape:* :math:`(N)`.
    :param target_lens: The length of each target. *Shape:* :math:`(N)`.
    :param max_num_tokens: The token budget as of :func:`sorted_batches`.
    :param seed: The seed of the run.
    :param epoch: The pass over the data, counted from 0.
    """
    bit_generator = np.random.PCG64(np.random.SeedSequence([seed, epoch]))

    lens = np.maximum(source_lens, target_lens)

    order = _permute(len(lens), bit_generator)

    batches = []

    for start in range(0, len(order), SORT_WINDOW):
        window = order[start : start + SORT_WINDOW]

        # Among rows of one length those with similar sources go together; the rest
        # stays as shuffled, since the sort is stable.
        window = window[_sort_longest_first(lens[window], source_lens[window])]

        batches.extend(_cut_batches(window, lens, max_num_tokens))

    return [batches[idx] for idx in _permute(len(batches), bit_generator)]


def count_by_temperature(
    sizes: NDArray[np.int64], temperature: float
) -> NDArray[np.int64]:
    """
    Shares out as many rows as there are among groups.

    :param sizes: The number of rows of each group, 1 at least. *Shape:* :math:`(D)`.
    :param temperature: T; the share of a group is proportional to size ** (1 / T).

    :returns: The number of rows that each group gets, 1 at least; their sum is that of
        the sizes. *Shape:* :math:`(D)`.
    """
    weights = (sizes / sizes.max()) ** (1.0 / temperature)

    quotas = sizes.sum() * weights / weights.sum()

    counts: NDArray[np.int64] = np.floor(quotas).astype(np.int64)

    num_left = int(sizes.sum() - counts.sum())

    # The largest remainders, of equal ones the first.
    counts[np.argsort(counts - quotas, kind="stable")[:num_left]] += 1

    for idx in np.flatnonzero(counts == 0):
        counts[counts.argmax()] -= 1

        counts[idx] = 1

    return counts


def sample_rows(
    groups: NDArray[np.int16], counts: NDArray[np.int64], *, seed: int, epoch: int
) -> NDArray[np.int64]:
    """
    Draws the rows of an epoch, of each group as many as it gets.

    A group that gets more than it has is taken whole, as often as it goes, and what is
    missing is drawn without replacement, anew every epoch. The result depends on the
    arguments only.

    :param groups: The group of each row. *Shape:* :math:`(N)`.
    :param counts: See :func:`count_by_temperature`. *Shape:* :math:`(D)`.

    :returns: Rows, some of them several times. *Shape:* :math:`(N)`.
    """
    # Not the numbers that shuffle.
    bit_generator = np.random.PCG64(np.random.SeedSequence([seed, epoch, 1]))

    parts = []

    for group, count in enumerate(counts.tolist()):
        rows = np.flatnonzero(groups == group)

        num_copies, num_more = divmod(count, len(rows))

        parts += [rows] * num_copies

        parts.append(rows[_permute(len(rows), bit_generator)[:num_more]])

    return np.concatenate(parts)


def _permute(size: int, bit_generator: np.random.PCG64) -> NDArray[np.int64]:
    # NumPy keeps the raw stream of a bit generator stable over versions, but not what
    # `Generator.permutation` makes of it; a resumed run needs the same order.
    keys = bit_generator.random_raw(size)

    return np.argsort(keys, kind="stable")


def _sort_longest_first(
    lens: NDArray[np.int64], tie_lens: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    keys = (-lens,) if tie_lens is None else (-tie_lens, -lens)

    return np.lexsort(keys)


def _cut_batches(
    order: NDArray[np.int64], lens: NDArray[np.int64], max_num_tokens: int
) -> list[NDArray[np.int64]]:
    batches = []

    start = 0

    while start < len(order):
        # The first row is the longest and decides the width.
        num_rows = max(1, max_num_tokens // int(lens[order[start]]))

        batches.append(order[start : start + num_rows])

        start += num_rows

    return batches
