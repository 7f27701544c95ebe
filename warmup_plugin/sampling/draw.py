# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import ConditionalModel, EncodedSource


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
    """The log-probability of each warmup under the distribution that it was drawn
    from. *Shape:* :math:`(N,K)`."""

    on_policy: bool = False
    """``True`` if that distribution is P(c|x) itself, so that q is a."""

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
        num_sources, num_warmups = self.proposal_log_probs.shape

        # Padding is unambiguous: no warmup holds the pad token.
        # (B, C) -> (N, K, C)
        seqs = self.seqs.view(num_sources, num_warmups, -1)

        # (N, K, K)
        same = (seqs.unsqueeze(1) == seqs.unsqueeze(2)).all(dim=-1)

        return same.tril(diagonal=-1).any(dim=-1)


def sample_tokens(log_probs: Tensor) -> Tensor:
    """
    Draws one token a row by inverting the cumulative distribution.

    Sorting or ``torch.multinomial`` cost 25 to 60 times as much for a vocabulary of
    8,000. The sums are in fp64: in fp32 the tail of a large vocabulary is lost.

    :param log_probs: Normalised. *Shape:* :math:`(B,V)`.

    :returns: *Shape:* :math:`(B)`.
    """
    # (B, V)
    cumulative = log_probs.exp().cumsum(dim=-1, dtype=torch.float64)

    # (B, 1)
    total = cumulative[:, -1:]

    u = torch.rand(total.shape, dtype=torch.float64, device=log_probs.device)

    # Below one also after rounding, or u * total = total lies behind every entry;
    # `right=True` never picks a token of probability zero, not even for u = 0.
    u = u.clamp_(max=1.0 - 1e-12)

    # (B, 1) -> (B)
    tokens = torch.searchsorted(cumulative, u * total, right=True).squeeze(1)

    # Probabilities that are not numbers end up behind the last token; the caller
    # finds them in the log-probability of what was drawn.
    return tokens.clamp_(max=log_probs.size(-1) - 1)


@torch.no_grad()
def draw_candidates(
    model: ConditionalModel,
    source: EncodedSource,
    layout: DecoderLayout,
    prefixes: Tensor,
    *,
    num_warmups: int,
    max_warmup_len: int,
    temperature: float = 1.0,
) -> Candidates:
    """
    Draws K independent warmups of each source from the model itself.

    Uses the default random generator of the device, which fairseq2 saves and restores
    with a checkpoint. The model must be in evaluation mode. Rows that have written
    their separator are dropped from the batch once they are a quarter of it.

    :param prefixes: The tokens before a warmup. *Shape:* :math:`(N,P)`.
    :param max_warmup_len: The most tokens of a warmup; then the separator is forced.
    :param temperature: Divides the logits; other than 1.0, q is not a.

    :raises WarmupError: If the model gives a probability that is not a number.
    """
    num_sources = prefixes.size(0)

    num_rows = num_sources * num_warmups

    device = prefixes.device

    ban_mask = layout.warmup_ban_mask(model.num_logits, device)

    source_idx = torch.arange(num_sources, device=device)

    source_idx = source_idx.repeat_interleave(num_warmups)

    # (B, C)
    seqs = torch.full(
        (num_rows, max_warmup_len), layout.pad_idx, dtype=torch.long, device=device
    )

    seq_lens = torch.zeros(num_rows, dtype=torch.long, device=device)

    proposal_log_probs = torch.zeros(num_rows, dtype=torch.float32, device=device)

    # The rows that still write, by their number in the full batch; some of them may
    # have finished since the last compaction.
    active = torch.arange(num_rows, device=device)

    done = torch.zeros(num_rows, dtype=torch.bool, device=device)

    cut = torch.ones(num_rows, dtype=torch.bool, device=device)

    decoder = model.start(source, source_idx, prefixes.size(1) + max_warmup_len)

    # (N, P) -> (B, P)
    tokens = prefixes.index_select(0, source_idx)

    for step_nr in range(max_warmup_len):
        # (A, V), A active rows
        logits = decoder.step(tokens).float().masked_fill(ban_mask, -torch.inf)

        log_probs = torch.log_softmax(logits / temperature, dim=-1)

        # (A)
        next_tokens = sample_tokens(log_probs)

        token_log_probs = log_probs.gather(1, next_tokens.unsqueeze(1)).squeeze(1)

        ended = done | (next_tokens == layout.separator_idx)

        proposal_log_probs[active] += token_log_probs.masked_fill(done, 0.0)

        seqs[active, step_nr] = next_tokens.masked_fill(ended, layout.pad_idx)

        seq_lens[active] += (~ended).long()

        cut[active] = ~ended

        num_done = int(ended.sum())

        if num_done == active.size(0):
            break

        if 4 * num_done >= active.size(0):
            kept = (~ended).nonzero().squeeze(1)

            active = active.index_select(0, kept)

            next_tokens = next_tokens.index_select(0, kept)

            decoder.select(kept)

            done = torch.zeros_like(active, dtype=torch.bool)
        else:
            done = ended

        tokens = next_tokens.unsqueeze(1)

    if not bool(proposal_log_probs.isfinite().all()):
        raise WarmupError(
            "The model gave a warmup a probability that is not a number; training has diverged: lower `optimizer.config.lr` or set `trainer.max_grad_norm`, and restart from an earlier checkpoint."
        )

    max_len = max(int(seq_lens.max()), 1)

    return Candidates(
        seqs=seqs[:, :max_len],
        seq_lens=seq_lens,
        cut=cut,
        proposal_log_probs=proposal_log_probs.view(num_sources, num_warmups),
        on_policy=temperature == 1.0,
    )
