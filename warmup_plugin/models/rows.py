# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Many decoder rows as one flat sequence of tokens.

A batch of warmups is ragged: rows end at different lengths, several rows share one
source, and some rows already have a past in a cache. So the decoder reads the tokens of
all rows one after the other, without padding; only the attention itself
(``attention.py``) folds them into rectangles, by row for self-attention, by source for
cross-attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Module
from typing_extensions import override


class _Gather(torch.autograd.Function):
    """
    Selects items by an index whose inverse is known.

    The backward of ``index_select`` adds item by item, which costs more on a CPU than
    all else in a small attention.
    """

    @staticmethod
    @override
    def forward(
        ctx: Any, x: Tensor, idx: Tensor, inverse: Tensor, counted: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(inverse, counted)

        return x.index_select(0, idx)

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inverse, counted = ctx.saved_tensors

        grad = grad.index_select(0, inverse)

        if counted is not None:
            # A padded place held a copy of an item, but was not that item.
            grad = grad * counted.view(-1, *[1] * (grad.ndim - 1))

        return grad, None, None, None


def _gather(x: Tensor, idx: Tensor, inverse: Tensor, counted: Tensor | None) -> Tensor:
    return _Gather.apply(x, idx, inverse, counted)  # type: ignore[no-any-return,no-untyped-call]


def select_items(x: Tensor, idx: Tensor) -> Tensor:
    """
    Selects items that differ from each other.

    :param x: *Shape:* :math:`(T,*)`.
    :param idx: *Shape:* :math:`(P)`.

    :returns: *Shape:* :math:`(P,*)`.
    """
    if idx.numel() == 0:
        return x[:0]

    selected = torch.zeros(x.size(0), dtype=torch.bool, device=x.device)

    selected[idx] = True

    inverse = idx.new_zeros(x.size(0))

    inverse[idx] = torch.arange(idx.size(0), device=x.device)

    return _gather(x, idx, inverse, selected)


@final
class Folding:
    """Arranges T items, each of one of G groups, as a padded rectangle, and back."""

    def __init__(self, groups: Tensor, num_groups: int) -> None:
        """
        :param groups: The group of each item; a group keeps the order of its items.
            *Shape:* :math:`(T)`.
        """
        device = groups.device

        self._num_groups = num_groups

        counts = torch.bincount(groups, minlength=num_groups)

        # One look at the device for both.
        width, num_descents = torch.stack(
            [counts.max(), (groups[1:] < groups[:-1]).sum()]
        ).tolist()

        self.width = int(width)
        """The size of the largest group."""

        num_items = groups.size(0)

        # Nothing to move if all groups are as large and one follows the other.
        self._full = num_items == num_groups * self.width and num_descents == 0

        if self._full:
            return

        # (T)
        order = groups.argsort(stable=True)

        sorted_groups = groups.index_select(0, order)

        begins = counts.cumsum(0) - counts

        rank = torch.arange(num_items, device=device)

        rank = rank - begins.index_select(0, sorted_groups)

        # (T)
        self._places = torch.empty_like(order)

        self._places[order] = sorted_groups * self.width + rank

        # (G x Q)
        self._items = order.new_zeros(num_groups * self.width)

        self._items[self._places] = torch.arange(num_items, device=device)

        self._counted = torch.zeros_like(self._items, dtype=torch.bool)

        self._counted[self._places] = True

    def fold(self, x: Tensor) -> Tensor:
        """
        :param x: *Shape:* :math:`(T,*)`.

        :returns: *Shape:* :math:`(G,Q,*)`; what stands in a padded place is finite and
            means nothing.
        """
        if not self._full:
            x = _gather(x, self._items, self._places, None)

        return x.reshape(self._num_groups, self.width, *x.shape[1:])

    def unfold(self, x: Tensor) -> Tensor:
        """
        :param x: *Shape:* :math:`(G,Q,*)`.

        :returns: *Shape:* :math:`(T,*)`.
        """
        x = x.flatten(0, 1)

        if not self._full:
            x = _gather(x, self._places, self._items, self._counted)

        return x


@final
class RowCache:
    """
    Holds the keys and values that B rows have left behind, one pair a layer.

    Position p of row b stands at ``[b, p]``, however long the row is.
    """

    def __init__(self, num_rows: int, max_len: int) -> None:
        """
        :param max_len: The number of positions that there is room for.
        """
        self._num_rows = num_rows
        self.max_len = max_len
        """The number of positions that there is room for."""

        # The number of rows that there is room for.
        self._capacity = num_rows

        self._states: dict[Module, tuple[Tensor, Tensor]] = {}

    def begin(self, module: Module, k: Tensor, v: Tensor) -> None:
        """
        Makes room for a layer, whose rows begin with ``k`` and ``v``.

        :param k: *Shape:* :math:`(B,L,H,D)`, or with one row for all; L may be 0.
        """
        all_k, all_v = (self._allocate(state) for state in (k, v))

        all_k[: self._num_rows, : k.size(1)] = k
        all_v[: self._num_rows, : v.size(1)] = v

        self._states[module] = (all_k, all_v)

    def _allocate(self, like: Tensor) -> Tensor:
        """
        Makes room for the states of all rows.

        :param like: *Shape:* :math:`(*,*,H,D)`.

        :returns: *Shape:* :math:`(B,L,H,D)`.
        """
        num_heads, head_dim = like.shape[2:]

        # Zeros, since garbage that is no number would pass an attention mask. A head lies
        # in one piece: attention of single queries is several times as fast.
        states = like.new_zeros((self._capacity, num_heads, self.max_len, head_dim))

        return states.transpose(1, 2)

    def append(
        self,
        module: Module,
        k: Tensor,
        v: Tensor,
        rows: Tensor | None,
        positions: Tensor | int,
        end: int,
    ) -> tuple[Tensor, Tensor]:
        """
        Writes the keys and values of the next tokens of A rows.

        :param k: *Shape:* :math:`(A,S,H,D)`.
        :param rows: The rows that take part, ``None`` for all. *Shape:* :math:`(A)`.
        :param positions: Where their first token stands: one number if it is the same
            for all rows, else *Shape:* :math:`(A)`.
        :param end: No row is longer when this is written.

        :returns: All keys and values of those rows. *Shape:* :math:`(A,L,H,D)` each.
        """
        if module not in self._states:
            self.begin(module, k[:1, :0], v[:1, :0])

        all_k, all_v = self._states[module]

        num_steps = k.size(1)

        at_row: slice | Tensor
        at_step: slice | Tensor

        if isinstance(positions, int):
            at_row = slice(self._num_rows) if rows is None else rows

            at_step = slice(positions, positions + num_steps)
        else:
            if rows is None:
                at_row = torch.arange(self._num_rows, device=k.device).unsqueeze(1)
            else:
                at_row = rows.unsqueeze(1)

            # (A, 1) + (S) -> (A, S)
            at_step = positions.unsqueeze(1) + torch.arange(num_steps, device=k.device)

        all_k[at_row, at_step] = k
        all_v[at_row, at_step] = v

        if rows is None:
            return all_k[: self._num_rows, :end], all_v[: self._num_rows, :end]

        k, v = (
            states[:, :end].transpose(1, 2).index_select(0, rows).transpose(1, 2)
            for states in (all_k, all_v)
        )

        return k, v

    def take(self, module: Module, end: int) -> tuple[Tensor, Tensor]:
        """Removes a layer and returns the first ``end`` positions of all its rows.
        *Shape:* :math:`(B,L,H,D)` each."""
        k, v = self._states.pop(module)

        return k[: self._num_rows, :end], v[: self._num_rows, :end]

    def get(self, module: Module, rows: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """
        Returns the first ``end`` positions of rows.

        :param rows: *Shape:* :math:`(R)`.

        :returns: *Shape:* :math:`(R,L,H,D)` each.
        """
        k, v = self._states[module]

        return k[:, :end].index_select(0, rows), v[:, :end].index_select(0, rows)

    def select(self, rows: Tensor, end: int) -> None:
        """
        Keeps, repeats or reorders rows.

        :param rows: *Shape:* :math:`(B')`.
        :param end: No row is longer; what lies behind is not copied.
        """
        self._num_rows = rows.size(0)

        fits = self._num_rows <= self._capacity

        self._capacity = max(self._capacity, self._num_rows)

        for module, states in self._states.items():
            # (B, L, H, D) -> (B', H, L, D)
            selected = [
                state[:, :end].transpose(1, 2).index_select(0, rows) for state in states
            ]

            # A beam that is reordered at every step fits and needs no new memory.
            if not fits:
                states = (self._allocate(states[0]), self._allocate(states[1]))

                self._states[module] = states

            for state, part in zip(states, selected):
                state[: self._num_rows, :end] = part.transpose(1, 2)

    def fork(self, rows: Tensor, end: int) -> None:
        """
        Adds copies of rows behind all others.

        :param rows: *Shape:* :math:`(F)`.
        :param end: No row is longer; what lies behind is not copied.
        """
        begin = self._num_rows

        self._num_rows += rows.size(0)

        if self._num_rows > self._capacity:
            # Room for the next ones as well: all that is there is copied to it.
            self._capacity = max(self._num_rows, 2 * self._capacity)

            for module, (old_k, old_v) in self._states.items():
                k, v = self._allocate(old_k), self._allocate(old_v)

                k[:begin, :end], v[:begin, :end] = (
                    old_k[:begin, :end],
                    old_v[:begin, :end],
                )

                self._states[module] = (k, v)

        for states in self._states.values():
            for state in states:
                state[begin : self._num_rows, :end] = state[:, :end].index_select(
                    0, rows
                )


@final
class BeamCache:
    """
    Holds the keys and values of groups of beams, none of which is ever moved.

    The beams of a group share the past that they began with. Behind it each of them leaves
    its keys and values at a place of its own at every step, and a mask says whose past is
    whose: a beam that goes on from another one sees what that has left.
    """

    def __init__(
        self, past: RowCache, past_lens: Tensor | int, width: int, num_beams: int
    ) -> None:
        """
        :param past: One row for each of A groups.
        :param past_lens: The number of positions of each row; one number if it is the
            same for all, else *Shape:* :math:`(A)`.
        :param width: The largest of them.
        :param num_beams: The most beams G of a group.
        """
        self._past = past
        self._width = width
        self._num_beams = num_beams

        # The number of steps since then.
        self._num_steps = 0

        # (A, H, P + T x G, D)
        self._states: dict[Module, tuple[Tensor, Tensor]] = {}

        # The past of each group, and what each of its beams sees behind it: (A), (A, G, T x G)
        self._past_lens = past_lens
        self._seen: Tensor | None = None

    def select(self, beams: Tensor, groups: Tensor | None) -> None:
        """
        Goes on with beams.

        :param beams: The beam of the same group that each one goes on from. *Shape:*
            :math:`(A',G')`.
        :param groups: The groups that go on; ``None`` for all. *Shape:* :math:`(A')`.
        """
        num_places = self._num_steps * self._num_beams

        if groups is not None:
            self._keep(groups, self._width + num_places)

        if self._seen is None:
            # Nothing yet but what is shared.
            size = (self._past.max_len - self._width) * self._num_beams

            self._seen = torch.zeros(
                (*beams.shape, size), dtype=torch.bool, device=beams.device
            )

            return

        seen = self._seen

        if groups is not None:
            seen = seen.index_select(0, groups)

        idx = beams.unsqueeze(2).expand(-1, -1, num_places)

        selected = seen[:, :, :num_places].gather(1, idx)

        if selected.shape[:2] != seen.shape[:2]:
            seen = seen.new_zeros((*beams.shape, seen.size(2)))

        seen[:, :, :num_places] = selected

        self._seen = seen

    def _keep(self, groups: Tensor, end: int) -> None:
        if isinstance(self._past_lens, Tensor):
            self._past_lens = self._past_lens.index_select(0, groups)

        if not self._states:
            self._past.select(groups, self._width)

        for module, states in self._states.items():
            kept = []

            for state in states:
                selected = state[:, :, :end].index_select(0, groups)

                state = state[: groups.size(0)]

                state[:, :, :end] = selected

                kept.append(state)

            self._states[module] = (kept[0], kept[1])

    def begin_step(self) -> None:
        """Begins a step: each beam sees what it will leave."""
        assert self._seen is not None

        begin = self._num_steps * self._num_beams

        num_beams = self._seen.size(1)

        self._seen[:, :, begin : begin + num_beams] = torch.eye(
            num_beams, dtype=torch.bool, device=self._seen.device
        )

        self._num_steps += 1

    def append(self, module: Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """
        Writes the keys and values of the step that has begun.

        :param k: *Shape:* :math:`(A,G',H,D)`.

        :returns: All keys and values of the groups. *Shape:* :math:`(A,L,H,D)` each.
        """
        if module not in self._states:
            past_k, past_v = self._past.take(module, self._width)

            self._states[module] = (self._allocate(past_k), self._allocate(past_v))

        begin = self._width + (self._num_steps - 1) * self._num_beams

        for state, value in zip(self._states[module], (k, v)):
            state[:, :, begin : begin + value.size(1)] = value.transpose(1, 2)

        end = begin + self._num_beams

        k, v = (state[:, :, :end].transpose(1, 2) for state in self._states[module])

        return k, v

    def _allocate(self, past: Tensor) -> Tensor:
        """
        :param past: *Shape:* :math:`(A,P,H,D)`.
        """
        num_groups, _, num_heads, head_dim = past.shape

        num_places = (self._past.max_len - self._width) * self._num_beams

        # Zeros, and heads in one piece, see `RowCache`.
        state = past.new_zeros(
            (num_groups, num_heads, self._width + num_places, head_dim)
        )

        state[:, :, : self._width] = past.transpose(1, 2)

        return state

    def get_positions(self) -> tuple[Tensor | int, Tensor]:
        """
        Returns the position of the token of this step, and of each place.

        :returns: One number if it is the same for all groups, else *Shape:* :math:`(A)`;
            and *Shape:* :math:`(1,L)` or :math:`(A,L)`.
        """
        assert self._seen is not None

        device = self._seen.device

        past_lens = torch.as_tensor(self._past_lens, device=device).view(-1, 1)

        past = torch.arange(self._width, device=device).expand(past_lens.size(0), -1)

        steps = torch.arange(self._num_steps, device=device)

        steps = steps.repeat_interleave(self._num_beams) + past_lens

        return (
            self._past_lens + self._num_steps - 1,
            torch.cat([past, steps], dim=1),
        )

    def get_mask(self) -> Tensor:
        """Returns ``True`` for what each beam sees. *Shape:* :math:`(A,1,G',L)`."""
        assert self._seen is not None

        seen = self._seen[:, :, : self._num_steps * self._num_beams]

        past = torch.arange(self._width, device=seen.device)

        past_lens = torch.as_tensor(self._past_lens, device=seen.device).view(-1, 1, 1)

        # (1 or A, 1, P) -> (A, G', P)
        mask = (past < past_lens).expand(*seen.shape[:2], -1)

        return torch.cat([mask, seen], dim=2).unsqueeze(1)


@final
class SourceMemory:
    """Holds what N sources look like to the rows decoded against them."""

    def __init__(
        self, seq_lens: Sequence[int], width: int, device: torch.device
    ) -> None:
        """
        :param seq_lens: The lengths of the sources.
        :param width: The number of their positions, padding included.
        """
        self.num_sources = len(seq_lens)

        self.width = width

        self.padded = min(seq_lens) < width
        """``True`` if not all positions of all sources count."""

        self.seq_lens = torch.tensor(seq_lens, device=device)
        """*Shape:* :math:`(N)`."""

        self.states: dict[Module, tuple[Tensor, Tensor]] = {}
        """The keys and values of each layer. *Shape:* :math:`(N,S_{src},H,D)` each."""

    def get(self, module: Module, sources: Tensor, end: int) -> tuple[Tensor, Tensor]:
        """
        Returns the keys and values of sources, up to position ``end``.

        :param sources: *Shape:* :math:`(R)`.

        :returns: *Shape:* :math:`(R,L,H,D)` each.
        """
        k, v = self.states[module]

        return k[:, :end].index_select(0, sources), v[:, :end].index_select(0, sources)

    def mask(self, sources: Tensor | None) -> Tensor | None:
        """
        Marks what belongs to each source.

        :param sources: The sources asked for; ``None`` for all. *Shape:* :math:`(G)`.

        :returns: *Shape:* :math:`(G,S_{src})`; ``None`` if all of it does.
        """
        if not self.padded:
            return None

        seq_lens = self.seq_lens

        if sources is not None:
            seq_lens = seq_lens.index_select(0, sources)

        at = torch.arange(self.width, device=seq_lens.device)

        return at < seq_lens.unsqueeze(1)
