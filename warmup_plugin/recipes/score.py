# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.task import Task
from typing_extensions import override

from warmup_plugin.components import find_too_small
from warmup_plugin.data.lines import Line, iter_parallel_files
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.pair_scorer import PairScorer
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.parsing import parse_json
from warmup_plugin.recipes.line_recipes import (
    LinesConfig,
    check_vocabulary,
    create_progress,
    describe_job,
    get_chunk_size,
    get_places,
    prepare_model,
    read_input,
    read_pairs,
    refuse_to_cut_prompts,
    register_codec,
)
from warmup_plugin.recipes.line_sinks import FileSink, Record, StreamSink
from warmup_plugin.recipes.lines import LineTask
from warmup_plugin.tokenizers.codec import TextCodec


@dataclass(kw_only=True)
class ScoreConfig(LinesConfig):
    """Describes a scoring job; the command line fills it from a run."""

    targets: Path | None = None
    """The targets of the one file of ``input``, line by line."""

    as_json: bool = False
    """If ``True``, JSON lines are written instead of columns."""

    num_warmups: int = 8
    """The number K of warmups that are drawn for each pair; 0 for none."""

    max_warmup_len: int = 8
    """The most tokens of a warmup; then the separator is forced."""

    has_empty_warmup: bool = False
    """If ``True``, no warmup means the empty one, which the separator ends; else plain fine-tuning."""

    leaves_separator_out: bool = False
    """If ``True``, the separator has no probability in an output, also where none stands before it."""

    seed: int = 2
    """The seed of the draws. A line's draws depend on the seed and its number alone."""

    truncate: bool = False
    """If ``True``, sources and targets longer than the model reads are cut instead of refused."""

    @override
    def find_errors(self) -> Iterator[str]:
        yield from super().find_errors()

        yield from find_too_small(self, num_warmups=0, max_warmup_len=1, seed=0)


@final
class ScoreRecipe(Recipe):
    """Scores given pairs."""

    def __init__(self, stream: BinaryIO | None = None) -> None:
        """:param stream: What stands for standard output."""
        self._stream = stream

    @override
    def register(self, container: DependencyContainer) -> None:
        register_codec(container, ScoreConfig)

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(ScoreConfig)

        codec = context.resolver.resolve(TextCodec)

        base_model = context.get_model()

        prepare_model(base_model, config)

        model = create_conditional_model(base_model)

        check_vocabulary(model.num_logits, codec.layout.vocab_size)

        refuse_to_cut_prompts(config.truncate, model)

        scorer = PairScorer(
            model,
            codec,
            context.device,
            num_warmups=config.num_warmups,
            max_warmup_len=config.max_warmup_len,
            has_empty_warmup=config.has_empty_warmup,
            leaves_separator_out=config.leaves_separator_out,
            seed=config.seed,
            max_num_tokens=config.max_num_tokens,
            truncate=config.truncate,
        )

        def process(
            lines: Sequence[Line], on_batch: Callable[[int], None]
        ) -> list[Record]:
            return [
                Record(line.number, score.to_text(), score.to_json(), score.was_cut)
                for line, score in zip(lines, scorer(lines, on_batch))
            ]

        output = config.output

        sink: StreamSink | FileSink

        if output is None:
            sink = StreamSink(self._stream or sys.stdout.buffer, as_json=config.as_json)
        else:
            settings = describe_job(
                config,
                targets=str(config.targets),
                num_warmups=config.num_warmups,
                max_warmup_len=config.max_warmup_len,
                has_empty_warmup=config.has_empty_warmup,
                leaves_separator_out=config.leaves_separator_out,
                seed=config.seed,
            )

            if config.as_json:
                sink = FileSink(None, output, settings, restart=config.restart)
            else:
                sink = FileSink(output, None, settings, restart=config.restart)

        pairs = read_pairs(config)

        if config.targets is not None:
            [source_file] = config.input

            lines = iter_parallel_files(source_file, config.targets, get_places(config))
        else:
            lines = read_input(config, pairs, with_target=True)

        return LineTask(
            lines,
            process,
            sink,
            context.gangs,
            config.generator,
            chunk_size=get_chunk_size(config, context),
            progress=create_progress(config, context, pairs),
        )

    @property
    @override
    def config_kls(self) -> type[object]:
        return ScoreConfig


def summarize_scores(file: Path) -> str:
    """
    Sums up the JSON lines that a scoring job has written.

    :raises WarmupError: If there is no pair to sum up.
    """
    num_pairs = num_tokens = 0

    plain = marginal = size = 0.0

    has_warmups = False

    with file.open(encoding="utf-8") as fp:
        for line in fp:
            record = parse_json(line)

            if record["log_prob"] is None:
                continue

            num_pairs += 1

            num_tokens += record["num_target_tokens"]

            plain += record["log_prob"]

            if record["marginal_log_prob"] is not None:
                has_warmups = True

                marginal += record["marginal_log_prob"]

                size += record["effective_sample_size"]

    if num_pairs == 0:
        raise WarmupError(
            f"`{file}` holds no scores, since each pair has an empty side; give pairs of source and target."
        )

    lines = [
        f"{num_pairs:,} pairs, {num_tokens:,} target tokens",
        f"log P(y|x) without warmup  {plain / num_pairs:10.3f} a pair  {plain / num_tokens:8.4f} a token",
    ]

    if has_warmups:
        gain = marginal - plain

        lines += [
            f"log P(y|x) with warmups    {marginal / num_pairs:10.3f} a pair  {marginal / num_tokens:8.4f} a token",
            f"gain                       {gain / num_pairs:10.3f} a pair  {gain / num_tokens:8.4f} a token",
            f"effective sample size      {size / num_pairs:10.3f}",
        ]

    return "\n".join(lines)
