# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The samplers that ``warmup.sampler.name`` chooses from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, final

from fairseq2.logging import log
from fairseq2.utils.validation import Validatable, ValidationResult
from torch import Tensor
from typing_extensions import override

from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import ConditionalModel, EncodedSource
from warmup_plugin.sampling.base import WarmupSampler
from warmup_plugin.sampling.candidates import Candidates
from warmup_plugin.sampling.draw import draw_candidates
from warmup_plugin.sampling.stochastic_beam import draw_distinct_candidates
from warmup_plugin.sampling.truncation import MIN_TEMPERATURE


@dataclass(kw_only=True)
class IndependentConfig(Validatable):
    """Configures the sampler ``independent``."""

    temperature: float = 1.0
    """Divides the logits of the draws. Draws at another temperature than 1.0 are corrected by their importance weight."""

    top_k: int | None = None
    """The most tokens to draw from, the likeliest ones. What they leave out no weight can correct."""

    top_p: float | None = None
    """The share of the probability to draw from, the likeliest tokens first. What it leaves out no weight can correct."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not MIN_TEMPERATURE <= self.temperature < math.inf:
            result.add_error(
                f"`temperature` must be greater than or equal to {MIN_TEMPERATURE}, with which nearly all draws are the likeliest token."
            )

        if self.top_k is not None and self.top_k < 1:
            result.add_error("`top_k` must be greater than or equal to 1.")

        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            result.add_error(
                "`top_p` must be greater than 0 and less than or equal to 1."
            )

        return result


def create_independent_sampler(config: IndependentConfig) -> WarmupSampler:
    """Creates the sampler ``independent``; warns if it cuts the distribution."""
    if config.top_k is not None or config.top_p is not None:
        log.warning("Warmups are drawn with `top_k` or `top_p`: what they leave out is never drawn, which no importance weight corrects, so training no longer follows the gradient of log P(y|x).")  # fmt: skip

    return IndependentSampler(config)


@final
class IndependentSampler:
    """
    The sampler ``independent``, see
    :func:`~warmup_plugin.sampling.draw.draw_candidates`.
    """

    enumerates_empty: Final = True

    def __init__(self, config: IndependentConfig) -> None:
        self._config = config

    def __call__(
        self,
        model: ConditionalModel,
        source: EncodedSource,
        layout: DecoderLayout,
        prefixes: Tensor,
        *,
        num_warmups: int,
        max_warmup_len: int,
        with_empty: bool = False,
    ) -> Candidates:
        return draw_candidates(
            model,
            source,
            layout,
            prefixes,
            num_warmups=num_warmups,
            max_warmup_len=max_warmup_len,
            temperature=self._config.temperature,
            top_k=self._config.top_k,
            top_p=self._config.top_p,
            with_empty=with_empty,
        )


@final
class StochasticBeamSampler:
    """
    The sampler ``stochastic_beam``, see
    :func:`~warmup_plugin.sampling.stochastic_beam.draw_distinct_candidates`.
    """

    distinct: Final = True

    def __call__(
        self,
        model: ConditionalModel,
        source: EncodedSource,
        layout: DecoderLayout,
        prefixes: Tensor,
        *,
        num_warmups: int,
        max_warmup_len: int,
    ) -> Candidates:
        return draw_distinct_candidates(
            model,
            source,
            layout,
            prefixes,
            num_warmups=num_warmups,
            max_warmup_len=max_warmup_len,
        )
