# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a suite has measured: scores, training times, differences and their tests."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast, final

from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.scores import evaluate
from warmup_plugin.evaluation.systems import (
    System,
    read_hypotheses,
    read_run,
    read_run_texts,
)
from warmup_plugin.metrics.base import Measurement, measure_mean
from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.metrics.resampling import randomization_p_values_of_groups
from warmup_plugin.parsing import parse_json
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.suite.grid import Grid, SystemSpec, TaskSpec
from warmup_plugin.suite.steps import (
    Plan,
    Run,
    TrainingTime,
    find_like_run,
    measure_training,
)

# All signs of so many differences are tried out; of more, none.
_MAX_SIGN_FLIPS: Final = 14

# Scores are at most about 100; what is closer than this differs by rounding.
_TOLERANCE: Final = 1e-9


@final
@dataclass(frozen=True)
class MetricInfo:
    """Says what a score is called and how it was computed."""

    key: str

    name: str

    signature: str
    """Empty if no run has the score."""

    higher_is_better: bool

    reason: str | None
    """Why some run has no score."""

    num_sentences: int | None = None
    """``None`` if no run has the score."""


@final
@dataclass(frozen=True)
class RunResult:
    """Holds what was measured of a run."""

    run: Run

    time: TrainingTime | None

    scores: Mapping[str, float]
    """By the key of the score; without those that could not be computed."""

    missing: str
    """Why there are no scores; else empty."""


@final
@dataclass(frozen=True)
class SeedDifference:
    """Holds the difference of two systems that were trained with one seed."""

    difference: float

    p_randomization: float | None


@final
@dataclass(frozen=True)
class Difference:
    """Holds the difference of a system from a baseline by one metric."""

    by_seed: Mapping[int, SeedDifference]

    p_sentences: float | None
    """Of approximate randomization over the sentences, all seeds together."""

    @property
    def differences(self) -> list[float]:
        return [entry.difference for entry in self.by_seed.values()]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def deviation(self) -> float | None:
        return _deviation(self.differences)

    @property
    def p_seeds(self) -> float | None:
        """Of all sign flips of the differences of the seeds; see the function."""
        return sign_flip_p_value(self.differences)

    @property
    def p_range(self) -> tuple[float, float] | None:
        """The least and the largest p-value of a seed."""
        values = [
            entry.p_randomization
            for entry in self.by_seed.values()
            if entry.p_randomization is not None
        ]

        return (min(values), max(values)) if values else None


@final
@dataclass(frozen=True)
class SystemResult:
    """Holds what was measured of a system on a task."""

    system: SystemSpec

    runs: Sequence[RunResult]

    against: Mapping[str, Mapping[str, Difference]]
    """By the name of the baseline and the key of the score."""

    def scores(self, key: str) -> list[float]:
        return [run.scores[key] for run in self.runs if key in run.scores]

    def mean(self, key: str) -> float | None:
        scores = self.scores(key)

        return statistics.fmean(scores) if scores else None

    def deviation(self, key: str) -> float | None:
        """The sample standard deviation over seeds; ``None`` for less than two."""
        return _deviation(self.scores(key))

    @property
    def times(self) -> list[TrainingTime]:
        return [run.time for run in self.runs if run.time is not None]

    @property
    def num_scored(self) -> int:
        return sum(not run.missing for run in self.runs)


@final
@dataclass(frozen=True)
class TaskResult:
    """Holds what was measured on a task."""

    task: TaskSpec

    metrics: Sequence[MetricInfo]

    systems: Sequence[SystemResult]


@final
@dataclass(frozen=True)
class SuiteResult:
    """Holds what a suite has measured."""

    grid: Grid

    tasks: Sequence[TaskResult]

    starts: Sequence[Mapping[str, object]]
    """The versions with which runs were trained, each once."""


def collect_results(grid: Grid, plan: Plan) -> SuiteResult:
    """
    Collects what the steps have written, as far as they are done.

    :raises WarmupError: What they have written cannot be read.
    """
    tasks = [_collect_task(grid, plan, task) for task in grid.tasks]

    starts: list[Mapping[str, object]] = []

    for run in plan.runs:
        if run.name in plan.train and plan.train[run.name].is_done():
            for start in _read_starts(run.path):
                if start not in starts:
                    starts.append(start)

    return SuiteResult(grid, tasks, starts)


