# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The options of the commands that run a model. ``--help`` and a mistyped option are
answered from here, without fairseq2, whose import takes seconds.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Final

from warmup_plugin.config_docs import FieldSource, read_fields
from warmup_plugin.data.text_files import add_place_arguments
from warmup_plugin.late_imports import import_fairseq2
from warmup_plugin.options import add_option, to_option
from warmup_plugin.processes import (
    add_processes_argument,
    run_processes,
    wants_processes,
)
from warmup_plugin.recipes.job_options import (
    GenerateOptions,
    GenerationJobOptions,
    JobOptions,
)
from warmup_plugin.terminal import get_arguments, guard

FULL_LIST: Final = (
    "docs/config.md describes every key of `--config`; docs/generation.md the options."
)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what all commands take that run the model of a run."""
    parser.add_argument("run_dir", type=Path, help="the directory of a training run")

    add_option(parser, JobOptions, "checkpoint")
    add_option(parser, JobOptions, "direction", metavar="SRC-TGT")
    add_option(parser, JobOptions, "no_rich")

    add_processes_argument(parser)

    add_option(parser, JobOptions, "int8")
    add_option(
        parser,
        JobOptions,
        "settings",
        "--config",
        nargs="*",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
    )


def run_job(
    command: str,
    args: argparse.Namespace,
    argv: Sequence[str] | None,
    job: Callable[[argparse.Namespace], int],
) -> int:
    """
    Runs the job of a command, or the processes that are asked for, which run it.

    :returns: The exit status: 0, or 2 for bad input.
    """
    arguments = get_arguments(argv)

    def run() -> int:
        if wants_processes(args):
            return run_processes(command, arguments, args.processes)

        # It takes seconds; not for `--help` and mistyped options.
        import_fairseq2()

        return job(args)

    return guard(run, arguments)


@cache
def list_generation_fields() -> Sequence[FieldSource]:
    """Lists the fields of ``GenerationConfig``, each of which is an option."""
    return read_fields("warmup_plugin.generation.config", "GenerationConfig")


def add_generation_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds an option for each field of ``GenerationConfig``."""
    group = parser.add_argument_group("generation")

    for config_field in list_generation_fields():
        name = config_field.name

        option = to_option(name)

        help = _make_help(config_field)

        if config_field.type == "bool":
            group.add_argument(
                option, action=argparse.BooleanOptionalAction, default=None, help=help
            )

            continue

        kind = config_field.type.split(" ")[0]

        group.add_argument(
            option,
            type={"int": int, "float": float}.get(kind, str),
            # `greedy-then-beam` is as good as `greedy_then_beam`.
            metavar={"int": "N", "float": "X"}.get(kind, "NAME"),
            help=help,
        )

    add = partial(add_option, group, GenerationJobOptions)

    add("ensemble", nargs="+", metavar="RUN_DIR")
    add("rank_model", metavar="CKPT")
    add("rank_gpus", choices=(0, 1))

    group.add_argument(
        "--rank-labels",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="write no output of its own but the likeliest of the run's labels: by log P(y|x), or with warmups by the mean of P(y|c,x) over `--num-warmups` draws. Default: as the run says.",
    )


def _make_help(config_field: FieldSource) -> str:
    """Returns what is written below a field, in the words of the command line."""
    help = " ".join(config_field.doc.replace("``", "`").split()).replace("%", "%%")

    for other in list_generation_fields():
        if "_" in other.name:
            help = re.sub(rf"\b{other.name}\b", to_option(other.name), help)

    default = config_field.default

    if config_field.type == "bool":
        help = help.removeprefix("If `True`, ")

        help = f"{help[:1].upper()}{help[1:]} Default: {'on' if default else 'off'}."
    elif config_field.name == "warmup":
        help += " Default: `single`, or `none` if the run was trained without."
    elif config_field.name != "max_warmup_len":
        help += f" Default: {'none' if default is None else default}."

    return help


def name_options(text: str) -> str:
    """Names the fields of ``GenerationConfig`` in a message as they are typed."""
    for config_field in list_generation_fields():
        option = to_option(config_field.name)

        text = re.sub(rf"`{config_field.name}=(\w+)`", rf"`{option} \1`", text)

        text = text.replace(f"`{config_field.name}`", f"`{option}`")

    return text


def read_generation(args: argparse.Namespace) -> dict[str, object]:
    """Returns the fields of ``GenerationConfig`` that are given."""
    given = {f.name: getattr(args, f.name) for f in list_generation_fields()}

    return {name: value for name, value in given.items() if value is not None}


def create_generate_parser() -> argparse.ArgumentParser:
    """Creates the parser of ``python -m recipes.generate``."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.generate",
        description="Translates a test set or a file with a trained run, into a text file of the best outputs and a JSON lines file of all, with warmups and scores.",
        epilog=FULL_LIST,
    )

    add_run_arguments(parser)

    what = parser.add_mutually_exclusive_group()

    add_option(what, GenerateOptions, "split")
    add_option(what, GenerateOptions, "input")

    add_place_arguments(parser, ["sources"])

    parser.add_argument(
        "--output",
        type=Path,
        help="the file to write (default: RUN_DIR/generate/SPLIT.CHECKPOINT.txt, or input-NAME.CHECKPOINT.txt; with several directions SPLIT.DIRECTION.CHECKPOINT.txt)",
    )

    add_option(parser, JobOptions, "data_dir", "--data", metavar="DIR")

    add_option(parser, JobOptions, "truncate")

    add_generation_arguments(parser)

    return parser
