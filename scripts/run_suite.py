# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Runs a grid of tasks × systems × seeds and writes its table: ``docs/suite.md``.

    python scripts/run_suite.py recipes/suites/multi30k.yaml
    python scripts/run_suite.py recipes/suites/multi30k.yaml --only '*/*/1' --dry-run
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_output
from warmup_plugin.suite.figure import THEMES, format_figure
from warmup_plugin.suite.grid import Grid
from warmup_plugin.suite.load import check_config_files, check_splits, load_grid
from warmup_plugin.suite.plan import Plan, make_plan
from warmup_plugin.suite.results import collect_results
from warmup_plugin.suite.runner import Outcome, Runner, Status, describe_skipped
from warmup_plugin.suite.steps import OUT_REMEDY
from warmup_plugin.suite.tables import (
    describe_command,
    format_latex,
    format_markdown,
    make_json,
)
from warmup_plugin.terminal import get_arguments, guard, show

_DESCRIPTION: Final = (
    "Trains, translates, scores and compares all runs of a grid, goes on where it "
    "broke, and writes one table as Markdown, LaTeX and JSON."
)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs a suite.

    :returns: The exit status: 0 if all is done, 1 if something failed, 2 for bad input,
        128 + n if signal n stopped it.
    """
    parser = argparse.ArgumentParser(prog="run_suite.py", description=_DESCRIPTION)

    parser.add_argument("grid", type=Path, metavar="GRID.yaml", help="the grid")

    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="TASK/SYSTEM/SEED",
        help="run these only, and the training they start from; with wildcards, such as `*/sft/1`",
    )

    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="commands at the same time (default: %(default)s); with more than one, training times say little",
    )

    parser.add_argument(
        "--dry-run", action="store_true", help="print the commands that would be run"
    )

    parser.add_argument(
        "--tables", action="store_true", help="only write the table of what is there"
    )

    args = parser.parse_args(argv)

    arguments = get_arguments(argv)

    return guard(lambda: _run(args, arguments), arguments)


def _run(args: argparse.Namespace, argv: Sequence[str]) -> int:
    if args.jobs < 1:
        raise WarmupError(f"`--jobs` must be at least 1, but is {args.jobs}.")

    grid = load_grid(args.grid)

    if not args.tables:
        check_config_files(grid)

        check_splits(grid)

    plan = make_plan(grid)

    steps = plan.select(args.only)

    if args.dry_run:
        for step in steps:
            state = "done" if step.is_done() else "to do"

            show(f"# {step.key}: {state}\n{describe_command(step)}")

        return 0

    outcomes: list[Outcome] = []

    signum = None

    if not args.tables:
        runner = Runner(steps, num_jobs=args.jobs)

        outcomes = runner.run()

        signum = runner.signum

    command = shlex.join(["python", "scripts/run_suite.py", *argv])

    _write_tables(grid, plan, command)

    bad = [o for o in outcomes if o.status in (Status.FAILED, Status.SKIPPED)]

    if bad:
        show(f"\n{len(bad)} of {len(steps)} steps were not done:")

        _show_causes(outcomes)

    if signum is not None:
        return 128 + signum

    return 1 if bad else 0


def _show_causes(outcomes: Sequence[Outcome]) -> None:
    """Lists what failed, with its error, and counts what was skipped because of it."""
    num_skipped = Counter(outcome.cause for outcome in outcomes if outcome.cause)

    for outcome in outcomes:
        num = num_skipped[outcome.step.key]

        if outcome.status is not Status.FAILED and num == 0:
            continue

        text = f"  {outcome.step.key}: {outcome.status.value}, {outcome.note}"

        if num > 0:
            text += f"; and {describe_skipped(num)} it"

        show(text)

        if outcome.error:
            show(f"    {outcome.error}")


def _write_tables(grid: Grid, plan: Plan, command: str) -> None:
    result = collect_results(grid, plan)

    content = {
        ".md": format_markdown(result, plan, command),
        ".tex": format_latex(result, command),
        ".json": json.dumps(make_json(result, command), indent=2, ensure_ascii=False)
        + "\n",
    }

    for name, theme in THEMES.items():
        figure = format_figure(result, theme)

        if figure is not None:
            content[f".{name}.svg"] = figure

    for suffix, text in content.items():
        file = grid.out / f"{grid.name}{suffix}"

        write_output(file, text, OUT_REMEDY)

        show(f"wrote {file}")


if __name__ == "__main__":
    sys.exit(main())
