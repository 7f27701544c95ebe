# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Translates with a trained run: ``python -m recipes.generate RUN_DIR`` a test set or a
file, ``python -m warmup_plugin translate RUN_DIR`` whatever comes in. Both are one
recipe: one line of output for each line of input, in input order.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final, cast, final

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
from fairseq2.utils.config import StandardConfigMerger
from fairseq2.utils.validation import StandardObjectValidator, ValidationError
from typing_extensions import override

from warmup_plugin.console import (
    calm_console,
    claimed_stdout,
    make_private_log,
    quiet_log,
)
from warmup_plugin.data.directions import (
    choose_direction,
    name_output,
    narrow_to_direction,
)
from warmup_plugin.data.lines import (
    Line,
    LineError,
    count_lines,
    is_terminal,
    iter_files,
    iter_pairs,
    iter_stream,
    open_stdin,
)
from warmup_plugin.data.text_files import TextPlaces, read_place_arguments
from warmup_plugin.data.text_pairs import TextPairs, read_split
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import (
    GenerationConfig,
    GenerationSection,
    WarmupGenerator,
)
from warmup_plugin.generation.adapters import (
    WarmupSeq2SeqGenerator,
    WarmupSequenceGenerator,
)
from warmup_plugin.generation.config import RANKINGS, WARMUP_CHOICES
from warmup_plugin.generation.label_ranker import LabelRanker
from warmup_plugin.generation.translator import Translation, Translator
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.recipes.arguments import (
    create_generate_parser,
    get_generation_options,
    name_options,
    to_option,
)
from warmup_plugin.recipes.common import (
    RunTokenizerSection,
    TextPairsSection,
    create_run_codec,
    get_rank,
    is_decoder_only,
    refuse_float16,
)
from warmup_plugin.recipes.config_files import apply_settings
from warmup_plugin.recipes.lines import (
    FileSink,
    LineProgress,
    LineSink,
    LineTask,
    Record,
    StreamSink,
)
from warmup_plugin.recipes.running import RecipeRunner, unstructure_config
from warmup_plugin.run_dir import RunDir
from warmup_plugin.terminal import get_arguments, guard, show_error
from warmup_plugin.tokenizers.codec import TextCodec
from warmup_plugin.warmup_lens import (
    get_max_warmup_len,
    has_empty_warmup,
    writes_warmups,
)


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

    labels: list[str] = field(default_factory=list)
    """If given, the output is the likeliest of them. With warmups, which the generator's ``warmup`` other than `none` means, by the mean of P(y|c,x) over its ``num_warmups`` draws."""


def jsonl_path(output: Path) -> Path:
    """Returns the JSON lines file that belongs to an output file."""
    return output.with_name(output.name + ".jsonl")


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


def set_places(config: dict[str, Any], places: TextPlaces) -> None:
    """Puts what was said of files into a config of a job."""
    config["dataset"] = {
        **config["dataset"],
        **{f"{what[:-1]}_field": name for what, name in places.fields.items()},
        **{f"{what[:-1]}_column": column for what, column in places.columns.items()},
    }


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

        base_model = context.get_model()

        refuse_float16(base_model, config.model.dtype)

        generator = self._get_generator(context, config)

        model = generator.model

        check_vocabulary(model.num_logits, codec.layout.vocab_size)

        refuse_to_cut_prompts(config.truncate, model)

        base_model.eval()

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
                seed=generator.config.seed,
                max_num_tokens=config.max_num_tokens,
                truncate=config.truncate,
            )
        else:
            translator = Translator(
                model,
                generator,
                codec,
                context.device,
                max_num_tokens=config.max_num_tokens,
                truncate=config.truncate,
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
            chunk_size=config.chunk_size * context.gangs.dp.size,
            progress=create_progress(config, context, pairs),
        )

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

        raise WarmupError(
            f"`{section}.name` is not `warmup`, but only this generator tells warmup and output apart; for plain models set `{section}.config.warmup` to `none`."
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
            **dataclasses.asdict(generator.config),
        )

        return FileSink(
            config.output, config.json_output, settings, restart=config.restart
        )

    @property
    @override
    def config_kls(self) -> type[object]:
        return GenerateConfig


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


_GENERATOR_SECTIONS: Final = ("seq2seq_generator", "seq_generator")


