# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The results of a suite as Markdown, LaTeX and JSON."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, final

from warmup_plugin.metrics.resampling import (
    DEFAULT_SEED,
    NUM_TRIALS,
    warn_of_few_sentences,
)
from warmup_plugin.metrics.tables import escape_latex, format_number
from warmup_plugin.runs.run_dir import collect_versions
from warmup_plugin.suite.plan import Plan
from warmup_plugin.suite.results import (
    Difference,
    MetricInfo,
    SuiteResult,
    SystemResult,
    TaskResult,
)
from warmup_plugin.suite.steps import Step

# What differs by more was not trained for the same time.
_TIME_TOLERANCE: Final = 0.05


@final
@dataclass(frozen=True)
class _Signs:
    """Holds what Markdown and LaTeX write differently."""

    escape: Callable[[str], str]

    plus_minus: str

    minus: str

    p: str

    to: str
    """Between the ends of a range."""


_MARKDOWN: Final = _Signs(
    lambda text: " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split()),
    " ± ",
    "-",
    "p",
    "–",
)

_LATEX: Final = _Signs(escape_latex, r" $\pm$ ", "$-$", "$p$", "--")


def format_markdown(result: SuiteResult, plan: Plan, command: str) -> str:
    """
    Formats the table of a suite with all that a reader has to know of it.

    :param command: The command line of the suite.
    """
    header, rows = _make_rows(result, _MARKDOWN)

    num_left = header.index("seeds")

    rules = ["---"] * num_left + ["---:"] * (len(header) - num_left)

    lines = [f"# {result.grid.name}", ""]

    lines += [f"| {' | '.join(cells)} |" for cells in (header, rules, *rows)]

    lines.append("")

    lines += [f"- {note}" for note in _make_notes(result)]

    lines += ["", "Differences by seed:", ""]

    lines += [f"- {line}" for line in _describe_differences(result)] or ["- none yet"]

    missing = list(_describe_missing(result))

    if missing:
        lines += ["", "Not measured:", ""]

        lines += [f"- {line}" for line in missing]

    lines += ["", "Versions:", "", *(f"- {v}" for v in _describe_versions(result))]

    lines += ["", "Commands:", "", "```sh", command, "```", ""]

    seed = result.grid.seeds[0]

    lines += [f"and by it, for the seed {seed}:", "", "```sh"]

    lines += [describe_command(step) for step in _list_example_steps(plan, seed)]

    lines += ["```", ""]

    return "\n".join(lines)


def format_latex(result: SuiteResult, command: str) -> str:
    r"""Formats the table as a ``tabular``, which needs no package, below comments."""
    header, rows = _make_rows(result, _LATEX)

    num_left = header.index("seeds")

    columns = "l" * num_left + "r" * (len(header) - num_left)

    notes = [*_make_notes(result), *_describe_missing(result)]

    notes += [*_describe_versions(result), command]

    # A note is one line, or its rest would be text.
    lines = [f"% {' '.join(note.split())}" for note in [result.grid.name, *notes]]

    lines += [rf"\begin{{tabular}}{{{columns}}}", r"\hline"]

    lines += [rf"{' & '.join(header)} \\", r"\hline"]

    lines += [rf"{' & '.join(cells)} \\" for cells in rows]

    lines += [r"\hline", r"\end{tabular}", ""]

    return "\n".join(lines)


def _make_rows(result: SuiteResult, signs: _Signs) -> tuple[list[str], list[list[str]]]:
    """Returns the heading and the rows of the table."""
    has_tasks = len(result.tasks) > 1

    keys = {info.key: info.name for task in result.tasks for info in task.metrics}

    titles = {name: result.grid.system(name).title for name in result.grid.baselines}

    has_directions = any(task.by_direction for task in result.tasks)

    header = ["task"] if has_tasks else []

    header += ["direction"] if has_directions else []

    header += ["system", "seeds", "steps", "time"]

    header = [signs.escape(heading) for heading in header]

    for name in keys.values():
        header.append(signs.escape(name))

        for title in titles.values():
            suffix = f" vs {signs.escape(title)}" if len(titles) > 1 else ""

            header.append(f"{signs.p}{suffix}")

    rows = []

    for task, part, system in _list_rows(result):
        cells = [signs.escape(task.title)] if has_tasks else []

        if has_directions:
            cells.append(signs.escape(_name_direction(part)))

        cells += [
            signs.escape(system.system.title),
            f"{system.num_scored} of {len(system.runs)}",
        ]

        # Training is that of all directions.
        if part is task:
            cells += [_format_steps(system, signs), _format_time(system)]
        else:
            cells += ["", ""]

        for key in keys:
            cells.append(_format_score(system, key, signs))

            for baseline in titles:
                difference = system.against.get(baseline, {}).get(key)

                cells.append(_format_p_values(difference, signs))

        rows.append(cells)

    return header, rows


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


