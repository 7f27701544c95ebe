# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.nn import Module

from tests.common import assert_close, assert_equal, device
from warmup_plugin.models.rows import (
    BeamCache,
    Folding,
    RowCache,
    SourceMemory,
    select_items,
)

# The groups of items, and the items of each group.
FOLDINGS = {
    "mixed": ([1, 0, 1, 3, 1, 0], [[1, 5], [0, 2, 4], [], [3]]),
    "ragged": ([0, 0, 0, 1, 2, 2], [[0, 1, 2], [3], [4, 5]]),
    # Nothing to pad, but the groups are mixed.
    "interleaved": ([1, 0, 1, 0], [[1, 3], [0, 2]]),
    # Nothing to do at all.
    "full": ([0, 0, 1, 1, 2, 2], [[0, 1], [2, 3], [4, 5]]),
    "ones": ([0, 1, 2], [[0], [1], [2]]),
    "one": ([0, 0, 0], [[0, 1, 2]]),
    # As many items as places would be in order, with an empty group.
    "gap": ([0, 2], [[0], [], [1]]),
}

each_folding = pytest.mark.parametrize("name", FOLDINGS)


def create_folding(name: str) -> Folding:
    groups, items = FOLDINGS[name]

    return Folding(torch.tensor(groups, device=device), len(items))