def load_run_config(
    run_dir: RunDir,
    checkpoint: str,
    *,
    direction: str | None = None,
    data_dir: Path | None = None,
    find_data: bool = False,
) -> dict[str, Any]:
    """
    Loads the config of a run as it was for one direction, and at one checkpoint: the
    length of warmups may change while a model trains.

    :param direction: What stands behind ``--direction``.
    :param find_data: If ``True``, the folder of the direction is looked for.

    :raises WarmupError: If the run has no such checkpoint, no such direction or no data
        of it, or has several directions and none is given.
    """
    step_nr = run_dir.find_checkpoint(checkpoint)

    config = cast("dict[str, Any]", run_dir.load_config(complete=True))

    config = narrow_to_direction(
        config,
        choose_direction(config, direction),
        data_dir=None if data_dir is None else data_dir.expanduser().absolute(),
        find_data=find_data,
    )

    warmup = config["warmup"]

    max_warmup_len = get_max_warmup_len(warmup, step_nr)

    return {**config, "warmup": {**warmup, "max_warmup_len": max_warmup_len}}


def create_lines_config(
    run_dir: RunDir, checkpoint: str, run_config: Mapping[str, Any]
) -> dict[str, Any]:
    """
    Returns what a config takes from a run: model, tokenizer, data.

    :param run_config: As of :func:`load_run_config`.

    :raises WarmupError: If the run has no such checkpoint.
    """
    step_nr = run_dir.find_checkpoint(checkpoint)

    dataset, tokenizer = run_config["dataset"], run_config["tokenizer"]

    # Else it is one that fairseq2 knows by name.
    if run_dir.tokenizer_path is not None:
        tokenizer = {**tokenizer, "path": str(run_dir.tokenizer_path)}

    family, model_config = run_dir.load_model_metadata()

    model_path = run_dir.model_path(step_nr)

    return {
        "model": {
            "name": None,
            "path": str(model_path),
            "family": family,
            "config_overrides": model_config,
        },
        "tokenizer": tokenizer,
        "dataset": dataset,
        # The cards of a tokenizer that is known by name.
        "common": {"assets": run_config["common"]["assets"]},
        "checkpoint_time": model_path.stat().st_mtime,
    }


def truncates(args: argparse.Namespace, run_config: Mapping[str, Any]) -> bool:
    """Tells whether lines that are too long are cut: if asked for, or as the run says."""
    section = run_config.get("generation") or {}

    return bool(args.truncate or section.get("truncate"))


def find_labels(run_config: Mapping[str, Any], args: argparse.Namespace) -> list[str]:
    """
    Returns the labels to rank; none if an output is to be written.

    :param args: Those of :func:`add_generation_arguments`.

    :raises WarmupError: If the run has no labels.
    """
    # Runs of earlier versions have no such section.
    section = run_config.get("generation") or {}

    ranks = args.rank_labels

    if ranks is None:
        ranks = section.get("rank_labels")

    if not ranks:
        return []

    labels = run_config["validation"].get("labels")

    if not labels:
        raise WarmupError(
            "The run has no labels to rank; it was trained without `validation.labels`, which a task such as `multiple_choice` sets."
        )

    return list(labels)


_CHOICES: Final = (*WARMUP_CHOICES, *RANKINGS)

# What choosing a label depends on.
_OPTIONS_OF_RANKING: Final = ("warmup", "num_warmups", "max_warmup_len", "seed")