def _format_steps(system: SystemResult, signs: _Signs) -> str:
    numbers = [time.num_steps for time in system.times]

    if not numbers:
        return ""

    # They come on top of those of another system.
    plus = "" if system.system.init_from is None else "+"

    if min(numbers) == max(numbers):
        return f"{plus}{numbers[0]:,}"

    return f"{plus}{min(numbers):,}{signs.to}{max(numbers):,}"


def _format_time(system: SystemResult) -> str:
    seconds = _mean_seconds(system)

    return "" if seconds is None else format_seconds(seconds)


def _mean_seconds(system: SystemResult) -> float | None:
    times = system.times

    return sum(time.seconds for time in times) / len(times) if times else None


def format_seconds(seconds: float) -> str:
    """Formats a duration with three digits or so."""
    if seconds < 60.0:
        return f"{seconds:.1f} s"

    if seconds < 3600.0:
        return f"{seconds / 60.0:.1f} min"

    return f"{seconds / 3600.0:.1f} h"


def _format_score(system: SystemResult, key: str, signs: _Signs) -> str:
    mean, deviation = system.mean(key), system.deviation(key)

    if mean is None:
        return ""

    text = _format_signed(key, mean, signs)

    if deviation is None:
        return text

    return f"{text}{signs.plus_minus}{format_number(key, deviation)}"


def _format_signed(key: str, value: float, signs: _Signs) -> str:
    return format_number(key, value).replace("-", signs.minus)


def _format_p_values(difference: Difference | None, signs: _Signs) -> str:
    if difference is None:
        return ""

    parts = []

    if difference.p_sentences is not None:
        parts.append(_format_p(difference.p_sentences))

    if difference.p_range is not None and len(difference.by_seed) > 1:
        low, high = map(_format_p, difference.p_range)

        parts.append(f"({low}{signs.to}{high})")

    return " ".join(parts)


def _format_p(p_value: float) -> str:
    return f"{p_value:.4f}" if p_value < 0.01 else f"{p_value:.2f}"


def _make_notes(result: SuiteResult) -> Iterator[str]:
    grid = result.grid

    titles = [f"`{grid.system(name).title}`" for name in grid.baselines]

    num_seeds = len(grid.seeds)

    yield (
        "score: mean ± sample standard deviation over the seeds that were scored "
        f"(column `seeds`), of the seeds {', '.join(map(str, grid.seeds))}; an empty "
        "cell was not measured."
    )

    yield (
        f"p: of the difference from {' or '.join(titles)}, two-sided, by approximate "
        f"randomization with {NUM_TRIALS:,} trials (seed {DEFAULT_SEED}) that swap the "
        "two outputs of a sentence, in the runs of all seeds at once; in parentheses "
        "the least and the largest p of one seed by the same test. It is about other "
        "sentences than those of the test set, not about other seeds, and is not "
        "corrected for the number of tests."
    )

    if any(task.by_direction for task in result.tasks):
        yield (
            "mean: of the scores of all directions, each counted alike. Its p is that of "
            "the differences of these means; a trial swaps the two outputs of a line in "
            "all directions at once, whose lines may be translations of each other."
        )

    for task in result.tasks:
        for part in task.parts:
            numbers = [info.num_sentences or 0 for info in part.metrics]

            num_sentences = max(numbers, default=0)

            warning = (
                warn_of_few_sentences(num_sentences) if num_sentences > 0 else None
            )

            if warning is not None:
                direction = f", {part.direction}" if task.by_direction else ""

                yield f"`{task.name}`{direction}: {warning}"

    if num_seeds == 1:
        yield "One seed does not tell how much another one would have changed."
    else:
        yield (
            f"Over seeds, the exact paired test cannot give less than "
            f"{2.0 ** (1 - num_seeds):.2g} with {num_seeds} seeds; see the deviations and "
            "the differences by seed."
        )

    yield (
        "steps: those of the run; `+` where it starts from another system, whose steps "
        "come before. time: mean time in training steps, with loading and checkpoints, "
        "without starts and validations, and without the time of the system it starts "
        "from."
    )

    yield from _describe_borrowed(result)

    yield from _describe_equal_times(result)

    for task in result.tasks:
        prefix = f"{task.title}: " if len(result.tasks) > 1 else ""

        folder = "" if task.split.data is None else f" of `{task.split.data}`"

        names = [f"`{part.direction}`" for part in task.parts if part.direction]

        directions = ""

        if names:
            noun = "direction" if len(names) == 1 else "directions"

            directions = f"{noun} {', '.join(names)}, "

        yield (
            f"{prefix}split `{task.split.name}`{folder}, {directions}checkpoint "
            f"`{task.task.checkpoint}`, the default generation settings of `generate`."
        )

        for infos in zip(*(part.metrics for part in task.parts)):
            yield from _describe_metric(infos, task, prefix)


