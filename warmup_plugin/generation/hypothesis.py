# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from warmup_plugin.layout import DecoderLayout


@final
@dataclass(frozen=True)
class Hypothesis:
    """Holds one warmup and one output for a source."""

    warmup: list[int]
    """The tokens of the warmup, without separator; empty for plain models."""

    target: list[int]
    """The tokens of the output, without EOS."""

    token_log_probs: list[float]
    """Of the warmup, the separator if there is a warmup, the output and EOS."""

    warmup_log_prob: float
    """log P(c|x), the separator included; 0 for plain models."""

    target_log_prob: float
    """log P(y|c,x), EOS included."""

    score: float
    """What hypotheses are ordered by: the log-probability of the whole sequence,
    divided by length ** length_penalty, or what ``rank_by`` says."""

    weight: float | None = None
    """The share of the source's candidates that speaks for this one, where they are
    weighed against each other."""

    @property
    def log_prob(self) -> float:
        """The log-probability of warmup, separator, output and EOS together."""
        return self.warmup_log_prob + self.target_log_prob

    def tokens(self, layout: DecoderLayout, *, has_warmup: bool) -> list[int]:
        """Returns the tokens that ``token_log_probs`` belongs to."""
        head = [*self.warmup, layout.separator_idx] if has_warmup else []

        return [*head, *self.target, layout.eos_idx]
