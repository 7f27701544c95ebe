# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a trained run is asked to do with text: translate, score."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, final

from fairseq2.recipe.base import Recipe
from fairseq2.utils.config import StandardConfigMerger
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from warmup_plugin.console import claimed_stdout, make_private_log, quiet_log
from warmup_plugin.data.directions import choose_direction, narrow_to_direction
from warmup_plugin.data.lines import is_terminal
from warmup_plugin.data.text_files import TextPlaces
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import GenerationConfig, GenerationSection
from warmup_plugin.generation.config import RANKINGS, WARMUP_CHOICES, WRITTEN_FIRST
from warmup_plugin.generation.reranking import NEURAL_RANKINGS
from warmup_plugin.recipes.arguments import name_options, to_option
from warmup_plugin.recipes.checks import read_run_config
from warmup_plugin.recipes.common import get_codec_options, get_rank
from warmup_plugin.recipes.config_files import apply_settings
from warmup_plugin.recipes.running import RecipeRunner, unstructure_config
from warmup_plugin.recipes.score import ScoreRecipe, summarize_scores
from warmup_plugin.recipes.translate import TranslationGenerateRecipe
from warmup_plugin.runs.outputs import details_file, scores_file, translation_file
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.terminal import show
from warmup_plugin.tokenizers.codec import CodecOptions
from warmup_plugin.warmup_lens import (
    LEAVES_SEPARATOR_OUT,
    get_max_warmup_len,
    has_empty_warmup,
    leaves_separator_out,
    writes_warmups,
)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Says which model does a job, and how it is run."""

    run_dir: Path

    checkpoint: str = "best"
    """``best``, ``last`` or a step."""

    direction: str | None = None
    """One of the directions of a run that has several."""

    data_dir: Path | None = None
    """The data folder, if it is no longer where the run was trained."""

    truncate: bool = False
    """If ``True``, lines that are too long are cut, also where the run does not say so."""

    places: TextPlaces = TextPlaces()
    """Where the texts are in files of more than one a line."""

    int8: bool = False
    """If ``True``, large projections have weights of 8 bits."""

    no_rich: bool = False

    settings: Sequence[str] = ()
    """Further settings of the job's config, such as ``max_num_tokens=20000``."""


@dataclass(frozen=True, kw_only=True)
class GenerationJobOptions(JobOptions):
    """Says how outputs are written."""

    output: Path | None = None

    generation: Mapping[str, object] = field(default_factory=dict)
    """Fields of ``GenerationConfig`` that are not to be as in the run."""

    ensemble: Sequence[Path] = ()
    """Further runs of the same tokenizer, whose models predict each token together."""

    rank_model: str | None = None
    """The model of COMET that a ranking asks; ``None`` for the usual one."""

    rank_gpus: int | None = None
    """The number of its GPUs, 0 or 1; ``None`` for none."""

    rank_labels: bool | None = None
    """If ``True``, the output is one of the run's labels; ``None`` for what the run says."""


@final
@dataclass(frozen=True, kw_only=True)
class GenerateOptions(GenerationJobOptions):
    """Says what is translated into the run directory, or to ``output``."""

    split: str | None = None
    """``None`` for the run's ``test_split``."""

    input: Path | None = None
    """A file to translate instead of a split."""


@final
@dataclass(frozen=True, kw_only=True)
class TranslateOptions(GenerationJobOptions):
    """Says what is translated to ``output`` or standard output."""

    files: Sequence[Path] = ()
    """None for standard input."""

    as_json: bool = False

    interactive: bool = False
    """If ``True``, each line is answered at once."""

    target_prefix: str | None = None

    has_prefixes: bool = False

    chunk_size: int | None = None

    ctranslate2: Path | None = None
    """Where the model is as CTranslate2 reads it, which is to write instead."""


@final
@dataclass(frozen=True, kw_only=True)
class ScoreOptions(JobOptions):
    """Says which pairs are scored."""

    split: str | None = None
    """``None`` for the run's ``test_split``."""

    source: Path | None = None
    """A file of sources to score instead of a split."""

    target: Path | None = None
    """The file of their targets."""

    output: Path | None = None

    as_json: bool = False

    num_warmups: int | None = None

    max_warmup_len: int | None = None

    seed: int | None = None


