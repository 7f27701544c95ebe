# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from typing_extensions import override

from warmup_plugin.components import Checked, ComponentSection, find_too_small
from warmup_plugin.metrics.base import SentenceMetric
from warmup_plugin.sampling.truncation import MIN_TEMPERATURE


@dataclass(kw_only=True)
class SentenceMetricSection(ComponentSection[SentenceMetric]):
    """Chooses what scores single outputs."""

    kls = SentenceMetric
    key = "criterion.config.metric"
    known = ("chrf", "bleu", "comet")

    name: str = "chrf"
    """The registered name: `chrf` (chrF++), `bleu` (both from 0 to 1), `comet` or one of your own package."""

    config: object = None
    """The settings of the metric; ``None`` for its defaults."""


@dataclass(kw_only=True)
class MrtConfig(Checked):
    """Configures the criterion ``mrt``."""

    num_samples: int = 8
    """The number N of outputs drawn a source."""

    metric: SentenceMetricSection = field(
        default_factory=lambda: SentenceMetricSection()
    )
    """What scores them; the risk of an output is 1 minus its score."""

    estimator: str = "risk"
    """`risk`: the expected risk over the distinct samples, of which each counts P(y|x) ** ``alpha``, renormalised (Shen et al., 2016); `reinforce`: the mean over all draws, whose gradient is that of the expected risk without bias."""

    alpha: float = 0.005
    """The exponent of P(y|x) in `risk`: the smaller, the more even are the samples' shares. The gradient is divided by it, so that its size stays."""

    baseline: bool = True
    """If ``True``, `reinforce` subtracts from the risk of a draw the mean risk of the others, which lowers the variance and not the mean of the gradient."""

    with_reference: bool = False
    """If ``True``, the reference is one more of the samples of `risk`; with warmups behind that of the draw with the best score."""

    temperature: float = 1.0
    """Divides the logits of the draws; other than 1.0 for `risk` alone, whose samples may come from anywhere."""

    sft_weight: float = 0.0
    """The weight of -log P(y|x) of the reference, added to the risk; that is a sum over tokens, the risk one number a source. With warmups it is that of the empty one (see ``warmup.plain_path``)."""

    with_warmups: bool = False
    """If ``True``, a warmup of at most ``warmup.max_warmup_len`` tokens is drawn before each output, and the risk teaches it as well; of the section ``warmup`` validations read the rest."""

    max_len_a: float = 1.5
    """A sample is at most ``max_len_a * source length + max_len_b`` tokens long; a prompt's own words do not count as source."""

    max_len_b: int = 20
    """See ``max_len_a``."""

    @override
    def find_errors(self) -> Iterator[str]:
        if self.estimator not in ("risk", "reinforce"):
            yield f"`estimator` must be `risk` or `reinforce`, but is `{self.estimator}`."

        is_risk = self.estimator == "risk"

        if self.num_samples < 1:
            yield "`num_samples` must be greater than or equal to 1."
        elif self.num_samples == 1 and not is_risk and self.baseline:
            yield "`num_samples` must be at least 2 with `baseline`, which is the mean risk of the others."
        elif self.num_samples == 1 and is_risk and not self.with_reference:
            yield "`num_samples` must be at least 2 with the estimator `risk`, which compares samples, or `with_reference` set."

        if not 0.0 < self.alpha < math.inf:
            yield "`alpha` must be greater than 0."

        if not MIN_TEMPERATURE <= self.temperature < math.inf:
            yield f"`temperature` must be greater than or equal to {MIN_TEMPERATURE}, with which nearly all draws are the likeliest token."

        # Each of these would bias it.
        if not is_risk and self.temperature != 1.0:
            yield "`temperature` must be 1.0 with the estimator `reinforce`, which takes its draws for those of the model."

        if not is_risk and self.with_reference:
            yield "`with_reference` is for the estimator `risk`; `reinforce` takes its samples for draws of the model."

        yield from find_too_small(self, sft_weight=0, max_len_a=0, max_len_b=1)
