# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What the config of a job takes from a trained run and from the options given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from warmup_plugin.data.directions import choose_direction, narrow_to_direction
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import GenerationConfig, GenerationSection
from warmup_plugin.generation.config import RANKINGS, WARMUP_CHOICES, WRITTEN_FIRST
from warmup_plugin.generation.reranking import NEURAL_RANKINGS
from warmup_plugin.options import to_option
from warmup_plugin.recipes.arguments import name_options
from warmup_plugin.recipes.checks import read_run_config
from warmup_plugin.recipes.job_options import GenerationJobOptions, JobOptions
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.warmup_lens import (
    LEAVES_SEPARATOR_OUT,
    get_max_warmup_len,
    has_empty_warmup,
    leaves_separator_out,
    writes_warmups,
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
            why = f"The run was trained without warmups (`criterion.name` is `{run_config['criterion']['name']}`, or the direction is `plain`)"

        raise WarmupError(
            f"{why}; leave out `--num-warmups`, or say how long they may be with `--max-warmup-len` to see what the model makes of them."
        )

    # Of no meaning without warmups.
    return num_warmups, max(trained_len, 1)


def load_configs(
    options: JobOptions, *, with_data: bool
) -> tuple[dict[str, Any], dict[str, Any], str | None]:
    """Returns the config of a run, what a job takes from it, and the direction."""
    run_config, direction = load_run_config(options, with_data=with_data)

    config = create_lines_config(
        RunDir(options.run_dir), options.checkpoint, run_config
    )

    places = options.places

    # Where the texts are in files, which may be others than those of the run.
    config["dataset"] = {
        **config["dataset"],
        **{f"{what[:-1]}_field": name for what, name in places.fields.items()},
        **{f"{what[:-1]}_column": column for what, column in places.columns.items()},
    }

    section = run_config.get("generation") or {}

    config["int8"] = options.int8

    config["truncate"] = bool(options.truncate or section.get("truncate"))

    return run_config, config, direction


def create_generation_config(
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

    direction = choose_direction(config, options.direction, options.run_dir)

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

    run_dir.check_model(step_nr)

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
        if not writes_warmup and "warmup" not in options:
            raise WarmupError(
                "The run writes no warmups, so that its outputs have one way only; leave `--plain-weight` out."
            )

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
            f"The run was trained without warmups (`criterion.name` is `{run_config['criterion']['name']}`, or the direction is `plain`), so `--warmup {options['warmup']}` has none to write; leave it out, or say how long they may be with `--max-warmup-len` to see what the model makes of it."
        )

    try:
        StandardObjectValidator().validate(
            GenerationConfig(**options)  # type: ignore[arg-type]
        )
    except ValidationError as ex:
        raise WarmupError(name_options(str(ex.result))) from None

    return options
