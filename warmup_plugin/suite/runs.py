# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The runs of a suite, their files, and how long each has trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, final

from warmup_plugin.data.directions import choose_direction
from warmup_plugin.data.test_sets import make_file_name
from warmup_plugin.data.text_lines import read_lines
from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.systems import RunOptions, RunTexts, read_run_texts
from warmup_plugin.late_imports import import_fairseq2
from warmup_plugin.parsing import parse_json
from warmup_plugin.runs.outputs import translation_file
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import flatten_config
from warmup_plugin.suite.grid import Grid, SplitSpec, SystemRef, SystemSpec, TaskSpec


@final
@dataclass(frozen=True, eq=False)
class Run:
    """Names a run of a suite, or the outputs of a system that trains none."""

    grid: Grid

    task: TaskSpec

    system: SystemSpec

    grid_seed: int
    """The seed of the grid; that of the run may be one of its system."""

    @property
    def seed(self) -> int:
        return self.grid_seed if self.system.seed is None else self.system.seed

    @property
    def path(self) -> Path:
        return self.grid.out / self.task.name / self.system.name / f"seed_{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.system.name}/{self.seed}"

    @property
    def is_trained(self) -> bool:
        return self.system.borrows is None

    @property
    def metrics(self) -> Path:
        return self.path / "metrics" / "train.jsonl"

    def find(self, ref: SystemRef) -> Run:
        """Finds the run of the same seed that this one refers to."""
        task = self.grid.task(ref.find_task(self.task.name))

        return Run(self.grid, task, self.grid.system(ref.system), self.seed)

    def find_like(self) -> Run:
        """Finds the run of the same task and seed whose data its outputs are for."""
        if self.is_trained:
            return self

        if self.system.decode is not None:
            return self.find(self.system.decode)

        system = self.grid.find_like(self.task, self.system)

        # The grid has been checked.
        assert system is not None

        return Run(self.grid, self.task, system, self.seed)

    def has_made(self, file: Path) -> bool:
        """Tells whether its model, as it is now, has made a file."""
        return RunDir(self.path).has_made(file, self.task.checkpoint)

    def list_outputs(self) -> list[Outputs]:
        """Lists what is scored of it, all directions of a split together."""
        return [
            Outputs(self, split, direction)
            for split in self.task.splits
            for direction in self.task.directions
        ]


@final
@dataclass(frozen=True, eq=False)
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

        has_splits, has_directions = len(task.splits) > 1, len(task.directions) > 1

        return _join_names(
            # The split may be in a folder.
            make_file_name(self.split.name).replace("/", "-") if has_splits else "",
            str(self.direction) if has_directions else "",
        )

    @property
    def name(self) -> str:
        return f"{self.run.name} {self.label}".rstrip()

    def name_file(self, ending: str) -> Path:
        """Names a file beside the run."""
        path = self.run.path

        return path.with_name(_join_names(path.name, self.label, ending))

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
        """What `evaluate` writes."""
        return self.name_file("scores.json")

    @property
    def comparison(self) -> Path:
        """What `compare` writes of a baseline's."""
        run = self.run

        name = _join_names(f"seed_{run.seed}", self.label, run.system.name)

        # No system can have this name.
        return run.grid.out / run.task.name / "_compare" / f"{name}.result.json"

    @property
    def options(self) -> RunOptions:
        """What tells which outputs of a run they are."""
        data, task = self.split.data, self.run.task

        return RunOptions(
            split=self.split.name,
            checkpoint=task.checkpoint,
            data=None if data is None else Path(data),
            direction=self.direction,
            target_lang=task.metric_options.target_lang,
        )

    @property
    def split_args(self) -> list[str]:
        """What tells commands about a run which split is meant."""
        args = ["--split", self.split.name]

        return args if self.split.data is None else [*args, "--data", self.split.data]

    @property
    def direction_args(self) -> list[str]:
        return [] if self.direction is None else ["--direction", self.direction]

    def read_texts(self) -> RunTexts:
        """Reads what they are translations of."""
        return read_run_texts(self.run.find_like().path, self.options)


def _join_names(*names: str) -> str:
    """Joins the parts of the name of a file, some of which may be empty."""
    return ".".join(name for name in names if name)


@lru_cache(maxsize=None)
def _load_config(path: Path, mtime: int) -> dict[str, object]:
    """Reads the config of a run; once, since reading YAML is slow."""
    # fairseq2 takes seconds; not for `--help`.
    import_fairseq2()

    from warmup_plugin.recipes.checks import read_run_config

    return read_run_config(RunDir(path))


def _read_config(path: Path) -> dict[str, object]:
    run_dir = RunDir(path)

    return _load_config(run_dir.path, run_dir.run_file.stat().st_mtime_ns)


def _find_direction(run: Run, direction: str | None) -> str | None:
    """Returns the direction that names outputs of a run, if it has begun."""
    try:
        return choose_direction(_read_config(run.path), direction)
    # Its commands say what is wrong.
    except (OSError, LookupError, WarmupError):
        return None


def is_finished(path: Path) -> bool:
    """Tells whether a run has trained all its steps, or has stopped early."""
    run_dir = RunDir(path)

    if not run_dir.run_file.is_file():
        return False

    config = flatten_config(_read_config(path))

    if config.get("regime.num_steps") in run_dir.checkpoint_steps():
        return True

    patience = config.get("validation.patience")

    every = config.get("regime.validate_every_n_steps")

    if not isinstance(patience, int) or not isinstance(every, int):
        return False

    return run_dir.is_early_stopped(patience, every)


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


def measure_training(path: Path) -> TrainingTime:
    """
    Measures how long a run has trained, from what it has written of itself.

    fairseq2's `Lapse Time` of a record is the time since the last one, validations left
    out. What a broken run did after its last checkpoint, it did again later and wrote
    down again; the later record counts.

    :raises WarmupError: The run has written nothing.
    """
    file = path / "metrics" / "train.jsonl"

    by_step: dict[int, Mapping[str, Any]] = {}

    for line in read_lines(file):
        try:
            record = parse_json(line)

            float(record["Lapse Time"])

            by_step[int(record["Step"])] = record
        # A run that is killed may leave half a line.
        except (ArithmeticError, ValueError, LookupError, TypeError):
            continue

    seconds, num_timed, last_step = 0.0, 0, 0

    for step_nr, record in sorted(by_step.items()):
        num_steps = min(step_nr - last_step, _count_batches(record))

        last_step = step_nr

        if num_steps > 0:
            seconds += float(record["Lapse Time"])

            num_timed += num_steps

    if num_timed == 0 or seconds <= 0.0:
        raise WarmupError(
            f"{file} holds no step with its time; train {path} with `regime.publish_metrics_every_n_steps`."
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
        return 2**62

    return round(float(num_elements) / float(per_batch))
