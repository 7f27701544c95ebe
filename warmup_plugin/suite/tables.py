# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The results of a suite as Markdown, LaTeX and JSON."""

from __future__ import annotations

import re
import shlex
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Final

from warmup_plugin.metrics.resampling import (
    DEFAULT_SEED,
    NUM_TRIALS,
)
from warmup_plugin.metrics.tables import escape_latex, format_number
from warmup_plugin.runs.run_dir import collect_versions
from warmup_plugin.suite.differences import Difference
from warmup_plugin.suite.notes import describe_missing, describe_versions, make_notes
from warmup_plugin.suite.plan import Plan
from warmup_plugin.suite.results import (
    MetricInfo,
    SuiteResult,
    SystemResult,
    TaskResult,
)
from warmup_plugin.suite.steps import Step

# Of numbers.
_LATEX_SIGNS: Final = str.maketrans({"-": "$-$", "±": r"$\pm$", "–": "--"})


def format_markdown(result: SuiteResult, plan: Plan, command: str) -> str:
    """
    Formats the table of a suite with all that a reader has to know of it.

    :param command: The command line of the suite.
    """
    header, *rows = [
        [_escape_markdown(cell) for cell in cells] for cells in _make_rows(result)
    ]

    num_left = header.index("seeds")

    rules = ["---"] * num_left + ["---:"] * (len(header) - num_left)

    lines = [f"# {result.grid.name}", ""]

    lines += [f"| {' | '.join(cells)} |" for cells in (header, rules, *rows)]

    lines.append("")

    lines += [f"- {note}" for note in make_notes(result)]

    lines += ["", "Differences by seed:", ""]

    lines += [f"- {line}" for line in _describe_differences(result)] or ["- none yet"]

    missing = list(describe_missing(result))

    if missing:
        lines += ["", "Not measured:", ""]

        lines += [f"- {line}" for line in missing]

    lines += ["", "Versions:", "", *(f"- {v}" for v in describe_versions(result))]

    lines += ["", "Commands:", "", "```sh", command, "```", ""]

    seed = result.grid.seeds[0]

    lines += [f"and by it, for the seed {seed}:", "", "```sh"]

    lines += [describe_command(step) for step in _list_example_steps(plan, seed)]

    lines += ["```", ""]

    return "\n".join(lines)


def format_latex(result: SuiteResult, command: str) -> str:
    r"""Formats the table as a ``tabular``, which needs no package, below comments."""
    header, *rows = _make_rows(result)

    num_left = header.index("seeds")

    header = [re.sub("^p( vs |$)", r"$p$\1", escape_latex(cell)) for cell in header]

    columns = "l" * num_left + "r" * (len(header) - num_left)

    notes = [*make_notes(result), *describe_missing(result)]

    notes += [*describe_versions(result), command]

    # A note is one line, or its rest would be text.
    lines = [f"% {' '.join(note.split())}" for note in [result.grid.name, *notes]]

    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\hline"]

    lines += [rf"{' & '.join(header)} \\", r"\hline"]

    for cells in rows:
        texts = [escape_latex(cell) for cell in cells[:num_left]]

        texts += [cell.translate(_LATEX_SIGNS) for cell in cells[num_left:]]

        lines.append(rf"{' & '.join(texts)} \\")

    lines += [r"\hline", r"\end{tabular}", ""]

    return "\n".join(lines)


