# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a reader of the table of a suite has to know of its numbers, in sentences."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from warmup_plugin.metrics.resampling import (
    DEFAULT_SEED,
    NUM_TRIALS,
    warn_of_few_sentences,
)
from warmup_plugin.runs.run_dir import collect_versions
from warmup_plugin.suite.results import MetricInfo, SuiteResult, TaskResult

# What differs by more was not trained for the same time.
_TIME_TOLERANCE: Final = 0.05


def make_notes(result: SuiteResult) -> Iterator[str]:
    """Says what the columns are, how they were measured, and what to beware of."""
    grid = result.grid

    titles = [f"`{grid.system(name).title}`" for name in grid.baselines]

    num_seeds = len(grid.seeds)

    yield f"score: mean ± sample standard deviation over the seeds that were scored (column `seeds`), of the seeds {', '.join(map(str, grid.seeds))}; an empty cell was not measured."

    yield f"p: of the difference from {' or '.join(titles)}, two-sided, by approximate randomization with {NUM_TRIALS:,} trials (seed {DEFAULT_SEED}) that swap the two outputs of a sentence, in the runs of all seeds at once; in parentheses the least and the largest p of one seed by the same test. It is about other sentences than those of the test set, not about other seeds, and is not corrected for the number of tests."

    if any(task.by_direction for task in result.tasks):
        yield "mean: of the scores of all directions, each counted alike. Its p is that of the differences of these means; a trial swaps the two outputs of a line in all directions at once, whose lines may be translations of each other."

    for task in result.tasks:
        for part in task.parts:
            num_sentences = max((i.num_sentences or 0 for i in part.metrics), default=0)

            warning = warn_of_few_sentences(num_sentences)

            if num_sentences > 0 and warning is not None:
                direction = f", {part.direction}" if task.by_direction else ""

                yield f"`{task.name}`{direction}: {warning}"

    if num_seeds == 1:
        yield "One seed does not tell how much another one would have changed."
    else:
        yield f"Over seeds, the exact paired test cannot give less than {2.0 ** (1 - num_seeds):.2g} with {num_seeds} seeds; see the deviations and the differences by seed."

    yield "steps: those of the run; `+` where it starts from another system, whose steps come before. time: mean time in training steps, with loading and checkpoints, without starts and validations, and without the time of the system it starts from."

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

        yield f"{prefix}split `{task.split.name}`{folder}, {directions}checkpoint `{task.task.checkpoint}`, the default generation settings of `generate`."

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

            yield f"`{system.title}`: the model of `{system.cascade}` translates the sources {way}{options}."


def _describe_equal_times(result: SuiteResult) -> Iterator[str]:
    for system in result.grid.systems:
        if system.equal_time_with is None or system.step_time_of is None:
            continue

        other = result.grid.system(system.equal_time_with.system)

        like = result.grid.system(system.step_time_of.system)

        yield f"`{system.title}`: for each seed as many steps as fit in the training time of `{other.title}`, by the mean time of a step of `{like.title}`."

        for task in result.tasks:
            # Trained once for all splits.
            if task.split is not task.task.splits[0]:
                continue

            seconds = {entry.system.name: entry.mean_seconds for entry in task.systems}

            own, wanted = seconds.get(system.name), seconds.get(other.name)

            if own is None or wanted is None:
                continue

            deviation = own / wanted - 1.0

            if abs(deviation) > _TIME_TOLERANCE:
                more = "more" if deviation > 0.0 else "less"

                yield f"Not of equal time: on {task.task.title} `{system.title}` took {abs(deviation):.0%} {more} than `{other.title}`; the machine was not as busy for both, or one of them stopped early."


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


def describe_missing(result: SuiteResult) -> Iterator[str]:
    """Says of each run that was not measured why."""
    for task in result.tasks:
        for system in task.systems:
            for run in system.runs:
                if run.missing:
                    split = f" {task.split.name}" if len(task.task.splits) > 1 else ""

                    yield f"{run.run.name}{split}: {run.missing}"


def describe_versions(result: SuiteResult) -> Iterator[str]:
    """Says with what all was trained and scored."""
    for start in result.starts:
        yield f"training: {_format_versions(start)}"

    yield f"scores and this table: {_format_versions(collect_versions())}"


def _format_versions(versions: Mapping[str, object]) -> str:
    names = {"git_commit": "commit", "num_processes": "processes"}

    # The commit comes first.
    ordered = {"git_commit": None, **versions}

    return ", ".join(
        f"{names.get(name, name)} {value}"
        for name, value in ordered.items()
        if value is not None
    )
