# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a suite has measured: scores, training times, and differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.scores import evaluate
from warmup_plugin.evaluation.systems import System, read_hypotheses, read_run
from warmup_plugin.metrics.base import Measurement, measure_mean
from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.parsing import read_json
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.suite.differences import (
    Difference,
    Pair,
    SeedDifference,
    average_differences,
    deviation,
    make_difference,
)
from warmup_plugin.suite.grid import Grid, SplitSpec, SystemSpec, TaskSpec
from warmup_plugin.suite.plan import Plan
from warmup_plugin.suite.runs import Outputs, Run, TrainingTime, measure_training


@final
@dataclass(frozen=True)
class MetricInfo:
    """Says what a score is called and how it was computed."""

    key: str

    name: str

    signature: str = ""
    """Empty if no run has the score."""

    higher_is_better: bool = True

    reason: str | None = None
    """Why some run has no score."""

    num_sentences: int | None = None
    """``None`` if no run has the score."""


@final
@dataclass(frozen=True)
class RunResult:
    """Holds what was measured of a run."""

    outputs: Outputs
    """What was scored, of several directions that of the first."""

    path: Path
    """Of the run, or of what it wrote, if it trained nothing."""

    time: TrainingTime | None

    scores: Mapping[str, float]
    """By the key of the score; without those that could not be computed."""

    missing: str
    """Why there are no scores; else empty."""

    @property
    def run(self) -> Run:
        return self.outputs.run


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
        return deviation(self.scores(key))

    @property
    def times(self) -> list[TrainingTime]:
        return [run.time for run in self.runs if run.time is not None]

    @property
    def mean_seconds(self) -> float | None:
        """The mean training time; ``None`` if it trains nothing, or has not yet."""
        seconds = [time.seconds for time in self.times]

        return sum(seconds) / len(seconds) if seconds else None

    @property
    def num_scored(self) -> int:
        return sum(not run.missing for run in self.runs)


@final
@dataclass(frozen=True)
class TaskResult:
    """Holds what was measured on a split of a task."""

    task: TaskSpec

    split: SplitSpec

    direction: str | None
    """``None`` also where the scores are means over several."""

    metrics: Sequence[MetricInfo]

    systems: Sequence[SystemResult]

    by_direction: Sequence[TaskResult] = ()
    """Of several directions, the results of each."""

    @property
    def name(self) -> str:
        return self._add_split(self.task.name, "/")

    @property
    def title(self) -> str:
        return self._add_split(self.task.title, ", ")

    def _add_split(self, text: str, sign: str) -> str:
        return text if len(self.task.splits) == 1 else f"{text}{sign}{self.split.name}"

    @property
    def parts(self) -> Sequence[TaskResult]:
        """The results of each direction; of only one, these."""
        return self.by_direction or [self]


@final
@dataclass(frozen=True)
class SuiteResult:
    """Holds what a suite has measured."""

    grid: Grid

    tasks: Sequence[TaskResult]
    """One a task and split."""

    starts: Sequence[Mapping[str, object]]
    """The versions with which runs were trained, each once."""


def collect_results(grid: Grid, plan: Plan) -> SuiteResult:
    """
    Collects what the steps have written, as far as they are done.

    :raises WarmupError: What they have written cannot be read.
    """
    tasks = []

    for task in grid.tasks:
        for split in task.splits:
            parts = [_collect(grid, plan, task, split, d) for d in task.directions]

            tasks.append(parts[0] if len(parts) == 1 else _average(parts))

    starts: list[Mapping[str, object]] = []

    for run in plan.runs:
        if run.name in plan.train and plan.train[run.name].is_done():
            for start in RunDir(run.path).load_starts():
                if start not in starts:
                    starts.append(start)

    return SuiteResult(grid, tasks, starts)