def _escape_markdown(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def _make_rows(result: SuiteResult) -> list[list[str]]:
    """Returns the heading and the rows of the table, as plain text."""
    has_tasks = len(result.tasks) > 1

    keys = {info.key: info.name for task in result.tasks for info in task.metrics}

    titles = {name: result.grid.system(name).title for name in result.grid.baselines}

    has_directions = any(task.by_direction for task in result.tasks)

    header = ["task"] if has_tasks else []

    header += ["direction"] if has_directions else []

    header += ["system", "seeds", "steps", "time"]

    tests = [f"p vs {title}" if len(titles) > 1 else "p" for title in titles.values()]

    for name in keys.values():
        header += [name, *tests]

    rows = [header]

    for task, part, system in _list_rows(result):
        cells = [task.title] if has_tasks else []

        if has_directions:
            cells.append(_name_direction(part))

        cells += [
            system.system.title,
            f"{system.num_scored} of {len(system.runs)}",
        ]

        # Training is that of all directions.
        if part is task:
            seconds = system.mean_seconds

            cells += [
                _format_steps(system),
                "" if seconds is None else format_seconds(seconds),
            ]
        else:
            cells += ["", ""]

        for key in keys:
            cells.append(_format_mean(key, system.scores(key)))

            for baseline in titles:
                difference = system.against.get(baseline, {}).get(key)

                cells.append("" if difference is None else _format_p_values(difference))

        rows.append(cells)

    return rows


def _list_rows(
    result: SuiteResult,
) -> Iterator[tuple[TaskResult, TaskResult, SystemResult]]:
    """Lists systems with their task and, below its means, the direction."""
    for task in result.tasks:
        for part in (task, *task.by_direction):
            for system in part.systems:
                yield task, part, system


def _name_direction(task: TaskResult) -> str:
    if task.by_direction:
        return f"mean of {len(task.by_direction)}"

    return task.direction or ""


def _format_steps(system: SystemResult) -> str:
    numbers = [time.num_steps for time in system.times]

    if not numbers:
        return ""

    # They come on top of those of another system.
    plus = "" if system.system.init_from is None else "+"

    if min(numbers) == max(numbers):
        return f"{plus}{numbers[0]:,}"

    return f"{plus}{min(numbers):,}–{max(numbers):,}"


def format_seconds(seconds: float) -> str:
    """Formats a duration with three digits or so."""
    if seconds < 60.0:
        return f"{seconds:.1f} s"

    if seconds < 3600.0:
        return f"{seconds / 60.0:.1f} min"

    return f"{seconds / 3600.0:.1f} h"


def _format_mean(key: str, values: Sequence[float], sign: str = "") -> str:
    """Formats a mean with its deviation, as far as there are values."""
    if not values:
        return ""

    text = format_number(key, statistics.fmean(values), sign=sign)

    if len(values) > 1:
        text += f" ± {format_number(key, statistics.stdev(values))}"

    return text


def _format_p_values(difference: Difference) -> str:
    parts = []

    if difference.p_sentences is not None:
        parts.append(_format_p(difference.p_sentences))

    if difference.p_range is not None and len(difference.by_seed) > 1:
        low, high = map(_format_p, difference.p_range)

        parts.append(f"({low}–{high})")

    return " ".join(parts)


def _format_p(p_value: float) -> str:
    return f"{p_value:.4f}" if p_value < 0.01 else f"{p_value:.2f}"


def _describe_differences(result: SuiteResult) -> Iterator[str]:
    """Says of each system how it differs, by how many seeds agree on it."""
    for task, part, system in _list_rows(result):
        names = {info.key: info for info in part.metrics}

        prefix = f"{task.title}, " if len(result.tasks) > 1 else ""

        if task.by_direction:
            prefix += f"{_name_direction(part)}, "

        for baseline, by_key in system.against.items():
            parts = [
                _describe_difference(names[key], difference)
                for key, difference in by_key.items()
            ]

            if parts:
                title = result.grid.system(baseline).title

                yield f"{prefix}`{system.system.title}` less `{title}`: {'; '.join(parts)}"


def _describe_difference(info: MetricInfo, difference: Difference) -> str:
    sign = 1.0 if info.higher_is_better else -1.0

    num_better = sum(sign * value > 0.0 for value in difference.differences)

    mean = _format_mean(info.key, difference.differences, "+")

    text = f"{info.name} {mean}, better in {num_better} of {len(difference.by_seed)}"

    if difference.p_seeds is not None and len(difference.by_seed) > 1:
        text += f" (p over seeds {_format_p(difference.p_seeds)})"

    return text


def _list_example_steps(plan: Plan, seed: int) -> list[Step]:
    """Lists the steps of one seed, in their order."""
    first = [step for steps in plan.prepare.values() for step in steps]

    return [*first, *(s for s in plan.select([f"*/*/{seed}"]) if s not in first)]


def describe_command(step: Step) -> str:
    """Writes the command of a step as a user would."""
    return shlex.join(["python", "-m", "warmup_plugin", *step.preview()])


def make_json(result: SuiteResult, command: str) -> dict[str, object]:
    """Returns all that was measured as data that ``json`` can write."""
    grid = result.grid

    return {
        "name": grid.name,
        "command": command,
        "seeds": list(grid.seeds),
        "baselines": list(grid.baselines),
        "tests": {"num_trials": NUM_TRIALS, "seed": DEFAULT_SEED},
        "training_versions": list(result.starts),
        "versions": collect_versions(),
        "tasks": {task.name: _task_to_json(task) for task in result.tasks},
    }


def _task_to_json(task: TaskResult) -> dict[str, object]:
    content: dict[str, object] = {
        "title": task.title,
        "split": task.split.name,
        "checkpoint": task.task.checkpoint,
        **_scores_to_json(task),
    }

    if task.split.data is not None:
        content["data"] = task.split.data

    if task.by_direction:
        content["directions"] = {
            part.direction: _scores_to_json(part) for part in task.by_direction
        }

    return content


def _scores_to_json(task: TaskResult) -> dict[str, object]:
    return {
        "metrics": [asdict(info) for info in task.metrics],
        "systems": {
            system.system.name: _system_to_json(system, task.metrics)
            for system in task.systems
        },
    }


def _system_to_json(
    system: SystemResult, metrics: Sequence[MetricInfo]
) -> dict[str, object]:
    keys = [info.key for info in metrics]

    return {
        "title": system.system.title,
        "runs": {
            run.run.seed: {
                "path": str(run.path),
                "missing": run.missing or None,
                "num_steps": None if run.time is None else run.time.num_steps,
                "seconds": None if run.time is None else run.time.seconds,
                "scores": dict(run.scores),
            }
            for run in system.runs
        },
        "mean": {key: system.mean(key) for key in keys},
        "deviation": {key: system.deviation(key) for key in keys},
        "against": {
            baseline: {
                key: {
                    **{
                        name: getattr(difference, name)
                        for name in ("mean", "deviation", "p_sentences", "p_seeds")
                    },
                    "by_seed": {
                        seed: {
                            "difference": entry.difference,
                            "p_randomization": entry.p_randomization,
                        }
                        for seed, entry in difference.by_seed.items()
                    },
                }
                for key, difference in by_key.items()
            }
            for baseline, by_key in system.against.items()
        },
    }
