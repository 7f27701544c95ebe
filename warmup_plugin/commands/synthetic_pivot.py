# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse

from warmup_plugin.commands.synthetic_pair import (
    add_writing_arguments,
    read_writing_arguments,
)
from warmup_plugin.data.synthetic_pivot import write_synthetic_pivot
from warmup_plugin.terminal import show

DESCRIPTION = "Writes sentence pairs of three invented languages, much A→P and P→B and little A→B: the text of `make demo`."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_writing_arguments(
        parser,
        {
            "leg": (8000, "training pairs of each leg, a-p and p-b"),
            "direct": (300, "training pairs of a-b"),
            "valid": (100, "validation pairs of each direction"),
            "test": (500, "test pairs of each direction"),
        },
    )

    parser.add_argument(
        "--lossy",
        action="store_true",
        help="P does not tell the past from the present, as A and B do",
    )


def run(args: argparse.Namespace) -> int:
    write_synthetic_pivot(**read_writing_arguments(args), is_lossy=args.lossy)

    show(
        f"{args.folder}: {args.num_leg:,} training pairs of a-p and of p-b, {args.num_direct:,} of a-b; {args.num_valid:,} valid and {args.num_test:,} test pairs of each"
    )

    return 0
