# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The arguments of all commands that score."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Final

from warmup_plugin.data.text_files import (
    TextPlaces,
    add_place_arguments,
    read_place_arguments,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.systems import RunOptions, System, read_files
from warmup_plugin.late_imports import import_fairseq2
from warmup_plugin.metrics.base import DEFAULT_METRICS
from warmup_plugin.metrics.registry import (
    METRICS,
    MetricOptions,
    check_metric_names,
)
from warmup_plugin.options import add_option, read_options, to_option
from warmup_plugin.runs.run_dir import RunDir


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what files of outputs are scored against; :func:`read_file_arguments` reads
    where the texts are in them."""
    parser.add_argument(
        "--references",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="references of files, one a line; of several files, each has one of every sentence or an empty line; a JSON field may hold a list (default: those of the run, if there is one)",
    )

    parser.add_argument(
        "--sources",
        type=Path,
        metavar="FILE",
        help="what was translated to the files, one a line, which COMET reads (default: that of the run)",
    )

    add_place_arguments(parser, ["hypotheses", "references", "sources"])


def add_scoring_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which outputs of runs are meant, what systems are called, and the metrics."""
    # Only those that are given belong to runs.
    add = partial(add_option, parser, RunOptions, default=None)

    add("split", metavar="NAME")
    add("checkpoint", metavar="best|last|N")
    add("data", metavar="DIR")
    add("direction", metavar="SRC-TGT")

    # Read by `name_systems()`.
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="what the systems are called, in their order (default: the ends of their paths that tell them apart)",
    )

    add_option(parser, RunOptions, "truncate")

    add_metric_arguments(parser)

    parser.add_argument(
        "--num-bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="number of resamples behind intervals; 0 leaves out intervals and tests, but not in `compare` (default: %(default)s)",
    )


def add_metric_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what chooses the metrics; :func:`read_metric_arguments` reads it."""
    parser.add_argument(
        "--metrics",
        metavar="M,...",
        help=f"some of {', '.join(METRICS)} (default: those that the run was validated by; {','.join(DEFAULT_METRICS)} for files)",
    )

    # Only those that are given need a metric.
    add = partial(add_option, parser, MetricOptions, default=None)

    add("target_lang", metavar="LANG")
    add("bleu_tokenize", metavar="NAME")
    add("comet_model", metavar="CKPT")
    add("cometkiwi_model", metavar="CKPT")
    add("comet_gpus", choices=(0, 1))
    add("metricx_model", metavar="DIR")
    add("bertscore_model", metavar="DIR")
    add("bertscore_layers", metavar="N")
    add("labels", metavar="A,B,...")


# The arguments of metrics and which of these read them.
_OWNERS: Final = {
    "bleu_tokenize": ("bleu",),
    "comet_model": ("comet",),
    "cometkiwi_model": ("cometkiwi",),
    "comet_gpus": ("comet", "cometkiwi"),
    "metricx_model": ("metricx", "metricx_qe"),
    "bertscore_model": ("bertscore",),
    "bertscore_layers": ("bertscore",),
    "labels": ("accuracy", "macro_f1"),
}


def read_metric_arguments(
    args: argparse.Namespace, run_dir: Path | None = None
) -> tuple[list[str], MetricOptions]:
    """
    Reads what :func:`add_metric_arguments` added.

    :param run_dir: The run whose task gives the metrics and labels that are not given.

    :raises WarmupError: A metric is not known, or an argument has no metric.
    """
    metrics: list[str] = list(DEFAULT_METRICS)

    labels: list[str] = []

    comet_models: dict[str, str | None] = {}

    if args.metrics is not None:
        metrics = [name.strip() for name in args.metrics.split(",") if name.strip()]

        check_metric_names(metrics)

    # What is no run is reported where it is read.
    if run_dir is not None and RunDir(run_dir).run_file.is_file():
        # fairseq2 takes seconds; files are scored without.
        import_fairseq2()

        from warmup_plugin.recipes.checks import read_run_config

        # An imported model has been validated by nothing.
        validation = read_run_config(RunDir(run_dir)).get("validation") or {}

        labels = validation.get("labels") or labels

        comet_models = {
            name: validation.get(name) for name in ("comet_model", "cometkiwi_model")
        }

        if args.metrics is None:
            metrics = validation.get("metrics") or metrics

    if args.labels is not None:
        labels = args.labels.split(",")

    for argument, owners in _OWNERS.items():
        if getattr(args, argument) is not None and not set(owners) & set(metrics):
            raise WarmupError(
                f"`{to_option(argument)}` is of no use without the metric "
                f"{' or '.join(f'`{owner}`' for owner in owners)}; add it to `--metrics` "
                "or leave the argument out."
            )

    given = {f.name: getattr(args, f.name, None) for f in fields(MetricOptions)}

    chosen = {name: value for name, value in given.items() if value is not None}

    return metrics, MetricOptions(**{**comet_models, **chosen, "labels": labels})


def read_run_arguments(args: argparse.Namespace, **others: object) -> RunOptions:
    """
    Reads which outputs of runs are meant.

    :param others: What goes before what is given.
    """
    checkpoint = args.checkpoint or "best"

    return read_options(RunOptions, args, **{"checkpoint": checkpoint, **others})


def read_lone_files(
    args: argparse.Namespace, files: Sequence[Path], metrics: Sequence[str]
) -> list[System]:
    """
    Reads outputs that no run is given for.

    :raises WarmupError: If what the metrics need is not given, or what belongs to a run is.
    """
    for name in ("split", "checkpoint", "data", "direction"):
        if getattr(args, name) is not None:
            raise WarmupError(
                f"`--{name}` belongs to a run directory, and none is given; leave it out."
            )

    _check_references(args, metrics)

    places = read_file_arguments(args, files)

    return read_files(files, args.references, args.sources, args.target_lang, places)


def _check_references(args: argparse.Namespace, metrics: Sequence[str]) -> None:
    if args.references is not None:
        return

    for name in metrics:
        if METRICS[name].needs_references:
            free = [n for n, entry in METRICS.items() if not entry.needs_references]

            raise WarmupError(
                f"The metric `{name}` needs `--references FILE`; add it, or choose of the metrics that need none, which are {', '.join(free)}."
            )

    if args.sources is None:
        raise WarmupError(
            "Files without references need `--sources FILE`, what was translated; add it."
        )


def read_file_arguments(args: argparse.Namespace, files: Sequence[Path]) -> TextPlaces:
    """Reads where the texts are in files of outputs, and in those of their references
    and sources."""
    return read_place_arguments(
        args,
        {
            "hypotheses": files,
            "references": args.references or [],
            "sources": [] if args.sources is None else [args.sources],
        },
    )
