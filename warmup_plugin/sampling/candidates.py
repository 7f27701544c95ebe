# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Warmups that were drawn, and what their decoder has read of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import RowDecoder


@final
@dataclass(frozen=True)
class Candidates:
    """Holds K warmups of each of N sources; row ``n * K + k``."""

    seqs: Tensor
    """The warmups without separator, padded. *Shape:* :math:`(B,C)`."""

    seq_lens: Tensor
    """The lengths of the warmups; 0 for an empty one. *Shape:* :math:`(B)`."""

    cut: Tensor
    """``True`` if the separator was forced at the length limit. *Shape:*
    :math:`(B)`."""

    proposal_log_probs: Tensor
    """q, the log-probability of each warmup under the distribution that it was drawn
    from. *Shape:* :math:`(N,K)`."""

    warmup_log_probs: Tensor | None = None
    """a = log P(c|x), if drawing has found it. *Shape:* :math:`(N,K)`."""

    past: CandidatePast | None = None
    """What drawing has left behind for the pass that weighs."""

    @property
    def num_warmups(self) -> int:
        """The number K of warmups a source."""
        return self.proposal_log_probs.size(1)

    def source_idx(self) -> Tensor:
        """Returns the source of each row. *Shape:* :math:`(B)`."""
        num_sources, num_warmups = self.proposal_log_probs.shape

        idx = torch.arange(num_sources, device=self.seqs.device)

        return idx.repeat_interleave(num_warmups)

    def duplicates(self) -> Tensor:
        """
        Marks warmups that an earlier candidate of the same source equals.

        *Shape:* :math:`(N,K)`.
        """
        return self._same().tril(diagonal=-1).any(dim=-1)

    def distinct(self) -> tuple[Tensor, Tensor]:
        """
        Lists the rows whose warmups no earlier one of the same source equals.

        :returns: These rows, *Shape:* :math:`(D)`, and for every row the place among
            them of the one that it equals, *Shape:* :math:`(B)`.
        """
        num_sources, num_warmups = self.proposal_log_probs.shape

        # (N, K), the first True
        first = self._same().to(torch.uint8).argmax(dim=-1)

        begins = torch.arange(num_sources, device=first.device) * num_warmups

        # (B)
        first = (first + begins.unsqueeze(1)).flatten()

        is_first = first == torch.arange(first.size(0), device=first.device)

        places = is_first.cumsum(dim=0) - 1

        return is_first.nonzero().squeeze(1), places[first]

    def _same(self) -> Tensor:
        """Tells which warmups of a source are equal. *Shape:* :math:`(N,K,K)`."""
        num_sources, num_warmups = self.proposal_log_probs.shape

        # Padding is unambiguous: no warmup holds the pad token.
        # (B, C) -> (N, K, C)
        seqs = self.seqs.view(num_sources, num_warmups, -1)

        # (N, K, K)
        return (seqs.unsqueeze(1) == seqs.unsqueeze(2)).all(dim=-1)


@final
@dataclass(frozen=True)
class CandidatePast:
    """Holds a decoder that has read the first tokens of each candidate's row."""

    decoder: RowDecoder

    seq_lens: Tensor
    """The number of tokens that it has read, prefix included. *Shape:* :math:`(B)`."""

    rows: Tensor | None = None
    """The row of the decoder that has read them, and perhaps more; ``None`` if each
    candidate has one of its own. *Shape:* :math:`(B)`."""


def empty_candidates(
    layout: DecoderLayout, num_sources: int, device: torch.device
) -> Candidates:
    """Returns the empty warmup of each source, the only one that there is: K is 1."""
    certain = torch.zeros((num_sources, 1), device=device)

    return Candidates(
        seqs=torch.full((num_sources, 1), layout.pad_idx, device=device),
        seq_lens=torch.zeros(num_sources, dtype=torch.long, device=device),
        cut=torch.ones(num_sources, dtype=torch.bool, device=device),
        proposal_log_probs=certain,
        warmup_log_probs=certain,
    )


def concat_candidates(parts: list[Candidates], pad_idx: int) -> Candidates:
    """
    Puts the candidates of several groups of sources one after the other.

    What drawing has left behind is dropped.
    """
    width = max(part.seqs.size(1) for part in parts)

    seqs = [
        torch.nn.functional.pad(p.seqs, (0, width - p.seqs.size(1)), value=pad_idx)
        for p in parts
    ]

    known = [p.warmup_log_probs for p in parts if p.warmup_log_probs is not None]

    return Candidates(
        seqs=torch.cat(seqs),
        seq_lens=torch.cat([p.seq_lens for p in parts]),
        cut=torch.cat([p.cut for p in parts]),
        proposal_log_probs=torch.cat([p.proposal_log_probs for p in parts]),
        warmup_log_probs=torch.cat(known) if len(known) == len(parts) else None,
    )
