# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The searches for decoder sequences: token by token, many groups of rows at once.

A *group* is one source, or one source with one warmup; its rows are its beams. All
limits belong to a group, so what is found does not depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias, final

import torch
from torch import Tensor

from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import RowDecoder
from warmup_plugin.sampling.draw import sample_tokens
from warmup_plugin.sampling.truncation import truncate_log_probs


@final
@dataclass(frozen=True)
class FoundSeq:
    """Holds what a search has written for a group."""

    tokens: list[int]
    """Without EOS; the separator stands where it was written."""

    token_log_probs: list[float]
    """Of each token and of EOS."""

    log_prob: float
    """Their sum."""

    score: float
    """With what was written before, divided by length ** length_penalty."""


@final
@dataclass(frozen=True)
class WrittenWarmups:
    """Holds one warmup of each group, written token by token."""

    seqs: list[list[int]]
    """Without separator."""

    token_log_probs: list[list[float]]
    """Of each token and of the separator."""

    log_probs: list[float]


StepCallback: TypeAlias = Callable[[Tensor, Tensor, Tensor], None]


class TokenPick:
    """Picks the likeliest token."""

    def __call__(self, logits: Tensor, groups: Tensor | None, step_nr: int) -> Tensor:
        """
        :param logits: *Shape:* :math:`(A,V)`.
        :param groups: The groups that the rows belong to; ``None`` for all, one row
            each. *Shape:* :math:`(A)`.
        :param step_nr: The number of tokens that the group has picked before.

        :returns: *Shape:* :math:`(A)`.
        """
        return find_top(logits, 1)[1].squeeze(1)


@final
class TokenDraw(TokenPick):
    """Draws a token by uniform numbers that belong to its group."""

    def __init__(
        self,
        uniforms: Tensor,
        *,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
    ) -> None:
        """
        :param uniforms: A number for each group and step. *Shape:* :math:`(M,T)`,
            fp64.

        See :class:`GenerationConfig` for the other parameters.
        """
        self._uniforms = uniforms
        self._temperature = temperature
        self._top_k = top_k
        self._top_p = top_p

    def __call__(self, logits: Tensor, groups: Tensor | None, step_nr: int) -> Tensor:
        # (M)
        uniforms = self._uniforms[:, step_nr]

        if groups is not None:
            uniforms = uniforms.index_select(0, groups)

        if self._temperature != 1.0:
            logits = logits / self._temperature

        if self._top_k is not None or self._top_p is not None:
            logits = truncate_log_probs(
                torch.log_softmax(logits, dim=1), self._top_k, self._top_p
            )

        tokens, _ = sample_tokens(logits, uniforms=uniforms.unsqueeze(1))

        return tokens.squeeze(1)


