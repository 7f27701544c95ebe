# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The steps of a suite: the commands, what each needs, and which are done.

Beside a run ``OUT/TASK/SYSTEM/seed_N`` lie the logs of its steps, such as
``seed_N.train.log``, and their records, such as ``seed_N.train.json``: the command and
the digests of what it read. What a system that trains nothing writes is called
``seed_N.txt``. Where a task scores several splits or directions, the names of what is
about one of them go on with that: ``seed_N.test.de-en.txt``. A step is done if its record
says so for the command and the files of today, and if what it wrote is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, final

from warmup_plugin.data.directions import choose_direction
from warmup_plugin.data.test_sets import make_file_name
from warmup_plugin.data.text_lines import read_lines
from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.systems import RunTexts, read_run_texts
from warmup_plugin.files import write_output
from warmup_plugin.late_imports import import_fairseq2
from warmup_plugin.parsing import parse_json, read_json
from warmup_plugin.runs.outputs import details_file, translation_file
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import flatten_config
from warmup_plugin.suite.grid import (
    Grid,
    SplitSpec,
    SystemRef,
    SystemSpec,
    TaskSpec,
    find_like,
    format_setting,
)

OUT_REMEDY: Final = "give an `out` that you may write to"
"""What to do if a file of a suite cannot be written."""


class NotReady(Exception):
    """Says why there is no command for a step now, as the end of a sentence."""


@final
@dataclass(frozen=True)
class TrainingTime:
    """Holds how long a run has trained: its steps, with loading and checkpoints."""

    num_steps: int

    seconds: float
    """Without starts, validations, and steps that were lost when the run broke."""

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.num_steps


@final
@dataclass(frozen=True)
class Run:
    """Names a run of a suite, or the outputs of a system that trains none."""

    task: TaskSpec

    system: SystemSpec

    seed: int

    path: Path

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.system.name}/{self.seed}"

    @property
    def is_trained(self) -> bool:
        return self.system.borrows is None

    @property
    def metrics(self) -> Path:
        return self.path / "metrics" / "train.jsonl"

    def list_outputs(self) -> list[Outputs]:
        """Lists what is scored of it, all directions of a split together."""
        return [
            Outputs(self, split, direction)
            for split in self.task.splits
            for direction in self.task.directions
        ]


@final
@dataclass(frozen=True)
class Outputs:
    """Names what a run makes of a split in one direction."""

    run: Run

    split: SplitSpec

    direction: str | None
    """As the task gives it."""

    @property
    def label(self) -> str:
        """What tells them from other outputs of the run; empty if there are none."""
        task = self.run.task

        parts = [make_file_name(self.split.name)] if len(task.splits) > 1 else []

        if len(task.directions) > 1:
            parts.append(str(self.direction))

        return ".".join(parts)

    @property
    def name(self) -> str:
        return f"{self.run.name} {self.label}".rstrip()

    def name_file(self, ending: str) -> Path:
        """Names a file beside the run."""
        parts = [self.run.path.name, self.label, ending]

        return self.run.path.with_name(".".join(part for part in parts if part))

    @property
    def system_path(self) -> Path:
        """What `evaluate` and `compare` are given: the run, or else the outputs."""
        return self.run.path if self.run.is_trained else self.translations

    @property
    def translations(self) -> Path:
        """Of a run with several directions, only known when it has begun."""
        run = self.run

        if not run.is_trained:
            # `generate` writes JSON lines beside the text, `translate` one of both.
            return self.name_file("jsonl" if run.system.cascade is not None else "txt")

        direction = _find_direction(run, self.direction)

        return translation_file(
            run.path, self.split.name, direction, run.task.checkpoint
        )

    @property
    def scores(self) -> Path:
        return self.name_file("scores.json")

    @property
    def split_args(self) -> list[str]:
        """What tells commands about a run which split is meant."""
        args = ["--split", self.split.name]

        return args if self.split.data is None else [*args, "--data", self.split.data]

    @property
    def direction_args(self) -> list[str]:
        return [] if self.direction is None else ["--direction", self.direction]


# Of an output: itself, its details, and what there is of them until they are complete.
_OUTPUT_ENDINGS: Final = ("", ".jsonl", ".partial", ".jsonl.partial", ".state")


