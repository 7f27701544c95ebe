# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Which tokens may come next in a search, and how likely they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from torch import Tensor

from warmup_plugin.generation.beams import Beams
from warmup_plugin.generation.token_picks import TokenDraw
from warmup_plugin.generation.top_tokens import find_top
from warmup_plugin.layout import DecoderLayout

_NUM_CACHED_LOGITS: Final = 2**18
"""How many numbers are worked on at a time: 1 MiB of them."""


@final
@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """Says what the sequences of M groups may look like."""

    max_warmup_len: int | None
    """The most tokens of a warmup; ``None`` to begin with the output."""

    limits: Tensor
    """The most tokens of an output, EOS not counted. *Shape:* :math:`(M)`."""

    min_lens: Tensor
    """The fewest tokens of an output. *Shape:* :math:`(M)`."""

    forced: Tensor | None = None
    """The tokens that an output begins with, padded. *Shape:* :math:`(M,F)`."""

    forced_lens: Tensor | None = None
    """*Shape:* :math:`(M)`."""

    begun_log_probs: Tensor | None = None
    """The log-probability of what was written before. *Shape:* :math:`(M)`."""

    begun_lens: Tensor | None = None
    """The number of tokens written before. *Shape:* :math:`(M)`."""

    @property
    def max_len(self) -> int:
        """The most tokens that any group writes, separator and EOS included."""
        max_len = int(self.limits.max()) + 1

        if self.max_warmup_len is not None:
            max_len += self.max_warmup_len + 1

        return max_len


@final
class TokenRanking:
    """Ranks the tokens that may come next in each row."""

    def __init__(
        self,
        layout: DecoderLayout,
        space: SearchSpace,
        num_logits: int,
        device: torch.device,
        *,
        banned_in_target: Sequence[int],
        no_repeat_ngram_size: int,
        knows_separator: bool,
        draw: TokenDraw | None,
        num_ranked: int,
    ) -> None:
        self._layout = layout
        self._space = space
        self._no_repeat_ngram_size = no_repeat_ngram_size
        self._knows_separator = knows_separator
        self._draw = draw
        self._num_ranked = num_ranked

        # A padded vocabulary has logits that no token stands for.
        padding = range(layout.vocab_size, num_logits)

        in_warmup = {*layout.banned_in_warmup, *padding}
        in_target = {*banned_in_target, *padding}

        def to_tensor(tokens: set[int]) -> Tensor:
            return torch.tensor(sorted(tokens), dtype=torch.long, device=device)

        self._banned_in_warmup = to_tensor(in_warmup)
        self._banned_in_target = to_tensor(in_target)

        # The few that are banned in one part only.
        self._only_in_warmup = to_tensor(in_warmup - in_target)
        self._only_in_target = to_tensor(in_target - in_warmup)
        self._always_banned = to_tensor(in_warmup & in_target)

        self._max_forced_len = 0

        if space.forced is not None:
            self._max_forced_len = space.forced.size(1)

        self._max_min_len = int(space.min_lens.max())

        self._min_limit = int(space.limits.min())

    def __call__(
        self, logits: Tensor, state: Beams, active: Tensor, step_nr: int
    ) -> tuple[Tensor, Tensor]:
        """
        :param logits: Will be changed. *Shape:* :math:`(A \\times G,V)`.

        :returns: The log-probabilities of the tokens that may come next and the tokens,
            the likeliest ones first. *Shape:* :math:`(A \\times G,C)` each.
        """
        layout, space = self._layout, self._space

        num_beams = state.log_probs.size(1)

        # (A x G)
        in_target = state.in_target.flatten()

        warmup_lens = state.warmup_lens.flatten()

        if space.max_warmup_len is None:
            target_lens = torch.full_like(warmup_lens, step_nr)

            num_in_target, min_target_len, max_target_len = (
                in_target.numel(),
                step_nr,
                step_nr,
            )
        else:
            target_lens = step_nr - warmup_lens - 1

            num_in_target = int(in_target.sum())

            max_target_len = step_nr - 1

            min_target_len = step_nr - 1 - space.max_warmup_len

        # (A x G)
        groups = active if num_beams == 1 else active.repeat_interleave(num_beams)

        # Read before anything is banned.
        eos_logits = logits[:, layout.eos_idx].clone()

        forced_logits = forced_tokens = is_forced = None

        if max(min_target_len, 0) < self._max_forced_len:
            assert space.forced is not None and space.forced_lens is not None

            is_forced = in_target & (
                target_lens < space.forced_lens.index_select(0, groups)
            )

            at = target_lens.clamp(0, self._max_forced_len - 1).unsqueeze(1)

            # (A x G, 1)
            forced_tokens = space.forced.index_select(0, groups).gather(1, at)

            forced_logits = logits.gather(1, forced_tokens)

        # (A x G)
        norms = self._normalize(logits, in_target, num_in_target)

        if min_target_len < self._max_min_len:
            too_short = in_target & (
                target_lens < space.min_lens.index_select(0, groups)
            )

            logits[:, layout.eos_idx] = logits[:, layout.eos_idx].masked_fill(
                too_short, -torch.inf
            )

        size = self._no_repeat_ngram_size

        if size > 0 and max_target_len >= size:
            _ban_repeated_ngrams(
                logits,
                state.seqs.flatten(0, 1)[:, :step_nr],
                torch.where(in_target, target_lens, 0),
                size,
            )

            # A tiny vocabulary may have nothing else left.
            dead = logits.amax(dim=1) == -torch.inf

            logits[:, layout.eos_idx] = torch.where(
                dead, eos_logits, logits[:, layout.eos_idx]
            )

        if self._draw is not None:
            tokens = self._draw(logits, groups, step_nr).unsqueeze(1)

            log_probs = logits.gather(1, tokens)
        else:
            log_probs, tokens = find_top(logits, self._num_ranked)

        log_probs = log_probs - norms.unsqueeze(1)

        def leave_one(rows: Tensor, token: Tensor | int, values: Tensor) -> None:
            """Lets rows go on with one token only."""
            nonlocal log_probs

            log_probs = log_probs.masked_fill(rows.unsqueeze(1), -torch.inf)

            log_probs[:, 0] = torch.where(rows, values, log_probs[:, 0])

            tokens[:, 0] = torch.where(rows, token, tokens[:, 0])

        if is_forced is not None:
            assert forced_logits is not None and forced_tokens is not None

            leave_one(
                is_forced, forced_tokens.squeeze(1), forced_logits.squeeze(1) - norms
            )

        # Only EOS may follow an output of full length.
        if max_target_len >= self._min_limit:
            at_limit = in_target & (target_lens >= space.limits.index_select(0, groups))

            leave_one(at_limit, layout.eos_idx, eos_logits - norms)

        # A separator forced at the limit has probability 1, so it costs nothing.
        if space.max_warmup_len is not None and step_nr == space.max_warmup_len:
            if num_in_target < in_target.numel():
                forced = ~in_target

                leave_one(
                    forced, layout.separator_idx, torch.zeros_like(log_probs[:, 0])
                )

        return log_probs, tokens

    def _normalize(
        self, logits: Tensor, in_target: Tensor, num_in_target: int
    ) -> Tensor:
        """
        Bans tokens and returns what turns logits into log-probabilities.

        Within a warmup the distribution is the one that training draws from, over the
        tokens allowed there; an output is learned with all tokens but the separator.
        """
        if self._knows_separator:
            separators = logits[:, self._layout.warmup_end_idx]

            logits[:, self._layout.separator_idx] = separators.masked_fill(
                in_target, -torch.inf
            )

        if num_in_target == in_target.numel():
            norms = _sum(logits)

            logits.index_fill_(1, self._banned_in_target, -torch.inf)

            return norms

        if num_in_target == 0:
            logits.index_fill_(1, self._banned_in_warmup, -torch.inf)

            return _sum(logits)

        target_norms = _sum(logits)

        logits.index_fill_(1, self._always_banned, -torch.inf)

        for rows, only in (
            (in_target, self._only_in_target),
            (~in_target, self._only_in_warmup),
        ):
            # (A x G, B)
            few = logits.index_select(1, only)

            logits[:, only] = few.masked_fill(rows.unsqueeze(1), -torch.inf)

        return torch.where(in_target, target_norms, _sum(logits))