@torch.no_grad()
def write_warmups(
    decoder: RowDecoder,
    logits: Tensor,
    layout: DecoderLayout,
    pick: TokenPick,
    *,
    max_warmup_len: int,
) -> WrittenWarmups:
    """
    Writes one warmup for each row, which stay as they are, so that they may be rewound.

    Some rows have then been fed tokens beyond their separator.

    :param logits: Of the first token. *Shape:* :math:`(M,V)`.
    """
    num_rows, num_logits = logits.shape

    device = logits.device

    allowed = layout.warmup_tokens(num_logits, device)

    seqs, token_log_probs = [], []

    done = torch.zeros(num_rows, dtype=torch.bool, device=device)

    for step_nr in range(max_warmup_len):
        logits = allowed.restrict(logits.float())

        # (M)
        tokens = pick(logits, None, step_nr)

        # (M)
        log_probs = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)

        log_probs = log_probs - logits.logsumexp(dim=1)

        _check_numbers(log_probs)

        seqs.append(tokens.masked_fill(done, layout.separator_idx))

        token_log_probs.append(log_probs.masked_fill(done, 0.0))

        done = done | (tokens == layout.separator_idx)

        if step_nr + 1 == max_warmup_len or bool(done.all()):
            break

        logits = decoder.step(tokens.unsqueeze(1))

    all_seqs = torch.stack(seqs, dim=1).tolist()

    all_log_probs = torch.stack(token_log_probs, dim=1).tolist()

    warmups, warmup_log_probs = [], []

    for seq, seq_log_probs in zip(all_seqs, all_log_probs):
        if layout.separator_idx in seq:
            length = seq.index(layout.separator_idx)
        else:
            length = len(seq)

            # Forced at the limit, hence certain.
            seq_log_probs = [*seq_log_probs, 0.0]

        warmups.append(seq[:length])

        warmup_log_probs.append(seq_log_probs[: length + 1])

    return WrittenWarmups(
        warmups, warmup_log_probs, [sum(values) for values in warmup_log_probs]
    )


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
class RowSearch:
    """
    Searches the likeliest sequences of groups by beams, or draws one of each.

    A warmup is always well formed: no control symbol inside, ended by the separator
    within its limit. A group is done once nothing that is open can still become one of
    the sequences that are asked for, however it goes on: a log-probability only falls,
    and the length that divides it has a limit.
    """

    def __init__(
        self,
        layout: DecoderLayout,
        *,
        beam_size: int,
        length_penalty: float,
        num_best: int | None = None,
        early_stopping: bool = False,
        no_repeat_ngram_size: int = 0,
        ban_unk: bool = True,
        knows_separator: bool = True,
        draw: TokenDraw | None = None,
        on_step: StepCallback | None = None,
        end_idx: int | None = None,
    ) -> None:
        """
        :param num_best: The number of sequences that are asked for; ``None`` for as many
            as there are beams.
        :param early_stopping: If ``True``, a group is done as soon as as many of its
            sequences have ended as it has beams, whatever is open.
        :param knows_separator: ``False`` for plain fine-tuning, whose outputs have a
            probability among all tokens, see :meth:`DecoderLayout.excluded_tokens`.
        :param draw: If given, tokens are drawn instead of searched; the beam size must
            be 1.
        :param on_step: Called after each step with the group of each row, what the rows
            have written and their log-probabilities.
        :param end_idx: The token that ends a sequence, by default EOS; the separator to
            search warmups alone.
        """
        self._layout = layout
        self._beam_size = beam_size
        self._length_penalty = length_penalty
        self._num_best = beam_size if num_best is None else min(num_best, beam_size)
        self._early_stopping = early_stopping
        self._no_repeat_ngram_size = no_repeat_ngram_size
        self._knows_separator = knows_separator
        self._draw = draw
        self._on_step = on_step
        self._end_idx = layout.eos_idx if end_idx is None else end_idx

        self._banned_in_target = [
            idx
            for idx in layout.banned_in_target
            if ban_unk or idx != layout.unk_idx or idx == layout.pad_idx
        ]

    @torch.no_grad()
    def __call__(
        self, decoder: RowDecoder, logits: Tensor, space: SearchSpace
    ) -> list[list[FoundSeq]]:
        """
        :param decoder: One row for each group, which has been fed all that stands
            before the first token to search.
        :param logits: Of the first token. *Shape:* :math:`(M,V)`.

        :returns: The sequences of each group, best first, at most as many as there are
            beams.

        :raises WarmupError: If the model gives a probability that is not a number.
        """
        layout, beam_size = self._layout, self._beam_size

        num_groups, num_logits = logits.shape

        device = logits.device

        max_len = space.max_len

        rank = _Ranking(
            layout,
            space,
            num_logits,
            device,
            banned_in_target=self._banned_in_target,
            no_repeat_ngram_size=self._no_repeat_ngram_size,
            knows_separator=self._knows_separator,
            draw=self._draw,
            # At most G of them end, so G go on. A beam of one ends or goes on.
            num_ranked=1 if beam_size == 1 else min(2 * beam_size, num_logits),
        )

        finished = _FinishedSeqs(num_groups, beam_size, max_len, layout.pad_idx, device)

        # The groups still searched; some of them may be done. (A)
        active = torch.arange(num_groups, device=device)

        # All beams of a group begin alike, so it begins with one. (A, G), (A, G, T)
        state = _Beams(
            log_probs=torch.zeros((num_groups, 1), device=device),
            seqs=logits.new_full(
                (num_groups, 1, max_len), layout.pad_idx, dtype=torch.long
            ),
            token_log_probs=torch.zeros((num_groups, 1, max_len), device=device),
            warmup_lens=torch.zeros((num_groups, 1), dtype=torch.long, device=device),
            in_target=torch.full(
                (num_groups, 1), space.max_warmup_len is None, device=device
            ),
        )

        for step_nr in range(max_len):
            num_active, num_beams = state.log_probs.shape

            # (A x G, C)
            log_probs, tokens = rank(logits.float(), state, active, step_nr)

            _check_numbers(log_probs)

            # (A x G, C) -> (A, G x C)
            totals = state.log_probs.repeat_interleave(log_probs.size(1), dim=1)

            totals = totals + log_probs.view(num_active, -1)

            # (A, C)
            if beam_size == 1:
                top_totals, top_idx = totals, torch.zeros_like(tokens)
            else:
                top_totals, top_idx = totals.topk(
                    min(2 * beam_size, totals.size(1)), dim=1
                )

            top_beams = top_idx // log_probs.size(1)

            top_tokens = tokens.view(num_active, -1).gather(1, top_idx)

            top_log_probs = log_probs.view(num_active, -1).gather(1, top_idx)

            ends = (top_tokens == self._end_idx) & top_totals.isfinite()

            # A sequence that ends below the beam is dropped, as it would be pruned if
            # it went on.
            ends_in_beam = ends.clone()

            ends_in_beam[:, beam_size:] = False

            any_ends = bool(ends_in_beam.any())

            if any_ends:
                scores = self._score(top_totals, space, active, step_nr + 1)

                finished.add(
                    active,
                    scores.masked_fill(~ends_in_beam, -torch.inf),
                    state.extend(top_beams, top_tokens, top_log_probs, step_nr),
                    step_nr + 1,
                )

            # The best G that go on: (A, G)
            going_totals = top_totals.masked_fill(ends, -torch.inf)

            if beam_size == 1:
                order = top_idx
            else:
                going_totals, order = going_totals.topk(
                    min(beam_size, going_totals.size(1)), dim=1
                )

            beams = top_beams.gather(1, order)

            next_tokens = top_tokens.gather(1, order)

            state = state.advance(
                beams,
                next_tokens,
                top_log_probs.gather(1, order),
                going_totals,
                step_nr,
                layout.separator_idx,
            )

            if self._on_step is not None:
                self._on_step(
                    active.repeat_interleave(beams.size(1)),
                    state.seqs.flatten(0, 1)[:, : step_nr + 1],
                    state.token_log_probs.flatten(0, 1)[:, : step_nr + 1],
                )

            if step_nr + 1 == max_len:
                break

            kept: Tensor | None = None

            if any_ends or (finished.num_added > 0 and not self._early_stopping):
                going = self._find_going(finished, state, space, active, step_nr)

                num_going = int(going.sum())

                if num_going == 0:
                    break

                # To drop rows costs a copy of all others.
                if _MIN_DROPPED * (num_active - num_going) >= num_active:
                    kept = going.nonzero().squeeze(1)

                    active = active.index_select(0, kept)

                    state = state.select(kept)

                    next_tokens = next_tokens.index_select(0, kept)

                    beams = beams.index_select(0, kept)

            if beam_size > 1:
                decoder.select_beams(beams, kept, beam_size)
            elif kept is not None:
                decoder.select(kept)

            logits = decoder.step(next_tokens.view(-1, 1))

        return finished.to_list()

    def _find_going(
        self,
        finished: _FinishedSeqs,
        state: _Beams,
        space: SearchSpace,
        active: Tensor,
        step_nr: int,
    ) -> Tensor:
        """Tells which groups have open sequences that may change what is found.
        *Shape:* :math:`(A)`."""
        if self._early_stopping:
            is_open: Tensor = state.log_probs.isfinite().any(dim=1)

            return is_open & ~finished.is_full(active)

        # The length at which an open sequence would score best, EOS included: the
        # log-probability is negative, so a positive penalty favours the longest. (A, G)
        if self._length_penalty > 0.0:
            lengths = space.limits.index_select(0, active).unsqueeze(1) + 1

            if space.max_warmup_len is not None:
                warmup_lens = state.warmup_lens.where(
                    state.in_target, space.max_warmup_len
                )

                lengths = lengths + warmup_lens + 1
        else:
            lengths = torch.full_like(state.warmup_lens, step_nr + 2)

        bounds = self._score(state.log_probs, space, active, lengths)

        return bounds.amax(dim=1) > finished.get_score(active, self._num_best)

    def _score(
        self, totals: Tensor, space: SearchSpace, active: Tensor, length: int | Tensor
    ) -> Tensor:
        """Divides by the length, in which separator and EOS count. *Shape:*
        :math:`(A,C)`."""
        if space.begun_lens is None or space.begun_log_probs is None:
            return totals / length**self._length_penalty

        begun_log_probs = space.begun_log_probs.index_select(0, active).unsqueeze(1)

        lengths = space.begun_lens.index_select(0, active).unsqueeze(1) + length

        scores: Tensor = (totals + begun_log_probs) / lengths**self._length_penalty

        return scores