@final
@dataclass(frozen=True, eq=False)
class Step:
    """Describes a command of a suite."""

    key: str
    """Such as `train en-de/warmup/1`."""

    files: Path
    """The path of its log and its record, without their endings."""

    make_command: Callable[[bool], list[str]]
    """Returns what stands behind ``python -m warmup_plugin``; if called with ``True``,
    as far as it is known before other steps are done. Raises ``NotReady``."""

    list_inputs: Callable[[], Sequence[Path]] = lambda: ()
    """Lists what it reads of other steps."""

    write_inputs: Callable[[], None] = lambda: None
    """Writes what no other step does, when it begins."""

    outputs: Sequence[Path] = ()
    """What it would refuse to write again for another command or other inputs."""

    is_complete: Callable[[], bool] = lambda: True
    """Tells whether what it writes is there."""

    needs: Sequence[Step] = ()
    """What must be done before it."""

    after: Sequence[Step] = ()
    """What must have ended before it, well or badly."""

    retrains: Run | None = None
    """The run that it trains, which must not go on from other inputs."""

    @property
    def log_file(self) -> Path:
        return self.files.with_name(f"{self.files.name}.log")

    @property
    def record_file(self) -> Path:
        return self.files.with_name(f"{self.files.name}.json")

    def preview(self) -> list[str]:
        """Returns the command, as far as it is known already."""
        try:
            return self.make_command(False)
        except (NotReady, WarmupError):
            return self.make_command(True)

    def is_done(self) -> bool:
        """Tells whether it and all it needs is done, as the grid says it today."""
        if not all(step.is_done() for step in self.needs):
            return False

        record = self._load_record()

        if not record.get("done") or record.get("inputs") != self._digest_inputs():
            return False

        try:
            command = self.make_command(False)
        except (NotReady, WarmupError):
            return False

        return record.get("command") == command and self.is_complete()

    def begin(self) -> list[str]:
        """
        Records that the step begins.

        :returns: The command.

        :raises NotReady: There is nothing to run.
        :raises WarmupError: It must not be run.
        """
        command = self.make_command(False)

        self.write_inputs()

        inputs = self._digest_inputs()

        run, record = self.retrains, self._load_record()

        # `train` would find nothing to do, or go on from a model that is gone.
        if run is not None and record and record.get("inputs") != inputs:
            if RunDir(run.path).has_begun():
                raise WarmupError(
                    f"{run.path} was started from a run that has been trained anew "
                    f"since; delete it, so that it is trained anew as well."
                )

        # What broke goes on.
        if (record.get("command"), record.get("inputs")) != (command, inputs):
            self._remove_outputs()

        self._write_record(command, inputs, None)

        return command

    def _remove_outputs(self) -> None:
        for file in self.outputs:
            for ending in _OUTPUT_ENDINGS:
                file.with_name(f"{file.name}{ending}").unlink(missing_ok=True)

    def end(self, command: Sequence[str], seconds: float) -> None:
        """
        Records that the step has ended well.

        :raises WarmupError: What it should have written is not there.
        """
        if not self.is_complete():
            raise WarmupError(
                "The command ended well but without what it should write; see its log."
            )

        self._write_record(command, self._digest_inputs(), seconds)

    def _load_record(self) -> dict[str, Any]:
        record = read_json(self.record_file)

        return record if isinstance(record, dict) else {}

    def _write_record(
        self,
        command: Sequence[str],
        inputs: Mapping[str, str],
        seconds: float | None,
    ) -> None:
        record = {
            "command": list(command),
            "inputs": inputs,
            "done": seconds is not None,
            "seconds": seconds,
        }

        text = json.dumps(record, indent=2, ensure_ascii=False)

        write_output(self.record_file, f"{text}\n", OUT_REMEDY)

    def _digest_inputs(self) -> dict[str, str]:
        return {str(path): _digest(path) for path in self.list_inputs()}


