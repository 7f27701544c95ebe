# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Rows behind the source that an encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import torch
from fairseq2.models.transformer import TransformerModel
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from warmup_plugin.models.attention import (
    RowLayout,
    SelfAttention,
    SourceAttention,
    WholeRows,
    create_row_bias,
)
from warmup_plugin.models.conditional import EncodedSource
from warmup_plugin.models.flat_rows import FlatRows
from warmup_plugin.models.row_model import RowModel
from warmup_plugin.models.rows import Folding, SourceMemory

_NUM_ENCODED_TOKENS: Final = 512
"""How many tokens a CPU encodes at a time."""


@final
class TransformerConditional(RowModel):
    """Serves fairseq2's encoder-decoder Transformers."""

    _model: TransformerModel

    reads_prompts = False

    @override
    def encode(self, source_seqs: Tensor, source_layout: BatchLayout) -> EncodedSource:
        seqs, layout = self._encode(source_seqs, source_layout)

        memory = SourceMemory(layout.seq_lens, seqs.size(1), seqs.device)

        return EncodedSource(seqs, layout, memory)

    def _encode(
        self, source_seqs: Tensor, source_layout: BatchLayout
    ) -> tuple[Tensor, BatchLayout]:
        model = self._model

        learns = torch.is_grad_enabled() or model.training

        if learns or source_seqs.device.type != "cpu" or source_layout.packed:
            seqs, layout = model.encoder_frontend(source_seqs, source_layout)

            return model.encoder(seqs, layout), layout

        order: list[int] = []
        encoded: list[Tensor] = []
        lens: list[int] = []

        # A GPU is fastest with all at once; a CPU without padding, and with so few tokens
        # that each layer finds in its cache what the one before has left there.
        for part in _cut_sources(source_layout.seq_lens):
            seq_lens = [source_layout.seq_lens[n] for n in part]

            seqs = source_seqs[part, : max(seq_lens)]

            seqs, layout = model.encoder_frontend(seqs, BatchLayout.of(seqs, seq_lens))

            order += part

            encoded.append(model.encoder(seqs, layout))

            # A frontend may shorten what it reads.
            lens += layout.seq_lens

        width = max(seqs.size(1) for seqs in encoded)

        seqs = torch.cat(
            [pad(seqs, (0, 0, 0, width - seqs.size(1))) for seqs in encoded]
        )

        # Back to where they stood.
        inverse = torch.tensor(order).argsort()

        seqs = seqs.index_select(0, inverse)

        return seqs, BatchLayout.of(seqs, [lens[n] for n in inverse.tolist()])

    @override
    def decode(
        self,
        source: EncodedSource,
        tokens: Tensor,
        positions: Tensor,
        max_len: int,
        attend_rows: SelfAttention,
        attend_source: SourceAttention | None,
    ) -> Tensor:
        layout = RowLayout(positions, max_len, attend_rows, attend_source)

        seqs, _ = self._model.decoder_frontend(tokens, layout)

        hidden: Tensor = self._model.decoder(seqs, layout, source.seqs, source.layout)

        return hidden

    @override
    def decode_rows(self, source: EncodedSource, flat: FlatRows) -> Tensor:
        bias = None

        # Outside of the layers: one that is checkpointed is computed twice.
        if self.position_bias is not None:
            bias = create_row_bias(
                self.position_bias, flat.folding.width, flat.tokens.device
            )

        return self.decode(
            source,
            flat.tokens,
            flat.step_idx,
            flat.max_len,
            WholeRows(flat.folding, bias=bias),
            self.relate_to_source(source, flat.source_idx),
        )

    @override
    def relate_to_source(
        self, source: EncodedSource, source_idx: Tensor
    ) -> SourceAttention | None:
        sources, groups = source_idx.unique(return_inverse=True)

        num_groups = sources.size(0)

        return SourceAttention(
            source.memory,
            Folding(groups, num_groups),
            None if num_groups == source.memory.num_sources else sources,
        )

    @override
    def get_offsets(self, source: EncodedSource, source_idx: Tensor) -> Tensor | int:
        return 0

    @property
    @override
    def max_source_len(self) -> int:
        return self._model.max_source_seq_len

    @override
    def get_max_target_len(self, source_len: int) -> int:
        return self._model.max_target_seq_len


def _cut_sources(seq_lens: Sequence[int]) -> list[list[int]]:
    """Cuts sources into parts of similar lengths, each with as few sources as have
    :data:`_NUM_ENCODED_TOKENS` tokens together."""
    order = sorted(range(len(seq_lens)), key=lambda n: -seq_lens[n])

    parts: list[list[int]] = [[]]

    for n in order:
        part = parts[-1]

        if part and len(part) * seq_lens[part[0]] >= _NUM_ENCODED_TOKENS:
            parts.append(part := [])

        part.append(n)

    return parts
