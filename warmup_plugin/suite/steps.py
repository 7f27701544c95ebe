# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The steps of a suite: the commands, what each needs, and which are done.

Beside a run ``OUT/TASK/SYSTEM/seed_N`` lie the logs of its steps, such as
``seed_N.train.log``, and their records, such as ``seed_N.train.json``: the command and
the digests of what it read. What a system that trains nothing writes is called
``seed_N.txt``. A step is done if its record says so for the command and
the files of today, and if what it wrote is there.
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
from warmup_plugin.data.text_pairs import read_lines
from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.systems import read_run_texts
from warmup_plugin.files import write_text_atomically
from warmup_plugin.late_imports import import_fairseq2
from warmup_plugin.parsing import parse_json
from warmup_plugin.runs.outputs import details_file, translation_file
from warmup_plugin.runs.run_dir import RunDir, flatten_config
from warmup_plugin.suite.grid import (
    Grid,
    SystemRef,
    SystemSpec,
    TaskSpec,
    find_like,
    format_setting,
)


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
    def label(self) -> Path:
        """What `evaluate` and `compare` call it: the folder, or else the outputs."""
        return self.path if self.is_trained else self.translations

    @property
    def translations(self) -> Path:
        """Of a run with several directions, only known when it has begun."""
        if not self.is_trained:
            # `generate` writes JSON lines beside the text, `translate` one of both.
            ending = "jsonl" if self.system.cascade is not None else "txt"

            return self.path.with_name(f"{self.path.name}.{ending}")

        task = self.task

        return translation_file(
            self.path, task.split, _find_direction(self), task.checkpoint
        )

    @property
    def scores(self) -> Path:
        return self.path.with_name(f"{self.path.name}.scores.json")

    @property
    def metrics(self) -> Path:
        return self.path / "metrics" / "train.jsonl"


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
        try:
            record = parse_json(self.record_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

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

        try:
            write_text_atomically(self.record_file, f"{text}\n")
        except OSError as ex:
            raise WarmupError(
                f"{self.record_file} cannot be written ({ex.strerror}); give an `out` "
                "that you may write to."
            ) from None

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
    """By the name of the run, if it is scored, as the next one."""

    evaluate: dict[str, Step] = field(default_factory=dict)

    compare: dict[tuple[str, int, str], Step] = field(default_factory=dict)
    """By the names of task and baseline, and the seed between them."""

    def list_steps(self, run: Run) -> list[Step]:
        """Lists the last steps of a run: what else there is of it, they need."""
        by_name = (self.train, self.generate, self.evaluate)

        return [steps[run.name] for steps in by_name if run.name in steps]

    def compare_file(self, task: TaskSpec, seed: int, baseline: str) -> Path:
        files = self.compare[task.name, seed, baseline].files

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

                for (task, seed, _), step in self.compare.items():
                    if (task, seed) == (run.task.name, run.seed):
                        selected.add(step.key)

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

            if len(scored) > 1:
                for baseline in grid.baselines:
                    if baseline in scored:
                        _add_comparison(
                            plan, grid, scored[baseline], list(scored.values())
                        )

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
    task, system = run.task, run.system

    split_args = ["--split", task.split]

    if task.direction is not None:
        split_args += ["--direction", task.direction]

    checkpoint_args = ["--checkpoint", task.checkpoint]

    like = find_like_run(grid, run)

    if system.decode is not None:
        generate = _make_decoding(plan, run, like, [*split_args, *checkpoint_args])
    elif system.cascade is not None:
        *first_steps, generate = _make_cascade(
            plan, run, _find_run(grid, run, system.cascade), like
        )

        plan.steps += first_steps
    else:
        generate = Step(
            f"generate {run.name}",
            run.path.with_name(f"{run.path.name}.generate"),
            partial(
                _repeat,
                ["generate", str(run.path), *split_args, *checkpoint_args]
                + ["--no-rich"],
            ),
            is_complete=partial(_is_translated, run, run),
            needs=[plan.train[run.name]],
        )

    if run.is_trained:
        what = [str(run.path), *split_args, *checkpoint_args]
    else:
        what = [str(like.path), *split_args, "--hypotheses", str(run.translations)]

    evaluate = Step(
        f"evaluate {run.name}",
        run.path.with_name(f"{run.path.name}.evaluate"),
        partial(
            _repeat, ["evaluate", *what, *task.metric_args, "--json", str(run.scores)]
        ),
        list_inputs=lambda: [run.translations],
        is_complete=run.scores.is_file,
        needs=[generate],
    )

    plan.generate[run.name] = generate
    plan.evaluate[run.name] = evaluate

    plan.steps += [generate, evaluate]


def _make_decoding(
    plan: Plan, run: Run, source: Run, split_args: Sequence[str]
) -> Step:
    """Makes the step that translates with the model of another run."""
    file = run.translations

    command = ["generate", str(source.path), *run.system.options, *split_args]

    return Step(
        f"generate {run.name}",
        run.path.with_name(f"{run.path.name}.generate"),
        partial(_repeat, [*command, "--no-rich", "--output", str(file)]),
        list_inputs=lambda: [source.metrics],
        outputs=[file],
        is_complete=partial(_is_translated, run, source),
        needs=[plan.train[source.name]],
    )


def _make_cascade(plan: Plan, run: Run, source: Run, like: Run) -> list[Step]:
    """
    Makes the steps that translate by way of other languages.

    :param source: The run whose model does.
    :param like: The run whose sources are translated.
    """
    steps: list[Step] = []

    directions = run.system.directions

    def name_file(ending: str) -> Path:
        return run.path.with_name(f"{run.path.name}.{ending}")

    sources_file = file = name_file("sources.jsonl")

    for idx, direction in enumerate(directions):
        input_file = file

        file = name_file(f"{direction}.jsonl")

        if idx == len(directions) - 1:
            file = run.translations

        command = ["translate", str(source.path), str(input_file), *run.system.options]

        command += ["--checkpoint", source.task.checkpoint, "--direction", direction]

        # JSON lines keep the line feeds inside texts.
        command += ["--jsonl", "--json-fields", "output" if idx > 0 else "source"]

        step = Step(
            f"translate {run.name} {direction}",
            name_file(f"translate_{idx + 1}"),
            partial(_repeat, [*command, "--no-rich", "--output", str(file)]),
            list_inputs=partial(_list_files, [source.metrics, input_file]),
            outputs=[file],
            is_complete=partial(_is_current, file, source),
            needs=steps[-1:],
        )

        if idx == 0:
            step = replace(
                step,
                write_inputs=partial(_write_sources, like, sources_file),
                needs=[plan.train[other.name] for other in (source, like)],
            )

        steps.append(step)

    return steps


def _list_files(files: Sequence[Path]) -> Sequence[Path]:
    return files


def _write_sources(like: Run, file: Path) -> None:
    """
    Writes what a run would translate, as JSON lines.

    :raises WarmupError: It cannot be read or written.
    """
    texts = read_run_texts(like.path, like.task.split, None, like.task.direction)

    lines = [json.dumps({"source": source}) for source in texts.sources]

    try:
        write_text_atomically(file, "".join(f"{line}\n" for line in lines))
    except OSError as ex:
        raise WarmupError(
            f"{file} cannot be written ({ex.strerror}); give an `out` that you may "
            "write to."
        ) from None


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


def _add_comparison(plan: Plan, grid: Grid, first: Run, runs: Sequence[Run]) -> None:
    task, seed, baseline = first.task, first.seed, first.system.name

    # No system can have this name.
    files = grid.out / task.name / "_compare" / f"seed_{seed}.{baseline}"

    ordered = [first, *(run for run in runs if run is not first)]

    def list_runs(planning: bool) -> list[Run]:
        if planning:
            return ordered

        return [run for run in ordered if plan.generate[run.name].is_done()]

    split_args = ["--split", task.split, "--checkpoint", task.checkpoint]

    if task.direction is not None:
        split_args += ["--direction", task.direction]

    def make_command(planning: bool) -> list[str]:
        there = list_runs(planning)

        if first not in there:
            raise NotReady(f"{first.name} is not translated")

        if len(there) == 1:
            raise NotReady(f"nothing but {first.name} is translated")

        # The references are those of its data.
        if not any(run.is_trained for run in there):
            raise NotReady("no run that was trained is translated")

        return [
            *("compare", *(str(run.label) for run in there), *split_args),
            *(*task.metric_args, "--json", f"{files}.result.json"),
        ]

    step = Step(
        f"compare {task.name}/*/{seed} with {baseline}",
        files,
        make_command,
        list_inputs=lambda: [run.translations for run in ordered],
        is_complete=Path(f"{files}.result.json").is_file,
        after=[plan.generate[run.name] for run in ordered],
    )

    plan.compare[task.name, seed, baseline] = step

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


def _find_direction(run: Run) -> str | None:
    """Returns the direction that names the outputs of a run, if it has begun."""
    run_dir = RunDir(run.path)

    try:
        mtime = run_dir.run_file.stat().st_mtime_ns

        return choose_direction(_load_config(run_dir.path, mtime), run.task.direction)
    # Its commands say what is wrong.
    except (OSError, LookupError, WarmupError):
        return None


def _is_translated(run: Run, source: Run) -> bool:
    """:param source: The run whose model has translated."""
    file = run.translations

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