@final
@dataclass
class Plan:
    """Holds the steps of a suite, in the order in which they are run."""

    runs: list[Run] = field(default_factory=list)

    steps: list[Step] = field(default_factory=list)

    prepare: list[Step] = field(default_factory=list)

    train: dict[str, Step] = field(default_factory=dict)
    """By the name of the run, if it is trained."""

    generate: dict[str, Step] = field(default_factory=dict)
    """By the name of the outputs, if they are scored, as the next one."""

    evaluate: dict[str, Step] = field(default_factory=dict)

    compare: dict[str, Step] = field(default_factory=dict)
    """By the name of the outputs of the baseline."""

    def list_steps(self, run: Run) -> list[Step]:
        """Lists the last steps of a run: what else there is of it, they need."""
        names = [outputs.name for outputs in run.list_outputs()]

        steps = [self.train[run.name]] if run.name in self.train else []

        for by_name in (self.generate, self.evaluate):
            steps += [by_name[name] for name in names if name in by_name]

        return steps

    def list_comparisons(self, run: Run) -> list[Step]:
        """Lists the comparisons that a run is part of."""
        return [
            self.compare[outputs.name]
            for other in self.runs
            if (other.task.name, other.seed) == (run.task.name, run.seed)
            for outputs in other.list_outputs()
            if outputs.name in self.compare
        ]

    def compare_file(self, baseline: Outputs) -> Path:
        files = self.compare[baseline.name].files

        return files.with_name(f"{files.name}.result.json")

    def select(self, patterns: Sequence[str]) -> list[Step]:
        """
        Selects the steps of some runs, and the training that these need.

        :param patterns: Of the form ``TASK/SYSTEM/SEED`` with wildcards; what is left
            out at the end matches all.

        :raises WarmupError: A pattern matches no run.
        """
        if not patterns:
            return list(self.steps)

        selected: set[str] = set()

        for pattern in patterns:
            runs = [run for run in self.runs if _matches(run, pattern)]

            if not runs:
                raise WarmupError(
                    f"`--only {pattern}` matches no run; the runs are named "
                    f"TASK/SYSTEM/SEED, such as {self.runs[0].name}."
                )

            for run in runs:
                for step in self.list_steps(run):
                    selected |= _with_needs(step)

                selected |= {step.key for step in self.list_comparisons(run)}

        return [step for step in self.steps if step.key in selected]


def make_plan(grid: Grid) -> Plan:
    """Lays out all steps: by seed, so that there is something to look at early."""
    plan = Plan()

    prepared = {task.name: _make_preparation(grid, task) for task in grid.tasks}

    for task in grid.tasks:
        plan.prepare += prepared[task.name]

    plan.steps += plan.prepare

    for seed in grid.seeds:
        for task in grid.tasks:
            scored: dict[str, Run] = {}

            for system in grid.list_systems(task):
                # Trained with the first seed, before those that start from it.
                if system.seed is not None and seed != grid.seeds[0]:
                    continue

                run = make_run(grid, task, system, seed)

                plan.runs.append(run)

                if run.is_trained:
                    _add_training(plan, grid, run, prepared[task.name])

                if system.is_scored:
                    _add_scoring(plan, grid, run)

                    scored[system.name] = run

            if len(scored) < 2:
                continue

            for baseline in grid.baselines:
                if baseline in scored:
                    runs = [scored[baseline]]

                    runs += [run for run in scored.values() if run is not runs[0]]

                    for outputs in zip(*(run.list_outputs() for run in runs)):
                        _add_comparison(plan, grid, outputs)

    return plan


def make_run(grid: Grid, task: TaskSpec, system: SystemSpec, seed: int) -> Run:
    if system.seed is not None:
        seed = system.seed

    path = grid.out / task.name / system.name / f"seed_{seed}"

    return Run(task, system, seed, path)


def _find_run(grid: Grid, run: Run, ref: SystemRef) -> Run:
    """Finds the run of the same seed that one refers to."""
    task = grid.task(ref.find_task(run.task.name))

    return make_run(grid, task, grid.system(ref.system), run.seed)


def _make_preparation(grid: Grid, task: TaskSpec) -> list[Step]:
    steps: list[Step] = []

    for idx, command in enumerate(task.prepare):
        step = Step(
            f"{command[0]} {task.name}",
            grid.out / task.name / f"prepare_{idx + 1}",
            partial(_repeat, command),
            needs=steps[-1:],
        )

        steps.append(step)

    return steps


def _repeat(command: Sequence[str], planning: bool) -> list[str]:
    return list(command)


