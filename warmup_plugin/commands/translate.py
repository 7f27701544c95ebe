# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from warmup_plugin.data.text_files import add_place_arguments, read_place_arguments
from warmup_plugin.errors import WarmupError
from warmup_plugin.options import add_option, read_options
from warmup_plugin.recipes.arguments import (
    FULL_LIST,
    add_generation_arguments,
    add_run_arguments,
    read_generation,
    run_job,
)
from warmup_plugin.recipes.job_options import TranslateOptions

DESCRIPTION: Final = (
    "Translates standard input, or files, to standard output: one line for each line, in "
    "the same order, an empty one for an empty one; with `--num-best N`, N lines for each."
)


def create_parser() -> argparse.ArgumentParser:
    """Creates the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m warmup_plugin translate",
        description=DESCRIPTION,
        epilog=FULL_LIST,
    )

    add_run_arguments(parser)

    parser.add_argument(
        "files",
        type=Path,
        nargs="*",
        metavar="FILE",
        help="text files, or sources in `.jsonl` or `.tsv`, gzipped if they end in `.gz` (default: standard input)",
    )

    add_place_arguments(parser, ["sources"])

    add_option(parser, TranslateOptions, "output", "-o", "--output", metavar="FILE")
    add_option(parser, TranslateOptions, "as_json", "--jsonl")
    add_option(parser, TranslateOptions, "interactive")

    prefixes = parser.add_mutually_exclusive_group()

    add_option(prefixes, TranslateOptions, "target_prefix", metavar="TEXT")
    add_option(prefixes, TranslateOptions, "has_prefixes", "--prefixes")

    add_option(parser, TranslateOptions, "truncate")

    add_option(parser, TranslateOptions, "chunk_size", metavar="N")

    parser.add_argument(
        "--backend",
        choices=["fairseq2", "ctranslate2"],
        default="fairseq2",
        help="`ctranslate2`: a C++ library writes, from a copy of the model that is made in the run at first; the warmup greedily, then the output (default: %(default)s)",
    )

    add_generation_arguments(parser)

    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    # Files may stand behind options.
    args = create_parser().parse_intermixed_args(argv)

    return run_job("translate", args, argv, _run)


def _run(args: argparse.Namespace) -> int:
    from warmup_plugin.recipes.jobs import translate

    ctranslate2 = None

    if args.backend == "ctranslate2":
        ctranslate2 = _convert(args)

    return translate(
        read_options(
            TranslateOptions,
            args,
            generation=read_generation(args),
            places=read_place_arguments(args, {"sources": args.files}),
            ctranslate2=ctranslate2,
        )
    )


def _convert(args: argparse.Namespace) -> Path:
    from warmup_plugin.console import quiet_log
    from warmup_plugin.interop.ctranslate2 import convert_run, get_converted
    from warmup_plugin.recipes.common import get_rank
    from warmup_plugin.runs.run_dir import RunDir

    # Before minutes of conversion.
    if args.ensemble:
        raise WarmupError(
            "`--ensemble` is not for `--backend ctranslate2`, which has one model; leave one of them out."
        )

    run_dir = RunDir(args.run_dir)

    # The others wait for it when they meet.
    if get_rank() > 0:
        return get_converted(run_dir)

    with quiet_log():
        return convert_run(
            run_dir, checkpoint=args.checkpoint, direction=args.direction
        )