def _collect(
    grid: Grid, plan: Plan, task: TaskSpec, split: SplitSpec, direction: str | None
) -> TaskResult:
    infos = {
        key: MetricInfo(key, title)
        for name in task.metrics
        for key, title in METRICS[name].names.items()
    }

    results = {
        run.name: _collect_run(plan, Outputs(run, split, direction), infos)
        for run in plan.runs
        if run.task is task
    }

    measured = _measure_sentences(task, list(results.values()))

    systems = []

    for system in grid.list_systems(task):
        runs = [result for result in results.values() if result.run.system is system]

        against = {
            baseline: _compare(plan, results, measured, runs, baseline, list(infos))
            for baseline in grid.baselines
            if baseline != system.name
        }

        systems.append(SystemResult(system, runs, against))

    return TaskResult(task, split, direction, list(infos.values()), systems)


def _average(parts: Sequence[TaskResult]) -> TaskResult:
    """Averages the results of several directions."""
    first = parts[0]

    infos = [_join_infos(infos) for infos in zip(*(part.metrics for part in parts))]

    systems = []

    for each in zip(*(part.systems for part in parts)):
        runs = [_average_runs(first.task, rs) for rs in zip(*(s.runs for s in each))]

        against = {
            baseline: average_differences([s.against[baseline] for s in each])
            for baseline in each[0].against
        }

        systems.append(SystemResult(each[0].system, runs, against))

    return TaskResult(first.task, first.split, None, infos, systems, parts)


def _join_infos(infos: Sequence[MetricInfo]) -> MetricInfo:
    known = [info for info in infos if info.signature]

    signatures = {info.signature for info in known}

    return MetricInfo(
        infos[0].key,
        infos[0].name,
        # Directions may need different tokenizers.
        signatures.pop() if len(signatures) == 1 else "",
        all(info.higher_is_better for info in known),
        next((info.reason for info in infos if info.reason is not None), None),
        sum(info.num_sentences or 0 for info in known) or None,
    )


def _average_runs(task: TaskSpec, results: Sequence[RunResult]) -> RunResult:
    first = results[0]

    scores = {
        key: statistics.fmean(result.scores[key] for result in results)
        for key in first.scores
        if all(key in result.scores for result in results)
    }

    if len({result.missing for result in results}) == 1:
        missing = first.missing
    else:
        missing = "; ".join(
            f"{direction} {result.missing}"
            for direction, result in zip(task.directions, results)
            if result.missing
        )

    return RunResult(first.outputs, first.run.path, first.time, scores, missing)


def _collect_run(
    plan: Plan, outputs: Outputs, infos: dict[str, MetricInfo]
) -> RunResult:
    """Collects a run, and what there is to know of metrics into ``infos``."""
    run = outputs.run

    train = plan.train.get(run.name)

    reasons = {
        "not trained as the grid says": train,
        "not translated": plan.generate.get(outputs.name),
        "not scored": plan.evaluate.get(outputs.name),
    }

    missing = next(
        (why for why, step in reasons.items() if step and not step.is_done()), ""
    )

    time = measure_training(run.path) if train and train.is_done() else None

    scores = {}

    if not missing and run.system.is_scored:
        report = _read_json(outputs.scores)

        for score in report["systems"][_get_name(report, outputs)]:
            info = infos[score["key"]]

            if score["score"] is None:
                infos[info.key] = replace(info, reason=score["reason"])

                continue

            scores[info.key] = float(score["score"])

            if info.signature not in ("", score["signature"]):
                raise WarmupError(
                    f"{outputs.name} was scored by {info.name} with the signature `{score['signature']}`, but another run with `{info.signature}`; delete the files `*.scores.json` to score all of them again."
                )

            infos[info.key] = replace(
                info,
                signature=score["signature"],
                higher_is_better=score["higher_is_better"],
                num_sentences=score.get("num_sentences"),
            )

    return RunResult(outputs, outputs.system_path, time, scores, missing)