def create_generation_options(
    run_config: Mapping[str, Any],
    given: Mapping[str, object],
    *,
    ranks_labels: bool = False,
) -> dict[str, object]:
    """
    Completes the options of a generator by what a run was trained with.

    :param ranks_labels: If ``True``, labels are ranked, which needs no search.

    :raises WarmupError: If they ask for warmups of a model that writes none, or have no
        effect.
    """
    has_warmup = writes_warmups(run_config)

    options = dict(given)

    for name, value in given.items():
        # What is not known is shown as it was typed.
        if isinstance(value, str) and value.replace("-", "_") in _CHOICES:
            options[name] = value.replace("-", "_")

    if ranks_labels:
        for name, value in given.items():
            if name not in _OPTIONS_OF_RANKING:
                raise WarmupError(
                    f"`{to_option(name)}` is of no use where labels are ranked, since nothing is written; leave it out, or write outputs with `--no-rank-labels`."
                )

            if name == "warmup" and value not in ("none", "empty", "sample"):
                raise WarmupError(
                    f"`--warmup {value}` cannot rank labels; use `sample`, which weighs warmups that are drawn, or `none`."
                )
    else:
        defaults = GenerationSection(**(run_config.get("generation") or {}))

        options = {**defaults.to_options(), **options}

    with_warmup = "sample" if ranks_labels else "single"

    warmup = run_config["warmup"]

    # The end of a curriculum.
    writes_warmup = has_warmup and warmup["max_warmup_len"] > 0

    options.setdefault("warmup", with_warmup if writes_warmup else "none")

    if options["warmup"] == "none" and has_empty_warmup(run_config):
        options["warmup"] = "empty"

    if writes_warmup:
        options.setdefault("max_warmup_len", warmup["max_warmup_len"])
    elif has_warmup:
        if options["warmup"] != "empty" and "max_warmup_len" not in options:
            raise WarmupError(
                f"At this checkpoint all warmups are empty (`warmup.len_schedule`), so `--warmup {options['warmup']}` has none to write; leave it out, or say how long they may be with `--max-warmup-len`."
            )
    elif options["warmup"] not in ("none", "empty") and "max_warmup_len" not in options:
        raise WarmupError(
            f"The run was trained without warmups (`criterion.name` is `{run_config['criterion']['name']}`), so `--warmup {options['warmup']}` has none to write; leave it out, or say how long they may be with `--max-warmup-len` to see what the model makes of it."
        )

    check_generation_options(options)

    return options


def check_generation_options(options: Mapping[str, object]) -> None:
    """
    :raises WarmupError: If the options of a generator are not valid; it names them as
        the command line does.
    """
    try:
        StandardObjectValidator().validate(
            GenerationConfig(**options)  # type: ignore[arg-type]
        )
    except ValidationError as ex:
        raise WarmupError(name_options(str(ex.result))) from None