@dataclass(frozen=True, kw_only=True)
class _Beams:
    """Holds what the beams of A groups have written."""

    # (A, G)
    log_probs: Tensor

    # (A, G, T)
    seqs: Tensor

    # (A, G, T)
    token_log_probs: Tensor

    # The number of warmup tokens so far. (A, G)
    warmup_lens: Tensor

    # ``True`` once the separator is written. (A, G)
    in_target: Tensor

    def extend(
        self, beams: Tensor, tokens: Tensor, log_probs: Tensor, step_nr: int
    ) -> tuple[Tensor, Tensor]:
        """
        Extends beams by a token.

        :param beams: *Shape:* :math:`(A,C)`.

        :returns: The sequences and their log-probabilities. *Shape:* :math:`(A,C,T)`.
        """
        idx = beams.unsqueeze(2).expand(-1, -1, self.seqs.size(2))

        seqs, token_log_probs = self.seqs, self.token_log_probs

        # A beam of one stays where it is.
        if seqs.size(1) > 1 or beams.size(1) > 1:
            seqs, token_log_probs = seqs.gather(1, idx), token_log_probs.gather(1, idx)
        else:
            seqs, token_log_probs = seqs.clone(), token_log_probs.clone()

        seqs[:, :, step_nr] = tokens

        token_log_probs[:, :, step_nr] = log_probs

        return seqs, token_log_probs

    def advance(
        self,
        beams: Tensor,
        tokens: Tensor,
        log_probs: Tensor,
        totals: Tensor,
        step_nr: int,
        separator_idx: int,
    ) -> _Beams:
        seqs, token_log_probs = self.extend(beams, tokens, log_probs, step_nr)

        in_target = self.in_target.gather(1, beams)

        is_separator = tokens == separator_idx

        return _Beams(
            log_probs=totals,
            seqs=seqs,
            token_log_probs=token_log_probs,
            warmup_lens=self.warmup_lens.gather(1, beams) + ~(in_target | is_separator),
            in_target=in_target | is_separator,
        )

    def select(self, groups: Tensor) -> _Beams:
        return _Beams(
            log_probs=self.log_probs.index_select(0, groups),
            seqs=self.seqs.index_select(0, groups),
            token_log_probs=self.token_log_probs.index_select(0, groups),
            warmup_lens=self.warmup_lens.index_select(0, groups),
            in_target=self.in_target.index_select(0, groups),
        )