def generate(options: GenerateOptions) -> int:
    """
    Translates a split or a file, into text of the best outputs and JSON lines of all.

    :returns: The exit status.
    """
    run_config, config, direction = _load_configs(
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
        _create_generation_config(run_config, options),
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
    run_config, config, _ = _load_configs(options, with_data=False)

    for file in options.files:
        if not file.exists():
            raise WarmupError(f"The input file `{file}` does not exist.")

    output = options.output

    if output is not None:
        output = _check_output(output, options.files)

    # Somebody types what is translated.
    is_asked = not options.files and is_terminal()

    config.update(
        _create_generation_config(run_config, options),
        split=None,
        input=[str(file.resolve()) for file in options.files],
        target_prefix=options.target_prefix,
        has_prefixes=options.has_prefixes,
        as_json=options.as_json,
    )

    _add_members(config, run_config, options)

    if options.ctranslate2 is not None:
        _prepare_for_ctranslate2(config, options)

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
        if options.chunk_size < 1:
            raise WarmupError(
                f"`--chunk-size` must be greater than or equal to 1, but is {options.chunk_size}."
            )

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
        other_options = replace(options, run_dir=path)

        other_config, _ = load_run_config(other_options)

        is_plain = writes_warmups(run_config) and not writes_warmups(other_config)

        difference = None

        if _read_tokenizer(path) != _read_tokenizer(options.run_dir):
            difference = "another tokenizer"
        elif is_plain and _get_plain_options(other_config) != _get_plain_options(
            run_config
        ):
            difference = "another prompt or language"
        elif not is_plain and _get_options(other_config) != _get_options(run_config):
            difference = "another prompt, separator or language"
        elif not is_plain and _get_warmups(other_config) != _get_warmups(run_config):
            difference = "warmups of another kind"

        if difference is not None:
            raise WarmupError(
                f"The run in `{path}` has {difference} than that in `{options.run_dir}`, so that they cannot write together; name runs that differ in their weights alone."
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


def _get_plain_options(run_config: Mapping[str, Any]) -> object:
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


def _prepare_for_ctranslate2(config: dict[str, Any], options: TranslateOptions) -> None:
    """
    :raises WarmupError: If labels are ranked, which the library does not do.
    """
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


def score(options: ScoreOptions) -> int:
    """
    Computes log P(y|x) of a split, or of the lines of two files.

    :returns: The exit status.
    """
    _check_score_options(options)

    run_config, config, direction = _load_configs(
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

        if value is not None and value < least:
            raise WarmupError(
                f"`{to_option(name)}` must be greater than or equal to {least}, but is {value}."
            )


def find_score_warmups(
    run_config: Mapping[str, Any], num_warmups: int | None, max_warmup_len: int | None
) -> tuple[int, int]:
    """
    Returns how many warmups scoring draws for a pair, and their greatest length.

    :param num_warmups: ``None`` for the default, which for a model without is 0.
    :param max_warmup_len: ``None`` for that of training.

    :raises WarmupError: If a model without is to draw warmups of nobody knows what length.
    """
    warmup = run_config["warmup"]

    has_warmup = writes_warmups(run_config)

    # None at the end of a curriculum.
    trained_len = int(warmup["max_warmup_len"]) if has_warmup else 0

    if num_warmups is None:
        num_warmups = 8 if trained_len > 0 else 0

    if max_warmup_len is not None:
        return num_warmups, max_warmup_len

    if num_warmups > 0 and trained_len == 0:
        why = "At this checkpoint all warmups are empty (`warmup.len_schedule`)"

        if not has_warmup:
            why = f"The run was trained without warmups (`criterion.name` is `{run_config['criterion']['name']}`)"

        raise WarmupError(
            f"{why}; leave out `--num-warmups`, or say how long they may be with `--max-warmup-len` to see what the model makes of them."
        )

    # Of no meaning without warmups.
    return num_warmups, max(trained_len, 1)


def _load_configs(
    options: JobOptions, *, with_data: bool
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Returns the config of a run, what a job takes from it, and the direction."""
    run_config, direction = load_run_config(options, with_data=with_data)

    config = create_lines_config(
        RunDir(options.run_dir), options.checkpoint, run_config
    )

    set_places(config, options.places)

    section = run_config.get("generation") or {}

    config["int8"] = options.int8

    config["truncate"] = bool(options.truncate or section.get("truncate"))

    return run_config, config, direction


def _create_generation_config(
    run_config: Mapping[str, Any], options: GenerationJobOptions
) -> dict[str, Any]:
    """
    Returns what a config says of how outputs are written.

    :raises WarmupError: Also if options say so of an output where labels are ranked.
    """
    labels = find_labels(run_config, options.rank_labels)

    given, rerank = dict(options.generation), dict[str, object]()

    # With labels every ranking is of no use.
    if not labels:
        given, rerank = _take_neural_ranking(given, options)

    generation = create_generation_options(run_config, given, ranks_labels=bool(labels))

    if rerank:
        _offer_candidates(generation, rerank)

    for name, option in (
        ("target_prefix", "--target-prefix"),
        ("has_prefixes", "--prefixes"),
    ):
        if labels and getattr(options, name, None):
            raise WarmupError(
                f"`{option}` is of no use where labels are ranked; leave it out, or write outputs with `--no-rank-labels`."
            )

    return {
        "labels": labels,
        "rerank": rerank,
        "seq2seq_generator": {"config": generation},
        "seq_generator": {"config": generation},
    }


def _take_neural_ranking(
    given: dict[str, object], options: GenerationJobOptions
) -> tuple[dict[str, object], dict[str, object]]:
    """
    Takes a ranking by a neural metric out of the options of a generator.

    :returns: The other options, and the section ``rerank``; empty if there is no such.
    """
    ranking = str(given.get("rank_by", "")).replace("-", "_")

    if ranking in NEURAL_RANKINGS:
        del given["rank_by"]

        rerank: dict[str, object] = {
            "by": ranking,
            "model": options.rank_model,
            "gpus": options.rank_gpus or 0,
        }

        return given, rerank

    for name in ("rank_model", "rank_gpus"):
        if getattr(options, name) is not None:
            raise WarmupError(
                f"`{to_option(name)}` is for a ranking by COMET; add `--rank-by mbr-comet` or `--rank-by cometkiwi`, or leave it out."
            )

    return given, {}


def _offer_candidates(generation: dict[str, object], rerank: dict[str, object]) -> None:
    """
    Lets the generator return all that is to be ranked.

    :raises WarmupError: If that is one output.
    """
    config = GenerationConfig(**generation)  # type: ignore[arg-type]

    if config.warmup == "sample":
        rerank["num_best"] = config.num_best

        generation["num_best"] = config.num_warmups
    elif config.num_best == 1:
        raise WarmupError(
            f"`--rank-by {str(rerank['by']).replace('_', '-')}` ranks one output; add `--num-best N` with `--sampling`, or with a beam of as many, or `--warmup sample`."
        )


def find_labels(run_config: Mapping[str, Any], ranks: bool | None) -> list[str]:
    """
    Returns the labels to rank; none if an output is to be written.

    :param ranks: ``None`` for what the run says.

    :raises WarmupError: If the run has no labels.
    """
    # Runs of earlier versions have no such section.
    section = run_config.get("generation") or {}

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


def set_places(config: dict[str, Any], places: TextPlaces) -> None:
    """Puts what was said of files into a config of a job."""
    config["dataset"] = {
        **config["dataset"],
        **{f"{what[:-1]}_field": name for what, name in places.fields.items()},
        **{f"{what[:-1]}_column": column for what, column in places.columns.items()},
    }


def load_run_config(
    options: JobOptions, *, with_data: bool = False
) -> tuple[dict[str, Any], str | None]:
    """
    Loads the config of a run as it was for one direction, and at one checkpoint: the
    length of warmups may change while a model trains.

    :param with_data: If ``True``, the folder of the direction is looked for.

    :returns: The config, and the direction as of
        :func:`~warmup_plugin.data.directions.choose_direction`.

    :raises WarmupError: If the run has no such checkpoint, no such direction or no data
        of it, or has several directions and none is given.
    """
    run_dir, data_dir = RunDir(options.run_dir), options.data_dir

    step_nr = run_dir.find_checkpoint(options.checkpoint)

    config = read_run_config(run_dir, complete=True)

    direction = choose_direction(config, options.direction)

    config = narrow_to_direction(
        config,
        direction,
        data_dir=None if data_dir is None else data_dir.expanduser().absolute(),
        find_data=with_data,
    )

    warmup = config["warmup"]

    max_warmup_len = get_max_warmup_len(warmup, step_nr)

    warmup = {
        **warmup,
        "max_warmup_len": max_warmup_len,
        LEAVES_SEPARATOR_OUT: run_dir.leaves_separator_out(),
    }

    return {**config, "warmup": warmup}, direction


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

    warmup = run_config["warmup"]

    # The end of a curriculum.
    writes_warmup = has_warmup and warmup["max_warmup_len"] > 0

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

            if name == "warmup" and value not in ("none", "bare", "empty", "sample"):
                raise WarmupError(
                    f"`--warmup {value}` cannot rank labels; use `sample`, which weighs warmups that are drawn, or `none`."
                )
    else:
        defaults = GenerationSection(**(run_config.get("generation") or {}))

        default_options = defaults.to_options()

        if (
            not writes_warmup
            or options.get("warmup", WRITTEN_FIRST[0]) not in WRITTEN_FIRST
        ):
            # Without a warmup that is written first there is one way only.
            default_options.pop("plain_weight", None)

        options = {**default_options, **options}

    with_warmup = "sample" if ranks_labels else "single"

    if options.get("plain_weight"):
        # Nothing else has a draft before it searches.
        with_warmup = "beam_then_beam"

    options.setdefault("warmup", with_warmup if writes_warmup else "none")

    if options["warmup"] == "none" and has_empty_warmup(run_config):
        options["warmup"] = "empty"

    if options["warmup"] == "none" and leaves_separator_out(run_config):
        options["warmup"] = "bare"

    if writes_warmup:
        options.setdefault("max_warmup_len", warmup["max_warmup_len"])
    elif has_warmup:
        is_without = options["warmup"] in ("bare", "empty")

        if not is_without and "max_warmup_len" not in options:
            raise WarmupError(
                f"At this checkpoint all warmups are empty (`warmup.len_schedule`), so `--warmup {options['warmup']}` has none to write; leave it out, or say how long they may be with `--max-warmup-len`."
            )
    elif (
        options["warmup"] not in ("none", "bare", "empty")
        and "max_warmup_len" not in options
    ):
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