def run_recipe(
    recipe: Recipe,
    config: Mapping[str, object],
    args: argparse.Namespace,
    record_dir: Path | None,
) -> int:
    """
    Runs a recipe with a config.

    :param args: Those of :func:`add_run_arguments`.
    :param record_dir: Where fairseq2 keeps its own records; ``None`` for nowhere.
    """
    runner = RecipeRunner[Any](recipe, recipe.config_kls)

    defaults = unstructure_config(recipe.config_kls())

    typed = runner.structure(
        apply_settings(StandardConfigMerger().merge(defaults, config), args.config)
    )

    with tempfile.TemporaryDirectory(prefix="warmup_plugin-") as tmp_dir:
        out = record_dir or Path(tmp_dir, "run")

        try:
            make_private_log(out, get_rank())
        except OSError as ex:
            raise WarmupError(
                f"`{out}` cannot be written ({ex.strerror}); name an output that you may write to."
            ) from None

        return runner.run(typed, out, no_rich=args.no_rich)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the translation command.

    :returns: The exit status: 0, or 2 for bad input.
    """
    args = create_generate_parser().parse_args(argv)

    return guard(lambda: _run(args), get_arguments(argv))


def _run(args: argparse.Namespace) -> int:
    run_dir = RunDir(args.run_dir)

    run_config = load_run_config(
        run_dir,
        args.checkpoint,
        direction=args.direction,
        data_dir=args.data,
        find_data=args.input is None,
    )

    config = create_lines_config(run_dir, args.checkpoint, run_config)

    given = get_generation_options(args)

    split = args.split or config["dataset"]["test_split"]

    if args.input is not None and not args.input.is_file():
        raise WarmupError(f"The input file `{args.input}` does not exist.")

    input_files = [] if args.input is None else [args.input]

    set_places(config, read_place_arguments(args, {"sources": input_files}))

    output = args.output

    if output is None:
        # To cut changes nothing but lines that could not be translated at all.
        has_own = args.config or given or args.json_fields or args.columns

        if has_own or args.rank_labels is not None:
            raise WarmupError(
                "With settings of your own, name the file to write with `--output`: the default one is what `evaluate` scores as the run's own translation."
            )

        # A file may have the name of a split.
        stem = split if args.input is None else f"input-{args.input.name}"

        direction = choose_direction(run_dir.load_config(complete=True), args.direction)

        name = name_output(stem, direction, args.checkpoint)

        output = run_dir.path / "generate" / f"{name}.txt"

    output = check_output(output, input_files)

    labels = find_labels(run_config, args)

    options = create_generation_options(run_config, given, ranks_labels=bool(labels))

    _check_ranking(args, labels)

    config.update(
        labels=labels,
        split=split if args.input is None else None,
        input=[] if args.input is None else [str(args.input.resolve())],
        output=str(output),
        json_output=str(jsonl_path(output)),
        # The default output is the run's own.
        restart=args.output is None,
        truncate=truncates(args, run_config),
    )

    for name in _GENERATOR_SECTIONS:
        config[name] = {"config": options}

    origin = run_dir.describe_checkpoint(run_dir.find_checkpoint(args.checkpoint))

    # fairseq2's own records of the translation stand beside its output.
    status = run_recipe(
        TranslationGenerateRecipe(), config, args, Path(f"{output}.run")
    )

    if status == 0 and get_rank() == 0:
        run_dir.write_origin(output, origin)

    return status


def _check_ranking(args: argparse.Namespace, labels: Sequence[str]) -> None:
    """
    :raises WarmupError: If options say how an output is to be written where labels are
        ranked.
    """
    if not labels:
        return

    for name in ("target_prefix", "prefixes"):
        if getattr(args, name, None):
            raise WarmupError(
                f"`{to_option(name)}` is of no use where labels are ranked; leave it out, or write outputs with `--no-rank-labels`."
            )


def check_output(output: Path, inputs: Sequence[Path]) -> Path:
    """
    Returns the absolute path of an output.

    :raises WarmupError: If it is a folder or an input.
    """
    output = output.expanduser().resolve()

    if output.is_dir():
        raise WarmupError(f"The output `{output}` is a folder; name a file.")

    # A device or a pipe would be replaced by a file.
    if output.exists() and not output.is_file():
        raise WarmupError(
            f"The output `{output}` is no regular file; name a file, or write to standard output."
        )

    if output in [file.resolve() for file in inputs]:
        raise WarmupError(
            f"The output `{output}` is the input; name another file with `--output`."
        )

    return output


def run_translate(args: argparse.Namespace) -> int:
    """Runs ``python -m warmup_plugin translate``."""
    run_dir = RunDir(args.run_dir)

    run_config = load_run_config(run_dir, args.checkpoint, direction=args.direction)

    config = create_lines_config(run_dir, args.checkpoint, run_config)

    for file in args.files:
        if not file.exists():
            raise WarmupError(f"The input file `{file}` does not exist.")

    set_places(config, read_place_arguments(args, {"sources": args.files}))

    output = args.output

    if output is not None:
        output = check_output(output, args.files)

    interactive = args.interactive or (not args.files and is_terminal())

    labels = find_labels(run_config, args)

    options = create_generation_options(
        run_config, get_generation_options(args), ranks_labels=bool(labels)
    )

    _check_ranking(args, labels)

    config.update(
        labels=labels,
        split=None,
        input=[str(file.resolve()) for file in args.files],
        target_prefix=args.target_prefix,
        has_prefixes=args.prefixes,
        as_json=args.jsonl,
        truncate=truncates(args, run_config),
    )

    if output is not None:
        config["json_output" if args.jsonl else "output"] = str(output)

    if not args.jsonl and not labels:
        config["num_text_outputs"] = cast("int", options.get("num_best", 1))

    if interactive and not args.files and is_terminal():
        print("loading the model; then type a line to translate", file=sys.stderr)

        config["shows_prompt"] = True

    if interactive:
        # Whoever waits for an answer is not to lose all that would follow.
        config.update(chunk_size=1, skip_bad_lines=True)
    elif args.chunk_size is not None:
        if args.chunk_size < 1:
            raise WarmupError(
                f"`--chunk-size` must be greater than or equal to 1, but is {args.chunk_size}."
            )

        config["chunk_size"] = args.chunk_size

    for name in _GENERATOR_SECTIONS:
        config[name] = {"config": options}

    origin = run_dir.describe_checkpoint(run_dir.find_checkpoint(args.checkpoint))

    with claimed_stdout() as stream, quiet_log():
        recipe = TranslationGenerateRecipe(stream)

        status = run_recipe(recipe, config, args, None)

    if status == 0 and output is not None and get_rank() == 0:
        run_dir.write_origin(output, origin)

    if status == 0 and recipe.num_skipped > 0:
        raise WarmupError(
            f"{recipe.num_skipped} line(s) could not be translated, see above; their output is empty."
        )

    return status
