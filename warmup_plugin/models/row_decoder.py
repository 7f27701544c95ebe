# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Decodes rows token by token, with their keys and values kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
from torch import Tensor
from typing_extensions import override

from warmup_plugin.layout import DecoderRows, ExcludedTokens
from warmup_plugin.models.attention import (
    ContinuedRows,
    SourceAttention,
    SteppedBeams,
    SteppedRows,
)
from warmup_plugin.models.conditional import EncodedSource, RowDecoder
from warmup_plugin.models.flat_rows import FlatRows
from warmup_plugin.models.rows import BeamCache, RowCache
from warmup_plugin.models.token_loss import compute_log_probs

if TYPE_CHECKING:
    from warmup_plugin.models.row_model import RowModel


@final
class CachedRowDecoder(RowDecoder):
    def __init__(
        self,
        model: RowModel,
        source: EncodedSource,
        source_idx: Tensor,
        max_len: int,
    ) -> None:
        self._model = model
        self._source = source
        self._source_idx = source_idx

        # Where the rows begin in the cache, behind their prompts if they have any.
        self._offsets = model.get_offsets(source, source_idx)

        # The largest of them.
        self._width = source.memory.width if model.reads_prompts else 0

        self._cache = RowCache(source_idx.size(0), self._width + max_len)

        # The number of tokens behind the offset that all rows have been fed which still
        # take part.
        self._num_fed = 0

        self._has_begun = False

        # The past of beams, once there are some. The offsets are those of groups then.
        self._beams: BeamCache | None = None
        self._num_last_beams = 1

        # The rows and the number of tokens of the last step, and their cross-attention:
        # to group them by source costs more than a step of a small model.
        self._last: tuple[Tensor | None, int, SourceAttention | None] | None = None

    @override
    def step(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        num_steps = tokens.size(1)

        if self._beams is not None:
            return self._step_beams(self._beams, tokens)

        offsets = self._offsets

        if rows is not None and isinstance(offsets, Tensor):
            offsets = offsets.index_select(0, rows)

        begins = offsets + self._num_fed

        prompts = None

        if self._model.reads_prompts and not self._has_begun:
            prompts = (self._source.memory, self._source_idx)

        self._has_begun = True

        # How much of the cache is in use.
        end = self._width + self._num_fed + num_steps

        at = torch.arange(num_steps, device=tokens.device)

        # (A, S)
        positions = torch.as_tensor(begins, device=tokens.device).view(-1, 1) + at

        hidden = self._model.decode(
            self._source,
            tokens.flatten(),
            positions.expand(tokens.shape).flatten(),
            end,
            SteppedRows(
                self._cache,
                rows,
                begins,
                num_steps,
                end,
                prompts,
                position_bias=self._model.position_bias,
            ),
            self._relate_to_source(rows, num_steps),
        )

        self._num_fed += num_steps

        # (A x S, M) -> (A, M)
        hidden = hidden.unflatten(0, tokens.shape)[:, -1]

        # (A, M) -> (A, V)
        return self._model.final_proj(hidden)

    def _step_beams(self, beams: BeamCache, tokens: Tensor) -> Tensor:
        positions = torch.as_tensor(self._offsets, device=tokens.device) + self._num_fed

        num_rows = tokens.size(0)

        if positions.dim() > 0:
            # (A) -> (A x G)
            positions = positions.repeat_interleave(num_rows // positions.size(0))

        hidden = self._model.decode(
            self._source,
            tokens.flatten(),
            positions.expand(num_rows),
            self._width + self._num_fed + 1,
            SteppedBeams(beams, position_bias=self._model.position_bias),
            self._relate_to_source(None, 1),
        )

        self._num_fed += 1

        # (A x G, M) -> (A x G, V)
        return self._model.final_proj(hidden)

    def _relate_to_source(
        self, rows: Tensor | None, num_steps: int
    ) -> SourceAttention | None:
        if self._last is not None:
            last_rows, last_num_steps, attend_source = self._last

            if last_rows is rows and last_num_steps == num_steps:
                return attend_source

        source_idx = self._source_idx

        if rows is not None:
            source_idx = source_idx.index_select(0, rows)

        attend_source = self._model.relate_to_source(
            self._source, source_idx.repeat_interleave(num_steps)
        )

        self._last = (rows, num_steps, attend_source)

        return attend_source

    @override
    def select(self, rows: Tensor) -> None:
        self._cache.select(rows, self._width + self._num_fed)

        source_idx = self._source_idx.index_select(0, rows)

        if not torch.equal(source_idx, self._source_idx):
            self._last = None

        self._source_idx = source_idx

        if isinstance(self._offsets, Tensor):
            self._offsets = self._offsets.index_select(0, rows)

    @override
    def select_beams(
        self, beams: Tensor, groups: Tensor | None, max_beams: int
    ) -> None:
        if self._beams is None:
            self._beams = BeamCache(
                self._cache,
                self._offsets + self._num_fed,
                self._width + self._num_fed,
                max_beams,
            )

        self._beams.select(beams, groups)

        num_beams = beams.size(1)

        if groups is not None or num_beams != self._num_last_beams:
            source_idx = self._source_idx[:: self._num_last_beams]

            if groups is not None:
                source_idx = source_idx.index_select(0, groups)

            self._source_idx = source_idx.repeat_interleave(num_beams)

            self._num_last_beams = num_beams

            self._last = None

        if groups is not None and isinstance(self._offsets, Tensor):
            self._offsets = self._offsets.index_select(0, groups)

    @override
    def fork(self, rows: Tensor) -> None:
        self._cache.fork(rows, self._width + self._num_fed)

        def extend(values: Tensor) -> Tensor:
            return torch.cat([values, values.index_select(0, rows)])

        self._source_idx = extend(self._source_idx)

        if isinstance(self._offsets, Tensor):
            self._offsets = extend(self._offsets)

        self._last = None

    @override
    def rewind(self, past_lens: Tensor) -> None:
        offsets = self._offsets + past_lens

        self._offsets = offsets

        self._width = int(offsets.max())

        self._num_fed = 0

    @override
    def score(
        self, rows: DecoderRows, past_lens: Tensor, excluded: ExcludedTokens
    ) -> Tensor:
        flat = FlatRows(rows, past_lens)

        offsets = torch.as_tensor(self._offsets, device=flat.tokens.device)

        # (R)
        offsets = offsets.expand(flat.num_rows)

        all_rows = torch.arange(flat.num_rows, device=offsets.device)

        hidden = self._model.decode(
            self._source,
            flat.tokens,
            flat.step_idx + offsets.index_select(0, flat.row_idx),
            self._width + flat.max_len,
            ContinuedRows(
                flat.folding,
                offsets + past_lens,
                lambda module, end: self._cache.get(module, all_rows, end),
                position_bias=self._model.position_bias,
            ),
            self._model.relate_to_source(self._source, flat.source_idx),
        )

        idx = flat.target_mask.nonzero().squeeze(1)

        log_probs = compute_log_probs(
            self._model.final_proj,
            hidden.index_select(0, idx),
            flat.targets[idx],
            num_warmup=0,
            excluded=excluded,
        )

        sums = log_probs.new_zeros(flat.num_rows)

        return sums.index_add(0, flat.row_idx[idx], log_probs)