def _sum(logits: Tensor) -> Tensor:
    """
    Computes ``logsumexp``.

    Some rows at a time, so that a CPU finds in its cache what it has just written; its
    ``log_softmax`` takes half the time of an exponential and a sum.

    :param logits: *Shape:* :math:`(B,V)`.

    :returns: *Shape:* :math:`(B)`.
    """
    num_rows, num_logits = logits.shape

    size = num_rows

    if logits.device.type == "cpu":
        size = max(1, _NUM_CACHED_LOGITS // num_logits)

    norms = [
        part.amax(dim=1) - part.log_softmax(dim=1).amax(dim=1)
        for part in logits.split(size)
    ]

    return torch.cat(norms)


def _ban_repeated_ngrams(
    logits: Tensor, seqs: Tensor, target_lens: Tensor, size: int
) -> None:
    """
    Bans the tokens that would complete an n-gram which the output already holds.

    :param logits: *Shape:* :math:`(B,V)`.
    :param seqs: What the rows have written; the last tokens are those of the output.
        *Shape:* :math:`(B,T)`.
    :param target_lens: The number of these. *Shape:* :math:`(B)`.
    """
    length = seqs.size(1)

    # (B, T - n + 1, n)
    ngrams = seqs.unfold(1, size, 1)

    # The n - 1 tokens that the next one would follow: (B, 1, n - 1)
    last = seqs[:, length - size + 1 :].unsqueeze(1)

    # (B, T - n + 1)
    same = (ngrams[:, :, :-1] == last).all(dim=2)

    begins = length - target_lens

    at = torch.arange(ngrams.size(1), device=seqs.device)

    # An n-gram must lie within the output.
    same &= at >= begins.unsqueeze(1)

    rows, places = same.nonzero(as_tuple=True)

    logits[rows, ngrams[rows, places, size - 1]] = -torch.inf
