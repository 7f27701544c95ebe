# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a trained run is asked to do with text: translate, score."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from fairseq2.recipe.base import Recipe
from fairseq2.utils.config import StandardConfigMerger

from warmup_plugin.console import claimed_stdout, make_private_log, quiet_log
from warmup_plugin.data.directions import list_directions
from warmup_plugin.data.lines import is_terminal
from warmup_plugin.errors import WarmupError, check_least
from warmup_plugin.heap import keep_freed_memory
from warmup_plugin.options import to_option
from warmup_plugin.recipes.checks import read_run_config
from warmup_plugin.recipes.common import get_codec_options, get_rank
from warmup_plugin.recipes.config_files import apply_settings
from warmup_plugin.recipes.job_configs import (
    create_generation_config,
    create_lines_config,
    find_score_warmups,
    load_configs,
    load_run_config,
)
from warmup_plugin.recipes.job_options import (
    GenerateOptions,
    GenerationJobOptions,
    JobOptions,
    ScoreOptions,
    TranslateOptions,
)
from warmup_plugin.recipes.running import RecipeRunner, unstructure_config
from warmup_plugin.recipes.score import ScoreRecipe, summarize_scores
from warmup_plugin.recipes.translate import TranslationGenerateRecipe
from warmup_plugin.runs.outputs import details_file, scores_file, translation_file
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.terminal import show
from warmup_plugin.tokenizers.codec import CodecOptions
from warmup_plugin.warmup_lens import (
    has_empty_warmup,
    leaves_separator_out,
    writes_warmups,
)


def generate(options: GenerateOptions) -> int:
    """
    Translates a split or a file, into text of the best outputs and JSON lines of all.

    :returns: The exit status.
    """
    run_config, config, direction = load_configs(
        options, with_data=options.input is None
    )

    split = options.split or config["dataset"]["test_split"]

    if options.input is not None and not options.input.is_file():
        raise WarmupError(f"The input file `{options.input}` does not exist.")

    input_files = [] if options.input is None else [options.input]

    output = options.output

    if output is None:
        places = options.places

        # To cut changes nothing but lines that could not be translated at all.
        has_own = (
            options.settings
            or options.generation
            or options.int8
            or options.ensemble
            or places.fields
            or places.columns
        )

        if has_own or options.rank_labels is not None:
            raise WarmupError(
                "With settings of your own, name the file to write with `--output`: the default one is what `evaluate` scores as the run's own translation."
            )

        output = translation_file(
            options.run_dir,
            # A file may have the name of a split.
            split if options.input is None else f"input-{options.input.name}",
            direction,
            options.checkpoint,
        )

    output = _check_output(output, input_files)

    config.update(
        create_generation_config(run_config, options),
        split=split if options.input is None else None,
        input=[str(file.resolve()) for file in input_files],
        output=str(output),
        json_output=str(details_file(output)),
        # The default output is the run's own.
        restart=options.output is None,
    )

    _add_members(config, run_config, options)

    # fairseq2's own records of the translation stand beside its output.
    return _run_job(
        TranslationGenerateRecipe(), config, options, output, Path(f"{output}.run")
    )


def translate(options: TranslateOptions) -> int:
    """
    Translates files or standard input.

    :returns: The exit status.

    :raises WarmupError: Also if a line could not be translated, once the others are.
    """
    run_config, config, _ = load_configs(options, with_data=False)

    for file in options.files:
        if not file.exists():
            raise WarmupError(
                f"The input file `{file}` does not exist; correct it, or name none to translate standard input."
            )

    if options.has_prefixes and (options.places.fields or options.places.columns):
        raise WarmupError(
            "`--prefixes` reads a source and what its output begins with, with a tab between them, from lines of text; leave out `--columns` and `--json-fields`."
        )

    output = options.output

    if output is not None:
        output = _check_output(output, options.files)

    # Somebody types what is translated.
    is_asked = not options.files and is_terminal()

    config.update(
        create_generation_config(run_config, options),
        split=None,
        input=[str(file.resolve()) for file in options.files],
        target_prefix=options.target_prefix,
        has_prefixes=options.has_prefixes,
        as_json=options.as_json,
    )

    _add_members(config, run_config, options)

    if options.ctranslate2 is not None:
        config["ctranslate2"] = str(options.ctranslate2)

        if config["labels"]:
            raise WarmupError(
                "`--backend ctranslate2` ranks no labels; leave it out, or write outputs with `--no-rank-labels`."
            )

        # One dictionary for both kinds of model.
        generation = config["seq_generator"]["config"]

        # The default of runs with warmups, which the library does not know.
        if generation["warmup"] == "single" and "warmup" not in options.generation:
            generation["warmup"] = "greedy_then_beam"

    if output is not None:
        config["json_output" if options.as_json else "output"] = str(output)

    if not options.as_json and not config["labels"]:
        # What is ranked afterwards are candidates, unless it is said how many to keep.
        kept = config["rerank"] or config["seq_generator"]["config"]

        config["num_text_outputs"] = kept.get("num_best", 1)

    if is_asked:
        print("loading the model; then type a line to translate", file=sys.stderr)

        config["shows_prompt"] = True

    if options.interactive or is_asked:
        # Whoever waits for an answer is not to lose all that would follow.
        config.update(chunk_size=1, skip_bad_lines=True)
    elif options.chunk_size is not None:
        check_least("--chunk-size", options.chunk_size, 1)

        config["chunk_size"] = options.chunk_size

    with claimed_stdout() as stream, quiet_log():
        recipe = TranslationGenerateRecipe(stream)

        status = _run_job(recipe, config, options, output, None)

    if status == 0 and recipe.num_skipped > 0:
        raise WarmupError(
            f"{recipe.num_skipped} line(s) could not be translated, see above; their output is empty."
        )

    return status


