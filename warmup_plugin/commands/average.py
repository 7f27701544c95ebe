# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Final

from warmup_plugin.terminal import show

DESCRIPTION: Final = (
    "Averages the weights of a run's checkpoints into a run directory of its own."
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="the directory of a training run"
    )

    which = parser.add_mutually_exclusive_group(required=True)

    which.add_argument("--last", type=int, metavar="N", help="the last N checkpoints")

    which.add_argument(
        "--best", type=int, metavar="N", help="the N with the best validation scores"
    )

    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="the directory to write (default: RUN_DIR/average/last_N or best_N)",
    )


def run(args: Namespace) -> int:
    # Seconds; not for `--help`.
    from warmup_plugin.console import quiet_log
    from warmup_plugin.interop.averaging import average_checkpoints
    from warmup_plugin.runs.run_dir import RunDir

    with quiet_log():
        average = average_checkpoints(
            RunDir(args.run_dir),
            num=args.best or args.last or 0,
            best=args.best is not None,
            output=args.output,
        )

    show(f"{average.path}: the mean of the steps {', '.join(map(str, average.steps))}")

    return 0