@final
class _FinishedSeqs:
    """Holds the best sequences of each group that have ended."""

    def __init__(
        self,
        num_groups: int,
        num_kept: int,
        max_len: int,
        pad_idx: int,
        device: torch.device,
    ) -> None:
        shape = (num_groups, num_kept)

        # (M, G), (M, G, T), (M, G, T)
        self._scores = torch.full(shape, -torch.inf, device=device)

        self._seqs = torch.full((*shape, max_len), pad_idx, device=device)

        self._token_log_probs = torch.zeros((*shape, max_len), device=device)

        self.num_added = 0

        # EOS may be what pads a batch. (M, G)
        self._lens = torch.zeros(shape, dtype=torch.long, device=device)

    def add(
        self,
        groups: Tensor,
        scores: Tensor,
        seqs: tuple[Tensor, Tensor],
        seq_len: int,
    ) -> None:
        """
        :param groups: *Shape:* :math:`(A)`.
        :param scores: Minus infinity for what has not ended. *Shape:* :math:`(A,C)`.
        :param seqs: Tokens and their log-probabilities. *Shape:* :math:`(A,C,T)`.
        :param seq_len: The length of all of them, EOS included.
        """
        self.num_added += 1

        num_kept = self._scores.size(1)

        # (A, G + C)
        pool = torch.cat([self._scores[groups], scores], dim=1)

        # (A, G)
        best, idx = pool.topk(num_kept, dim=1)

        self._scores[groups] = best

        lens = torch.full_like(scores, seq_len, dtype=torch.long)

        self._lens[groups] = torch.cat([self._lens[groups], lens], dim=1).gather(1, idx)

        idx = idx.unsqueeze(2).expand(-1, -1, self._seqs.size(2))

        for kept, new in zip((self._seqs, self._token_log_probs), seqs):
            kept[groups] = torch.cat([kept[groups], new], dim=1).gather(1, idx)

    def is_full(self, groups: Tensor) -> Tensor:
        """Tells which groups have as many sequences as are kept. *Shape:* :math:`(A)`."""
        return self._scores.index_select(0, groups).isfinite().all(dim=1)

    def get_score(self, groups: Tensor, place: int) -> Tensor:
        """Returns the score of the sequence at a place, counted from 1; minus infinity
        if there is none yet. *Shape:* :math:`(A)`."""
        return self._scores.index_select(0, groups)[:, place - 1]

    def to_list(self) -> list[list[FoundSeq]]:
        found = []

        for group in zip(
            self._scores.tolist(),
            self._lens.tolist(),
            self._seqs.tolist(),
            self._token_log_probs.tolist(),
        ):
            group_found = []

            for score, seq_len, seq, token_log_probs in zip(*group):
                if score == -torch.inf:
                    continue

                log_probs = token_log_probs[:seq_len]

                group_found.append(
                    FoundSeq(seq[: seq_len - 1], log_probs, sum(log_probs), score)
                )

            found.append(group_found)

        return found


