# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
from pathlib import Path

from warmup_plugin.data.synthetic import write_synthetic_pair
from warmup_plugin.errors import WarmupError
from warmup_plugin.terminal import show

DESCRIPTION = "Writes sentence pairs of an invented language and its translation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder to write the text to"
    )

    for split, default in (("train", 6000), ("valid", 200), ("test", 500)):
        parser.add_argument(
            f"--num-{split}",
            type=int,
            default=default,
            metavar="N",
            help=f"pairs of the {split} split (default: %(default)s)",
        )

    parser.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="another one gives other sentences (default: %(default)s)",
    )

    parser.add_argument(
        "--force", action="store_true", help="write into a folder that is not empty"
    )


def run(args: argparse.Namespace) -> int:
    folder: Path = args.folder

    if not args.force:
        refuse_to_replace(folder)

    write_synthetic_pair(
        folder,
        num_train=args.num_train,
        num_valid=args.num_valid,
        num_test=args.num_test,
        seed=args.seed,
    )

    show(
        f"{folder}: {args.num_train:,} train, {args.num_valid:,} valid and {args.num_test:,} test pairs (src, tgt)"
    )

    return 0


def refuse_to_replace(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise WarmupError(
            f"The folder `{folder}` is not empty; name another one or replace its text with `--force`."
        )
