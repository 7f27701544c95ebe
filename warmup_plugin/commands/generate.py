# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
from collections.abc import Sequence

from warmup_plugin.data.text_files import read_place_arguments
from warmup_plugin.late_imports import import_fairseq2
from warmup_plugin.options import read_options
from warmup_plugin.processes import run_processes, wants_processes
from warmup_plugin.recipes.arguments import (
    create_generate_parser,
    read_generation,
)
from warmup_plugin.recipes.job_options import GenerateOptions
from warmup_plugin.terminal import get_arguments, guard


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command.

    :returns: The exit status: 0, or 2 for bad input.
    """
    args = create_generate_parser().parse_args(argv)

    arguments = get_arguments(argv)

    return guard(lambda: _run(args, arguments), arguments)


def _run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    if wants_processes(args):
        return run_processes("generate", argv, args.processes)

    # fairseq2 takes seconds; not for `--help` and mistyped options.
    import_fairseq2()

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