def _collect_task(grid: Grid, plan: Plan, task: TaskSpec) -> TaskResult:
    infos: dict[str, MetricInfo] = {}

    for name in task.metrics:
        for key, title in METRICS[name].names.items():
            infos[key] = MetricInfo(key, title, "", True, None)

    results: dict[str, RunResult] = {}

    for run in plan.runs:
        if run.task is task:
            results[run.name] = _collect_run(plan, run, infos)

    measured = _measure_sentences(grid, task, results)

    systems = []

    for system in grid.list_systems(task):
        runs = [result for result in results.values() if result.run.system is system]

        against = {
            baseline: _compare(grid, plan, results, measured, runs, baseline)
            for baseline in grid.baselines
            if baseline != system.name
        }

        systems.append(SystemResult(system, runs, against))

    return TaskResult(task, list(infos.values()), systems)


def _collect_run(plan: Plan, run: Run, infos: dict[str, MetricInfo]) -> RunResult:
    """Collects a run, and what there is to know of metrics into ``infos``."""
    time, scores, missing = None, {}, ""

    if run.is_trained and not plan.train[run.name].is_done():
        missing = "not trained as the grid says"
    elif run.is_trained:
        time = measure_training(run.path)

    if not missing and run.system.is_scored:
        if not plan.generate[run.name].is_done():
            missing = "not translated"
        elif not plan.evaluate[run.name].is_done():
            missing = "not scored"

    if not missing and run.system.is_scored:
        report = _read_json(run.scores)

        for score in report["systems"][_get_name(report, run)]:
            info = infos[score["key"]]

            if score["score"] is None:
                infos[info.key] = replace(info, reason=score["reason"])

                continue

            scores[info.key] = float(score["score"])

            if info.signature not in ("", score["signature"]):
                raise WarmupError(
                    f"{run.name} was scored by {info.name} with the signature "
                    f"`{score['signature']}`, but another run with "
                    f"`{info.signature}`; delete the files `*.scores.json` to score "
                    "all of them again."
                )

            infos[info.key] = replace(
                info,
                signature=score["signature"],
                higher_is_better=score["higher_is_better"],
                num_sentences=score.get("num_sentences"),
            )

    return RunResult(run, time, scores, missing)


def _get_name(report: Mapping[str, Any], run: Run) -> str:
    """Returns what a report of `evaluate` or `compare` calls a run."""
    for name, file in report.get("hypotheses", {}).items():
        if Path(file) == run.translations:
            return str(name)

    # As of earlier versions.
    return str(run.label)


def _measure_sentences(
    grid: Grid, task: TaskSpec, results: Mapping[str, RunResult]
) -> dict[str, Mapping[str, Measurement]]:
    """
    Measures the statistics of sentences, from which all seeds are tested together.

    Not of metrics that run a model of their own; see :func:`_read_differences`.

    :returns: The measurements by the name of the run and the key of the score.
    """
    metrics = [name for name in task.metrics if not METRICS[name].runs_model]

    runs = [
        result.run
        for result in results.values()
        if not result.missing and result.run.system.is_scored
    ]

    if not metrics or len(runs) < 2:
        return {}

    systems = [_read_system(grid, run) for run in runs]

    evaluation = evaluate(
        systems, num_bootstrap=0, metrics=metrics, options=task.metric_options
    )

    return {run.name: evaluation.measurements[str(run.label)] for run in runs}


def _read_system(grid: Grid, run: Run) -> System:
    """Reads the outputs of a run, with their references."""
    task = run.task

    target_lang = task.metric_options.target_lang

    if run.is_trained:
        return read_run(
            run.path, task.split, task.checkpoint, None, target_lang, task.direction
        )

    like = find_like_run(grid, run)

    texts = read_run_texts(like.path, task.split, None, task.direction)

    file = run.translations

    return texts.make_system(str(file), file, read_hypotheses(file), target_lang)


