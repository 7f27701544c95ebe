# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The recipe that translates: a split, files or standard input, one line of output for each
line of input, in input order."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, final

import torch
from fairseq2.models.family import ModelFamily
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.config import (
    ReferenceModelSection,
    Seq2SeqGeneratorSection,
    SequenceGeneratorSection,
)
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from fairseq2.utils.structured import ValueConverter
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.console import calm_console
from warmup_plugin.data.lines import Line, LineError
from warmup_plugin.data.text_pairs import TextPairs
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import GenerationConfig, WarmupGenerator
from warmup_plugin.generation.adapters import (
    WarmupSeq2SeqGenerator,
    WarmupSequenceGenerator,
)
from warmup_plugin.generation.ctranslate2_generator import CTranslate2Generator
from warmup_plugin.generation.label_ranker import LabelRanker
from warmup_plugin.generation.reranking import (
    NEURAL_RANKINGS,
    RerankSection,
    rank_by_metric,
    rank_by_utility,
)
from warmup_plugin.generation.translator import Ranker, Translation, Translator
from warmup_plugin.metrics.comet_score import CometSentenceMetric
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.models.ensemble import create_ensemble
from warmup_plugin.models.families import find_family
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.recipes.common import is_decoder_only, refuse_float16
from warmup_plugin.recipes.line_recipes import (
    LinesConfig,
    check_vocabulary,
    create_progress,
    describe_job,
    get_chunk_size,
    prepare_model,
    read_input,
    read_pairs,
    refuse_to_cut_prompts,
    register_codec,
)
from warmup_plugin.recipes.line_sinks import FileSink, LineSink, Record, StreamSink
from warmup_plugin.recipes.lines import LineTask
from warmup_plugin.terminal import show_error
from warmup_plugin.tokenizers.codec import TextCodec


@dataclass(kw_only=True)
class GenerateConfig(LinesConfig):
    """Describes a translation job; the command line fills it from a run."""

    json_output: Path | None = None
    """The file of JSON lines that is written beside ``output``."""

    as_json: bool = False
    """If ``True``, standard output gets JSON lines instead of text."""

    target_prefix: str | None = None
    """What every translation begins with."""

    has_prefixes: bool = False
    """If ``True``, a line of ``input`` may hold a tab and, behind it, what its translation begins with."""

    seq2seq_generator: Seq2SeqGeneratorSection = field(
        default_factory=lambda: Seq2SeqGeneratorSection(
            name="warmup", config=GenerationConfig()
        )
    )
    """How an encoder-decoder generates."""

    seq_generator: SequenceGeneratorSection = field(
        default_factory=lambda: SequenceGeneratorSection(
            name="warmup", config=GenerationConfig()
        )
    )
    """How a decoder-only model generates."""

    truncate: bool = False
    """If ``True``, a source longer than the model reads is cut instead of refused."""

    num_text_outputs: int = 1
    """The number of lines of text for each source: its best outputs, empty lines where there are fewer."""

    shows_prompt: bool = False
    """If ``True``, standard error says when the next line is awaited."""

    skip_bad_lines: bool = False
    """If ``True``, a line that cannot be translated gets an empty output and a message, and the job goes on."""

    ctranslate2: Path | None = None
    """A folder with the model as CTranslate2 reads it, which writes instead; ``None`` for the model itself."""

    ensemble: list[ReferenceModelSection] = field(default_factory=list)
    """Further models of the same tokenizer, whose mean of probabilities with ``model`` predicts each token."""

    plain_ensemble: list[ReferenceModelSection] = field(default_factory=list)
    """Models of plain fine-tuning that the generator's ``plain_weight`` hears, instead of ``model`` behind the empty warmup."""

    rerank: RerankSection = field(default_factory=lambda: RerankSection())

    labels: list[str] = field(default_factory=list)
    """If given, the output is the likeliest of them. With warmups, which the generator's ``warmup`` other than `none` means, by the mean of P(y|c,x) over its ``num_warmups`` draws."""


