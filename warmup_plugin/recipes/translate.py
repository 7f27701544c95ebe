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
from fairseq2.logging import log
from fairseq2.models.family import ModelFamily
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.config import (
    CommonSection,
    GangSection,
    GeneratorSection,
    ReferenceModelSection,
    Seq2SeqGeneratorSection,
    SequenceGeneratorSection,
)
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from fairseq2.task import Task
from fairseq2.utils.structured import ValueConverter
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.console import calm_console
from warmup_plugin.data.lines import (
    Line,
    LineError,
    count_lines,
    iter_files,
    iter_pairs,
    iter_stream,
    open_stdin,
)
from warmup_plugin.data.text_files import TextPlaces
from warmup_plugin.data.text_pairs import TextPairs, read_split
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
from warmup_plugin.models.int8 import quantize_projections
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.recipes.common import (
    RunTokenizerSection,
    TextPairsSection,
    create_run_codec,
    is_decoder_only,
    refuse_float16,
)
from warmup_plugin.recipes.lines import (
    FileSink,
    LineProgress,
    LineSink,
    LineTask,
    Record,
    StreamSink,
)
from warmup_plugin.terminal import show_error
from warmup_plugin.tokenizers.codec import TextCodec


@dataclass(kw_only=True)
class LinesConfig:
    """Describes a job of a model that reads text line by line; the command line fills it
    from a run."""

    model: ReferenceModelSection = field(
        default_factory=lambda: ReferenceModelSection(name="")
    )

    tokenizer: RunTokenizerSection = field(
        default_factory=lambda: RunTokenizerSection()
    )

    dataset: TextPairsSection = field(default_factory=lambda: TextPairsSection())

    split: str | None = None
    """The split that is read; ``None`` for ``input``."""

    input: list[Path] = field(default_factory=list)
    """Text files, one sentence a line, or JSON lines or TSV, read like the data; none for standard input."""

    output: Path | None = None
    """The file to write; ``None`` for standard output."""

    restart: bool = False
    """If ``True``, a job that broke with other settings is begun again instead of refused."""

    checkpoint_time: float = 0.0
    """When the model was written: a job does not go on with another one."""

    int8: bool = False
    """If ``True``, large projections, from 512 by 512 on, have weights of 8 bits, as is faster on CPUs."""

    max_num_tokens: int = 10_000
    """The size of a batch: rows times the longest source among them. Each beam and each warmup that is drawn is a row."""

    chunk_size: int = 2000
    """The number of lines that are read before any is written; 1 answers line by line."""

    gang: GangSection = field(default_factory=lambda: GangSection())

    generator: GeneratorSection = field(default_factory=lambda: GeneratorSection())

    common: CommonSection = field(
        default_factory=lambda: CommonSection(no_sweep_dir=True)
    )


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


def register_codec(
    container: DependencyContainer, config_kls: type[LinesConfig]
) -> None:
    """Lets components of a recipe find the codec of its config."""

    def create(resolver: DependencyResolver) -> TextCodec:
        context = RecipeContext(resolver)

        config = context.get_config_as(config_kls)

        return create_run_codec(
            context,
            config.tokenizer,
            config.dataset,
            reads_prompts=is_decoder_only(context, config.model),
        )

    container.register(TextCodec, create, singleton=True)


def read_pairs(config: LinesConfig) -> TextPairs | None:
    """Reads the split that a job is about; ``None`` if it is about no split."""
    return None if config.split is None else read_split(config.dataset, config.split)


def read_input(
    config: LinesConfig, pairs: TextPairs | None, *, with_target: bool
) -> Iterator[Line]:
    """
    Reads what a job is about.

    :param pairs: As of :func:`read_pairs`.
    :param with_target: If ``True``, a split is read with its references.
    """
    if pairs is not None:
        return iter_pairs(pairs, with_target=with_target)

    if config.input:
        return iter_files(config.input, get_places(config))

    return iter_stream(open_stdin(), at_once=config.chunk_size == 1)


