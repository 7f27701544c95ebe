# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warmup_plugin.data.synthetic import write_synthetic_pair
from warmup_plugin.errors import WarmupError
from warmup_plugin.terminal import show

DESCRIPTION = "Writes sentence pairs of an invented language and its translation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_writing_arguments(
        parser,
        {
            split: (default, f"pairs of the {split} split")
            for split, default in (("train", 6000), ("valid", 200), ("test", 500))
        },
    )


def add_writing_arguments(
    parser: argparse.ArgumentParser, sizes: Mapping[str, tuple[int, str]]
) -> None:
    """
    Adds what all commands take that write synthetic text; :func:`read_writing_arguments`
    reads it.

    :param sizes: The default of each number of pairs, and what these are.
    """
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder to write the text to"
    )

    for name, (default, what) in sizes.items():
        parser.add_argument(
            f"--num-{name}",
            type=int,
            default=default,
            metavar="N",
            help=f"{what} (default: %(default)s)",
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
    write_synthetic_pair(**read_writing_arguments(args))

    show(
        f"{args.folder}: {args.num_train:,} train, {args.num_valid:,} valid and {args.num_test:,} test pairs (src, tgt)"
    )

    return 0


def read_writing_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """
    Returns the folder to write to, the numbers of pairs and the seed, by name.

    :raises WarmupError: If something is there, and `--force` is not given.
    """
    folder: Path = args.folder

    if not args.force and folder.is_dir() and any(folder.iterdir()):
        raise WarmupError(
            f"The folder `{folder}` is not empty; name another one or replace its text with `--force`."
        )

    return {
        name: value
        for name, value in vars(args).items()
        if name in ("folder", "seed") or name.startswith("num_")
    }
