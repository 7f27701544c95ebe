# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The searches for decoder sequences: token by token, many groups of rows at once.

A *group* is one source, or one source with one warmup; its rows are its beams. All
limits belong to a group, so what is found does not depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias, final

import torch
from torch import Tensor

from warmup_plugin.generation.beams import Beams, FinishedSeqs, FoundSeq
from warmup_plugin.generation.next_tokens import SearchSpace, TokenRanking
from warmup_plugin.generation.token_picks import TokenDraw, check_numbers
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import RowDecoder

StepCallback: TypeAlias = Callable[[Tensor, Tensor, Tensor], None]

_MIN_DROPPED: Final = 4
"""Groups that are done are dropped once one in so many is."""


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

        rank = TokenRanking(
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

        finished = FinishedSeqs(num_groups, beam_size, max_len, layout.pad_idx, device)

        # The groups still searched; some of them may be done. (A)
        active = torch.arange(num_groups, device=device)

        # All beams of a group begin alike, so it begins with one. (A, G), (A, G, T)
        state = Beams(
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

            check_numbers(log_probs)

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
        finished: FinishedSeqs,
        state: Beams,
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
