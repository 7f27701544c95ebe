# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import hashlib
from typing import final

import numpy as np
from numpy.typing import NDArray


def hash_text(text: str) -> int:
    """
    Returns a 64-bit hash that is the same on every machine and in every run.

    That any two of 50 million texts share one by chance has a probability of 1 in 15,000.
    """
    # `surrogatepass`: a hash of what cannot be written is harmless.
    data = text.encode("utf-8", "surrogatepass")

    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@final
class HashSet:
    """
    Holds 64-bit hashes in 8 bytes each, where a ``set`` of ``int`` takes about 100.

    They are kept as sorted runs, each at least twice as long as the next, so that a
    batch is looked up in few of them and every hash is merged few times.
    """

    def __init__(self) -> None:
        self._runs: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def add(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """
        Adds a batch of hashes.

        :param hashes: The hashes. *Shape:* :math:`(N)`.

        :returns: ``True`` for each hash that was neither in the set nor earlier in the
            batch. *Shape:* Same as ``hashes``.
        """
        is_new = np.zeros(len(hashes), dtype=np.bool_)

        # Of equal hashes, the first in the batch.
        values, idxs = np.unique(hashes, return_index=True)

        unseen = np.ones(len(values), dtype=np.bool_)

        for run in self._runs:
            positions = np.searchsorted(run, values)

            unseen &= run[np.minimum(positions, len(run) - 1)] != values

        is_new[idxs[unseen]] = True

        self._append(values[unseen])

        return is_new

    def _append(self, run: NDArray[np.uint64]) -> None:
        if len(run) == 0:
            return

        while self._runs and len(self._runs[-1]) < 2 * len(run):
            run = np.concatenate([self._runs.pop(), run])

            # Both halves are sorted, which this kind makes use of.
            run.sort(kind="stable")

        self._runs.append(run)
