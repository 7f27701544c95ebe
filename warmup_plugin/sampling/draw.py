# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Drawing warmups, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from warmup_plugin.layout import DecoderLayout, WarmupTokens
from warmup_plugin.models.conditional import (
    ConditionalModel,
    EncodedSource,
    RowDecoder,
)
from warmup_plugin.sampling.candidates import CandidatePast, Candidates
from warmup_plugin.sampling.tokens import (
    check_finite,
    draw_line_uniforms,
    sample_tokens,
)
from warmup_plugin.sampling.truncation import truncate_log_probs


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
    :param uniforms: Numbers from [0, 1), such as
        :func:`~warmup_plugin.sampling.tokens.draw_line_uniforms` draws. *Shape:*
        :math:`(B,C)`, fp64.
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
    :func:`~warmup_plugin.sampling.tokens.draw_line_uniforms`.

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