def find_like_run(grid: Grid, run: Run) -> Run:
    """Finds the run of the same task and seed whose data a run's outputs are for."""
    if run.is_trained:
        return run

    if run.system.decode is not None:
        return _find_run(grid, run, run.system.decode)

    system = find_like(grid, run.task, run.system)

    # The grid has been checked.
    assert system is not None

    return make_run(grid, run.task, system, run.seed)


def read_outputs_texts(grid: Grid, outputs: Outputs) -> RunTexts:
    """Reads what outputs are translations of."""
    run = find_like_run(grid, outputs.run)

    data = outputs.split.data

    return read_run_texts(
        run.path,
        outputs.split.name,
        None if data is None else Path(data),
        outputs.direction,
    )


def _add_training(plan: Plan, grid: Grid, run: Run, prepared: Sequence[Step]) -> None:
    others = {ref: _find_run(grid, run, ref) for ref in run.system.needs}

    init_from = run.system.init_from

    # What is written while it trains is of this training alone, and small.
    inputs = [] if init_from is None else [others[init_from].metrics]

    step = plan.train[run.name] = Step(
        f"train {run.name}",
        run.path.with_name(f"{run.path.name}.train"),
        partial(_make_train_command, grid, run, others),
        list_inputs=lambda: inputs,
        is_complete=partial(is_finished, run.path),
        needs=[*prepared[-1:], *(plan.train[other.name] for other in others.values())],
        retrains=run,
    )

    plan.steps.append(step)


def _add_scoring(plan: Plan, grid: Grid, run: Run) -> None:
    for outputs in run.list_outputs():
        split_args = [*outputs.split_args, *outputs.direction_args]

        steps = _make_translation(plan, grid, outputs)

        generate = plan.generate[outputs.name] = steps[-1]

        if run.is_trained:
            what = [str(run.path), *split_args, "--checkpoint", run.task.checkpoint]
        else:
            like = find_like_run(grid, run)

            what = [str(like.path), *split_args]

            what += ["--hypotheses", str(outputs.translations)]

        command = ["evaluate", *what, *run.task.metric_args]

        command += ["--json", str(outputs.scores)]

        evaluate = plan.evaluate[outputs.name] = Step(
            f"evaluate {outputs.name}",
            outputs.name_file("evaluate"),
            partial(_repeat, command),
            list_inputs=partial(_list_translations, [outputs]),
            is_complete=outputs.scores.is_file,
            needs=[generate],
        )

        plan.steps += [*steps, evaluate]


def _make_translation(plan: Plan, grid: Grid, outputs: Outputs) -> list[Step]:
    """Makes the steps that write outputs."""
    run, system = outputs.run, outputs.run.system

    if system.cascade is not None:
        return _make_cascade(plan, grid, outputs)

    source = run if system.decode is None else _find_run(grid, run, system.decode)

    members = [_find_run(grid, run, ref) for ref in system.ensemble]

    command = ["generate", str(source.path), *system.options, *outputs.split_args]

    if members:
        command += ["--ensemble", *(str(member.path) for member in members)]

    command += [
        *outputs.direction_args,
        "--checkpoint",
        run.task.checkpoint,
        "--no-rich",
    ]

    step = Step(
        f"generate {outputs.name}",
        outputs.name_file("generate"),
        partial(_repeat, command),
        is_complete=partial(_is_translated, outputs, source),
        needs=[plan.train[other.name] for other in (source, *members)],
    )

    if source is not run:
        # Such a file belongs to no run that would know whether it is of today.
        file = outputs.translations

        step = replace(
            step,
            make_command=partial(_repeat, [*command, "--output", str(file)]),
            list_inputs=partial(
                _list_files, [other.metrics for other in (source, *members)]
            ),
            outputs=[file],
        )

    return [step]


