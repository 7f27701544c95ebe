# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What the recipes that go through lines have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.logging import log
from fairseq2.recipe.base import RecipeContext
from fairseq2.recipe.config import (
    CommonSection,
    GangSection,
    GeneratorSection,
    ReferenceModelSection,
)
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.components import Checked
from warmup_plugin.data.lines import (
    Line,
    count_lines,
    iter_files,
    iter_pairs,
    iter_stream,
    open_stdin,
)
from warmup_plugin.data.text_files import TextPlaces
from warmup_plugin.data.text_pairs import TextPairs, read_split
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.models.int8 import quantize_projections
from warmup_plugin.recipes.common import (
    RunTokenizerSection,
    TextPairsSection,
    get_codec_options,
    is_decoder_only,
    refuse_float16,
)
from warmup_plugin.recipes.line_progress import LineProgress
from warmup_plugin.tokenizers.codec import TextCodec, create_codec


@dataclass(kw_only=True)
class LinesConfig(Checked):
    """Describes a job of a model that reads text line by line; the command line fills it
    from a run."""

    model: ReferenceModelSection = field(
        default_factory=lambda: ReferenceModelSection(name="")
    )

    tokenizer: RunTokenizerSection = field(default_factory=RunTokenizerSection)

    dataset: TextPairsSection = field(default_factory=TextPairsSection)

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

    gang: GangSection = field(default_factory=GangSection)

    generator: GeneratorSection = field(default_factory=GeneratorSection)

    common: CommonSection = field(
        default_factory=lambda: CommonSection(no_sweep_dir=True)
    )

    @override
    def find_errors(self) -> Iterator[str]:
        for name in ("max_num_tokens", "chunk_size"):
            value = getattr(self, name)

            if value < 1:
                yield f"`{name}` must be greater than or equal to 1, but is {value}."


def register_codec(
    container: DependencyContainer, config_kls: type[LinesConfig]
) -> None:
    """Lets components of a recipe find the codec of its config."""

    def create(resolver: DependencyResolver) -> TextCodec:
        context = RecipeContext(resolver)

        config = context.get_config_as(config_kls)

        options = get_codec_options(
            dataclasses.asdict(config.tokenizer), dataclasses.asdict(config.dataset)
        )

        return create_codec(
            context.get_tokenizer(),
            options,
            reads_prompts=is_decoder_only(context, config.model),
        )

    container.register(TextCodec, create, singleton=True)


def read_pairs(config: LinesConfig) -> TextPairs | None:
    """Reads the split that a job is about; ``None`` if it is about no split."""
    return None if config.split is None else read_split(config.dataset, config.split)


def read_input(
    config: LinesConfig,
    pairs: TextPairs | None,
    *,
    with_target: bool,
    as_text: bool = False,
) -> Iterator[Line]:
    """
    Reads what a job is about.

    :param pairs: As of :func:`read_pairs`.
    :param with_target: If ``True``, a split is read with its references.
    :param as_text: If ``True``, lines are read whole, whatever a file is called.
    """
    if pairs is not None:
        return iter_pairs(pairs, with_target=with_target)

    if config.input:
        return iter_files(config.input, get_places(config), as_text=as_text)

    at_once = config.chunk_size == 1

    return iter_stream(open_stdin(), at_once=at_once, as_text=as_text)


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
