# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Translates with a trained run: ``python -m recipes.generate RUN_DIR``.

Beam search through warmup and output. One line of output for each line of input, in
input order; beside it a JSON lines file with warmups and scores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast, final

import torch
from fairseq2.datasets import SequenceBatch
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.metrics import MetricBag, Sum
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.config import (
    CommonSection,
    GangSection,
    GeneratorSection,
    ReferenceModelSection,
)
from fairseq2.recipe.generator import GeneratorUnit
from fairseq2.task import Task
from typing_extensions import override

from warmup_plugin.criteria.validation import gather_objects
from warmup_plugin.data.corpus import encode_sources
from warmup_plugin.data.source_reader import SourceReader
from warmup_plugin.data.text_pairs import read_lines, read_split
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import BeamSearch, BeamSearchConfig
from warmup_plugin.models.conditional import create_conditional_model
from warmup_plugin.recipes.common import (
    RunTokenizerSection,
    TextPairsSection,
    create_run_codec,
    is_decoder_only,
    refuse_float16,
    run_fairseq2,
)
from warmup_plugin.run_dir import RunDir, dump_yaml, write_text_atomically
from warmup_plugin.tokenizers.codec import TextCodec


@dataclass(kw_only=True)
class GenerateConfig:
    """Describes a batch translation; the command line fills it from a run."""

    model: ReferenceModelSection = field(
        default_factory=lambda: ReferenceModelSection(name="")
    )

    tokenizer: RunTokenizerSection = field(
        default_factory=lambda: RunTokenizerSection()
    )

    dataset: TextPairsSection = field(default_factory=lambda: TextPairsSection())

    split: str = "test"
    """The split whose sources are translated, unless ``input`` is given."""

    input: Path | None = None
    """A plain text file to translate, one sentence a line."""

    output: Path = Path("hypotheses.txt")
    """Where to write; ``.jsonl`` is appended for the JSON lines."""

    search: BeamSearchConfig = field(default_factory=lambda: BeamSearchConfig())

    max_warmup_len: int | None = None
    """The most tokens of a warmup; ``None`` for a model without warmup."""

    max_num_tokens: int = 2000
    """The size of a batch: rows times the longest source among them."""

    truncate: bool = False
    """If ``True``, a source longer than the model reads is cut instead of refused."""

    gang: GangSection = field(default_factory=lambda: GangSection())

    generator: GeneratorSection = field(default_factory=lambda: GeneratorSection())

    common: CommonSection = field(
        default_factory=lambda: CommonSection(no_sweep_dir=True)
    )


@final
@dataclass(frozen=True)
class Translation:
    """Holds what is written for one line of input."""

    source: str

    warmup: str | None
    """``None`` if the model writes no warmup."""

    output: str

    score: float | None
    """See ``Hypothesis.score``; ``None`` for an empty source, which stays empty."""

    log_prob: float | None