def _compare(
    grid: Grid,
    plan: Plan,
    results: Mapping[str, RunResult],
    measured: Mapping[str, Mapping[str, Measurement]],
    runs: Sequence[RunResult],
    baseline: str,
) -> dict[str, Difference]:
    """Compares the runs of a system with those of a baseline, by the key of the score."""
    by_seed: dict[str, dict[int, SeedDifference]] = {}

    pairs: dict[str, list[tuple[Measurement, Measurement]]] = {}

    for result in runs:
        run = result.run

        base = results.get(f"{run.task.name}/{baseline}/{run.seed}")

        compare = plan.compare.get((run.task.name, run.seed, baseline))

        # The task is without this baseline.
        if base is None or compare is None:
            continue

        report: Mapping[str, Any] = {}

        if compare.is_done():
            report = _read_json(plan.compare_file(run.task, run.seed, baseline))

        tests = {
            entry["key"]: entry
            for entry in report.get("comparisons", [])
            if entry["system"] == _get_name(report, run)
        }

        for key in result.scores.keys() & base.scores.keys():
            test = tests.get(key, {})

            by_seed.setdefault(key, {})[run.seed] = SeedDifference(
                result.scores[key] - base.scores[key],
                # As earlier versions wrote it.
                test.get("randomization_p_value", test.get("p_value")),
            )

            pair = _find_pair(key, measured, base.run, run) or _read_differences(
                key, report, run
            )

            if pair is not None:
                pairs.setdefault(key, []).append(pair)

    return {
        key: Difference(by_seed[key], _test_sentences(by_seed[key], pairs.get(key, [])))
        # In the order of the metrics.
        for name in runs[0].run.task.metrics
        for key in METRICS[name].names
        if key in by_seed
    }


def _find_pair(
    key: str,
    measured: Mapping[str, Mapping[str, Measurement]],
    baseline: Run,
    run: Run,
) -> tuple[Measurement, Measurement] | None:
    base_measurement = measured.get(baseline.name, {}).get(key)

    measurement = measured.get(run.name, {}).get(key)

    if base_measurement is None or measurement is None:
        return None

    return base_measurement, measurement


def _read_differences(
    key: str, report: Mapping[str, Any], run: Run
) -> tuple[Measurement, Measurement] | None:
    """
    Reads the sentences of a metric that runs a model from what `compare` wrote.

    Such a metric is a mean over sentences, so that their differences say enough:
    swapping two outputs changes the sign of one.
    """
    entry = report.get("sentences", {}).get("metrics", {}).get(key, {})

    differences = entry.get(_get_name(report, run), {}).get("differences")

    if not differences:
        return None

    zeros = [0.0] * len(differences)

    return (
        measure_mean(key, key, zeros, ""),
        measure_mean(key, key, differences, ""),
    )


def _test_sentences(
    by_seed: Mapping[int, SeedDifference],
    pairs: Sequence[tuple[Measurement, Measurement]],
) -> float | None:
    # One seed has been tested by `compare`.
    if len(by_seed) == 1:
        return next(iter(by_seed.values())).p_randomization

    # One sentence has no p.
    if len(pairs) < len(by_seed) or len(pairs[0][0].stats) < 2:
        return None

    [p_value] = randomization_p_values_of_groups([pairs])

    return p_value


def sign_flip_p_value(differences: Sequence[float]) -> float | None:
    """
    Tests whether the mean of paired differences could be 0, by all their sign flips.

    The exact test of paired trainings: the share of the :math:`2^n` ways to exchange
    the two of a pair whose mean is at least as far from 0. With n pairs it is at least
    :math:`2^{1-n}`: 0.25 with three.

    :returns: ``None`` if there are too many differences, or none.
    """
    if not 1 <= len(differences) <= _MAX_SIGN_FLIPS:
        return None

    observed = abs(sum(differences)) - _TOLERANCE

    signs = itertools.product((1.0, -1.0), repeat=len(differences))

    num_extreme = sum(
        abs(sum(s * d for s, d in zip(row, differences))) >= observed for row in signs
    )

    return num_extreme / 2.0 ** len(differences)


def _deviation(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None

    if not isinstance(content, dict):
        raise WarmupError(
            f"{file} cannot be read; delete it to have it written again."
        ) from None

    return cast("dict[str, Any]", content)


def _read_starts(path: Path) -> list[Mapping[str, object]]:
    try:
        starts = parse_json(RunDir(path).versions_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []

    return starts if isinstance(starts, list) else []
