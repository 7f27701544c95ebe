# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
What a recipe calls to train with a criterion; it may be anyone's whose config has the
sections ``criterion`` and ``warmup``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Final, TypeVar

import torch
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.config import RegimeSection, TrainerSection
from torch.nn import Module

from warmup_plugin.criteria.base import Criterion, CriterionContext
from warmup_plugin.criteria.config import CriterionSection, WarmupSection
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.config import GenerationConfig
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.models.lora import has_adapter
from warmup_plugin.models.scorable import create_conditional_model, make_scorable
from warmup_plugin.models.separator import PreparedRow, prepare_separator
from warmup_plugin.tokenizers.codec import TextCodec, find_codec

REFERENCE_MODEL: Final = "reference_model"

SectionT = TypeVar("SectionT")


def setup_model(
    context: RecipeContext,
    model: Module,
    *,
    codecs: Mapping[str, TextCodec] | None = None,
    on_prepared: Callable[[Sequence[PreparedRow]], None] | None = None,
) -> Module:
    """
    Makes a model ready for the criterion of a recipe: what ``Recipe.setup_model()``
    returns.

    :param codecs: What encodes each of several directions, by name; ``None`` for what
        the recipe has registered as its :class:`TextCodec`, else what fits its
        tokenizer.
    :param on_prepared: If given, the model has the weights that training starts from,
        also where it resumes, and this is told which rows of them were prepared.

    :raises WarmupError: If that model, or the trainer, cannot do what the criterion asks.
    """
    section = _get_section(context, "criterion", CriterionSection)

    trainer = context.resolver.resolve(TrainerSection)

    warmup = _get_section(context, "warmup", WarmupSection)

    for error in find_trainer_errors(trainer, section, warmup):
        raise WarmupError(error)

    rows: Sequence[PreparedRow] = ()

    # A checkpoint of all weights has the separator that was learned.
    if on_prepared or not context.get_checkpoint_manager().has_checkpoint():
        if section.create(context.resolver).writes_warmups:
            is_decoder_only = isinstance(model, TransformerLM)

            codecs = codecs or {
                "": find_codec(context.resolver, reads_prompts=is_decoder_only)
            }

            rows = _prepare_separator(model, [*codecs.values()], warmup.separator_init)

    if on_prepared is not None:
        on_prepared(rows)

    # Before the data parallel wrapper is put around it.
    make_scorable(model)

    return model


def find_trainer_errors(
    trainer: TrainerSection, criterion: CriterionSection, warmup: WarmupSection
) -> Iterator[str]:
    """Says why a trainer cannot train decoder rows."""
    if trainer.data_parallelism == "fsdp" and trainer.fsdp.version != "v2":
        # Its modules have no parameters of their own, of which the output projection is
        # differentiated.
        yield "`trainer.fsdp.version` must be `v2`; no other one is trained with."

    if trainer.data_parallelism == "fsdp" and criterion.name == "warmup":
        # A layer that is called before the whole model takes itself for the outermost.
        if warmup.share_encoder:
            yield "`warmup.share_encoder` must be false with `trainer.data_parallelism` `fsdp`, by which the encoder cannot be called apart."

    precision = trainer.mixed_precision

    if precision.mode != "off" and precision.dtype == torch.float16:
        if criterion.name != "sft":
            what = (
                "warmups are"
                if criterion.name == "warmup"
                else f"`{criterion.name}` is"
            )

            yield f"`trainer.mixed_precision.dtype` must be `bfloat16`; {what} not trained in float16 with its scaled losses."


