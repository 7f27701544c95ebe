# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What the beams of a search have written, and what has ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


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


@dataclass(frozen=True, kw_only=True)
class Beams:
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
    ) -> Beams:
        seqs, token_log_probs = self.extend(beams, tokens, log_probs, step_nr)

        in_target = self.in_target.gather(1, beams)

        is_separator = tokens == separator_idx

        return Beams(
            log_probs=totals,
            seqs=seqs,
            token_log_probs=token_log_probs,
            warmup_lens=self.warmup_lens.gather(1, beams) + ~(in_target | is_separator),
            in_target=in_target | is_separator,
        )

    def select(self, groups: Tensor) -> Beams:
        return Beams(
            log_probs=self.log_probs.index_select(0, groups),
            seqs=self.seqs.index_select(0, groups),
            token_log_probs=self.token_log_probs.index_select(0, groups),
            warmup_lens=self.warmup_lens.index_select(0, groups),
            in_target=self.in_target.index_select(0, groups),
        )


@final
class FinishedSeqs:
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
