# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np

from warmup_plugin.data.preparation.hash_set import HashSet, hash_text


class TestHashText:
    def test_call_returns_same_value_in_every_process(self) -> None:
        # Python's own `hash` of a text is salted.
        code = "from warmup_plugin.data.preparation.hash_set import hash_text; print(hash_text('ä'))"

        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout

        assert int(output) == hash_text("ä")
        assert hash_text("ä") != hash_text("a")
        assert 0 <= hash_text("ä") < 2**64

    def test_call_takes_half_a_surrogate_pair(self) -> None:
        assert hash_text("\ud800") != hash_text("\udc00")


class TestHashSet:
    def test_add_agrees_with_set(self) -> None:
        rng = random.Random(1)

        hashes, expected_set = HashSet(), set[int]()

        # Batches of all sizes, with duplicates inside and among them.
        for size in (0, 1, 1, 7, 300, 2, 0, 50, 1000, 3):
            batch = [rng.randrange(2**64 - 500, 2**64) for _ in range(size)]

            expected = []

            for value in batch:
                expected.append(value not in expected_set)
                expected_set.add(value)

            is_new = hashes.add(np.array(batch, dtype=np.uint64))

            assert is_new.tolist() == expected
            assert len(hashes) == len(expected_set)

    def test_add_keeps_few_runs(self) -> None:
        hashes = HashSet()

        for start in range(0, 4096, 4):
            hashes.add(np.arange(start, start + 4, dtype=np.uint64))

        sizes = [len(run) for run in hashes._runs]

        # Each at least twice as long as the next: their number grows with the logarithm.
        assert sum(sizes) == 4096
        assert all(a >= 2 * b for a, b in zip(sizes, sizes[1:]))