@final
class TranslationGenerateRecipe(Recipe):
    """Translates a split, files or standard input."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        """:param stream: What stands for standard output."""
        self._stream = stream

        self.num_skipped = 0
        """The number of lines that could not be translated."""

    @override
    def register(self, container: DependencyContainer) -> None:
        calm_console()

        register_codec(container, GenerateConfig)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(GenerateConfig)

        codec = context.resolver.resolve(TextCodec)

        if config.ctranslate2 is None:
            prepare_model(context.get_model(), config)

            generator = self._get_generator(context, config)
        else:
            generator = self._create_limits(context, config, codec)

        if config.ensemble or config.plain_ensemble:
            generator = self._create_ensemble(context, config, generator, codec)

        model = generator.model

        check_vocabulary(model.num_logits, codec.layout.vocab_size)

        refuse_to_cut_prompts(config.truncate, model)

        translator: Translator | LabelRanker

        if config.labels:
            translator = LabelRanker(
                model,
                codec,
                context.device,
                config.labels,
                num_warmups=generator.config.num_warmups if generator.has_warmup else 0,
                max_warmup_len=generator.config.max_warmup_len,
                has_empty_warmup=generator.config.warmup == "empty",
                leaves_separator_out=generator.config.warmup == "bare",
                seed=generator.config.seed,
                max_num_tokens=config.max_num_tokens,
                truncate=config.truncate,
            )
        else:
            translator = Translator(
                model,
                self._choose_engine(config, generator, context.device),
                codec,
                context.device,
                max_num_tokens=config.max_num_tokens,
                truncate=config.truncate,
                rank=self._create_ranker(config.rerank),
                num_best=config.rerank.num_best,
            )

        def translate(lines: Sequence[Line], on_batch: Any) -> list[Translation]:
            try:
                return translator(lines, on_batch)
            except LineError as ex:
                if not config.skip_bad_lines:
                    raise

                if len(lines) > 1:
                    return [t for line in lines for t in translate([line], on_batch)]

                show_error(ex)

                self.num_skipped += 1

                # As of an empty line.
                [line] = lines

                [empty] = translator([dataclasses.replace(line, source="")], on_batch)

                return [dataclasses.replace(empty, source=line.source)]

        def process(lines: Sequence[Line], on_batch: Any) -> list[Record]:
            translations = translate(lines, on_batch)

            return [
                Record(
                    line.number,
                    translation.list_outputs(config.num_text_outputs),
                    translation.to_json(),
                    translation.was_cut,
                )
                for line, translation in zip(lines, translations)
            ]

        pairs = read_pairs(config)

        return LineTask(
            self._read(config, pairs),
            process,
            self._create_sink(config, generator),
            context.gangs,
            config.generator,
            chunk_size=get_chunk_size(config, context),
            progress=create_progress(config, context, pairs),
        )

    @staticmethod
    def _create_ranker(section: RerankSection) -> Ranker | None:
        if section.by is None:
            return None

        metric = CometSentenceMetric(
            section.model or NEURAL_RANKINGS[section.by], gpus=section.gpus
        )

        rank = rank_by_utility if section.by == "mbr_comet" else rank_by_metric

        return partial(rank, metric)

    @staticmethod
    def _get_generator(
        context: RecipeContext, config: GenerateConfig
    ) -> WarmupGenerator:
        generator: object

        if is_decoder_only(context, config.model):
            section, generator = "seq_generator", context.get_seq_generator()
        else:
            section, generator = "seq2seq_generator", context.get_seq2seq_generator()

        if isinstance(generator, (WarmupSeq2SeqGenerator, WarmupSequenceGenerator)):
            return generator.core

        raise _make_generator_error(section)

    @staticmethod
    def _create_limits(
        context: RecipeContext, config: GenerateConfig, codec: TextCodec
    ) -> WarmupGenerator:
        """Creates what knows how long texts may be, with a model that has no weights:
        another library writes, and has its own."""
        family, model_config = _find_model(context, config.model)

        module = family.create_new_model(
            model_config,
            context.gangs,
            config.model.dtype,
            meta=True,
            init_rank0_only=True,
        )

        refuse_float16(module, config.model.dtype)

        model = create_conditional_model(module)

        section = "seq_generator" if model.reads_prompts else "seq2seq_generator"

        generation = getattr(config, section).config

        if not isinstance(generation, GenerationConfig):
            raise _make_generator_error(section)

        return WarmupGenerator(
            model,
            codec.layout,
            generation,
            num_template_tokens=codec.num_template_tokens,
        )

    @staticmethod
    def _create_ensemble(
        context: RecipeContext,
        config: GenerateConfig,
        generator: WarmupGenerator,
        codec: TextCodec,
    ) -> WarmupGenerator:
        def load(sections: Sequence[ReferenceModelSection]) -> list[ConditionalModel]:
            modules = [_load_model(context, section) for section in sections]

            for module in modules:
                prepare_model(module, config)

            return [create_conditional_model(module) for module in modules]

        plain_members = load(config.plain_ensemble)

        return WarmupGenerator(
            create_ensemble([generator.model, *load(config.ensemble)]),
            codec.layout,
            generator.config,
            decode=codec.decode,
            num_template_tokens=codec.num_template_tokens,
            plain_model=create_ensemble(plain_members) if plain_members else None,
            # The language of the targets, which ends a warmup in another one.
            plain_begin_idx=(
                None
                if config.tokenizer.warmup_lang is None
                else codec.layout.separator_idx
            ),
        )

    @staticmethod
    def _choose_engine(
        config: GenerateConfig, generator: WarmupGenerator, device: torch.device
    ) -> WarmupGenerator | CTranslate2Generator:
        if config.ctranslate2 is None:
            return generator

        compute_type = "int8" if config.int8 else str(config.model.dtype)

        return CTranslate2Generator(
            config.ctranslate2,
            generator,
            device=device,
            compute_type=compute_type.removeprefix("torch."),
        )

    @staticmethod
    def _read(config: GenerateConfig, pairs: TextPairs | None) -> Iterator[Line]:
        # The tab in front of a prefix is not one of TSV.
        lines = read_input(
            config, pairs, with_target=False, as_text=config.has_prefixes
        )

        if config.shows_prompt:
            lines = _show_prompts(lines)

        for line in lines:
            if config.has_prefixes:
                source, _, beginning = line.source.partition("\t")

                line = dataclasses.replace(
                    line, source=source.strip(), target=beginning.strip()
                )

            if config.target_prefix and not line.target:
                line = dataclasses.replace(line, target=config.target_prefix)

            yield line

    def _create_sink(
        self, config: GenerateConfig, generator: WarmupGenerator
    ) -> LineSink:
        if config.output is None and config.json_output is None:
            return StreamSink(self._stream or sys.stdout.buffer, as_json=config.as_json)

        generation = dataclasses.asdict(generator.config)

        # Without what earlier versions did not have, so that their jobs go on.
        if generator.config.plain_weight == 0.0:
            del generation["plain_weight"]

        settings = describe_job(
            config,
            target_prefix=config.target_prefix,
            has_prefixes=config.has_prefixes,
            labels=config.labels,
            num_text_outputs=config.num_text_outputs,
            # Without it as in earlier versions, whose jobs go on.
            **({} if config.ctranslate2 is None else {"backend": "ctranslate2"}),
            **(
                {"rerank": dataclasses.asdict(config.rerank)}
                if config.rerank.by
                else {}
            ),
            **describe_members("ensemble", config.ensemble),
            **describe_members("plain_ensemble", config.plain_ensemble),
            **generation,
        )

        return FileSink(
            config.output, config.json_output, settings, restart=config.restart
        )

    @property
    @override
    def config_kls(self) -> type[object]:
        return GenerateConfig


def describe_members(
    name: str, members: Sequence[ReferenceModelSection]
) -> dict[str, object]:
    """Describes the further models of an ensemble, so that a job does not go on with
    others; nothing if there are none, as in earlier versions."""
    if not members:
        return {}

    paths = [member.path for member in members if member.path is not None]

    return {name: [[str(path), path.stat().st_mtime] for path in paths]}


def _load_model(context: RecipeContext, section: ReferenceModelSection) -> Module:
    """Loads a model that the recipe itself does not know."""
    family, model_config = _find_model(context, section)

    assert section.path is not None

    return family.load_custom_model(
        section.path,
        model_config,
        context.gangs,
        section.dtype,
        load_rank0_only=False,
        mmap=section.mmap,
        restrict=None,
    )


def _make_generator_error(section: str) -> WarmupError:
    return WarmupError(
        f"`{section}.name` is not `warmup`, but only this generator tells warmup and output apart; for plain models set `{section}.config.warmup` to `none`."
    )


def _find_model(
    context: RecipeContext, section: ReferenceModelSection
) -> tuple[ModelFamily, object]:
    """Returns the family of a model and its configuration, which a run knows whole."""
    family = find_family(section.family, context.resolver)

    model_config = context.resolver.resolve(ValueConverter).structure(
        section.config_overrides, family.config_kls
    )

    return family, model_config


def _show_prompts(lines: Iterator[Line]) -> Iterator[Line]:
    while True:
        print("> ", end="", file=sys.stderr, flush=True)

        line = next(lines, None)

        if line is None:
            print(file=sys.stderr)

            return

        yield line