def create_items(num_items: int, *shape: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(num_items)

    return torch.randn(
        (num_items, *shape), generator=generator, device=device, dtype=torch.float64
    )


class TestFolding:
    @each_folding
    def test_fold_puts_items_in_their_groups(self, name: str) -> None:
        groups, items = FOLDINGS[name]

        folding = create_folding(name)

        width = max(len(group) for group in items)

        assert folding.width == width

        x = create_items(len(groups), 2, 3)

        folded = folding.fold(x)

        assert folded.shape == (len(items), width, 2, 3)

        for group, idx in enumerate(items):
            # In the order that they had.
            assert_equal(folded[group, : len(idx)], x[idx])

    @each_folding
    def test_unfold_undoes_fold(self, name: str) -> None:
        folding = create_folding(name)

        for shape in ((), (3,), (2, 3)):
            x = create_items(len(FOLDINGS[name][0]), *shape)

            assert_equal(folding.unfold(folding.fold(x)), x)

    @each_folding
    def test_gradient_is_right(self, name: str) -> None:
        groups, items = FOLDINGS[name]

        folding = create_folding(name)

        factors = create_items(len(items), folding.width, 1)

        def mix(x: Tensor) -> Tensor:
            # Differently for each place.
            return folding.unfold((factors * folding.fold(x)).sin())

        x = create_items(len(groups), 2).requires_grad_()

        assert gradcheck(mix, [x])

    @each_folding
    def test_gradient_equals_that_of_index_select(self, name: str) -> None:
        groups, items = FOLDINGS[name]

        folding = create_folding(name)

        x = create_items(len(groups), 2).requires_grad_()

        weights = create_items(len(items) * folding.width, 2)

        # The places of the items, row by row.
        places = torch.zeros(len(groups), dtype=torch.long, device=device)

        for group, idx in enumerate(items):
            for rank, item in enumerate(idx):
                places[item] = group * folding.width + rank

        folded = folding.fold(x).flatten(0, 1)

        [gradient] = torch.autograd.grad((weights * folded.square()).sum(), [x])

        # Whatever the gradient of a padded place is.
        assert_close(gradient, 2 * weights.index_select(0, places) * x)

        y = create_items(len(items), folding.width, 2).requires_grad_()

        weights = create_items(len(groups), 2)

        def differentiate(unfolded: Tensor) -> Tensor:
            [gradient] = torch.autograd.grad((weights * unfolded.square()).sum(), [y])

            return gradient

        expected = differentiate(y.flatten(0, 1).index_select(0, places))

        assert_close(differentiate(folding.unfold(y)), expected)

    def test_padded_places_are_finite(self) -> None:
        # What an attention mask hides must be a number.
        x = create_items(6, 2)

        x[0] = 1e300

        assert bool(create_folding("mixed").fold(x).isfinite().all())


class TestSelectItems:
    @pytest.mark.parametrize("idx", [[3, 0, 4], [1], [], [4, 3, 2, 1, 0]])
    def test_call_equals_index_select(self, idx: list[int]) -> None:
        items = torch.tensor(idx, dtype=torch.long, device=device)

        x = create_items(5, 2).requires_grad_()

        selected = select_items(x, items)

        expected = x.index_select(0, items)

        assert_equal(selected, expected)

        weights = create_items(len(idx), 2)

        gradients = [
            torch.autograd.grad((weights * y.square()).sum(), [x])[0]
            for y in (selected, expected)
        ]

        assert_close(gradients[0], gradients[1])

    def test_gradient_is_right(self) -> None:
        idx = torch.tensor([3, 0, 4], device=device)

        x = create_items(5, 2).requires_grad_()

        assert gradcheck(lambda x: select_items(x, idx).sin(), [x])


class TestRowCache:
    # 4 rows, 5 positions, 2 heads of 3 dimensions; v is another tensor than k.
    def create_states(self, num_rows: int, num_steps: int) -> tuple[Tensor, Tensor]:
        k = torch.randn((num_rows, num_steps, 2, 3), device=device)

        return k, -k

    @pytest.fixture(autouse=True)
    def seeded(self) -> None:
        torch.manual_seed(0)

    def test_append_returns_all_so_far_when_position_is_the_same(self) -> None:
        cache, module = RowCache(4, 5), Module()

        k, v = self.create_states(4, 4)

        for begin, end in ((0, 2), (2, 3), (3, 4)):
            all_k, all_v = cache.append(
                module, k[:, begin:end], v[:, begin:end], None, begin, end
            )

            assert_equal(all_k, k[:, :end])
            assert_equal(all_v, v[:, :end])

    def test_append_writes_some_rows(self) -> None:
        cache, module = RowCache(4, 5), Module()

        k, v = self.create_states(4, 3)

        cache.append(module, k[:, :2], v[:, :2], None, 0, 2)

        rows = torch.tensor([3, 1], device=device)

        all_k, all_v = cache.append(module, k[rows, 2:], v[rows, 2:], rows, 2, 3)

        assert_equal(all_k, k[rows])
        assert_equal(all_v, v[rows])

        # The others are as they were.
        others = torch.tensor([0, 2], device=device)

        assert_equal(cache.get(module, others, 2)[0], k[others, :2])
        assert_equal(cache.get(module, others, 3)[0][:, 2], torch.zeros((2, 2, 3)))

    @pytest.mark.parametrize("rows", [None, [3, 1]])
    def test_append_writes_rows_where_each_of_them_stands(
        self, rows: list[int] | None
    ) -> None:
        cache, module = RowCache(4, 5), Module()

        past_k, past_v = self.create_states(4, 3)

        cache.begin(module, past_k, past_v)

        at = [0, 1, 2, 3] if rows is None else rows

        # The first row has one position behind it, …
        positions = [[1, 3, 0, 2][row] for row in at]

        k, v = self.create_states(len(at), 2)

        all_k, all_v = cache.append(
            module,
            k,
            v,
            None if rows is None else torch.tensor(rows, device=device),
            torch.tensor(positions, device=device),
            5,
        )

        assert all_k.shape == all_v.shape == (len(at), 5, 2, 3)

        for i, (row, position) in enumerate(zip(at, positions)):
            assert_equal(all_k[i, :position], past_k[row, :position])
            assert_equal(all_v[i, :position], past_v[row, :position])

            assert_equal(all_k[i, position : position + 2], k[i])
            assert_equal(all_v[i, position : position + 2], v[i])

    def test_append_equals_append_of_positions_one_by_one(self) -> None:
        # An integer and a tensor say the same.
        k, v = self.create_states(4, 2)

        modules = [Module(), Module()]

        cache = RowCache(4, 5)

        cache.append(modules[0], k, v, None, 1, 3)
        cache.append(modules[1], k, v, None, torch.full((4,), 1, device=device), 3)

        rows = torch.arange(4, device=device)

        one, two = (cache.get(module, rows, 5) for module in modules)

        assert_equal(one[0], two[0])
        assert_equal(one[1], two[1])

    def test_what_is_not_written_is_zero(self) -> None:
        # Garbage might be no number, which passes an attention mask.
        cache, module = RowCache(4, 5), Module()

        k, v = self.create_states(4, 1)

        cache.append(module, k, v, None, 2, 3)

        all_k, all_v = cache.get(module, torch.arange(4, device=device), 5)

        for states in (all_k, all_v):
            assert not bool(states[:, [0, 1, 3, 4]].any())

    def test_begin_takes_what_all_rows_begin_with(self) -> None:
        cache, module = RowCache(4, 5), Module()

        k, v = self.create_states(1, 2)

        cache.begin(module, k, v)

        all_k, all_v = cache.get(module, torch.arange(4, device=device), 2)

        assert_equal(all_k, k.expand(4, -1, -1, -1))
        assert_equal(all_v, v.expand(4, -1, -1, -1))

    def test_layers_are_apart(self) -> None:
        cache, modules = RowCache(4, 5), [Module(), Module()]

        states = [self.create_states(4, 1) for _ in modules]

        for module, (k, v) in zip(modules, states):
            cache.append(module, k, v, None, 0, 1)

        rows = torch.arange(4, device=device)

        for module, (k, v) in zip(modules, states):
            assert_equal(cache.get(module, rows, 1)[0], k)
            assert_equal(cache.get(module, rows, 1)[1], v)

    def test_fork_adds_copies(self) -> None:
        cache, module = RowCache(2, 5), Module()

        k, v = self.create_states(2, 2)

        cache.append(module, k, v, None, 0, 2)

        idx = [0, 1]

        # There is no room for the first two, but then for the third.
        for rows in ([1, 0], [2], [0, 3, 4]):
            cache.fork(torch.tensor(rows, device=device), 2)

            idx += [idx[row] for row in rows]

            all_rows = torch.arange(len(idx), device=device)

            assert_equal(cache.get(module, all_rows, 2)[0], k[idx])
            assert_equal(cache.get(module, all_rows, 2)[1], v[idx])

        # They go on by themselves.
        next_k, next_v = self.create_states(len(idx), 1)

        all_k, all_v = cache.append(module, next_k, next_v, None, 2, 3)

        assert_equal(all_k, torch.cat([k[idx], next_k], dim=1))
        assert_equal(all_v, torch.cat([v[idx], next_v], dim=1))

    @pytest.mark.parametrize("rows", [[3, 0, 3, 1, 0], [1, 1, 3, 0], [2, 1]])
    def test_select_keeps_repeats_and_reorders_rows(self, rows: list[int]) -> None:
        cache, module = RowCache(4, 5), Module()

        k, v = self.create_states(4, 2)

        cache.append(module, k, v, None, 0, 2)

        cache.select(torch.tensor(rows, device=device), 2)

        num_rows = len(rows)

        # All of them go on, …
        next_k, next_v = self.create_states(num_rows, 1)

        all_k, all_v = cache.append(module, next_k, next_v, None, 2, 3)

        assert_equal(all_k, torch.cat([k[rows], next_k], dim=1))
        assert_equal(all_v, torch.cat([v[rows], next_v], dim=1))

        # … each at its own position as well, …
        positions = torch.full((num_rows,), 3, device=device)

        all_k, _ = cache.append(module, next_k, next_v, None, positions, 4)

        assert_equal(all_k[:, 3:4], next_k)

        # … and a layer that was not there yet has as many rows.
        other = Module()

        all_k, _ = cache.append(other, next_k, next_v, None, 0, 1)

        assert_equal(all_k, next_k)

    def test_get_returns_rows_in_order(self) -> None:
        cache, module = RowCache(4, 5), Module()

        k, v = self.create_states(4, 3)

        cache.append(module, k, v, None, 0, 3)

        rows = torch.tensor([2, 2, 0], device=device)

        some_k, some_v = cache.get(module, rows, 2)

        assert_equal(some_k, k[rows, :2])
        assert_equal(some_v, v[rows, :2])


class TestSourceMemory:
    @pytest.mark.parametrize(
        "seq_lens, width, padded",
        [
            ([3, 1, 2], 3, True),
            ([2, 2], 2, False),
            # A batch may be wider than what is in it.
            ([2, 2], 3, True),
        ],
    )
    def test_call_tells_lengths(
        self, seq_lens: list[int], width: int, padded: bool
    ) -> None:
        memory = SourceMemory(seq_lens, width, device)

        assert memory.num_sources == len(seq_lens)
        assert memory.width == width
        assert memory.padded == padded

        assert_equal(memory.seq_lens, seq_lens)

    def test_mask_marks_what_belongs_to_sources(self) -> None:
        memory = SourceMemory([3, 1, 2], 4, device)

        rows = [
            [True, True, True, False],
            [True, False, False, False],
            [True, True, False, False],
        ]

        mask = memory.mask(None)

        assert mask is not None and mask.tolist() == rows

        mask = memory.mask(torch.tensor([2, 0], device=device))

        assert mask is not None and mask.tolist() == [rows[2], rows[0]]

        assert SourceMemory([2, 2], 2, device).mask(None) is None

    def test_get_returns_states_of_sources(self) -> None:
        memory, module = SourceMemory([3, 1, 2], 3, device), Module()

        k = torch.arange(18.0, device=device).view(3, 3, 2, 1)

        memory.states[module] = (k, -k)

        sources = torch.tensor([2, 0, 2, 2], device=device)

        for end in (3, 2):
            some_k, some_v = memory.get(module, sources, end)

            assert_equal(some_k, k[sources, :end])
            assert_equal(some_v, -k[sources, :end])


class TestBeamCache:
    def test_nothing_is_moved(self) -> None:
        # To copy the past at every step took a quarter of a search.
        past, module = RowCache(2, 6), Module()

        state = torch.rand((2, 1, 2, 4), device=device)

        past.append(module, state, state, None, 0, 1)

        cache = BeamCache(past, 1, 1, num_beams=3)

        place, last = None, state

        for beams in ([[0, 0, 0]] * 2, [[2, 0, 0], [1, 1, 1]], [[0, 2, 1]] * 2):
            cache.select(torch.tensor(beams, device=device), None)

            cache.begin_step()

            new = torch.rand((2, 3, 2, 4), device=device)

            k, _ = cache.append(module, new, new)

            # Behind the past stand the beams of each step in their order.
            assert_equal(k, torch.cat([last, new], dim=1))

            assert place in (None, k.data_ptr())

            place, last = k.data_ptr(), k.clone()

        # The last beam of the first group goes on from its second, which went on from
        # its first.
        mask = cache.get_mask()[0, 0, 2].int().tolist()

        assert mask == [1, *[1, 0, 0], *[0, 1, 0], *[0, 0, 1]]