def _add_members(
    config: dict[str, Any],
    run_config: Mapping[str, Any],
    options: GenerationJobOptions,
) -> None:
    """
    Names the models of other runs in a config: those that write as the run itself does,
    and those of plain fine-tuning, which ``plain_weight`` hears.

    :raises WarmupError: If they read or write other tokens, or are no runs; if
        ``plain_weight`` asks for what none of them has learned.
    """
    members, plain_members = list[object](), list[object]()

    plain_weight = config["seq_generator"]["config"].get("plain_weight", 0.0)

    for path in options.ensemble:
        other_options = replace(
            options,
            run_dir=path,
            direction=_find_direction_of_member(path, run_config, options),
        )

        other_config, _ = load_run_config(other_options)

        is_plain = writes_warmups(run_config) and not writes_warmups(other_config)

        if writes_warmups(other_config) and not writes_warmups(run_config):
            raise WarmupError(
                f"The run in `{path}` has learned to write warmups, that in `{options.run_dir}` has not; name the one with warmups first and the other one behind `--ensemble`, with `--plain-weight`, such as 0.3."
            )

        get_options = _get_plain_options if is_plain else _get_options

        if _read_tokenizer(path) != _read_tokenizer(options.run_dir):
            difference = "another tokenizer"
        else:
            difference = _describe_difference(
                get_options(other_config), get_options(run_config)
            )

        if (
            not difference
            and not is_plain
            and _get_warmups(other_config) != _get_warmups(run_config)
        ):
            difference = "warmups of another kind"

        if difference:
            raise WarmupError(
                f"The run in `{path}` has {difference} than that in `{options.run_dir}`, so that they cannot write together; name runs that differ in their weights alone."
            )

        if is_plain and config["labels"]:
            raise WarmupError(
                f"Labels are ranked by runs of one kind, but the run in `{path}` was trained without warmups, that in `{options.run_dir}` with them; leave it out."
            )

        if is_plain and not plain_weight:
            raise WarmupError(
                f"The run in `{path}` was trained without warmups, that in `{options.run_dir}` with them; say with `--plain-weight`, such as 0.3, how much it counts in what follows a warmup."
            )

        model = create_lines_config(RunDir(path), options.checkpoint, other_config)

        (plain_members if is_plain else members).append(model["model"])

    config.update(ensemble=members, plain_ensemble=plain_members)

    # Who asks a run without warmups for some sees what becomes of it.
    has_plain_way = not writes_warmups(run_config) or has_empty_warmup(run_config)

    if plain_weight and not plain_members and not has_plain_way:
        raise WarmupError(
            "`--plain-weight` hears the output behind the empty warmup, but this run has learned it without the separator (`warmup.plain_path` is `bare`); name an SFT run to hear instead with `--ensemble`, or leave it out."
        )


def _find_direction_of_member(
    path: Path, run_config: Mapping[str, Any], options: JobOptions
) -> str | None:
    """
    Returns the direction in which another run writes along: that of the run itself.

    :param run_config: That of the run itself, of one direction.

    :raises WarmupError: If the other run has several, but not this one.
    """
    names = list_directions(read_run_config(RunDir(path), complete=True)["dataset"])

    [own] = list_directions(run_config["dataset"])

    # What a single one is called is of no matter.
    if options.direction is None and len(names) == 1:
        return None

    if own not in names:
        known = ", ".join(f"`{name}`" for name in names)

        raise WarmupError(
            f"The run in `{path}` was trained on {known}, not on `{own}`, in which that in `{options.run_dir}` translates; name runs that were trained on that direction."
        )

    return own


_TITLES: Final = {
    "source_lang": "source language",
    "target_lang": "target language",
    "prompt": "prompt",
    "separator": "separator",
    "warmup_lang": "language of warmups",
    "ends_like_text": "end of warmups",
}


def _describe_difference(options: CodecOptions, run_options: CodecOptions) -> str:
    """Returns what two runs read or write differently; nothing if they do not."""
    differences = [
        f"another {title} ({_describe_value(value)}, not {_describe_value(run_value)})"
        for name, title in _TITLES.items()
        if (value := getattr(options, name))
        != (run_value := getattr(run_options, name))
    ]

    return " and ".join(differences)


def _describe_value(value: object) -> str:
    if isinstance(value, bool):
        return "as that of a text" if value else "the separator"

    return "none" if value is None else f"`{value}`"


