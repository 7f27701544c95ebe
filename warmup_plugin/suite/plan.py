# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The steps of a suite, in the order in which they are run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import final

from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_output
from warmup_plugin.parsing import parse_yaml
from warmup_plugin.runs.outputs import details_file
from warmup_plugin.suite.grid import Grid, TaskSpec
from warmup_plugin.suite.runs import (
    Outputs,
    Run,
    is_finished,
    measure_training,
)
from warmup_plugin.suite.steps import OUT_REMEDY, NotReady, Step


@final
@dataclass
class Plan:
    """Holds the steps of a suite, in the order in which they are run."""

    runs: list[Run] = field(default_factory=list)

    steps: list[Step] = field(default_factory=list)

    prepare: dict[str, list[Step]] = field(default_factory=dict)
    """By the name of the task."""

    train: dict[str, Step] = field(default_factory=dict)
    """By the name of the run, if it is trained."""

    generate: dict[str, Step] = field(default_factory=dict)
    """By the name of the outputs, if they are scored, as the next one."""

    evaluate: dict[str, Step] = field(default_factory=dict)

    compare: dict[str, Step] = field(default_factory=dict)
    """By the name of the outputs of the baseline."""

    def select(self, patterns: Sequence[str]) -> list[Step]:
        """
        Selects the steps of some runs, and the training that these need.

        :param patterns: Of the form ``TASK/SYSTEM/SEED`` with wildcards; what is left
            out at the end matches all.

        :raises WarmupError: A pattern matches no run.
        """
        if not patterns:
            return list(self.steps)

        names: set[str] = set()

        for pattern in patterns:
            matching = {run.name for run in self.runs if _matches(run, pattern)}

            if not matching:
                raise WarmupError(
                    f"`--only {pattern}` matches no run; the runs are named TASK/SYSTEM/SEED, such as {self.runs[0].name}."
                )

            names |= matching

        about = [step for step in self.steps if not names.isdisjoint(step.runs)]

        keys = set().union(*map(_with_needs, about))

        return [step for step in self.steps if step.key in keys]


def _matches(run: Run, pattern: str) -> bool:
    parts, names = pattern.split("/"), run.name.split("/")

    return len(parts) <= len(names) and all(map(fnmatchcase, names, parts))


def _with_needs(step: Step) -> set[str]:
    return {step.key}.union(*(_with_needs(need) for need in step.needs))


def make_plan(grid: Grid) -> Plan:
    """Lays out all steps: by seed, so that there is something to look at early."""
    plan = Plan()

    for task in grid.tasks:
        plan.prepare[task.name] = _make_preparation(grid, task)

        plan.steps += plan.prepare[task.name]

    for seed in grid.seeds:
        for task in grid.tasks:
            scored: dict[str, Run] = {}

            for system in grid.list_systems(task):
                # Trained with the first seed, before those that start from it.
                if system.seed is not None and seed != grid.seeds[0]:
                    continue

                run = Run(grid, task, system, seed)

                plan.runs.append(run)

                if run.is_trained:
                    _add_training(plan, run)

                if system.is_scored:
                    _add_scoring(plan, run)

                    scored[system.name] = run

            for name in grid.baselines:
                if name in scored and len(scored) > 1:
                    baseline = scored[name]

                    others = [run for run in scored.values() if run is not baseline]

                    every = [run.list_outputs() for run in (baseline, *others)]

                    for outputs in zip(*every):
                        _add_comparison(plan, outputs)

    return plan


def _make_preparation(grid: Grid, task: TaskSpec) -> list[Step]:
    steps: list[Step] = []

    for idx, command in enumerate(task.prepare):
        files = grid.out / task.name / f"prepare_{idx + 1}"

        steps.append(
            Step(f"{command[0]} {task.name}", files, command, needs=steps[-1:])
        )

    return steps


def _add_training(plan: Plan, run: Run) -> None:
    system, settings = run.system, run.grid.settings(run.task, run.system)

    config = {"common.seed": run.seed, **settings.config}

    inputs = []

    if system.init_from is not None:
        first = run.find(system.init_from)

        config["init_from"] = str(first.path)

        # What is written while it trains is of this training alone, and small.
        inputs.append(first.metrics)

    files = [arg for file in settings.config_files for arg in ("--config-file", file)]

    def make_command(num_steps: object) -> list[str]:
        if num_steps is not None:
            config["regime.num_steps"] = num_steps

        pairs = [format_setting(key, value) for key, value in config.items()]

        # The folder comes before `--config`, which takes all that follows.
        return ["train", str(run.path), *files, "--no-rich", "--config", *pairs]

    command, complete_command = make_command(settings.steps), None

    # Before the steps of the task, which are for all systems.
    if system.equal_time_with is not None and system.step_time_of is not None:
        other, like = run.find(system.equal_time_with), run.find(system.step_time_of)

        command = make_command(
            f"<time of {other.name} / time of a step of {like.name}>"
        )

        complete_command = partial(_complete, make_command, other, like)

    needs = [plan.train[run.find(ref).name] for ref in system.needs]

    step = plan.train[run.name] = Step(
        f"train {run.name}",
        run.path.with_name(f"{run.path.name}.train"),
        command,
        complete_command,
        inputs=inputs,
        is_complete=partial(is_finished, run.path),
        runs=[run.name],
        needs=[*plan.prepare[run.task.name][-1:], *needs],
        retrains=run,
    )

    plan.steps.append(step)


def _complete(
    make_command: Callable[[object], list[str]], other: Run, like: Run
) -> list[str]:
    """Makes the command of as many steps like those of one run as fit in the time of
    another."""
    seconds = measure_training(other.path).seconds

    num_steps = round(seconds / measure_training(like.path).seconds_per_step)

    return make_command(max(num_steps, 1))


