# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Everything that this package adds to fairseq2, on one page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fairseq2.generation import Seq2SeqGenerator, SequenceGenerator
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.cli import register_cli_error
from fairseq2.recipe.component import register_component
from fairseq2.recipe.config import CommonSection
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.components import Checked
from warmup_plugin.config_values import register_config_values
from warmup_plugin.criteria.base import Criterion, CriterionContext
from warmup_plugin.criteria.mrt import create_mrt_criterion
from warmup_plugin.criteria.mrt_config import MrtConfig
from warmup_plugin.criteria.registry import CriterionFactory, register_criterion
from warmup_plugin.criteria.setup import check_generator
from warmup_plugin.criteria.sft import create_sft_criterion
from warmup_plugin.criteria.warmup import create_warmup_criterion
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import GenerationConfig, WarmupGenerator
from warmup_plugin.generation.adapters import (
    WarmupSeq2SeqGenerator,
    WarmupSequenceGenerator,
)
from warmup_plugin.late_assets import register_late_assets
from warmup_plugin.metrics.base import SentenceMetric
from warmup_plugin.metrics.training import register_metric_descriptors
from warmup_plugin.models.hugging_face.table import register_hugging_face_converters
from warmup_plugin.models.lora_checkpoint import register_adapter_loader
from warmup_plugin.models.presets import register_presets
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.models.t5 import register_t5_family
from warmup_plugin.models.t5.tokenizer import register_t5_tokenizer_family
from warmup_plugin.objectives import (
    Objective,
    best_loss,
    elbo_loss,
    joint_loss,
    marginal_loss,
)
from warmup_plugin.sampling import WarmupSampler
from warmup_plugin.sampling.samplers import (
    IndependentConfig,
    StochasticBeamSampler,
    create_independent_sampler,
)
from warmup_plugin.storage import register_storage
from warmup_plugin.tasks import TextTask
from warmup_plugin.tasks.multiple_choice import (
    MultipleChoiceConfig,
    MultipleChoiceTask,
)
from warmup_plugin.tasks.summarization import SummarizationConfig, SummarizationTask
from warmup_plugin.tasks.translation import TranslationConfig, TranslationTask
from warmup_plugin.tokenizers.codec import find_codec
from warmup_plugin.tokenizers.hugging_face import register_hugging_face_family
from warmup_plugin.tokenizers.spm import register_warmup_spm_family
from warmup_plugin.transformers_doors import refuse_foreign_code
from warmup_plugin.weights_and_biases import register_weights_and_biases


def register_warmup_plugin(container: DependencyContainer) -> None:
    """Registers our components; called by fairseq2 once for each container."""
    refuse_foreign_code()

    register_weights_and_biases(container)

    register_storage(container)

    register_adapter_loader(container)

    register_config_values(container)

    register_late_assets(container)

    register_warmup_spm_family(container)

    register_hugging_face_family(container)

    register_t5_tokenizer_family(container)

    register_presets(container)

    register_t5_family(container)

    register_hugging_face_converters(container)

    _register_simple_components(container)

    _register_generators(container)

    _register_criteria(container)

    _register_sentence_metrics(container)

    register_metric_descriptors(container)

    register_cli_error(container, WarmupError, _handle_warmup_error)


@dataclass(kw_only=True)
class MarginalConfig:
    """Configures the objective ``marginal``."""

    control_variate: bool = True
    """If ``True``, subtracts the leave-one-out baseline 1/K from the weights of the warmups' gradients."""


@dataclass(kw_only=True)
class NoConfig:
    """Configures a component without settings."""


def _register_simple_components(container: DependencyContainer) -> None:
    """Registers what needs nothing but its settings."""

    def create_marginal(config: MarginalConfig) -> Objective:
        return partial(marginal_loss, control_variate=config.control_variate)

    def create_chrf(config: NoConfig) -> SentenceMetric:
        # What it is made of takes a while to import, and most runs ask for none.
        from warmup_plugin.metrics.sentence import create_sentence_metric

        return create_sentence_metric("chrf", None)

    components: list[tuple[Any, str, type[object], Callable[[Any], object]]] = [
        (Objective, "marginal", MarginalConfig, create_marginal),
        (Objective, "elbo", NoConfig, lambda config: elbo_loss),
        (Objective, "best", NoConfig, lambda config: best_loss),
        (Objective, "joint", NoConfig, lambda config: joint_loss),
        (WarmupSampler, "independent", IndependentConfig, create_independent_sampler),
        (WarmupSampler, "stochastic_beam", NoConfig, lambda _: StochasticBeamSampler()),
        (TextTask, "translation", TranslationConfig, TranslationTask),
        (TextTask, "summarization", SummarizationConfig, SummarizationTask),
        (TextTask, "multiple_choice", MultipleChoiceConfig, MultipleChoiceTask),
        (SentenceMetric, "chrf", NoConfig, create_chrf),
    ]

    def register(
        kls: Any, name: str, config_kls: type[object], create: Callable[[Any], object]
    ) -> None:
        register_component(
            container, kls, name, config_kls, lambda resolver, config: create(config)
        )

    for component in components:
        register(*component)


