# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import numpy as np
import pytest

from warmup_plugin.data import batching
from warmup_plugin.data.batching import shuffled_batches, sorted_batches


class TestSortedBatches:
    def test_call_sorts_and_cuts(self) -> None:
        lens = np.array([2, 5, 3, 3, 1, 30])

        batches = sorted_batches(lens, 9)

        # 30 > 9 goes alone; 1 x 5; 3 x 3; 1 is left over.
        assert [b.tolist() for b in batches] == [[5], [1], [2, 3, 0], [4]]

    def test_call_keeps_budget_and_each_row_once(self) -> None:
        lens = np.random.default_rng(1).integers(1, 60, size=5000)

        batches = sorted_batches(lens, 500)

        assert all(len(b) * lens[b].max() <= 500 for b in batches)
        assert sorted(np.concatenate(batches).tolist()) == list(range(5000))

        # Similar lengths, hence hardly any padding.
        num_padded = sum(len(b) * int(lens[b].max()) for b in batches)

        assert num_padded < 1.05 * lens.sum()

    def test_call_returns_nothing_when_there_are_no_rows(self) -> None:
        assert sorted_batches(np.array([], dtype=np.int64), 10) == []


class TestShuffledBatches:
    def test_call_keeps_budget_and_each_row_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(batching, "SORT_WINDOW", 1000)

        rng = np.random.default_rng(1)

        source_lens, target_lens = rng.integers(1, 60, size=(2, 3500))

        batches = shuffled_batches(source_lens, target_lens, 900, seed=1, epoch=0)

        lens = np.maximum(source_lens, target_lens)

        assert all(len(b) * lens[b].max() <= 900 for b in batches)
        assert sorted(np.concatenate(batches).tolist()) == list(range(3500))

        # Similar lengths go together, long and short batches take turns.
        assert sum(len(b) * int(lens[b].max()) for b in batches) < 1.1 * lens.sum()

        widths = [int(lens[b].max()) for b in batches]

        assert widths != sorted(widths) and widths != sorted(widths, reverse=True)

    def test_call_depends_on_seed_and_epoch_only(self) -> None:
        lens = np.full(100, 5)

        def call(seed: int, epoch: int) -> list[list[int]]:
            batches = shuffled_batches(lens, lens, 20, seed=seed, epoch=epoch)

            return [b.tolist() for b in batches]

        assert call(1, 0) == call(1, 0)

        # Not only the batches are in another order, their rows are others.
        assert {frozenset(b) for b in call(1, 0)} != {frozenset(b) for b in call(1, 1)}
        assert call(1, 1) != call(2, 1)
        assert call(1, 2) != call(2, 1)

    def test_call_puts_similar_sources_together(self) -> None:
        source_lens = np.array([1, 9] * 8)

        batches = shuffled_batches(source_lens, np.full(16, 9), 36, seed=1, epoch=0)

        assert [len(set(source_lens[b])) for b in batches] == [1] * 4

    def test_call_is_stable_over_versions(self) -> None:
        lens = np.array([1, 1, 1, 1, 1, 2, 2, 2])

        batches = shuffled_batches(lens, lens, 4, seed=7, epoch=3)

        assert [b.tolist() for b in batches] == [[4, 3, 1, 0], [7, 5], [6, 2]]
