# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import numpy as np
import pytest

from warmup_plugin.data import batching
from warmup_plugin.data.batching import (
    count_by_temperature,
    sample_rows,
    shuffled_batches,
    sorted_batches,
)


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


class TestCountByTemperature:
    @pytest.mark.parametrize("sizes", [[7], [1, 2, 3], [100_000_000, 3, 17]])
    def test_one_leaves_sizes_as_they_are(self, sizes: list[int]) -> None:
        assert count_by_temperature(np.array(sizes), 1.0).tolist() == sizes

    def test_shares_follow_temperature(self) -> None:
        # 10,000^(1/2) : 100^(1/2) = 10 : 1
        counts = count_by_temperature(np.array([10_000, 100]), 2.0)

        assert counts.tolist() == [9182, 918]

        # As good as equal.
        assert count_by_temperature(np.array([999, 1, 500]), 1e9).tolist() == [500] * 3

    def test_sum_stays_and_no_group_vanishes(self) -> None:
        rng = np.random.default_rng(1)

        for _ in range(200):
            sizes = rng.integers(1, 10 ** rng.integers(1, 7), size=rng.integers(1, 9))

            counts = count_by_temperature(sizes, rng.uniform(1.0, 5.0))

            assert counts.sum() == sizes.sum()
            assert counts.min() >= 1

        # Both of the small ones would get less than half a row.
        assert count_by_temperature(np.array([1000, 1, 1]), 1.0001).min() == 1


class TestSampleRows:
    def test_call_takes_whole_copies_and_a_random_rest(self) -> None:
        groups = np.array([1] * 10 + [0] * 4, dtype=np.int16)

        rows = sample_rows(groups, np.array([11, 3]), seed=1, epoch=0)

        times = np.bincount(rows, minlength=14)

        assert times[:10].max() == 1 and times[:10].sum() == 3
        assert set(times[10:].tolist()) == {2, 3} and times[10:].sum() == 11

    def test_call_depends_on_seed_and_epoch_alone(self) -> None:
        groups = np.zeros(1000, dtype=np.int16)

        counts = np.array([300])

        first = sample_rows(groups, counts, seed=1, epoch=0)

        assert np.array_equal(first, sample_rows(groups, counts, seed=1, epoch=0))

        for seed, epoch in ((2, 0), (1, 1)):
            other = sample_rows(groups, counts, seed=seed, epoch=epoch)

            # As many in common as by chance.
            assert 50 < len(np.intersect1d(first, other)) < 130