def _read_tokenizer(path: Path) -> object:
    run_dir = RunDir(path)

    tokenizer_path = run_dir.tokenizer_path

    if tokenizer_path is None:
        return read_run_config(run_dir, complete=True)["tokenizer"]["name"]

    if tokenizer_path.is_file():
        return tokenizer_path.read_bytes()

    files = (file for file in sorted(tokenizer_path.rglob("*")) if file.is_file())

    return [(file.name, file.read_bytes()) for file in files]


def _get_options(run_config: Mapping[str, Any]) -> CodecOptions:
    return get_codec_options(run_config["tokenizer"], run_config["dataset"])


def _get_plain_options(run_config: Mapping[str, Any]) -> CodecOptions:
    """Returns what counts where no warmup is written."""
    return replace(
        _get_options(run_config),
        separator=None,
        warmup_lang=None,
        ends_like_text=False,
    )


def _get_warmups(run_config: Mapping[str, Any]) -> object:
    return (
        writes_warmups(run_config),
        has_empty_warmup(run_config),
        leaves_separator_out(run_config),
    )


def score(options: ScoreOptions) -> int:
    """
    Computes log P(y|x) of a split, or of the lines of two files.

    :returns: The exit status.
    """
    _check_score_options(options)

    run_config, config, direction = load_configs(
        options, with_data=options.source is None
    )

    output = options.output

    files: list[Path] = []

    if options.source is None or options.target is None:
        split = options.split or config["dataset"]["test_split"]

        if output is None:
            given = (options.num_warmups, options.max_warmup_len, options.seed)

            if options.settings or any(option is not None for option in given):
                raise WarmupError(
                    "With settings of your own, name the file to write with `--output`: the default one is what `report` shows as the run's own scores."
                )

            output = scores_file(options.run_dir, split, direction, options.checkpoint)

        config.update(split=split, as_json=True)
    else:
        files = [options.source, options.target]

        for file in files:
            if not file.is_file():
                raise WarmupError(f"The input file `{file}` does not exist.")

        config.update(
            split=None,
            input=[str(options.source.resolve())],
            targets=str(options.target.resolve()),
            as_json=options.as_json,
        )

    if output is not None:
        output = _check_output(output, files)

        config["output"] = str(output)

    num_warmups, max_warmup_len = find_score_warmups(
        run_config, options.num_warmups, options.max_warmup_len
    )

    config.update(
        # The default output is the run's own.
        restart=options.output is None,
        num_warmups=num_warmups,
        max_warmup_len=max_warmup_len,
        has_empty_warmup=has_empty_warmup(run_config),
        leaves_separator_out=leaves_separator_out(run_config),
    )

    if options.seed is not None:
        config["seed"] = options.seed

    # What `report` may read.
    own_output = output if options.source is None else None

    with claimed_stdout() as stream, quiet_log():
        status = _run_job(ScoreRecipe(stream), config, options, own_output, None)

    if status == 0 and own_output is not None and get_rank() == 0:
        show(summarize_scores(own_output))

        show(f"wrote {own_output}")

    return status


def _check_score_options(options: ScoreOptions) -> None:
    if (options.source is None) != (options.target is None):
        raise WarmupError(
            "`--source` and `--target` belong together: give a file of sources and one of their targets."
        )

    if options.source is not None and (options.split or options.data_dir):
        raise WarmupError(
            "`--source` and `--target` are scored instead of a split; leave out `--split` and `--data`."
        )

    for name, least in (("num_warmups", 0), ("max_warmup_len", 1), ("seed", 0)):
        value = getattr(options, name)

        if value is not None:
            check_least(to_option(name), value, least)


def _run_job(
    recipe: Recipe,
    config: Mapping[str, object],
    options: JobOptions,
    output: Path | None,
    record_dir: Path | None,
) -> int:
    """
    Runs the recipe of a job, and records which model has made its output.

    :param output: ``None`` for standard output.
    :param record_dir: Where fairseq2 keeps its own records; ``None`` for nowhere.

    :returns: The exit status.
    """
    keep_freed_memory()

    run_dir = RunDir(options.run_dir)

    # Before a training that goes on has another best checkpoint.
    origin = run_dir.describe_checkpoint(run_dir.find_checkpoint(options.checkpoint))

    runner = RecipeRunner[Any](recipe, recipe.config_kls)

    defaults = unstructure_config(recipe.config_kls())

    typed = runner.structure(
        apply_settings(
            StandardConfigMerger().merge(defaults, config), list(options.settings)
        )
    )

    with tempfile.TemporaryDirectory(prefix="warmup_plugin-") as tmp_dir:
        out = record_dir or Path(tmp_dir, "run")

        try:
            make_private_log(out, get_rank())
        except OSError as ex:
            raise WarmupError(
                f"`{out}` cannot be written ({ex.strerror}); name an output that you may write to."
            ) from None

        status = runner.run(typed, out, no_rich=options.no_rich)

    if status == 0 and output is not None and get_rank() == 0:
        run_dir.write_origin(output, origin)

    return status


def _check_output(output: Path, inputs: Sequence[Path]) -> Path:
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
