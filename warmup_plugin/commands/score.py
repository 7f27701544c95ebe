# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Final

from warmup_plugin.data.text_files import add_place_arguments, read_place_arguments
from warmup_plugin.options import add_option, read_options
from warmup_plugin.recipes.arguments import FULL_LIST, add_run_arguments, run_job
from warmup_plugin.recipes.job_options import ScoreOptions

DESCRIPTION: Final = (
    "Computes log P(y|x) of given pairs: without warmup, and as the mean over warmups that "
    "are drawn from the model. A split is scored into RUN_DIR/score/SPLIT.CHECKPOINT.jsonl "
    "and summed up; two files are scored line by line to standard output."
)


def create_parser() -> argparse.ArgumentParser:
    """Creates the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m warmup_plugin score",
        description=DESCRIPTION,
        epilog=FULL_LIST,
    )

    add_run_arguments(parser)

    add = partial(add_option, parser, ScoreOptions)

    add("split")
    add("data_dir", "--data", metavar="DIR")
    add("source", metavar="FILE")
    add("target", metavar="FILE")

    add_place_arguments(parser, ["sources", "targets"])

    add(
        "truncate",
        help="cut a source or target that is longer than the model reads instead of refusing it",
    )
    add("output", "-o", "--output", metavar="FILE")
    add("as_json", "--jsonl")
    add("num_warmups", metavar="K")
    add("max_warmup_len", metavar="N")
    add("seed", metavar="N")

    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_job("score", create_parser().parse_args(argv), argv, _run)


def _run(args: argparse.Namespace) -> int:
    from warmup_plugin.recipes.jobs import score

    files = {
        "sources": [] if args.source is None else [args.source],
        "targets": [] if args.target is None else [args.target],
    }

    return score(
        read_options(ScoreOptions, args, places=read_place_arguments(args, files))
    )
