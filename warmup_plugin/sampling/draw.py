# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from torch import Tensor

from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout, WarmupTokens
from warmup_plugin.models.conditional import (
    ConditionalModel,
    EncodedSource,
    RowDecoder,
)
from warmup_plugin.sampling.truncation import truncate_log_probs


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


_BLOCK_SIZE: Final = 64
"""The number of tokens whose probabilities are summed before they are looked at."""


def sample_tokens(
    logits: Tensor, num_samples: int = 1, *, uniforms: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """
    Draws tokens by inverting the cumulative distribution.

    In two steps, first a block of tokens, then one of its tokens, so that the running
    sum is only over blocks. Its terms are in fp64: in fp32 the tail of a large
    vocabulary is lost. ``torch.multinomial`` and sorting cost many times as much
    (``scripts/bench_sampling.py``).

    :param logits: *Shape:* :math:`(B,V)`.
    :param num_samples: The number k of independent draws a row.
    :param uniforms: The uniform numbers to draw by, from [0, 1); ``None`` for those of
        the default generator. *Shape:* :math:`(B,k)`, fp64.

    :returns: The tokens and their log-probabilities. *Shape:* :math:`(B,k)` each.
    """
    num_rows, num_logits = logits.shape

    num_blocks = -(-num_logits // _BLOCK_SIZE)

    # (B, 1)
    max_logits = logits.amax(dim=1, keepdim=True)

    # (B, V')
    probs = logits.new_zeros((num_rows, num_blocks * _BLOCK_SIZE))

    torch.sub(logits, max_logits, out=probs[:, :num_logits]).exp_()

    # What pads the last block has no probability.
    probs[:, num_logits:] = 0.0

    # (B, V') -> (B, G, V' / G)
    blocks = probs.unflatten(1, (num_blocks, _BLOCK_SIZE))

    # (B, G)
    sums = blocks.sum(dim=2, dtype=torch.float64)

    cumulative = sums.cumsum(dim=1)

    # (B, 1)
    total = cumulative[:, -1:]

    if uniforms is None:
        uniforms = torch.rand(
            (num_rows, num_samples), dtype=torch.float64, device=logits.device
        )

    # Below one also after rounding, or u * total = total lies behind every entry;
    # `right=True` never picks a token of probability zero, not even for u = 0.
    u = uniforms.clamp(max=1.0 - 1e-12) * total

    # (B, k)
    block_idx = torch.searchsorted(cumulative, u, right=True)

    # Probabilities that are not numbers end up behind the last block; the caller finds
    # them in the log-probability of what was drawn.
    block_idx = block_idx.clamp_(max=num_blocks - 1)

    # (B, k, V' / G)
    inner = blocks.gather(1, block_idx.unsqueeze(2).expand(-1, -1, _BLOCK_SIZE))

    inner = inner.cumsum(dim=2, dtype=torch.float64)

    # What is left of u within the block, kept there whatever rounding did.
    rest = u - (cumulative - sums).gather(1, block_idx)

    rest = rest.clamp(min=0.0).minimum(inner[:, :, -1] * (1.0 - 1e-12))

    inner_idx = torch.searchsorted(inner, rest.unsqueeze(2), right=True).squeeze(2)

    tokens = block_idx * _BLOCK_SIZE + inner_idx.clamp_(max=_BLOCK_SIZE - 1)

    tokens = tokens.clamp_(max=num_logits - 1)

    log_probs = logits.gather(1, tokens) - (max_logits + total.log().to(logits.dtype))

    return tokens, log_probs


def draw_line_uniforms(
    seed: int, line_numbers: Sequence[int], num_draws: int, num_steps: int
) -> Tensor:
    """
    Draws the numbers that tokens are drawn by, for each line of a text apart.

    A counter-based generator for each line (Salmon et al., 2011): what a line gets
    depends on nothing but the seed and its number. A longer limit only adds to it.

    :param num_draws: The number K of sequences that are drawn for a line.

    :returns: One row for each line and draw. *Shape:* :math:`(NK,T)`, fp64.
    """
    parts = []

    for line_number in line_numbers:
        rng = np.random.Generator(np.random.Philox(key=[seed, line_number]))

        # (T, K) -> (K, T)
        parts.append(rng.random((num_steps, num_draws)).T)

    return torch.from_numpy(np.concatenate(parts))


def draw_line_candidates(
    model: ConditionalModel,
    source: EncodedSource,
    layout: DecoderLayout,
    prefixes: Tensor,
    line_numbers: Sequence[int],
    *,
    seed: int,
    num_warmups: int,
    max_warmup_len: int,
) -> Candidates:
    """
    Draws warmups for lines of a text from the model itself, as of
    :func:`draw_line_uniforms`.

    :param prefixes: The tokens before a warmup. *Shape:* :math:`(N,P)`.
    :param line_numbers: One of each source.
    """
    uniforms = draw_line_uniforms(seed, line_numbers, num_warmups, max_warmup_len)

    return draw_candidates(
        model,
        source,
        layout,
        prefixes,
        num_warmups=num_warmups,
        max_warmup_len=max_warmup_len,
        uniforms=uniforms.to(prefixes.device),
    )


def check_finite(log_probs: Tensor) -> None:
    """
    Checks the log-probabilities of warmups that were drawn.

    :raises WarmupError: If one of them is not finite.
    """
    if not bool(log_probs.isfinite().all()):
        raise WarmupError(
            "The model gave a warmup a probability that is not a number; training has diverged: lower `optimizer.config.lr` or set `trainer.max_grad_norm`, and restart from an earlier checkpoint."
        )


@final
class _TokenDraw:
    """Draws the next tokens of warmups from a model's logits."""

    def __init__(
        self,
        allowed: WarmupTokens,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        greedy: bool,
    ) -> None:
        self._allowed = allowed
        self._temperature = temperature
        self._top_k = top_k
        self._top_p = top_p
        self._greedy = greedy

    @property
    def on_policy(self) -> bool:
        """``True`` if tokens are drawn from P(c|x) itself."""
        return self._temperature == 1.0 and self._top_k is None and self._top_p is None

    def __call__(
        self, logits: Tensor, num_samples: int, uniforms: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        :param logits: *Shape:* :math:`(A,V)`.
        :param uniforms: See :func:`sample_tokens`. *Shape:* :math:`(A,k)`.

        :returns: The tokens and their log-probabilities, in the distribution they are
            drawn from and in the model's. *Shape:* :math:`(A,k)` each.
        """
        logits = self._allowed.restrict(logits.float())

        if self._greedy:
            # (A, 1)
            max_logits, tokens = logits.max(dim=1, keepdim=True)

            log_probs = max_logits - logits.logsumexp(dim=1, keepdim=True)

            return tokens, log_probs, log_probs

        if self.on_policy:
            tokens, log_probs = sample_tokens(logits, num_samples, uniforms=uniforms)

            return tokens, log_probs, log_probs

        return self._draw_tempered(logits, logits, num_samples, uniforms)

    def begin_with_empty(
        self, logits: Tensor, num_samples: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """
        Draws first tokens, of which the first one of each row is the separator and no
        other.

        See :meth:`__call__`; q of the separator is 0, since it is not drawn.
        """
        logits = self._allowed.restrict(logits.float())

        separator_idx = self._allowed.separator_idx

        proposal_logits = logits.clone()

        proposal_logits[:, separator_idx] = -torch.inf

        drawn = self._draw_tempered(proposal_logits, logits, num_samples - 1, None)

        tokens = torch.full_like(drawn[0][:, :1], separator_idx)

        log_probs = logits[:, separator_idx] - logits.logsumexp(dim=1)

        empty = (tokens, torch.zeros_like(drawn[1][:, :1]), log_probs.unsqueeze(1))

        tokens, proposal_log_probs, log_probs = (
            torch.cat(parts, dim=1) for parts in zip(empty, drawn)
        )

        return tokens, proposal_log_probs, log_probs

    def _draw_tempered(
        self,
        proposal_logits: Tensor,
        logits: Tensor,
        num_samples: int,
        uniforms: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        tempered = proposal_logits / self._temperature

        if self._top_k is not None or self._top_p is not None:
            tempered = truncate_log_probs(
                torch.log_softmax(tempered, dim=1), self._top_k, self._top_p
            )

        tokens, proposal_log_probs = sample_tokens(
            tempered, num_samples, uniforms=uniforms
        )

        # (A, k)
        log_probs = logits.gather(1, tokens) - logits.logsumexp(dim=1, keepdim=True)

        return tokens, proposal_log_probs, log_probs


@final
class _Feed:
    """
    Feeds a decoder with what B rows write, and with nothing twice: rows that have
    written the same so far are one row of the decoder.

    To find them each step waits for the device. On a GPU, where a row more costs
    little, each row is one of the decoder from the start.
    """

    def __init__(self, decoder: RowDecoder, rows: Tensor) -> None:
        """
        :param decoder: Has read what rows begin with.
        :param rows: The row of the decoder in which each begins. *Shape:* :math:`(B)`.
        """
        self._decoder = decoder

        self._shares = rows.device.type == "cpu"

        # The row of the decoder of each row.
        self._rows = rows

        self._num_rows = int(rows[-1]) + 1

        # Those that were fed last, to be found unchanged by the decoder.
        self._last: Tensor | None = None

        if not self._shares:
            decoder.select(rows)

    @property
    def rows(self) -> Tensor | None:
        """See :attr:`CandidatePast.rows`."""
        return self._rows if self._shares else None

    def __call__(self, tokens: Tensor, active: Tensor | None, done: Tensor) -> Tensor:
        """
        :param tokens: What A rows have written. *Shape:* :math:`(A)`.
        :param active: Which rows these are; ``None`` for all. *Shape:* :math:`(A)`.
        :param done: ``True`` if a row has ended; what it gets means nothing. *Shape:*
            :math:`(A)`.

        :returns: The logits of what follows. *Shape:* :math:`(A,V)`.
        """
        if not self._shares:
            return self._decoder.step(tokens.unsqueeze(1), active)

        # Among the active rows, and among all.
        writing = (~done).nonzero().squeeze(1)

        at = writing if active is None else active.index_select(0, writing)

        tokens = tokens.index_select(0, writing)

        if self._num_rows < self._rows.size(0):
            self._divide(at, tokens)

        # (F), in the order of the decoder
        rows, places = self._rows.index_select(0, at).unique(return_inverse=True)

        if self._last is not None and torch.equal(rows, self._last):
            rows = self._last

        self._last = rows

        # Equal for all rows of a place.
        fed = torch.empty_like(rows).index_copy_(0, places, tokens)

        feeds_all = rows.size(0) == self._num_rows

        logits = self._decoder.step(fed.unsqueeze(1), None if feeds_all else rows)

        if writing.size(0) < done.size(0):
            places = torch.zeros_like(done, dtype=torch.long).index_copy_(
                0, writing, places
            )

        return logits.index_select(0, places)

    def _divide(self, at: Tensor, tokens: Tensor) -> None:
        """Gives rows of their own to those that have written something else than the
        others with which they shared one."""
        vocab_size = int(tokens.max()) + 1

        keys = self._rows.index_select(0, at) * vocab_size + tokens

        # (F), sorted by their row so far
        keys, places = keys.unique(return_inverse=True)

        rows = keys // vocab_size

        # The first token of a row goes on in it.
        is_new = torch.zeros_like(rows, dtype=torch.bool)

        is_new[1:] = rows[1:] == rows[:-1]

        parents = rows[is_new]

        if parents.size(0) == 0:
            return

        self._decoder.fork(parents)

        end = self._num_rows + parents.size(0)

        rows[is_new] = torch.arange(self._num_rows, end)

        self._rows[at] = rows.index_select(0, places)

        self._num_rows = end


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
    top_k: int | None = None,
    top_p: float | None = None,
    uniforms: Tensor | None = None,
    greedy: bool = False,
    with_empty: bool = False,
) -> Candidates:
    r"""
    Draws K independent warmups of each source from the model itself.

    Uses the default random generator of the device, which fairseq2 saves and restores
    with a checkpoint, unless it is given the numbers to draw by. The model must be in evaluation mode. Rows that have
    written their separator are left out once they are a quarter of those that are fed.

    :param prefixes: The tokens before a warmup. *Shape:* :math:`(N,P)`.
    :param max_warmup_len: The most tokens of a warmup; then the separator is forced.
    :param temperature: Divides the logits; other than 1.0, q is not a.
    :param top_k: See :func:`~warmup_plugin.sampling.truncation.truncate_log_probs`.
    :param top_p: See :func:`~warmup_plugin.sampling.truncation.truncate_log_probs`.
    :param uniforms: Numbers from [0, 1), such as :func:`draw_line_uniforms` draws.
        *Shape:* :math:`(B,C)`, fp64.
    :param greedy: If ``True``, the likeliest tokens are taken; then K must be 1.
    :param with_empty: If ``True``, the first warmup of each source is the empty one and
        the others are drawn from those that are not. The empty one is enumerated, not
        drawn: P(y|x) is :math:`P(\emptyset|x) P(y|\emptyset,x) + \frac{1}{K-1} \sum_k
        P(c_k|x) P(y|c_k,x) / Q(c_k)`. With :math:`q = -\log K` for the empty warmup and
        :math:`q_k = \log Q(c_k) + \log \frac{K-1}{K}` for the others, this is the mean
        of :math:`e^{a + b - q}` over all K.

    :raises WarmupError: If the model gives a probability that is not a number.
    """
    num_sources, prefix_len = prefixes.shape

    num_rows = num_sources * num_warmups

    device = prefixes.device

    draw = _TokenDraw(
        layout.warmup_tokens(model.num_logits, device),
        temperature,
        top_k,
        top_p,
        greedy,
    )

    sources = torch.arange(num_sources, device=device)

    # (B, C)
    seqs = torch.full(
        (num_rows, max_warmup_len), layout.pad_idx, dtype=torch.long, device=device
    )

    seq_lens = torch.zeros(num_rows, dtype=torch.long, device=device)

    proposal_log_probs = torch.zeros(num_rows, dtype=torch.float32, device=device)

    warmup_log_probs = torch.zeros_like(proposal_log_probs)

    # The rows that still write, by their number in the full batch; some of them may
    # have finished since the last look. ``None`` for all.
    active: Tensor | None = None

    done = torch.zeros(num_rows, dtype=torch.bool, device=device)

    cut = torch.ones(num_rows, dtype=torch.bool, device=device)

    # A look waits for the device; on a CPU it costs nothing.
    look_every = 1 if device.type == "cpu" else 4

    decoder = model.start(source, sources, prefix_len + max_warmup_len)

    # All rows of a source begin alike: one of them is enough.
    logits = decoder.step(prefixes)

    if with_empty:
        drawn = draw.begin_with_empty(logits, num_warmups)
    else:
        drawn = draw(
            logits,
            num_warmups,
            None if uniforms is None else uniforms[:, 0].view(num_sources, num_warmups),
        )

    feed = _Feed(decoder, sources.repeat_interleave(num_warmups))

    for step_nr in range(max_warmup_len):
        # (A)
        tokens, token_proposal_log_probs, token_log_probs = (d.flatten() for d in drawn)

        ended = done | (tokens == layout.separator_idx)

        at = slice(None) if active is None else active

        proposal_log_probs[at] += token_proposal_log_probs.masked_fill(done, 0.0)

        warmup_log_probs[at] += token_log_probs.masked_fill(done, 0.0)

        seqs[at, step_nr] = tokens.masked_fill(ended, layout.pad_idx)

        seq_lens[at] += (~ended).long()

        cut[at] = ~ended

        done = ended

        if step_nr + 1 == max_warmup_len:
            break

        if step_nr % look_every == 0:
            num_done = int(done.sum())

            if num_done == done.size(0):
                break

            if 4 * num_done >= done.size(0):
                kept = (~done).nonzero().squeeze(1)

                active = kept if active is None else active.index_select(0, kept)

                tokens = tokens.index_select(0, kept)

                done = torch.zeros_like(active, dtype=torch.bool)

        step_uniforms = None

        if uniforms is not None:
            # (A, 1)
            step_uniforms = uniforms[:, step_nr + 1 : step_nr + 2]

            if active is not None:
                step_uniforms = step_uniforms.index_select(0, active)

        drawn = draw(feed(tokens, active, done), 1, step_uniforms)

    check_finite(proposal_log_probs)

    # A warmup has been read but for its last token if it was cut.
    past_lens = prefix_len + seq_lens.clamp(max=max_warmup_len - 1)

    max_len = max(int(seq_lens.max()), 1)

    shape = (num_sources, num_warmups)

    proposal_log_probs = proposal_log_probs.view(shape)

    if with_empty:
        proposal_log_probs[:, 0] = -math.log(num_warmups)

        proposal_log_probs[:, 1:] += math.log((num_warmups - 1) / num_warmups)

    return Candidates(
        seqs=seqs[:, :max_len],
        seq_lens=seq_lens,
        cut=cut,
        proposal_log_probs=proposal_log_probs,
        warmup_log_probs=warmup_log_probs.view(shape),
        past=CandidatePast(decoder, past_lens, feed.rows),
    )