def format_setting(key: str, value: object) -> str:
    """Formats a setting for ``--config``, which reads YAML."""
    if isinstance(value, str) and _is_plain(value):
        return f"{key}={value}"

    return f"{key}={json.dumps(value, ensure_ascii=False)}"


def _is_plain(text: str) -> bool:
    """Tells whether YAML reads a text as itself."""
    try:
        return text == text.strip() and parse_yaml(text) == text
    except ValueError:
        return False


def _add_scoring(plan: Plan, run: Run) -> None:
    for outputs in run.list_outputs():
        if run.system.cascade is None:
            plan.steps.append(_make_generation(plan, outputs))
        else:
            plan.steps += _make_cascade(plan, outputs)

        generate = plan.generate[outputs.name] = plan.steps[-1]

        command = ["evaluate", str(run.find_like().path)]

        command += [*outputs.split_args, *outputs.direction_args]

        if run.is_trained:
            command += ["--checkpoint", run.task.checkpoint]
        else:
            command += ["--hypotheses", str(outputs.translations)]

        command += [*run.task.metric_args, "--json", str(outputs.scores)]

        step = plan.evaluate[outputs.name] = Step(
            f"evaluate {outputs.name}",
            outputs.name_file("evaluate"),
            command,
            runs=[run.name],
            inputs=[outputs],
            is_complete=outputs.scores.is_file,
            needs=[generate],
        )

        plan.steps.append(step)


def _make_generation(plan: Plan, outputs: Outputs) -> Step:
    run, system = outputs.run, outputs.run.system

    source = run if system.decode is None else run.find(system.decode)

    members = [run.find(ref) for ref in system.ensemble]

    command = ["generate", str(source.path), *system.options, *outputs.split_args]

    if members:
        command += ["--ensemble", *(str(member.path) for member in members)]

    command += outputs.direction_args

    command += ["--checkpoint", run.task.checkpoint, "--no-rich"]

    inputs, files = [], []

    if not run.is_trained:
        # Such a file belongs to no run that would know whether it is of today.
        inputs = [writer.metrics for writer in (source, *members)]

        files = [outputs.translations]

        command += ["--output", str(outputs.translations)]

    def is_complete() -> bool:
        file = outputs.translations

        return details_file(file).is_file() and source.has_made(file)

    return Step(
        f"generate {outputs.name}",
        outputs.name_file("generate"),
        command,
        runs=[run.name],
        inputs=inputs,
        outputs=files,
        is_complete=is_complete,
        needs=[plan.train[writer.name] for writer in (source, *members)],
    )


def _make_cascade(plan: Plan, outputs: Outputs) -> list[Step]:
    """Makes the steps that translate by way of other languages."""
    run, directions = outputs.run, outputs.run.system.directions

    # The grid has been checked.
    assert run.system.cascade is not None

    source = run.find(run.system.cascade)

    files = [outputs.name_file(f"{name}.jsonl") for name in ("sources", *directions)]

    files[-1] = outputs.translations

    def write_sources() -> None:
        lines = [json.dumps({"source": text}) for text in outputs.read_texts().sources]

        write_output(files[0], "".join(f"{line}\n" for line in lines), OUT_REMEDY)

    steps: list[Step] = []

    for idx, direction in enumerate(directions):
        input_file, file = files[idx : idx + 2]

        command = ["translate", str(source.path), str(input_file), *run.system.options]

        command += ["--checkpoint", source.task.checkpoint, "--direction", direction]

        # JSON lines keep the line feeds inside texts.
        command += ["--jsonl", "--json-fields", "output" if idx > 0 else "source"]

        command += ["--no-rich", "--output", str(file)]

        needs = steps[-1:] or [
            plan.train[other.name] for other in (source, run.find_like())
        ]

        step = Step(
            f"translate {outputs.name} {direction}",
            outputs.name_file(f"translate_{idx + 1}"),
            command,
            runs=[run.name],
            inputs=[source.metrics, input_file],
            write_inputs=write_sources if idx == 0 else lambda: None,
            outputs=[file],
            # Else `evaluate` would take it for that of another model.
            is_complete=partial(source.has_made, file),
            needs=needs,
        )

        steps.append(step)

    return steps


def _add_comparison(plan: Plan, ordered: Sequence[Outputs]) -> None:
    """:param ordered: Of all systems, the baseline first."""
    first = ordered[0]

    task, file = first.run.task, first.comparison

    # Folders of earlier versions are done with the commands that stand there.
    args = [*first.split_args, "--checkpoint", task.checkpoint, *first.direction_args]

    args += [*task.metric_args, "--json", str(file)]

    def make_command(there: Sequence[Outputs]) -> list[str]:
        return ["compare", *(str(outputs.system_path) for outputs in there), *args]

    def complete_command() -> list[str]:
        there = [o for o in ordered if plan.generate[o.name].is_done()]

        if first not in there:
            raise NotReady(f"{first.name} is not translated")

        if len(there) == 1:
            raise NotReady(f"nothing but {first.name} is translated")

        # The references are those of its data.
        if not any(outputs.run.is_trained for outputs in there):
            raise NotReady("no run that was trained is translated")

        return make_command(there)

    key = f"compare {task.name}/*/{first.run.seed} {first.label}".rstrip()

    step = plan.compare[first.name] = Step(
        f"{key} with {first.run.system.name}",
        file.with_name(file.name.removesuffix(".result.json")),
        make_command(ordered),
        complete_command,
        runs=[outputs.run.name for outputs in ordered],
        inputs=ordered,
        is_complete=file.is_file,
        after=[plan.generate[outputs.name] for outputs in ordered],
    )

    plan.steps.append(step)
