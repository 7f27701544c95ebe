# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path

from warmup_plugin.options import add_option, read_options


@dataclass(frozen=True, kw_only=True)
class Options:
    name: str = "a"
    """The ``name``, which 100% of them
    have."""

    num_gpus: int | None = None
    """GPUs to use (default: 0)."""

    folder: Path | None = None

    quiet: bool = False

    further: int = 3


def test_fields_become_options() -> None:
    parser = ArgumentParser()

    add_option(parser, Options, "name")
    add_option(parser, Options, "num_gpus", metavar="N")
    add_option(parser, Options, "folder", "-f", "--in")
    add_option(parser, Options, "quiet")

    help = " ".join(parser.format_help().split())

    assert "--name NAME the `name`, which 100% of them have" in help
    assert "--num-gpus N GPUs to use (default: 0) -f" in help

    assert read_options(Options, parser.parse_args([])) == Options()

    args = parser.parse_args("--name b --num-gpus 2 --in c --quiet".split())

    assert read_options(Options, args, name="d", further=4) == Options(
        name="d", num_gpus=2, folder=Path("c"), quiet=True, further=4
    )
