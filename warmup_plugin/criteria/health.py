# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What tells that warmups collapse, from the candidates of a step and no extra pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from fairseq2.logging import log
from torch import Tensor

from warmup_plugin.collapse import (
    MAX_CUT,
    MAX_DUPLICATE,
    MAX_EMPTY,
    MAX_REPETITION,
    NUM_CUT_WINDOWS,
)
from warmup_plugin.sampling import Candidates


def repetition(candidates: Candidates) -> Tensor:
    """
    Measures the share of the tokens of a warmup that only repeat it.

    A token counts if it equals the one before it, or belongs to a pair of neighbours
    that has stood earlier in the same warmup: half of "Eine Gruppe Eine Gruppe" and of
    "Zwei Personen Personen Personen". A word that returns elsewhere ("ein Mann und ein
    Hund") is normal and does not count. An empty warmup has 0.

    :returns: *Shape:* :math:`(N,K)`.
    """
    seqs, seq_lens = candidates.seqs, candidates.seq_lens

    # Pairs of neighbours: (B, C - 1) each
    first, second = seqs[:, :-1], seqs[:, 1:]

    # (B, C - 1, C - 1)
    same = first.unsqueeze(1) == first.unsqueeze(2)

    same = same & (second.unsqueeze(1) == second.unsqueeze(2))

    # (B, C - 1)
    seen = same.tril(diagonal=-1).any(dim=-1)

    # (B, C)
    repeats = torch.zeros_like(seqs, dtype=torch.bool)

    repeats[:, 1:] = seen | (first == second)

    repeats[:, :-1] |= seen

    # Padding repeats itself as well.
    repeats &= torch.arange(seqs.size(1), device=seqs.device) < seq_lens.unsqueeze(1)

    # (B)
    shares = repeats.sum(dim=1) / seq_lens.clamp(min=1)

    return shares.view_as(candidates.proposal_log_probs)


@final
@dataclass(frozen=True)
class WarmupShares:
    """Holds what share of the warmups of a batch look like a collapse."""

    empty: float
    """Of the warmups, those without a token."""

    cut: float
    """Of the warmups, those whose separator was forced at the length limit."""

    duplicate: float
    """Of the warmups, those that an earlier candidate of the same source equals."""

    repetition: float
    """Of the tokens of a warmup, those that repeat it, see :func:`repetition`."""


@final
class CollapseDetector:
    """
    Warns, once a run, when the warmups of many steps in a row look like a collapse.

    Nothing is kept in checkpoints: a run that resumes may warn again.
    """

    def __init__(
        self, num_warmups: int, max_warmup_len: int, *, window_size: int = 50
    ) -> None:
        """
        :param num_warmups: The number K of warmups a source.
        :param max_warmup_len: The most tokens of a warmup.
        :param window_size: The number of updates to average, and of steps at the start
            of a run that are not judged.
        """
        self._max_duplicate = MAX_DUPLICATE * (num_warmups - 1) / num_warmups
        self._max_warmup_len = max_warmup_len
        self._window: deque[WarmupShares] = deque(maxlen=window_size)
        self._window_size = window_size
        self._has_warned = False

    def update(self, step_nr: int, shares: WarmupShares) -> None:
        """
        Adds a training batch.

        :param step_nr: The step of the run, from 1.
        """
        # What an untrained model writes at first says nothing.
        if self._has_warned or step_nr <= self._window_size:
            return

        self._window.append(shares)

        if len(self._window) < self._window_size:
            return

        symptoms = self._find_symptoms(step_nr)

        if symptoms:
            log.warning("The warmups of the last {} batches, up to step {}, look like a collapse: {}. What may help: a start from an SFT run (`init_from`), `warmup.sft_weight`, `warmup.entropy_weight`, another `warmup.max_warmup_len`, a higher `warmup.weight_temperature`.", self._window_size, step_nr, ", ".join(symptoms))  # fmt: skip

            self._has_warned = True

    def _find_symptoms(self, step_nr: int) -> list[str]:
        """Says what is wrong in words; nothing if all is well."""

        def mean(values: Iterable[float]) -> float:
            return sum(values) / self._window_size

        empty = mean(shares.empty for shares in self._window)
        duplicate = mean(shares.duplicate for shares in self._window)
        repeated = mean(shares.repetition for shares in self._window)

        symptoms = []

        if empty > MAX_EMPTY:
            symptoms.append(f"{100 * empty:.0f} % are empty")

        if duplicate > self._max_duplicate:
            symptoms.append(
                f"{100 * duplicate:.0f} % equal an earlier one of the same source"
            )

        if repeated > MAX_REPETITION:
            symptoms.append(f"{100 * repeated:.0f} % of their tokens are repetitions")

        cut = mean(shares.cut for shares in self._window)

        is_late = step_nr > NUM_CUT_WINDOWS * self._window_size

        if cut > MAX_CUT and (symptoms or is_late):
            symptoms.append(
                f"{100 * cut:.0f} % are cut at {self._max_warmup_len} tokens"
            )

        return symptoms
