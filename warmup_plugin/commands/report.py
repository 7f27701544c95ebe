# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import shlex
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from warmup_plugin.errors import WarmupError, check_least
from warmup_plugin.evaluation.arguments import (
    add_scoring_arguments,
    read_metric_arguments,
)
from warmup_plugin.evaluation.scores import evaluate
from warmup_plugin.files import write_output
from warmup_plugin.options import read_options
from warmup_plugin.terminal import show

DESCRIPTION: Final = (
    "Writes one HTML page about runs: curves, scores with intervals and tests, the words "
    "of warmups, and every sentence with its warmups. It needs no network to be read."
)

# In the command that a page names: what stands elsewhere in it, or says more of this
# machine than of the runs.
_LEFT_OUT: Final = (
    "run_dirs",
    "names",
    "output",
    "data",
    "title",
    "comet_model",
    "cometkiwi_model",
    "metricx_model",
    "bertscore_model",
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run_dirs",
        type=Path,
        nargs="+",
        metavar="RUN_DIR",
        help="run directories, the baseline first; translations and log P(y|x) are computed where missing",
    )

    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="FILE",
        help="the page to write (default: %(default)s)",
    )

    add_scoring_arguments(parser)

    parser.add_argument(
        "--max-sentences",
        type=int,
        default=5000,
        metavar="N",
        help="the most sentences to list, from the first line; all are scored (default: %(default)s)",
    )

    parser.add_argument("--title", metavar="TEXT", help="title of the page")

    parser.add_argument(
        "--no-score",
        action="store_true",
        help="do not compute log P(y|x) of the references where it is missing",
    )

    parser.add_argument(
        "--curves-only",
        action="store_true",
        help="show the training curves alone, as of runs that are being trained",
    )


def run(args: Namespace) -> int:
    # What would be found wrong only after a translation, which takes long.
    check_least("--num-bootstrap", args.num_bootstrap, 0)
    check_least("--max-sentences", args.max_sentences, 1)

    if args.output.is_dir():
        raise WarmupError(f"The output {args.output} is a folder; name a file.")

    metrics, metric_options = read_metric_arguments(args, args.run_dirs[0])

    # plotly and what else the page needs; not for `--help`.
    from warmup_plugin.report.page import PageOptions, render_page
    from warmup_plugin.report.runs import CollectOptions, collect_runs

    collect_options = read_options(
        CollectOptions,
        args,
        checkpoint=args.checkpoint or "best",
        translate=not args.curves_only,
        score=not args.no_score,
    )

    runs = collect_runs(args.run_dirs, collect_options, args.names)

    systems = [run.translations.system for run in runs if run.translations is not None]

    evaluation = None

    if systems:
        evaluation = evaluate(
            systems,
            num_bootstrap=args.num_bootstrap,
            metrics=metrics,
            options=metric_options,
        )

    page_options = read_options(
        PageOptions,
        args,
        checkpoint=collect_options.checkpoint,
        command=_describe_command(args, [run.name for run in runs]),
    )

    page = render_page(runs, evaluation, page_options)

    # Half of a surrogate pair, which JSON may hold, has no place in UTF-8.
    page = page.encode("utf-8", "replace").decode("utf-8")

    write_output(args.output, page, "give a path that you may write to")

    for report_run in runs:
        if report_run.no_translations:
            show(
                f"{report_run.name} is shown without translations: {report_run.no_translations}"
            )

    show(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")

    return 0


def _describe_command(args: Namespace, names: Sequence[str]) -> str:
    """Returns the command with the names of the runs for their paths."""
    parser = ArgumentParser()

    add_arguments(parser)

    words = ["python", "-m", "warmup_plugin", "report", *names]

    for name, value in vars(args).items():
        if name in _LEFT_OUT or value == parser.get_default(name):
            continue

        words.append(f"--{name.replace('_', '-')}")

        if value is not True:
            words.append(str(value))

    return shlex.join([*words, "-o", args.output.name])