def _make_cascade(plan: Plan, grid: Grid, outputs: Outputs) -> list[Step]:
    """Makes the steps that translate by way of other languages."""
    run = outputs.run

    # The grid has been checked.
    assert run.system.cascade is not None

    source = _find_run(grid, run, run.system.cascade)

    steps: list[Step] = []

    directions = run.system.directions

    sources_file = file = outputs.name_file("sources.jsonl")

    for idx, direction in enumerate(directions):
        input_file = file

        file = outputs.name_file(f"{direction}.jsonl")

        if idx == len(directions) - 1:
            file = outputs.translations

        command = ["translate", str(source.path), str(input_file), *run.system.options]

        command += ["--checkpoint", source.task.checkpoint, "--direction", direction]

        # JSON lines keep the line feeds inside texts.
        command += ["--jsonl", "--json-fields", "output" if idx > 0 else "source"]

        step = Step(
            f"translate {outputs.name} {direction}",
            outputs.name_file(f"translate_{idx + 1}"),
            partial(_repeat, [*command, "--no-rich", "--output", str(file)]),
            list_inputs=partial(_list_files, [source.metrics, input_file]),
            outputs=[file],
            is_complete=partial(_is_current, file, source),
            needs=steps[-1:],
        )

        if idx == 0:
            like = find_like_run(grid, run)

            step = replace(
                step,
                write_inputs=partial(_write_sources, grid, outputs, sources_file),
                needs=[plan.train[other.name] for other in (source, like)],
            )

        steps.append(step)

    return steps


def _list_files(files: Sequence[Path]) -> Sequence[Path]:
    return files


def _list_translations(outputs: Sequence[Outputs]) -> Sequence[Path]:
    # Some of their names are known late.
    return [entry.translations for entry in outputs]


def _write_sources(grid: Grid, outputs: Outputs, file: Path) -> None:
    """
    Writes what outputs are translations of, as JSON lines.

    :raises WarmupError: It cannot be read or written.
    """
    texts = read_outputs_texts(grid, outputs)

    lines = [json.dumps({"source": source}) for source in texts.sources]

    write_output(file, "".join(f"{line}\n" for line in lines), OUT_REMEDY)


def _make_train_command(
    grid: Grid, run: Run, others: Mapping[SystemRef, Run], planning: bool
) -> list[str]:
    system, settings = run.system, grid.settings(run.task, run.system)

    config = {"common.seed": run.seed, **settings.config}

    if system.init_from is not None:
        config["init_from"] = str(others[system.init_from].path)

    if settings.steps is not None:
        config["regime.num_steps"] = settings.steps

    # Before the steps of the task, which are for all systems.
    if system.equal_time_with is not None and system.step_time_of is not None:
        like, other = others[system.step_time_of], others[system.equal_time_with]

        if planning:
            config["regime.num_steps"] = (
                f"<time of {other.name} / time of a step of {like.name}>"
            )
        else:
            config["regime.num_steps"] = _compute_num_steps(other, like)

    file_args: list[str] = []

    for file in settings.config_files:
        file_args += ["--config-file", file]

    pairs = [format_setting(key, value) for key, value in config.items()]

    # The folder comes before `--config`, which takes all that follows.
    return ["train", str(run.path), *file_args, "--no-rich", "--config", *pairs]


def _compute_num_steps(other: Run, like: Run) -> int:
    """Returns how many steps like those of one run fit in the time of another."""
    seconds = measure_training(other.path).seconds

    return max(round(seconds / measure_training(like.path).seconds_per_step), 1)


def _add_comparison(plan: Plan, grid: Grid, ordered: Sequence[Outputs]) -> None:
    """:param ordered: Of all systems, the baseline first."""
    first = ordered[0]

    task, seed, baseline = first.run.task, first.run.seed, first.run.system.name

    name = ".".join(part for part in (f"seed_{seed}", first.label, baseline) if part)

    # No system can have this name.
    files = grid.out / task.name / "_compare" / name

    # Folders of earlier versions are done with the commands that stand there.
    args = [*first.split_args, "--checkpoint", task.checkpoint, *first.direction_args]

    def make_command(planning: bool) -> list[str]:
        there = [o for o in ordered if planning or plan.generate[o.name].is_done()]

        if first not in there:
            raise NotReady(f"{first.name} is not translated")

        if len(there) == 1:
            raise NotReady(f"nothing but {first.name} is translated")

        # The references are those of its data.
        if not any(outputs.run.is_trained for outputs in there):
            raise NotReady("no run that was trained is translated")

        return [
            *("compare", *(str(outputs.system_path) for outputs in there), *args),
            *(*task.metric_args, "--json", f"{files}.result.json"),
        ]

    step = Step(
        f"compare {task.name}/*/{seed} {first.label}".rstrip() + f" with {baseline}",
        files,
        make_command,
        list_inputs=partial(_list_translations, ordered),
        is_complete=Path(f"{files}.result.json").is_file,
        after=[plan.generate[outputs.name] for outputs in ordered],
    )

    plan.compare[first.name] = step

    plan.steps.append(step)


