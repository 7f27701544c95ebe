# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What encoder-decoders and decoder-only models share when they read flat rows."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from fairseq2.models.transformer import TransformerModel
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn import BatchLayout, Projection
from fairseq2.nn.fsdp import FSDP2Module
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from warmup_plugin.layout import DecoderRows, ExcludedTokens
from warmup_plugin.models.attention import (
    SelfAttention,
    SourceAttention,
    adapt_attention,
)
from warmup_plugin.models.conditional import (
    ConditionalModel,
    EncodedSource,
    RowCoefs,
    RowDecoder,
    RowLosses,
    RowScores,
)
from warmup_plugin.models.flat_rows import FlatRows, list_counted
from warmup_plugin.models.row_decoder import CachedRowDecoder
from warmup_plugin.models.rows import select_items
from warmup_plugin.models.token_loss import compute_log_probs, compute_token_loss
from warmup_plugin.models.traits import PositionBias, find_position_bias


@contextmanager
def _gathered(module: Module) -> Iterator[None]:
    """
    Gathers the parameters that FSDP has divided.

    FSDP leaves that to the backward pass of a layer, which has not begun where a whole
    pass is computed again; that of the layer also divides them again. All ranks make as
    many passes, hence as many of these.
    """
    for submodule in module.modules():
        if isinstance(submodule, FSDP2Module):
            submodule.unshard()

    yield


class RowModel(ConditionalModel):
    """Decodes flat rows; what both kinds of model have in common."""

    _model: TransformerModel | TransformerLM

    def __init__(self, model: TransformerModel | TransformerLM) -> None:
        adapt_attention(model.decoder)

        self._model = model

    @abstractmethod
    def decode(
        self,
        source: EncodedSource,
        tokens: Tensor,
        positions: Tensor,
        max_len: int,
        attend_rows: SelfAttention,
        attend_source: SourceAttention | None,
    ) -> Tensor:
        """
        Runs the decoder over flat tokens.

        :param tokens: *Shape:* :math:`(T)`.
        :param positions: The place of each token in its row. *Shape:* :math:`(T)`.
        :param max_len: More than the largest of them.

        :returns: *Shape:* :math:`(T,M)`.
        """

    @abstractmethod
    def relate_to_source(
        self, source: EncodedSource, source_idx: Tensor
    ) -> SourceAttention | None:
        """
        Prepares the cross-attention of tokens; ``None`` if the model has none.

        :param source_idx: The source of each token. *Shape:* :math:`(T)`.
        """

    @abstractmethod
    def decode_rows(self, source: EncodedSource, flat: FlatRows) -> Tensor:
        """Runs the decoder over whole rows. *Shape:* :math:`(T,M)`."""

    @abstractmethod
    def get_offsets(self, source: EncodedSource, source_idx: Tensor) -> Tensor | int:
        """
        Returns where rows begin: one number if it is the same for all.

        *Shape:* :math:`(R)`.
        """

    @property
    def position_bias(self) -> PositionBias | None:
        """What positions add to the logits of self-attention; ``None`` if nothing."""
        return find_position_bias(self._model.decoder)

    @property
    def final_proj(self) -> Projection:
        """The output projection."""
        return self._model.final_proj

    @property
    @override
    def module(self) -> Module:
        return self._model

    @override
    def start(
        self, source: EncodedSource, source_idx: Tensor, max_len: int
    ) -> RowDecoder:
        return CachedRowDecoder(self, source, source_idx, max_len)

    @override
    def score(
        self, source: EncodedSource, rows: DecoderRows, excluded: ExcludedTokens
    ) -> RowScores:
        flat = FlatRows(rows)

        hidden = self.decode_rows(source, flat)

        idx, num_warmup = list_counted(flat)

        log_probs = compute_log_probs(
            self.final_proj,
            select_items(hidden, idx),
            flat.targets[idx],
            num_warmup=num_warmup,
            excluded=excluded,
        )

        row_idx = flat.row_idx[idx]

        sizes = [num_warmup, idx.size(0) - num_warmup]

        zeros = log_probs.new_zeros(flat.num_rows)

        sums = [
            zeros.index_add(0, part_idx, part)
            for part_idx, part in zip(row_idx.split(sizes), log_probs.split(sizes))
        ]

        return RowScores(*sums)

    @override
    def compute_loss(
        self,
        source_seqs: Tensor,
        source_layout: BatchLayout,
        rows: DecoderRows,
        coefs: RowCoefs,
        excluded: ExcludedTokens,
        *,
        label_smoothing: float = 0.0,
        passes: Sequence[Tensor] | None = None,
        source: EncodedSource | None = None,
        losses: RowLosses | None = None,
    ) -> Tensor:
        if source is None:
            source = self.encode(source_seqs, source_layout)

        # What counts in each pass, hidden states, targets and coefficients: those of
        # warmups, and those of targets.
        warmup_parts: list[tuple[Tensor, Tensor, Tensor]] = []
        target_parts: list[tuple[Tensor, Tensor, Tensor]] = []

        # The rows of the latter.
        target_rows: list[Tensor] = []

        def collect(
            hidden: Tensor,
            flat: FlatRows,
            u: Tensor,
            v: Tensor,
            row_numbers: Tensor | None = None,
        ) -> None:
            idx, num_warmup = list_counted(flat)

            hidden, targets = select_items(hidden, idx), flat.targets[idx]

            row_idx = flat.row_idx[idx]

            for parts, part, row_coefs in (
                (warmup_parts, slice(num_warmup), u),
                (target_parts, slice(num_warmup, None), v),
            ):
                parts.append((hidden[part], targets[part], row_coefs[row_idx[part]]))

            if row_numbers is not None:
                row_idx = row_numbers[row_idx]

            target_rows.append(row_idx[num_warmup:])

        if passes is None:
            flat = FlatRows(rows)

            collect(self.decode_rows(source, flat), flat, coefs.warmup, coefs.target)

        for part_idx in passes or []:
            u, v = coefs.warmup[part_idx], coefs.target[part_idx]

            if part_idx.numel() == 0:
                # With a row that does not count.
                part_idx = rows.source_idx.new_zeros(1)

                u, v = u.new_zeros(1), v.new_zeros(1)

            flat = FlatRows(rows.select(part_idx))

            hidden = checkpoint(
                self.decode_rows,
                source,
                flat,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _gathered(self.module)),
            )

            collect(hidden, flat, u, v, part_idx)

        # Once for all passes: it holds a gradient of the whole output projection.
        hidden, targets, token_coefs = (
            torch.cat(parts) for parts in zip(*warmup_parts, *target_parts)
        )

        num_warmup = sum(part[0].size(0) for part in warmup_parts)

        token_losses: list[Tensor] | None = None if losses is None else []

        loss = compute_token_loss(
            self.final_proj,
            hidden,
            targets,
            token_coefs,
            num_warmup=num_warmup,
            excluded=excluded,
            label_smoothing=label_smoothing,
            token_losses=token_losses,
        )

        if losses is not None and token_losses:
            terms = -torch.cat(token_losses)[num_warmup:]

            zeros = terms.new_zeros(coefs.target.size(0))

            losses.target = zeros.index_add(0, torch.cat(target_rows), terms)

        # The loss of a token is minus its log-probability.
        return -loss

    @property
    @override
    def num_logits(self) -> int:
        return self.final_proj.output_dim
