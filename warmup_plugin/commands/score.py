# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from warmup_plugin.console import claimed_stdout, quiet_log
from warmup_plugin.data.directions import choose_direction, name_output
from warmup_plugin.data.text_files import add_place_arguments, read_place_arguments
from warmup_plugin.errors import WarmupError
from warmup_plugin.late_imports import import_fairseq2
from warmup_plugin.recipes.arguments import FULL_LIST, add_run_arguments, to_option
from warmup_plugin.run_dir import RunDir
from warmup_plugin.terminal import get_arguments, guard, show
from warmup_plugin.warmup_lens import has_empty_warmup

DESCRIPTION: Final = (
    "Computes log P(y|x) of given pairs: without warmup, and as the mean over warmups that "
    "are drawn from the model. A split is scored into RUN_DIR/score/SPLIT.CHECKPOINT.jsonl "
    "and summed up; two files are scored line by line to standard output."
)


def create_parser() -> argparse.ArgumentParser:
    """Creates the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m warmup_plugin score",
        description=DESCRIPTION,
        epilog=FULL_LIST,
    )

    add_run_arguments(parser)

    parser.add_argument(
        "--split", help="the split to score (default: the run's `test_split`)"
    )

    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the data folder, if it is no longer where the run was trained",
    )

    parser.add_argument(
        "--source", type=Path, metavar="FILE", help="a file of sources, one a line"
    )

    parser.add_argument(
        "--target", type=Path, metavar="FILE", help="the file of their targets"
    )

    add_place_arguments(parser, ["sources", "targets"])

    parser.add_argument(
        "--truncate",
        action="store_true",
        help="cut a source or target that is longer than the model reads instead of refusing it",
    )

    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write to a file; the same command goes on with a job that broke",
    )

    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="write JSON lines with all warmups instead of columns; a split always is",
    )

    parser.add_argument(
        "--num-warmups",
        type=int,
        metavar="K",
        help="the number of warmups to draw for each pair; 0 for none (default: 8, or 0 if the run was trained without)",
    )

    parser.add_argument(
        "--max-warmup-len",
        type=int,
        metavar="N",
        help="the most tokens of a warmup (default: that of training)",
    )

    parser.add_argument(
        "--seed", type=int, metavar="N", help="the seed of the draws (default: 2)"
    )

    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command.

    :returns: The exit status: 0, or 2 for bad input.
    """
    args = create_parser().parse_args(argv)

    return guard(lambda: _run(args), get_arguments(argv))


def _run(args: argparse.Namespace) -> int:
    if (args.source is None) != (args.target is None):
        raise WarmupError(
            "`--source` and `--target` belong together: give a file of sources and one of their targets."
        )

    if args.source is not None and (args.split or args.data):
        raise WarmupError(
            "`--source` and `--target` are scored instead of a split; leave out `--split` and `--data`."
        )

    for name, least in (("num_warmups", 0), ("max_warmup_len", 1), ("seed", 0)):
        value = getattr(args, name)

        if value is not None and value < least:
            raise WarmupError(
                f"`{to_option(name)}` must be greater than or equal to {least}, but is {value}."
            )

    # fairseq2 takes seconds; not for `--help`.
    import_fairseq2()

    from warmup_plugin.recipes.common import get_rank
    from warmup_plugin.recipes.generate import (
        check_output,
        create_lines_config,
        load_run_config,
        run_recipe,
        set_places,
        truncates,
    )
    from warmup_plugin.recipes.score import ScoreRecipe, summarize_scores

    run_dir = RunDir(args.run_dir)

    run_config = load_run_config(
        run_dir,
        args.checkpoint,
        direction=args.direction,
        data_dir=args.data,
        find_data=args.source is None,
    )

    config = create_lines_config(run_dir, args.checkpoint, run_config)

    by_side = {
        "sources": [] if args.source is None else [args.source],
        "targets": [] if args.target is None else [args.target],
    }

    set_places(config, read_place_arguments(args, by_side))

    output = args.output

    files = []

    if args.source is None:
        split = args.split or config["dataset"]["test_split"]

        if output is None:
            given = (args.num_warmups, args.max_warmup_len, args.seed)

            if args.config or any(option is not None for option in given):
                raise WarmupError(
                    "With settings of your own, name the file to write with `--output`: the default one is what `report` shows as the run's own scores."
                )

            direction = choose_direction(
                run_dir.load_config(complete=True), args.direction
            )

            name = name_output(split, direction, args.checkpoint)

            output = run_dir.path / "score" / f"{name}.jsonl"

        config.update(split=split, as_json=True)
    else:
        files = [args.source, args.target]

        for file in files:
            if not file.is_file():
                raise WarmupError(f"The input file `{file}` does not exist.")

        config.update(
            split=None,
            input=[str(args.source.resolve())],
            targets=str(args.target.resolve()),
            as_json=args.jsonl,
        )

    if output is not None:
        output = check_output(output, files)

        config["output"] = str(output)

    # The default output is the run's own.
    config["restart"] = args.output is None

    config["truncate"] = truncates(args, run_config)

    num_warmups, max_warmup_len = _get_warmup_options(args, run_config)

    config.update(
        num_warmups=num_warmups,
        max_warmup_len=max_warmup_len,
        has_empty_warmup=has_empty_warmup(run_config),
    )

    if args.seed is not None:
        config["seed"] = args.seed

    origin = run_dir.describe_checkpoint(run_dir.find_checkpoint(args.checkpoint))

    with claimed_stdout() as stream, quiet_log():
        status = run_recipe(ScoreRecipe(stream), config, args, None)

    if status == 0 and args.source is None and get_rank() == 0:
        show(summarize_scores(output))

        show(f"wrote {output}")

        run_dir.write_origin(output, origin)

    return status


def _get_warmup_options(
    args: argparse.Namespace, run_config: Mapping[str, Any]
) -> tuple[int, int]:
    warmup = run_config["warmup"]

    has_warmup = run_config["criterion"]["name"] != "sft"

    # None at the end of a curriculum.
    trained_len = int(warmup["max_warmup_len"]) if has_warmup else 0

    num_warmups = args.num_warmups

    if num_warmups is None:
        num_warmups = 8 if trained_len > 0 else 0

    max_warmup_len = args.max_warmup_len

    if max_warmup_len is None:
        if num_warmups > 0 and trained_len == 0:
            why = "At this checkpoint all warmups are empty (`warmup.len_schedule`)"

            if not has_warmup:
                why = "The run was trained without warmups (`criterion.name` is `sft`)"

            raise WarmupError(
                f"{why}; leave out `--num-warmups`, or say how long they may be with `--max-warmup-len` to see what the model makes of them."
            )

        # Of no meaning without warmups.
        max_warmup_len = max(trained_len, 1)

    return num_warmups, max_warmup_len
