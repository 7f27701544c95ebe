# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Final

DESCRIPTION: Final = (
    "Writes a checkpoint of a run as transformers and CTranslate2 read it: model, "
    "tokenizer and a model card that says how to split warmup and output."
)


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run_dir", type=Path, metavar="RUN_DIR", help="the directory of a training run"
    )

    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write")

    parser.add_argument(
        "--checkpoint", default="best", help="`best` (default), `last` or a step"
    )

    parser.add_argument(
        "--direction",
        metavar="SRC-TGT",
        help="of a run with several directions, the one that prompt and languages are set to",
    )


def run(args: Namespace) -> int:
    # Seconds; not for `--help`.
    from warmup_plugin.console import quiet_log
    from warmup_plugin.interop.exporting import export_run
    from warmup_plugin.run_dir import RunDir

    with quiet_log():
        model = export_run(
            RunDir(args.run_dir),
            args.out,
            checkpoint=args.checkpoint,
            direction=args.direction,
        )

    print(f"{model.path}: {model.arch} of step {model.step_nr}")

    return 0