def is_finished(path: Path) -> bool:
    """Tells whether a run has trained all its steps, or has stopped early."""
    run_dir = RunDir(path)

    if not run_dir.run_file.is_file():
        return False

    mtime = run_dir.run_file.stat().st_mtime_ns

    config = _load_flat_config(run_dir.path, mtime)

    num_steps, patience, every = (
        config.get("regime.num_steps"),
        config.get("validation.patience"),
        config.get("regime.validate_every_n_steps"),
    )

    if num_steps in run_dir.checkpoint_steps():
        return True

    if not isinstance(patience, int) or not isinstance(every, int):
        return False

    return run_dir.is_early_stopped(patience, every)


@lru_cache(maxsize=None)
def _load_config(path: Path, mtime: int) -> dict[str, object]:
    """Reads the config of a run; once, since reading YAML is slow."""
    # fairseq2 takes seconds; not for `--help`.
    import_fairseq2()

    from warmup_plugin.recipes.checks import read_run_config

    return read_run_config(RunDir(path))


@lru_cache(maxsize=None)
def _load_flat_config(path: Path, mtime: int) -> dict[str, object]:
    return flatten_config(_load_config(path, mtime))


def _find_direction(run: Run, direction: str | None) -> str | None:
    """Returns the direction that names outputs of a run, if it has begun."""
    run_dir = RunDir(run.path)

    try:
        mtime = run_dir.run_file.stat().st_mtime_ns

        return choose_direction(_load_config(run_dir.path, mtime), direction)
    # Its commands say what is wrong.
    except (OSError, LookupError, WarmupError):
        return None


def _is_translated(outputs: Outputs, source: Run) -> bool:
    """:param source: The run whose model has translated."""
    file = outputs.translations

    return details_file(file).is_file() and _is_current(file, source)


def _is_current(file: Path, source: Run) -> bool:
    # Else `evaluate` would take it for that of another model.
    return RunDir(source.path).has_made(file, source.task.checkpoint)


def measure_training(path: Path) -> TrainingTime:
    """
    Measures how long a run has trained, from what it has written of itself.

    fairseq2's `Lapse Time` of a record is the time since the last one, validations left
    out. What a broken run did after its last checkpoint, it did again later and wrote
    down again; the later record counts.

    :raises WarmupError: The run has written nothing.
    """
    file = path / "metrics" / "train.jsonl"

    by_step: dict[int, dict[str, Any]] = {}

    for line in read_lines(file):
        try:
            record = parse_json(line)

            float(record["Lapse Time"])

            by_step[int(record["Step"])] = record
        # A run that is killed may leave half a line.
        except (ArithmeticError, ValueError, LookupError, TypeError):
            continue

    seconds, num_timed, last_step = 0.0, 0, 0

    for step_nr in sorted(by_step):
        record = by_step[step_nr]

        num_steps = min(step_nr - last_step, _count_batches(record))

        last_step = step_nr

        if num_steps > 0:
            seconds += float(record["Lapse Time"])

            num_timed += num_steps

    if num_timed == 0 or seconds <= 0.0:
        raise WarmupError(
            f"{file} holds no step with its time; train {path} with "
            "`regime.publish_metrics_every_n_steps`."
        )

    # Where a run was resumed between two records, some of its steps are in none.
    num_steps = max(last_step, *RunDir(path).checkpoint_steps(), 0)

    return TrainingTime(num_steps, seconds / num_timed * num_steps)


def _count_batches(record: Mapping[str, Any]) -> int:
    """Returns the number of steps in a record; more than all if it does not say."""
    num_elements = record.get("Number of Elements")

    # Rounded down.
    per_batch = record.get("Elements per Batch")

    if not num_elements or not per_batch:
        return _MANY

    return round(float(num_elements) / float(per_batch))


_MANY: Final = 2**62


def _with_needs(step: Step) -> set[str]:
    return {step.key}.union(*(_with_needs(need) for need in step.needs))


def _matches(run: Run, pattern: str) -> bool:
    parts = pattern.split("/")

    names = [run.task.name, run.system.name, str(run.seed)]

    if len(parts) > len(names):
        return False

    return all(fnmatchcase(name, part) for name, part in zip(names, parts))


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "none"