def _get_name(report: Mapping[str, Any], outputs: Outputs) -> str:
    """Returns what a report of `evaluate` or `compare` calls a system."""
    for name, file in report.get("hypotheses", {}).items():
        if Path(file) == outputs.translations:
            return str(name)

    # As of earlier versions.
    return str(outputs.system_path)


def _measure_sentences(
    task: TaskSpec, results: Sequence[RunResult]
) -> dict[str, Mapping[str, Measurement]]:
    """
    Measures the statistics of sentences, from which all seeds are tested together.

    Not of metrics that run a model of their own; see :func:`_read_differences`.

    :returns: The measurements by the name of the run and the key of the score.
    """
    metrics = [name for name in task.metrics if not METRICS[name].runs_model]

    scored = [r for r in results if not r.missing and r.run.system.is_scored]

    if not metrics or len(scored) < 2:
        return {}

    systems = [_read_system(result.outputs) for result in scored]

    evaluation = evaluate(
        systems, num_bootstrap=0, metrics=metrics, options=task.metric_options
    )

    return {
        result.run.name: evaluation.measurements[system.name]
        for result, system in zip(scored, systems)
    }


def _read_system(outputs: Outputs) -> System:
    """Reads outputs, with their references."""
    run, file = outputs.run, outputs.translations

    if run.is_trained:
        return read_run(run.path, outputs.options)

    return outputs.read_texts().make_system(
        str(file), file, read_hypotheses(file), outputs.options.target_lang
    )


def _compare(
    plan: Plan,
    results: Mapping[str, RunResult],
    measured: Mapping[str, Mapping[str, Measurement]],
    runs: Sequence[RunResult],
    baseline: str,
    keys: Sequence[str],
) -> dict[str, Difference]:
    """
    Compares the runs of a system with those of a baseline.

    :param results: By the name of the run.
    :param keys: Of all scores.

    :returns: The differences by the key of the score, in their order.
    """
    by_key: dict[str, dict[int, SeedDifference]] = {key: {} for key in keys}

    for result in runs:
        run = result.run

        base = results.get(f"{run.task.name}/{baseline}/{run.seed}")

        # The task is without this baseline, or the baseline is alone.
        if base is None or base.outputs.name not in plan.compare:
            continue

        report: Mapping[str, Any] = {}

        if plan.compare[base.outputs.name].is_done():
            report = _read_json(base.outputs.comparison)

        name = _get_name(report, result.outputs)

        tests = {
            entry["key"]: entry
            for entry in report.get("comparisons", [])
            if entry["system"] == name
        }

        for key in result.scores.keys() & base.scores.keys():
            test = tests.get(key, {})

            pair = [
                measured[r.run.name][key]
                for r in (base, result)
                if key in measured.get(r.run.name, {})
            ]

            by_key[key][run.seed] = SeedDifference(
                result.scores[key] - base.scores[key],
                # As earlier versions wrote it.
                test.get("randomization_p_value", test.get("p_value")),
                (
                    [(pair[0], pair[1])]
                    if len(pair) == 2
                    else _read_differences(key, report, name)
                ),
            )

    return {key: make_difference(by_seed) for key, by_seed in by_key.items() if by_seed}


def _read_differences(key: str, report: Mapping[str, Any], name: str) -> list[Pair]:
    """
    Reads the sentences of a metric that runs a model from what `compare` wrote.

    Such a metric is a mean over sentences, so that their differences say enough:
    swapping two outputs changes the sign of one.

    :param name: What the report calls the system.
    """
    entry = report.get("sentences", {}).get("metrics", {}).get(key, {})

    differences = entry.get(name, {}).get("differences")

    if not differences:
        return []

    zeros = [0.0] * len(differences)

    return [
        (measure_mean(key, key, zeros, ""), measure_mean(key, key, differences, ""))
    ]


def _read_json(file: Path) -> dict[str, Any]:
    content = read_json(file)

    if not isinstance(content, dict):
        raise WarmupError(f"{file} cannot be read; delete it to have it written again.")

    return content
