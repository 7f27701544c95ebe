# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Final

from warmup_plugin.terminal import show

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

    parser.add_argument(
        "--merge",
        action="store_true",
        help="of a run with LoRA, one model with the adapter merged into it (default: the base, and in its folder `adapter` what `peft` reads)",
    )


def run(args: Namespace) -> int:
    # Seconds; not for `--help`.
    from warmup_plugin.console import quiet_log
    from warmup_plugin.interop.exporting import HIGH_CUT_SHARE, export_run
    from warmup_plugin.runs.run_dir import RunDir

    with quiet_log():
        model = export_run(
            RunDir(args.run_dir),
            args.out,
            checkpoint=args.checkpoint,
            direction=args.direction,
            merge=args.merge,
        )

    show(f"{model.path}: {model.arch} of step {model.step_nr}")

    if model.adapter is not None:
        show(f"{model.adapter}: the adapter that belongs to it, as `peft` reads it")

    if model.cut_share is not None and model.cut_share > HIGH_CUT_SHARE:
        show(
            f"warning: the limit ended {100 * model.cut_share:.0f} % of the warmups, the model itself hardly any; whoever serves it has to force the separator, as the code of its model card does",
            file=sys.stderr,
        )

    return 0