def _register_criteria(container: DependencyContainer) -> None:
    def create_sft(context: CriterionContext, config: NoConfig) -> Criterion:
        return create_sft_criterion(context)

    register_criterion(container, "sft", NoConfig, create_sft, writes_warmups=False)

    def create_warmup(context: CriterionContext, config: NoConfig) -> Criterion:
        return create_warmup_criterion(context)

    register_criterion(
        container, "warmup", NoConfig, create_warmup, writes_warmups=True
    )

    # Its config tells whether it writes warmups.
    def create_mrt(resolver: DependencyResolver, config: MrtConfig) -> CriterionFactory:
        # A name that is not known is to be told before training begins.
        config.metric.structure(resolver)

        def create(context: CriterionContext) -> Criterion:
            return create_mrt_criterion(
                context,
                config,
                config.metric.create(resolver),
                seed=resolver.resolve(CommonSection).seed,
            )

        return CriterionFactory(create, writes_warmups=config.with_warmups)

    register_component(container, CriterionFactory, "mrt", MrtConfig, create_mrt)


@dataclass(kw_only=True)
class BleuSentenceConfig:
    """Configures the sentence metric ``bleu``."""

    target_lang: str | None = None
    """The language that chooses the tokenizer; ``None`` for ``dataset.target_lang``."""


@dataclass(kw_only=True)
class CometSentenceConfig(Checked):
    """Configures the sentence metric ``comet``."""

    model: str | None = None
    """A checkpoint of COMET, its folder or a name on the Hugging Face Hub, such as `Unbabel/wmt22-comet-da`. Must be set."""

    gpus: int = 0
    """The number of GPUs of COMET, 0 or 1; each process has a worker of its own."""

    @override
    def find_errors(self) -> Iterator[str]:
        if self.model is None:
            yield "`model` must be set to a checkpoint of COMET, such as `Unbabel/wmt22-comet-da`."

        if self.gpus not in (0, 1):
            yield "`gpus` must be 0 or 1."


def _register_sentence_metrics(container: DependencyContainer) -> None:
    # As of `chrf`, what they are made of is imported late.
    def create_bleu(
        resolver: DependencyResolver, config: BleuSentenceConfig
    ) -> SentenceMetric:
        from warmup_plugin.metrics.sentence import create_sentence_metric

        target_lang = config.target_lang

        if target_lang is None:
            recipe_config = RecipeContext(resolver).get_config_as(object)

            dataset = getattr(recipe_config, "dataset", None)

            target_lang = getattr(dataset, "target_lang", None)

        return create_sentence_metric("bleu", target_lang)

    register_component(
        container, SentenceMetric, "bleu", BleuSentenceConfig, create_bleu
    )

    def create_comet(
        resolver: DependencyResolver, config: CometSentenceConfig
    ) -> SentenceMetric:
        from warmup_plugin.metrics.comet import CometWorkers
        from warmup_plugin.metrics.comet_score import CometSentenceMetric

        assert config.model is not None

        # A recipe may have some that validate as well.
        workers = resolver.maybe_resolve(CometWorkers)

        return CometSentenceMetric(config.model, gpus=config.gpus, workers=workers)

    register_component(
        container, SentenceMetric, "comet", CometSentenceConfig, create_comet
    )


def _register_generators(container: DependencyContainer) -> None:
    def create(
        resolver: DependencyResolver, config: GenerationConfig
    ) -> WarmupGenerator:
        check_generator(RecipeContext(resolver), config)

        model = create_conditional_model(resolver.resolve(Module, key="model"))

        codec = find_codec(resolver, reads_prompts=model.reads_prompts)

        return WarmupGenerator(
            model,
            codec.layout,
            config,
            decode=codec.decode,
            num_template_tokens=codec.num_template_tokens,
        )

    def register(kls: Any, adapt: Callable[[WarmupGenerator], object]) -> None:
        register_component(
            container,
            kls,
            "warmup",
            GenerationConfig,
            lambda resolver, config: adapt(create(resolver, config)),
        )

    register(Seq2SeqGenerator, WarmupSeq2SeqGenerator)
    register(SequenceGenerator, WarmupSequenceGenerator)


def _handle_warmup_error(ex: WarmupError) -> int:
    from fairseq2.logging import log

    log.error(str(ex))

    return 2