def create_criterion(
    context: RecipeContext,
    *,
    codecs: Mapping[str, TextCodec] | None = None,
    plain_directions: Set[str] = frozenset(),
) -> Criterion:
    """
    Creates the criterion that the config of a recipe chooses, with its objective, its
    sampler and its reference model.

    :param codecs: As of :func:`setup_model`, by which the model went.
    :param plain_directions: Of several directions, those to train without warmup.

    :raises WarmupError: If the settings do not fit each other, the model or the
        tokenizer.
    """
    section = _get_section(context, "criterion", CriterionSection)

    warmup = _get_section(context, "warmup", WarmupSection)

    model = create_conditional_model(context.get_model())

    codecs = codecs or {
        "": find_codec(context.resolver, reads_prompts=model.reads_prompts)
    }

    codec = next(iter(codecs.values()))

    layout = codec.layout

    if model.num_logits < layout.vocab_size:
        raise WarmupError(
            f"The model has {model.num_logits} output tokens, but the tokenizer {layout.vocab_size}; set `vocab_size` in `model.config_overrides` to {layout.vocab_size}."
        )

    resolver = context.resolver

    factory = section.create(resolver)

    reference = None

    if factory.writes_warmups and warmup.kl_weight > 0.0:
        # The model itself is its own reference, see `look.py`.
        if has_adapter(model.module) and not _has_reference_section(context):
            reference = model
        else:
            reference = _create_reference(context, [*codecs.values()], layout)

    return factory.create(
        CriterionContext(
            model=model,
            dp_model=context.get_data_parallel_model(),
            layout=layout,
            gangs=context.gangs,
            label_smoothing=section.label_smoothing,
            warmup=warmup,
            objective=warmup.objective.create(resolver),
            sampler=warmup.sampler.create(resolver),
            reference=reference,
            plain_directions=frozenset(plain_directions),
            publish_every_n_steps=resolver.resolve(
                RegimeSection
            ).publish_metrics_every_n_steps,
            decode=codec.decode,
            num_template_tokens={
                name: codec.num_template_tokens for name, codec in codecs.items()
            },
        )
    )


def check_generator(context: RecipeContext, generation: GenerationConfig) -> None:
    """
    Checks that a recipe which trains decodes what it trains.

    :param generation: The settings of the generator that its config chooses.

    :raises WarmupError: If the generator writes other warmups.
    """
    config = context.get_config_as(object)

    section = getattr(config, "criterion", None)

    warmup = getattr(config, "warmup", None)

    # It only translates.
    if not isinstance(section, CriterionSection) or not isinstance(
        warmup, WarmupSection
    ):
        return

    if generation.warmup in ("none", "bare", "empty"):
        return

    if not section.create(context.resolver).writes_warmups:
        raise WarmupError(
            f"`criterion.name` is `{section.name}`, which teaches no warmups, but the generator writes some; set `warmup` to `none` in its config."
        )

    if generation.max_warmup_len != warmup.max_warmup_len:
        raise WarmupError(
            f"`warmup.max_warmup_len` is {warmup.max_warmup_len}, but the generator writes warmups of up to {generation.max_warmup_len} tokens; set `max_warmup_len` in its config to {warmup.max_warmup_len}."
        )


def _create_reference(
    context: RecipeContext, codecs: Sequence[TextCodec], layout: DecoderLayout
) -> ConditionalModel:
    """
    :raises WarmupError: If there is none, or it cannot read what the tokenizer writes.
    """
    if not _has_reference_section(context):
        raise WarmupError(
            "`warmup.kl_weight` is set, but there is no model to hold the warmups near to; set `reference_model`."
        )

    if REFERENCE_MODEL not in set(context.resolver.iter_keys(Module)):
        raise WarmupError(
            "`warmup.kl_weight` is set, but the recipe loads no reference model; let its `register()` call fairseq2's `register_reference_model(container, 'reference_model')`."
        )

    model = context.get_model(REFERENCE_MODEL)

    reference = create_conditional_model(model)

    if reference.num_logits < layout.vocab_size:
        raise WarmupError(
            f"The model of `reference_model` has {reference.num_logits} output tokens, but the tokenizer {layout.vocab_size}; it must be a model of the same tokenizer."
        )

    warmup = _get_section(context, "warmup", WarmupSection)

    init = warmup.reference_separator_init

    # A model that never wrote a separator is prepared as the one that is trained; else
    # the KL would forbid to end a warmup.
    _prepare_separator(model, codecs, init or warmup.separator_init)

    return reference


def _has_reference_section(context: RecipeContext) -> bool:
    return getattr(context.get_config_as(object), REFERENCE_MODEL, None) is not None


def _prepare_separator(
    model: Module, codecs: Sequence[TextCodec], init: str
) -> Sequence[PreparedRow]:
    """:param init: See :attr:`WarmupSection.separator_init`."""
    if init == "none":
        return ()

    begins = {codec.get_begin() for codec in codecs}

    layout = codecs[0].layout

    return prepare_separator(
        model,
        layout.separator_idx,
        layout.eos_idx,
        sorted(begins),
        ends_like_text=layout.ends_like_text,
    )


def _get_section(context: RecipeContext, name: str, kls: type[SectionT]) -> SectionT:
    section = getattr(context.get_config_as(object), name, None)

    if not isinstance(section, kls):
        raise WarmupError(
            f"The config of the recipe has no section `{name}`; give it a field `{name}: {kls.__name__}`."
        )

    return section