def _describe_borrowed(result: SuiteResult) -> Iterator[str]:
    """Says what systems do that train nothing."""
    for system in result.grid.systems:
        options = f" with `{shlex.join(system.options)}`" if system.options else ""

        if system.decode is not None:
            together = "".join(f" and `{ref}`" for ref in system.ensemble)

            if together:
                model = f"the models of `{system.decode}`{together} as they are"
            else:
                model = f"the model of `{system.decode}` as it is"

            yield f"`{system.title}`: {model}, translating{options}."
        elif system.cascade is not None:
            way = ", what comes out ".join(f"`{name}`" for name in system.directions)

            yield (
                f"`{system.title}`: the model of `{system.cascade}` translates the "
                f"sources {way}{options}."
            )


def _describe_equal_times(result: SuiteResult) -> Iterator[str]:
    for system in result.grid.systems:
        if system.equal_time_with is None or system.step_time_of is None:
            continue

        other = result.grid.system(system.equal_time_with.system)

        like = result.grid.system(system.step_time_of.system)

        yield (
            f"`{system.title}`: for each seed as many steps as fit in the training time "
            f"of `{other.title}`, by the mean time of a step of `{like.title}`."
        )

        for task in result.tasks:
            # Trained once for all splits.
            if task.split is not task.task.splits[0]:
                continue

            by_name = {entry.system.name: entry for entry in task.systems}

            if not {system.name, other.name} <= by_name.keys():
                continue

            own, wanted = (
                _mean_seconds(by_name[name]) for name in (system.name, other.name)
            )

            if own is None or wanted is None:
                continue

            deviation = own / wanted - 1.0

            if abs(deviation) > _TIME_TOLERANCE:
                more = "more" if deviation > 0.0 else "less"

                yield (
                    f"Not of equal time: on {task.task.title} `{system.title}` took "
                    f"{abs(deviation):.0%} {more} than `{other.title}`; the machine was "
                    "not as busy for both, or one of them stopped early."
                )


def _describe_metric(
    infos: Sequence[MetricInfo], task: TaskResult, prefix: str
) -> Iterator[str]:
    """:param infos: Of one metric in each direction, which differ in their tokenizers."""
    name = infos[0].name

    by_text: dict[str, list[str]] = {}

    for info, part in zip(infos, task.parts):
        if info.signature:
            note = "" if info.higher_is_better else "; lower is better"

            text = f"`{info.signature}`{note}"

            by_text.setdefault(text, []).append(f"`{part.direction}`")

    for text, directions in by_text.items():
        where = f" ({', '.join(directions)})" if len(by_text) > 1 else ""

        yield f"{prefix}{name}{where}: {text}"

    for reason in dict.fromkeys(info.reason for info in infos):
        if reason is not None:
            yield f"{prefix}{name}, where it is missing: {reason}"


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

                yield (
                    f"{prefix}`{system.system.title}` less `{title}`: "
                    f"{'; '.join(parts)}"
                )


def _describe_difference(info: MetricInfo, difference: Difference) -> str:
    sign = 1.0 if info.higher_is_better else -1.0

    num_better = sum(sign * value > 0.0 for value in difference.differences)

    text = f"{info.name} {format_number(info.key, difference.mean, sign='+')}"

    if difference.deviation is not None:
        text += f" ± {format_number(info.key, difference.deviation)}"

    text += f", better in {num_better} of {len(difference.by_seed)}"

    if difference.p_seeds is not None and len(difference.by_seed) > 1:
        text += f" (p over seeds {_format_p(difference.p_seeds)})"

    return text


def _describe_missing(result: SuiteResult) -> Iterator[str]:
    for task in result.tasks:
        for system in task.systems:
            for run in system.runs:
                if run.missing:
                    split = f" {task.split.name}" if len(task.task.splits) > 1 else ""

                    yield f"{run.run.name}{split}: {run.missing}"


def _describe_versions(result: SuiteResult) -> Iterator[str]:
    for start in result.starts:
        yield f"training: {_format_versions(start)}"

    yield f"scores and this table: {_format_versions(collect_versions())}"


def _format_versions(versions: Mapping[str, object]) -> str:
    parts = [
        f"{name} {value}"
        for name, value in versions.items()
        if value is not None and name != "git_commit"
    ]

    commit = versions.get("git_commit")

    if commit is not None:
        parts.insert(0, f"commit {commit}")

    return ", ".join(parts).replace("num_processes", "processes")


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
                    "mean": difference.mean,
                    "deviation": difference.deviation,
                    "p_sentences": difference.p_sentences,
                    "p_seeds": difference.p_seeds,
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