@final
class TranslationGeneratorUnit(GeneratorUnit[SequenceBatch]):
    """Translates batches and writes the files when all are done."""

    def __init__(
        self,
        sources: Sequence[str],
        search: BeamSearch,
        prefixes: Mapping[int, Sequence[int]],
        codec: TextCodec,
        gangs: Gangs,
        output: Path,
        *,
        has_warmup: bool,
    ) -> None:
        """
        :param sources: All lines of the input, empty ones included.
        :param prefixes: The tokens before the warmup, by the index of the source.
        """
        self._sources = sources
        self._search = search
        self._prefixes = prefixes
        self._codec = codec
        self._gangs = gangs
        self._output = output
        self._has_warmup = has_warmup
        self._translations: dict[int, Translation] = {}

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        metric_bag.add("num_examples", Sum())
        metric_bag.add("num_elements", Sum())

    @override
    def process_batch(self, batch: SequenceBatch, metric_bag: MetricBag) -> None:
        indices = cast("list[int]", batch.example)

        prefixes = [self._prefixes[idx] for idx in indices]

        hypotheses = self._search(
            batch.seqs,
            list(batch.seq_lens),
            torch.tensor(prefixes, device=batch.seqs.device),
        )

        for idx, hypothesis in zip(indices, hypotheses):
            warmup = None

            if self._has_warmup:
                warmup = self._codec.decode(hypothesis.warmup)

            self._translations[idx] = Translation(
                self._sources[idx],
                warmup,
                self._codec.decode(hypothesis.target),
                hypothesis.score,
                hypothesis.log_prob,
            )

            # Separator, if any, and EOS.
            num_tokens = len(hypothesis.warmup) + len(hypothesis.target) + 1

            num_tokens += int(self._has_warmup)

            metric_bag.get("num_elements", Sum).update(num_tokens)

        metric_bag.get("num_examples", Sum).update(batch.num_examples)

    @override
    def finalize(self, metric_bag: MetricBag) -> None:
        gathered = gather_objects(self._gangs.dp, self._translations)

        if self._gangs.root.rank != 0:
            return

        translations: dict[int, Translation] = {}

        for rank_translations in gathered:
            translations.update(rank_translations)

        lines, json_lines = [], []

        for idx, source in enumerate(self._sources):
            translation = translations.get(idx)

            if translation is None:
                empty_warmup = "" if self._has_warmup else None

                translation = Translation(source, empty_warmup, "", None, None)

            # One line of output for each line of input, whatever the model writes.
            lines.append(" ".join(translation.output.splitlines()))

            json_lines.append(json.dumps(asdict(translation), ensure_ascii=False))

        write_text_atomically(self._output, "".join(f"{s}\n" for s in lines))

        write_text_atomically(
            jsonl_path(self._output), "".join(f"{s}\n" for s in json_lines)
        )

        log.info("{:,} lines written to {}.", len(lines), self._output)


def jsonl_path(output: Path) -> Path:
    """Returns the JSON lines file that belongs to an output file."""
    return output.with_name(output.name + ".jsonl")


