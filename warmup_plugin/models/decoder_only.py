# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Rows behind a prompt, whose keys and values all rows of a source share."""

from __future__ import annotations

from typing import final

import torch
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.layout import DecoderRows
from warmup_plugin.models.attention import (
    ContinuedRows,
    PromptedRows,
    RowLayout,
    SelfAttention,
    SourceAttention,
    WholeRows,
)
from warmup_plugin.models.conditional import EncodedSource
from warmup_plugin.models.flat_rows import FlatRows
from warmup_plugin.models.row_model import RowModel
from warmup_plugin.models.rows import SourceMemory


@final
class TransformerLMConditional(RowModel):
    """
    Serves fairseq2's decoder-only Transformers.

    A source is the prompt, but for its last token: that is the first one of each row,
    so that every row has a token to begin with. Prompts of different lengths may be in
    one batch.
    """

    _model: TransformerLM

    reads_prompts = True

    @override
    def encode(self, source_seqs: Tensor, source_layout: BatchLayout) -> EncodedSource:
        seq_lens = source_layout.seq_lens

        memory = SourceMemory(seq_lens, max(seq_lens), source_seqs.device)

        source = EncodedSource(source_seqs, source_layout, memory)

        # With gradient the prompts are read in one pass with their rows.
        if not torch.is_grad_enabled():
            all_sources = torch.arange(memory.num_sources, device=source_seqs.device)

            prompts = FlatRows(_create_prompt_rows(source, all_sources))

            def remember(module: Module, k: Tensor, v: Tensor) -> None:
                memory.states[module] = (k, v)

            self.decode(
                source,
                prompts.tokens,
                prompts.step_idx,
                prompts.max_len,
                WholeRows(prompts.folding, on_states=remember),
                None,
            )

        return source

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
        # The longest row need not be that of the longest prompt.
        max_len = min(max_len, self._model.max_seq_len)

        layout = RowLayout(positions, max_len, attend_rows, attend_source)

        seqs, _ = self._model.decoder_frontend(tokens, layout)

        hidden: Tensor = self._model.decoder(seqs, layout)

        return hidden

    @override
    def decode_rows(self, source: EncodedSource, flat: FlatRows) -> Tensor:
        memory = source.memory

        # (T)
        offsets = memory.seq_lens.index_select(0, flat.source_idx)

        positions = flat.step_idx + offsets

        max_len = memory.width + flat.max_len

        if not torch.is_grad_enabled():
            return self.decode(
                source,
                flat.tokens,
                positions,
                max_len,
                ContinuedRows(
                    flat.folding,
                    memory.seq_lens.index_select(0, flat.row_sources),
                    lambda module, end: memory.get(module, flat.row_sources, end),
                ),
                None,
            )

        # Only the prompts that these rows continue.
        sources, prompt_idx = flat.row_sources.unique(return_inverse=True)

        prompts = FlatRows(_create_prompt_rows(source, sources))

        num_prompt_tokens = prompts.tokens.size(0)

        hidden = self.decode(
            source,
            torch.cat([prompts.tokens, flat.tokens]),
            torch.cat([prompts.step_idx, positions]),
            max_len,
            PromptedRows(
                prompts.folding,
                flat.folding,
                num_prompt_tokens,
                prompt_idx,
                memory.seq_lens.index_select(0, sources),
            ),
            None,
        )

        return hidden[num_prompt_tokens:]

    @override
    def relate_to_source(
        self, source: EncodedSource, source_idx: Tensor
    ) -> SourceAttention | None:
        return None

    @override
    def get_offsets(self, source: EncodedSource, source_idx: Tensor) -> Tensor | int:
        memory = source.memory

        if not memory.padded:
            return memory.width

        return memory.seq_lens.index_select(0, source_idx)

    @property
    @override
    def max_source_len(self) -> int:
        # A row of one token at least.
        return self._model.max_seq_len - 1

    @override
    def get_max_target_len(self, source_len: int) -> int:
        return self._model.max_seq_len - source_len


def _create_prompt_rows(source: EncodedSource, sources: Tensor) -> DecoderRows:
    """
    Builds rows of nothing but the prompts, in which no prediction counts.

    :param sources: The prompts to take. *Shape:* :math:`(R)`.
    """
    seqs = source.seqs.index_select(0, sources)

    none = torch.zeros_like(seqs, dtype=torch.bool)

    return DecoderRows(
        seqs=seqs,
        seq_lens=source.memory.seq_lens.index_select(0, sources).tolist(),
        targets=seqs,
        warmup_mask=none,
        target_mask=none,
        source_idx=sources,
    )
