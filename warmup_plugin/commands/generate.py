# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
from collections.abc import Sequence

from warmup_plugin.data.text_files import read_place_arguments
from warmup_plugin.options import read_options
from warmup_plugin.recipes.arguments import (
    create_generate_parser,
    read_generation,
    run_job,
)
from warmup_plugin.recipes.job_options import GenerateOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    return run_job("generate", create_generate_parser().parse_args(argv), argv, _run)


def _run(args: argparse.Namespace) -> int:
    from warmup_plugin.recipes.jobs import generate

    files = [] if args.input is None else [args.input]

    return generate(
        read_options(
            GenerateOptions,
            args,
            generation=read_generation(args),
            places=read_place_arguments(args, {"sources": files}),
        )
    )
