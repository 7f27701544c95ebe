# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from warmup_plugin.data.directions import list_directions
from warmup_plugin.errors import WarmupError, check_least
from warmup_plugin.evaluation.arguments import (
    add_file_arguments,
    add_scoring_arguments,
    read_file_arguments,
    read_lone_files,
    read_metric_arguments,
    read_run_arguments,
)
from warmup_plugin.evaluation.scores import (
    evaluate,
    make_report,
    print_notes,
    write_json,
)
from warmup_plugin.evaluation.systems import (
    System,
    name_systems,
    read_config,
    read_hypotheses,
    read_run,
    read_run_texts,
    rename_systems,
)
from warmup_plugin.metrics.registry import MetricOptions
from warmup_plugin.metrics.resampling import NUM_TRIALS
from warmup_plugin.metrics.tables import format_latex, format_table
from warmup_plugin.runs.outputs import evaluation_file
from warmup_plugin.terminal import get_arguments, guard, show

_DESCRIPTION: Final = (
    "Scores outputs by BLEU, chrF2++ and other metrics with 95% bootstrap intervals; of "
    "several systems, each is tested against the first by approximate randomization."
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program, ``python -m recipes.evaluate``, and returns its exit code."""
    args = _create_parser().parse_args(argv)

    def run() -> int:
        _run(args)

        return 0

    return guard(run, get_arguments(argv))


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.evaluate", description=_DESCRIPTION
    )

    parser.add_argument(
        "run_dirs",
        type=Path,
        nargs="*",
        metavar="RUN_DIR",
        help="run directories; their translations are generated where missing; with `--hypotheses` the one whose data these are outputs for",
    )

    parser.add_argument(
        "--hypotheses",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="score these files instead, one translation a line, or JSON lines as `generate` writes them, by `--references` or what RUN_DIR translates",
    )

    add_file_arguments(parser)

    add_scoring_arguments(parser)

    parser.add_argument(
        "--latex", action="store_true", help="also print the rows of a LaTeX table"
    )

    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write all scores to this file"
    )

    return parser


def _run(args: argparse.Namespace) -> None:
    systems: dict[str | None, list[System]]

    # Before anything is translated.
    check_least("--num-bootstrap", args.num_bootstrap, 0)

    names = name_systems(args.hypotheses or args.run_dirs, args.names)

    metrics, options = read_metric_arguments(
        args, args.run_dirs[0] if args.run_dirs else None
    )

    if args.run_dirs:
        for name in ("references", "sources"):
            if getattr(args, name) is not None:
                raise WarmupError(
                    f"A run is scored with the {name} of its data; leave `--{name}` out, "
                    "or `RUN_DIR`."
                )

    if args.hypotheses is not None and args.run_dirs:
        systems = {None: _read_files_of_run(args)}
    elif args.hypotheses is not None:
        systems = {None: read_lone_files(args, args.hypotheses, metrics)}
    elif args.run_dirs:
        # There is no file that they could say anything of.
        read_file_arguments(args, [])

        systems = {
            direction: [
                read_run(run_dir, read_run_arguments(args, direction=direction))
                for run_dir in args.run_dirs
            ]
            for direction in _list_directions(args)
        }
    else:
        raise WarmupError(
            "There is nothing to score; give a `RUN_DIR`, or `--hypotheses FILE` and "
            "`--references FILE`."
        )

    reports = {}

    for direction, direction_systems in systems.items():
        if len(systems) > 1:
            show(f"{direction}:\n")

        named = rename_systems(direction_systems, names)

        reports[direction] = _evaluate(args, named, metrics, options)

        if len(systems) > 1:
            show()

    if args.json is not None:
        if len(reports) == 1:
            [report] = reports.values()
        else:
            report = {"directions": reports}

        write_json(args.json, report)

        show(f"wrote {args.json}")


def _read_files_of_run(args: argparse.Namespace) -> list[System]:
    """Reads outputs from plain files for what a run would translate."""
    if len(args.run_dirs) > 1:
        raise WarmupError(
            "`--hypotheses` takes one `RUN_DIR`, whose data the files are outputs for; "
            "leave out the others."
        )

    if args.checkpoint is not None:
        raise WarmupError(
            "`--checkpoint` is of no use with `--hypotheses`, whose files are scored as "
            "they are; leave it out."
        )

    [run_dir] = args.run_dirs

    places = read_file_arguments(args, args.hypotheses)

    texts = read_run_texts(run_dir, read_run_arguments(args))

    return [
        texts.make_system(
            str(file), file, read_hypotheses(file, places), args.target_lang
        )
        for file in args.hypotheses
    ]


def _list_directions(args: argparse.Namespace) -> list[str | None]:
    """
    Lists the directions to score one after the other; ``None`` for that of the runs.
    """
    if args.direction is not None:
        return [args.direction]

    # The first run with several directions: the others must have them too.
    for run_dir in args.run_dirs:
        dataset = read_config(run_dir)["dataset"]

        if dataset.get("directions"):
            names = list_directions(dataset)

            if len(names) > 1 and args.target_lang is not None:
                raise WarmupError(
                    f"`--target-lang` cannot be the language of all directions of {run_dir}; leave it out, or choose one of them with `--direction`."
                )

            return [*names]

    return [None]


def _evaluate(
    args: argparse.Namespace,
    systems: Sequence[System],
    metrics: Sequence[str],
    options: MetricOptions,
) -> dict[str, object]:
    """
    Scores systems, prints the table, and writes the scores of runs beside these.

    :returns: All scores, as JSON.
    """
    evaluation = evaluate(
        systems, num_bootstrap=args.num_bootstrap, metrics=metrics, options=options
    )

    show(format_table(evaluation.scores, evaluation.comparisons))

    print_notes(evaluation)

    if all(s.score is None for scores in evaluation.scores.values() for s in scores):
        raise WarmupError(
            "No metric could be computed; add what is missing as said above, or choose others with `--metrics`."
        )

    if evaluation.comparisons:
        show(
            f"p: two-sided, by approximate randomization ({NUM_TRIALS:,} trials), "
            f"against {systems[0].name}"
        )

    if args.latex:
        show(f"\n{format_latex(evaluation.scores, evaluation.comparisons)}\n")

    if args.hypotheses is None:
        for system in systems:
            file = evaluation_file(system.hypotheses_file)

            write_json(file, make_report([system], evaluation, args.num_bootstrap))

            show(f"wrote {file}")

    return make_report(systems, evaluation, args.num_bootstrap)