@final
class _Ranking:
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

        self._scratch: Tensor | None = None

    def __call__(
        self, logits: Tensor, state: _Beams, active: Tensor, step_nr: int
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
            norms = self._sum(logits)

            logits.index_fill_(1, self._banned_in_target, -torch.inf)

            return norms

        if num_in_target == 0:
            logits.index_fill_(1, self._banned_in_warmup, -torch.inf)

            return self._sum(logits)

        target_norms = self._sum(logits)

        logits.index_fill_(1, self._always_banned, -torch.inf)

        for rows, only in (
            (in_target, self._only_in_target),
            (~in_target, self._only_in_warmup),
        ):
            # (A x G, B)
            few = logits.index_select(1, only)

            logits[:, only] = few.masked_fill(rows.unsqueeze(1), -torch.inf)

        return torch.where(in_target, target_norms, self._sum(logits))

    def _sum(self, logits: Tensor) -> Tensor:
        """
        Computes ``logsumexp``.

        Some rows at a time, in memory that is used again, so that a CPU finds in its cache
        what it has just written.
        """
        num_rows, num_logits = logits.shape

        size = num_rows

        if logits.device.type == "cpu":
            size = min(size, max(1, _NUM_CACHED_LOGITS // num_logits))

        if self._scratch is None or self._scratch.size(0) < size:
            self._scratch = logits.new_empty((size, num_logits))

        sums, maxima = logits.new_empty((2, num_rows, 1))

        for begin in range(0, num_rows, size):
            part = logits[begin : begin + size]

            # (size, 1)
            part_maxima = maxima[begin : begin + size]

            torch.amax(part, 1, keepdim=True, out=part_maxima)

            scratch = self._scratch[: part.size(0)]

            exps = torch.sub(part, part_maxima, out=scratch).exp_()

            torch.sum(exps, 1, keepdim=True, out=sums[begin : begin + size])

        norms: Tensor = sums.log_().add_(maxima)

        return norms.squeeze(1)


_MIN_DROPPED: Final = 4
"""Groups that are done are dropped once one in so many is."""


_NUM_CACHED_LOGITS: Final = 2**18
"""How many numbers are worked on at a time: 1 MiB of them."""


_BLOCK_SIZE: Final = 64
"""The number of tokens of which only the largest is looked at first."""


_MIN_NUM_LOGITS: Final = 2**16


def find_top(logits: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """
    Finds the largest logits of each row, as ``topk`` does.

    On a CPU in two steps, first the blocks of tokens that may hold them, then the tokens:
    a maximum over a block costs a tenth of a search with indices, which is slow there.

    :param logits: *Shape:* :math:`(B,V)`.

    :returns: The logits, largest first, and their tokens. *Shape:* :math:`(B,k)` each.
    """
    num_blocks = logits.size(1) // _BLOCK_SIZE

    # A few rows are searched in less time than more steps take to begin.
    is_small = logits.numel() < _MIN_NUM_LOGITS or num_blocks <= num_top

    if logits.device.type != "cpu" or is_small:
        return logits.topk(num_top, dim=1)

    num_in_blocks = num_blocks * _BLOCK_SIZE

    # (B, V) -> (B, G, V / G)
    blocks = logits[:, :num_in_blocks].unflatten(1, (num_blocks, _BLOCK_SIZE))

    # (B, G)
    maxima = blocks.amax(dim=2)

    rows = torch.arange(logits.size(0)).unsqueeze(1)

    # (B, k)
    if num_top == 1:
        block_idx = maxima.argmax(dim=1, keepdim=True)
    else:
        block_idx = maxima.topk(num_top, dim=1).indices

    # (B, k, V / G) -> (B, k x V / G + rest)
    candidates = torch.cat(
        [blocks[rows, block_idx].flatten(1), logits[:, num_in_blocks:]], dim=1
    )

    top, idx = candidates.topk(num_top, dim=1)

    place = idx // _BLOCK_SIZE

    tokens = block_idx.gather(1, place.clamp(max=num_top - 1)) * _BLOCK_SIZE

    # Behind all blocks stands the rest.
    tokens = torch.where(place < num_top, tokens, num_in_blocks) + torch.where(
        place < num_top, idx % _BLOCK_SIZE, idx - num_top * _BLOCK_SIZE
    )

    return top, tokens


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


def _check_numbers(log_probs: Tensor) -> None:
    if bool(log_probs.isnan().any()):
        raise WarmupError(
            "The model gave a token a probability that is not a number, so its training has diverged; use an earlier checkpoint."
        )