@final
class TranslationGenerateRecipe(Recipe):
    """Translates a split or a file."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(GenerateConfig)

        reads_prompts = is_decoder_only(context, config.model)

        codec = create_run_codec(
            context, config.tokenizer, config.dataset, reads_prompts=reads_prompts
        )

        layout = codec.layout

        if config.truncate and reads_prompts:
            raise WarmupError(
                "`truncate` cannot cut a prompt, which would lose its end; shorten the long lines instead."
            )

        sources = self._read_sources(config)

        base_model = context.get_model()

        refuse_float16(base_model, config.model.dtype)

        model = create_conditional_model(base_model)

        if model.num_logits < layout.vocab_size:
            raise WarmupError(
                f"The model has {model.num_logits} output tokens, but the tokenizer {layout.vocab_size}; name the tokenizer that the model was trained with."
            )

        # An empty line stays one.
        indices = [idx for idx, source in enumerate(sources) if source]

        tokens, prefixes = encode_sources((sources[idx] for idx in indices), codec)

        max_len = model.max_source_len

        if config.truncate:
            tokens = tokens.truncate(max_len)
        else:
            too_long = [n for n, length in enumerate(tokens.lens) if length > max_len]

            if too_long:
                origin = config.input or f"the split `{config.split}`"

                raise WarmupError(
                    f"Line {indices[too_long[0]] + 1} of {origin} has {tokens.lens[too_long[0]]} tokens, but the model reads at most {max_len} ({len(too_long)} such lines); split it into sentences, or cut it with `--config truncate=true` and an `--output`."
                )

        reader = SourceReader(
            tokens,
            indices,
            context.gangs,
            max_num_tokens=config.max_num_tokens,
            pad_idx=layout.pad_idx,
        )

        search = BeamSearch(
            model, layout, config.search, max_warmup_len=config.max_warmup_len
        )

        unit = TranslationGeneratorUnit(
            sources,
            search,
            {idx: prefixes[n].tolist() for n, idx in enumerate(indices)},
            codec,
            context.gangs,
            config.output,
            has_warmup=config.max_warmup_len is not None,
        )

        return context.create_generator(unit, reader)

    @staticmethod
    def _read_sources(config: GenerateConfig) -> list[str]:
        if config.input is not None:
            return read_lines(config.input)

        pairs = read_split(config.dataset, config.split)

        # JSON text may hold line feeds; a line of output must stay one line.
        return [" ".join(pairs.source(idx).split("\n")) for idx in range(len(pairs))]

    @property
    @override
    def config_kls(self) -> type[object]:
        return GenerateConfig


def create_parser() -> argparse.ArgumentParser:
    """Creates the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.generate", description="Translates with a trained run."
    )

    parser.add_argument("run_dir", type=Path, help="the directory of a training run")

    what = parser.add_mutually_exclusive_group()

    what.add_argument(
        "--split", help="the split to translate (default: the run's `test_split`)"
    )

    what.add_argument("--input", type=Path, help="a text file to translate instead")

    parser.add_argument(
        "--output",
        type=Path,
        help="the file to write (default: RUN_DIR/generate/SPLIT.CHECKPOINT.txt, or input-NAME.CHECKPOINT.txt)",
    )

    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the data folder, if it is no longer where the run was trained",
    )

    parser.add_argument(
        "--checkpoint", default="best", help="`best` (default), `last` or a step"
    )

    parser.add_argument("--no-rich", action="store_true", help="plain log lines")

    parser.add_argument(
        "--config",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="overrides, such as `search.beam_size=4 dataset.path=DIR`",
    )

    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the translation command.

    :returns: The exit status: 0, or 2 for bad input.
    """
    args = create_parser().parse_args(argv)

    try:
        return _run(args)
    except WarmupError as ex:
        print(f"error: {ex}", file=sys.stderr)

        return 2


def _run(args: argparse.Namespace) -> int:
    run_dir = RunDir(args.run_dir)

    step_nr = run_dir.find_checkpoint(args.checkpoint)

    run_config = cast("dict[str, Any]", run_dir.load_config())

    dataset = run_config["dataset"]

    if args.data is not None:
        dataset = {**dataset, "path": str(args.data.expanduser().absolute())}

    split = args.split or dataset["test_split"]

    if args.input is not None and not args.input.is_file():
        raise WarmupError(f"The input file `{args.input}` does not exist.")

    output = args.output

    if output is None:
        if args.config:
            raise WarmupError(
                "With `--config`, name the file to write with `--output`: the default one is what `evaluate` scores as the run's own translation."
            )

        # A file may have the name of a split.
        stem = split if args.input is None else f"input-{args.input.name}"

        output = run_dir.path / "generate" / f"{stem}.{args.checkpoint}.txt"

    output = output.expanduser().resolve()

    if output.is_dir():
        raise WarmupError(f"The output `{output}` is a folder; name a file.")

    if args.input is not None and output == args.input.resolve():
        raise WarmupError(
            f"The output `{output}` is the input; name another file with `--output`."
        )

    tokenizer = run_config["tokenizer"]

    # Else it is one that fairseq2 knows by name.
    if run_dir.tokenizer_path is not None:
        tokenizer = {**tokenizer, "path": str(run_dir.tokenizer_path)}

    family, model_config = run_dir.load_model_metadata()

    has_warmup = run_config["criterion"]["name"] != "sft"

    config = {
        "model": {
            "name": None,
            "path": str(run_dir.model_path(step_nr)),
            "family": family,
            "config_overrides": model_config,
        },
        "tokenizer": tokenizer,
        "dataset": dataset,
        # The cards of a tokenizer that is known by name.
        "common": {"assets": run_config["common"]["assets"]},
        "split": split,
        "input": None if args.input is None else str(args.input.resolve()),
        "output": str(output),
        "max_warmup_len": (
            run_config["warmup"]["max_warmup_len"] if has_warmup else None
        ),
    }

    with tempfile.TemporaryDirectory(prefix="warmup_plugin-") as tmp_dir:
        file = Path(tmp_dir, "config.yaml")

        file.write_text(dump_yaml(config), encoding="utf-8")

        # fairseq2's own records of the translation stand beside its output.
        fairseq2_args = [f"{output}.run", "--config-file", str(file)]

        if args.no_rich:
            fairseq2_args.append("--no-rich")

        if args.config:
            fairseq2_args += ["--config", *args.config]

        return run_fairseq2(TranslationGenerateRecipe(), fairseq2_args)