def get_places(config: LinesConfig) -> TextPlaces:
    """Returns where texts are in files of more than one a line: as in the run's data."""
    dataset = config.dataset

    return TextPlaces(
        fields={"sources": dataset.source_field, "targets": dataset.target_field},
        columns={"sources": dataset.source_column, "targets": dataset.target_column},
    )


def prepare_model(model: Module, config: LinesConfig) -> None:
    """
    Makes a model ready to read and write.

    :raises WarmupError: If it cannot be run as the config asks for.
    """
    refuse_float16(model, config.model.dtype)

    if config.int8 and quantize_projections(model) == 0:
        log.warning(
            "`--int8` changes nothing: no projection of the model is large enough to be faster with 8 bits."
        )

    model.eval()


def get_chunk_size(config: LinesConfig, context: RecipeContext) -> int:
    """Returns the number of lines that all processes together read at a time."""
    # Whoever waits for an answer does not write the next line.
    if config.chunk_size == 1:
        return 1

    return config.chunk_size * context.gangs.dp.size


def create_progress(
    config: LinesConfig, context: RecipeContext, pairs: TextPairs | None
) -> LineProgress | None:
    """Creates what shows how far a job is; nothing if lines are answered one by one."""
    if config.chunk_size == 1 or context.gangs.root.rank != 0:
        return None

    if pairs is not None:
        total: int | None = len(pairs)
    else:
        total = count_lines(config.input) if config.input else None

    return LineProgress(total)


def describe_job(config: LinesConfig, **further: object) -> dict[str, object]:
    """Describes what the output of a job depends on, so that it goes on as it began."""
    return {
        "model": str(config.model.path or config.model.name),
        "checkpoint": config.checkpoint_time,
        "dtype": str(config.model.dtype),
        "amp": config.generator.amp,
        "split": config.split,
        "input": [str(file) for file in config.input],
        "places": dataclasses.asdict(get_places(config)),
        "prompt": config.dataset.prompt,
        "separator": config.tokenizer.separator,
        "warmup_lang": config.tokenizer.warmup_lang,
        "source_lang": config.tokenizer.source_lang or config.dataset.source_lang,
        "target_lang": config.tokenizer.target_lang or config.dataset.target_lang,
        # Without it as in earlier versions, whose jobs go on.
        **({"int8": True} if config.int8 else {}),
        **({"warmup_end": "eos"} if config.tokenizer.warmup_end == "eos" else {}),
        **further,
    }


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
        if config.input and config.has_prefixes:
            # A tab is not one of TSV.
            lines = iter_files(config.input, as_text=True)
        else:
            lines = read_input(config, pairs, with_target=False)

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

        settings = describe_job(
            config,
            target_prefix=config.target_prefix,
            has_prefixes=config.has_prefixes,
            labels=config.labels,
            num_text_outputs=config.num_text_outputs,
            # Without it as in earlier versions, whose jobs go on.
            **({} if config.ctranslate2 is None else {"backend": "ctranslate2"}),
            **(dataclasses.asdict(config.rerank) if config.rerank.by else {}),
            **describe_members("ensemble", config.ensemble),
            **describe_members("plain_ensemble", config.plain_ensemble),
            **describe_generation(generator.config),
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


def describe_generation(config: GenerationConfig) -> dict[str, object]:
    """Describes how outputs are found; without what earlier versions did not have, so
    that their jobs go on."""
    description = dataclasses.asdict(config)

    if config.plain_weight == 0.0:
        del description["plain_weight"]

    return description


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


def refuse_to_cut_prompts(truncate: bool, model: ConditionalModel) -> None:
    """
    :raises WarmupError: If lines are to be cut that are prompts.
    """
    if truncate and model.reads_prompts:
        raise WarmupError(
            "What this model reads is a prompt, which would lose its end if it were cut (`--truncate`, or `generation.truncate` of the run); shorten the long lines instead."
        )


def check_vocabulary(num_logits: int, vocab_size: int) -> None:
    """
    :raises WarmupError: If the model has fewer output tokens than the tokenizer.
    """
    if num_logits < vocab_size:
        raise WarmupError(
            f"The model has {num_logits} output tokens, but the tokenizer {vocab_size}; name the tokenizer that the model was trained with."
        )
