# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.component import (
    ComponentManager,
    ComponentNotKnownError,
)
from fairseq2.recipe.config import SupportsStructure
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from warmup_plugin.objectives import Objective


@dataclass(kw_only=True)
class CriterionSection(Validatable):
    """Chooses what a training step minimises."""

    name: str = "warmup"
    """The registered name: `sft` (plain fine-tuning) or `warmup`."""

    label_smoothing: float = 0.1
    """The share of label smoothing on the target's tokens, the same for both."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not 0.0 <= self.label_smoothing < 1.0:
            result.add_error(
                "`label_smoothing` must be greater than or equal to 0 and less than 1."
            )

        return result


@dataclass(kw_only=True)
class ObjectiveSection(SupportsStructure):
    """Chooses how the log-probabilities of the candidates become a loss."""

    name: str = "marginal"
    """The registered name: `marginal`, `elbo` or `best`."""

    config: object = None
    """The settings of the objective; ``None`` for its defaults."""

    @override
    def structure(self, resolver: DependencyResolver) -> None:
        manager = resolver.resolve(ComponentManager)

        config = {} if self.config is None else self.config

        try:
            self.config = manager.structure_component_config(
                Objective, self.name, config
            )
        except ComponentNotKnownError:
            raise RecipeError(
                f"`warmup.objective.name` is `{self.name}`, which is not registered; use `marginal`, `elbo`, `best` or one that your own package registers."
            ) from None


@dataclass(kw_only=True)
class WarmupSection(Validatable):
    """Configures warmups; read only if ``criterion.name`` is ``warmup``."""

    num_warmups: int = 4
    """The number K of warmups drawn a source."""

    max_warmup_len: int = 8
    """The most tokens of a warmup, in training and at inference."""

    temperature: float = 1.0
    """The temperature of the draws. Draws at another one than 1.0 are corrected by their importance weight."""

    num_kept: int | None = None
    """The number of candidates a source that the differentiable pass sees, resampled without bias; ``None`` keeps all K. Fewer are faster and noisier."""

    sft_weight: float = 0.0
    """The weight of -log P(y|x) without warmup, added to the objective. It keeps y readable without c."""

    objective: ObjectiveSection = field(default_factory=lambda: ObjectiveSection())
    """How the candidates' log-probabilities become a loss."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.num_warmups < 1:
            result.add_error("`num_warmups` must be greater than or equal to 1.")

        if self.max_warmup_len < 1:
            result.add_error("`max_warmup_len` must be greater than or equal to 1.")

        if self.temperature <= 0.0:
            result.add_error("`temperature` must be greater than 0.")

        if self.num_kept is not None and self.num_kept < 1:
            result.add_error("`num_kept` must be greater than or equal to 1.")

        if self.sft_weight < 0.0:
            result.add_error("`sft_weight` must be greater than or equal to 0.")

        return result
