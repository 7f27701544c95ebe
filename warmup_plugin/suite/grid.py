# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a suite runs: tasks × systems × seeds, as one YAML file says it."""

from __future__ import annotations

import json
import os
import re
import shlex
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, NoReturn, final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from typing_extensions import override

from warmup_plugin.data.directions import split_direction
from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.arguments import (
    add_metric_arguments,
    read_metric_arguments,
)
from warmup_plugin.metrics.base import DEFAULT_METRICS
from warmup_plugin.metrics.registry import METRICS, MetricOptions
from warmup_plugin.parsing import read_yaml

# They become the names of folders, and parts of `--only`.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

# Neither fairseq2's own `${env:NAME}` nor the `{source}` of a prompt.
_VARIABLE: Final = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)\}")

# What the suite itself sets in the config of a run.
_OWN_KEYS: Final = {
    "common.seed": "`seeds`",
    "regime.num_steps": "`steps`",
}

# The settings of a task that are options of `evaluate` and `compare`.
_METRIC_KEYS: Final = (
    "target_lang",
    "labels",
    "bleu_tokenize",
    "comet_model",
    "cometkiwi_model",
    "metricx_model",
    "comet_gpus",
    "bertscore_model",
    "bertscore_layers",
)


@final
@dataclass(frozen=True)
class Settings:
    """Holds what `train` is told."""

    config_files: Sequence[str]
    """Files or presets, of which later ones go before earlier ones."""

    config: Mapping[str, object]
    """Keys, with dots, and values of ``--config``."""

    steps: int | None
    """``None`` for those of the config."""

    def override(self, other: Settings) -> Settings:
        return Settings(
            other.config_files or self.config_files,
            {**self.config, **other.config},
            self.steps if other.steps is None else other.steps,
        )


@final
@dataclass(frozen=True)
class SplitSpec:
    """Describes a split that is translated and scored."""

    name: str

    data: str | None
    """The folder that it is in; ``None`` for that of the run."""


@final
@dataclass(frozen=True)
class TaskSpec:
    """Describes a data set, how it is trained on and what is scored."""

    name: str

    title: str

    prepare: Sequence[Sequence[str]]
    """Commands behind ``python -m warmup_plugin`` that are run once, first."""

    settings: Settings

    splits: Sequence[SplitSpec]

    checkpoint: str

    directions: Sequence[str | None]
    """Those that are scored of runs with several; ``None`` alone for that of the run."""

    x: float | None
    """Where it stands on the axis of the figure."""

    metric_args: Sequence[str]
    """The options of `evaluate` and `compare` that choose metrics."""

    metrics: Sequence[str]

    metric_options: MetricOptions


@final
@dataclass(frozen=True)
class SystemRef:
    """Names a system of the same seed, of another task if that is named too."""

    system: str

    task: str | None = None

    def __str__(self) -> str:
        return self.system if self.task is None else f"{self.task}/{self.system}"

    def find_task(self, task: str) -> str:
        """:param task: The task of the system that refers to it."""
        return task if self.task is None else self.task


@final
@dataclass(frozen=True)
class SystemSpec:
    """Describes one way to train, by how it differs from the task's."""

    name: str

    title: str

    tasks: Sequence[str]
    """The tasks that it is part of."""

    is_scored: bool
    """If ``False``, it is only what others start from."""

    seed: int | None
    """If given, it is trained once, with this seed, for all seeds of those that start
    from it."""

    settings: Settings

    per_task: Mapping[str, Settings]

    init_from: SystemRef | None
    """The system from whose model this one starts."""

    equal_time_with: SystemRef | None
    """The system for as long as which this one is trained."""

    step_time_of: SystemRef | None
    """The system whose step takes as long as one of this."""

    decode: SystemRef | None
    """The system whose model writes with other options; then this one trains none."""

    ensemble: Sequence[SystemRef]
    """Further systems whose models write with that of ``decode``."""

    cascade: SystemRef | None
    """The system whose model translates by way of other languages."""

    directions: Sequence[str]
    """Those of a cascade, one after the other."""

    options: Sequence[str]
    """Those of `generate` or, for a cascade, of `translate`."""

    @property
    def borrows(self) -> SystemRef | None:
        """The system whose model it uses as it is; ``None`` if it trains one."""
        return self.decode or self.cascade

    @property
    def needs(self) -> list[SystemRef]:
        """The systems that must be trained first."""
        refs = (
            self.init_from,
            self.equal_time_with,
            self.step_time_of,
            self.decode,
            *self.ensemble,
            self.cascade,
        )

        return list(dict.fromkeys(ref for ref in refs if ref is not None))


@final
@dataclass(frozen=True)
class FigureSpec:
    """Describes a figure of the tasks that have an ``x``."""

    metric: str
    """The key of a score."""

    x_title: str
    """What ``x`` is."""

    gain_over: str | None
    """The system from which differences are drawn; ``None`` for scores."""


@final
@dataclass(frozen=True)
class Grid:
    """Describes a suite."""

    name: str

    out: Path

    seeds: Sequence[int]

    baselines: Sequence[str]
    """The systems against which the others are tested."""

    tasks: Sequence[TaskSpec]

    systems: Sequence[SystemSpec]

    figure: FigureSpec | None

    def system(self, name: str) -> SystemSpec:
        return next(system for system in self.systems if system.name == name)

    def task(self, name: str) -> TaskSpec:
        return next(task for task in self.tasks if task.name == name)

    def list_systems(self, task: TaskSpec) -> list[SystemSpec]:
        """Lists the systems of a task."""
        return [system for system in self.systems if task.name in system.tasks]

    def settings(self, task: TaskSpec, system: SystemSpec) -> Settings:
        """Returns what `train` is told, the most specific setting last."""
        settings = task.settings.override(system.settings)

        return settings.override(system.per_task.get(task.name, _NOTHING))


_NOTHING: Final = Settings([], {}, None)


def load_grid(file: Path) -> Grid:
    """
    Loads a grid.

    :raises WarmupError: It cannot be read, or says something that cannot be.
    """
    try:
        content = read_yaml(file)
    except FileNotFoundError:
        raise WarmupError(
            f"{file} does not exist; give the YAML file of a suite."
        ) from None
    except (OSError, ValueError) as ex:
        reason = " ".join(str(ex).split())

        raise WarmupError(
            f"{file} cannot be read as YAML ({reason}); correct it."
        ) from None

    try:
        return _parse_grid(content)
    except _GridError as ex:
        raise WarmupError(f"{file}: {ex}") from None


class _GridError(Exception):
    """Says in one sentence what is wrong, without the file."""


@final
class _Section:
    """Takes the fields of a mapping one by one and knows which are left."""

    def __init__(self, content: object, where: str) -> None:
        """:param where: The path of the mapping, with a dot behind; or nothing."""
        if not isinstance(content, dict):
            name = f"`{where[:-1]}`" if where else "the file"

            raise _GridError(f"{name} must be a mapping; write `key: value` lines.")

        self._content: dict[object, Any] = dict(content)
        self._where = where
        self._known: list[str] = []

    def take(self, name: str) -> Any:
        """Returns a field, ``None`` if it is missing or empty."""
        self._known.append(name)

        return self._content.pop(name, None)

    def path(self, name: str) -> str:
        return f"{self._where}{name}"

    def take_text(self, name: str) -> str | None:
        value = self.take(name)

        if value is not None and not (isinstance(value, str) and value.strip()):
            raise _GridError(
                f"`{self.path(name)}` must be a text, but is {value!r}; correct it."
            )

        return value

    def require_text(self, name: str) -> str:
        value = self.take_text(name)

        if value is None:
            raise _GridError(f"`{self.path(name)}` is missing; add it.")

        return value

    def require_name(self) -> str:
        value = self.require_text("name")

        if not _NAME.fullmatch(value):
            raise _GridError(
                f"`{self.path('name')}` is `{value}`, but it names folders; use "
                "letters, digits, `.`, `_`, `+` and `-` only."
            )

        return value

    def take_number(self, name: str, least: int) -> int | None:
        value = self.take(name)

        if value is None:
            return None

        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise _GridError(
                f"`{self.path(name)}` must be a whole number of at least {least}, but "
                f"is {value!r}; correct it."
            )

        return value

    def take_flag(self, name: str, default: bool) -> bool:
        value = self.take(name)

        if value is not None and not isinstance(value, bool):
            raise _GridError(
                f"`{self.path(name)}` must be `true` or `false`, but is {value!r}; "
                "correct it."
            )

        return default if value is None else value

    def take_words(self, name: str) -> list[str]:
        """Returns a part of a command line, in which numbers need no quotes."""
        values = self.take_list(name)

        for value in values:
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                raise _GridError(
                    f"`{self.path(name)}` must hold texts and numbers, but holds "
                    f"{value!r}; write it in quotes or correct it."
                )

        return [str(value) for value in values]

    def take_list(self, name: str) -> list[Any]:
        value = self.take(name)

        if value is None:
            return []

        if not isinstance(value, list):
            raise _GridError(
                f"`{self.path(name)}` must be a list, but is {value!r}; correct it."
            )

        return value

    def take_texts(self, name: str) -> list[str]:
        values = self.take_list(name)

        for value in values:
            if not isinstance(value, str) or not value:
                raise _GridError(
                    f"`{self.path(name)}` must hold texts, but holds {value!r}; write "
                    "it in quotes or correct it."
                )

        return values

    def take_text_or_texts(self, name: str) -> list[str]:
        """Returns a list of texts, which holds one where only that is given."""
        if isinstance(self._content.get(name), list):
            return self.take_texts(name)

        text = self.take_text(name)

        return [] if text is None else [text]

    def take_sections(self, name: str) -> list[_Section]:
        values = self.take_list(name)

        if not values:
            raise _GridError(f"`{self.path(name)}` is missing; add at least one.")

        return [
            _Section(value, f"{self.path(name)}[{idx}].")
            for idx, value in enumerate(values)
        ]

    def take_mapping(self, name: str) -> dict[str, Any]:
        value = self.take(name)

        if value is None:
            return {}

        if not isinstance(value, dict):
            raise _GridError(f"`{self.path(name)}` must be a mapping; correct it.")

        for key in value:
            if not isinstance(key, str):
                raise _GridError(
                    f"`{self.path(name)}` has the key {key!r}; write it in quotes."
                )

        return value

    def finish(self) -> None:
        """:raises _GridError: A field is left that nobody knows."""
        for key in self._content:
            raise _GridError(
                f"`{self.path(str(key))}` is not known; use some of "
                f"{', '.join(f'`{name}`' for name in self._known)}."
            )


def _parse_grid(content: object) -> Grid:
    top = _Section(content, "")

    name = top.require_name()

    out = str(Path(_expand(top.require_text("out"), {})).expanduser())

    # All other texts may name it.
    variables = {"OUT": out}

    seeds = top.take_list("seeds")

    baseline = top.take("baseline")

    task_sections = top.take_sections("tasks")

    system_sections = top.take_sections("systems")

    figure_content = top.take("figure")

    top.finish()

    _check_seeds(seeds)

    tasks = [_parse_task(section, variables) for section in task_sections]

    _check_distinct("tasks", [task.name for task in tasks])

    systems: list[SystemSpec] = []

    for section in system_sections:
        systems.append(_parse_system(section, variables, tasks, systems))

    _check_distinct("systems", [system.name for system in systems])

    # Two rows of the table must not look alike.
    _check_distinct("systems", [system.title for system in systems], field="title")

    names = [system.name for system in systems]

    baselines = baseline if isinstance(baseline, list) else [baseline]

    if baseline is None or not baselines:
        raise _GridError(
            "`baseline` is missing; name the system, or a list of systems, that the "
            f"others are tested against, of {', '.join(names)}."
        )

    for value in baselines:
        _check_system("baseline", value, names)

        if not systems[names.index(value)].is_scored:
            raise _GridError(
                f"`baseline` is {value}, which is not scored; name another system."
            )

    _check_distinct("baseline", baselines)

    figure = _parse_figure(figure_content, tasks, systems)

    grid = Grid(name, Path(out), seeds, baselines, tasks, systems, figure)

    for idx, system in enumerate(systems):
        _check_needs(grid, system, f"systems[{idx}].")

        _check_equal_time(grid, system, f"systems[{idx}].")

        _check_directions(grid, system)

    return grid


def _parse_task(section: _Section, variables: Mapping[str, str]) -> TaskSpec:
    name = section.require_name()

    title = section.take_text("title") or name

    prepare = section.take_texts("prepare")

    settings = _parse_settings(section, variables)

    splits = _parse_splits(section, variables)

    checkpoint = section.take("checkpoint")

    directions = section.take_text_or_texts("direction")

    for direction in directions:
        _check_direction(section.path("direction"), direction)

    _check_distinct(section.path("direction"), directions)

    metrics = section.take_texts("metrics") or list(DEFAULT_METRICS)

    metric_args = ["--metrics", ",".join(metrics)]

    for key in _METRIC_KEYS:
        if key == "labels":
            labels = section.take_texts(key)

            if any("," in label for label in labels):
                raise _GridError(
                    f"`{section.path(key)}` holds a label with a comma, which "
                    "`evaluate` cannot be given; use labels without."
                )

            value = ",".join(labels) or None
        else:
            value = section.take(key)

        if value is not None:
            text = _expand(str(value), variables)

            metric_args += [f"--{key.replace('_', '-')}", text]

    x = _take_x(section)

    section.finish()

    known_metrics, options = _read_metric_args(metric_args, section.path("metrics"))

    return TaskSpec(
        name,
        title,
        [_parse_command(command, variables, section) for command in prepare],
        settings,
        splits,
        "best" if checkpoint is None else str(checkpoint),
        directions or [None],
        x,
        metric_args,
        known_metrics,
        options,
    )


def _parse_splits(section: _Section, variables: Mapping[str, str]) -> list[SplitSpec]:
    path = section.path("split")

    value = section.take("split")

    splits = []

    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, dict):
            split = _Section(entry, f"{path}.")

            name, data = split.require_text("name"), split.take_text("data")

            split.finish()

            splits.append(
                SplitSpec(name, None if data is None else _expand(data, variables))
            )
        elif isinstance(entry, str) and entry.strip():
            splits.append(SplitSpec(entry, None))
        elif entry is not None:
            raise _GridError(
                f"`{path}` must hold names of splits, such as `test` or `{{name: test, "
                f"data: FOLDER}}`, but holds {entry!r}; correct it."
            )

    if not splits:
        raise _GridError(f"`{path}` is missing; add it.")

    # The outputs of a run are called like their splits, wherever these are.
    _check_distinct(path, [split.name for split in splits])

    return splits


def _take_x(section: _Section) -> float | None:
    value = section.take("x")

    if value is None:
        return None

    # The axis is logarithmic.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise _GridError(
            f"`{section.path('x')}` must be a number greater than 0, but is {value!r}; "
            "correct it."
        )

    return float(value)


def _parse_figure(
    content: object, tasks: Sequence[TaskSpec], systems: Sequence[SystemSpec]
) -> FigureSpec | None:
    xs = [task.x for task in tasks if task.x is not None]

    if content is None:
        if xs:
            raise _GridError(
                "`x` of a task is of no use without `figure`; add that, such as "
                "`figure: {x: pairs, metric: bleu}`, or leave it out."
            )

        return None

    section = _Section(content, "figure.")

    x_title = section.require_text("x")

    metric = section.require_text("metric")

    gain_over = section.take_text("gain_over")

    section.finish()

    _check_distinct("tasks", xs, field="number `x`")

    if len(xs) < 2:
        raise _GridError(
            "`figure` needs tasks with different numbers `x`; give them, such as the "
            "number of their pairs."
        )

    keys = [
        key
        for task in tasks
        if task.x is not None
        for name in task.metrics
        for key in METRICS[name].names
    ]

    if metric not in keys:
        raise _GridError(
            f"`figure.metric` is `{metric}`, which no task with an `x` is scored by; "
            f"use one of {', '.join(dict.fromkeys(keys))}."
        )

    if gain_over is not None:
        names = [system.name for system in systems if system.is_scored]

        _check_system("figure.gain_over", gain_over, names)

    return FigureSpec(metric, x_title, gain_over)


def _parse_command(
    command: str, variables: Mapping[str, str], section: _Section
) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as ex:
        raise _GridError(
            f"`{section.path('prepare')}` holds `{command}`, which is no command "
            f"({ex}); correct it."
        ) from None

    if not words:
        raise _GridError(
            f"`{section.path('prepare')}` holds an empty command; correct it."
        )

    # Only now, since a folder may have spaces.
    return [_expand(word, variables) for word in words]


def _parse_system(
    section: _Section,
    variables: Mapping[str, str],
    tasks: Sequence[TaskSpec],
    earlier: Sequence[SystemSpec],
) -> SystemSpec:
    name = section.require_name()

    title = section.take_text("title") or name

    settings = _parse_settings(section, variables)

    task_names = _parse_task_names(section, tasks)

    is_scored = section.take_flag("score", True)

    seed = _parse_seed(section, is_scored)

    def parse(key: str, value: str) -> SystemRef:
        return _parse_reference(section.path(key), value, tasks, earlier)

    refs = {
        key: None if (value := section.take_text(key)) is None else parse(key, value)
        for key in (
            *("init_from", "equal_time_with", "step_time_of"),
            *("decode", "cascade"),
        )
    }

    ensemble = [
        parse("ensemble", value) for value in section.take_text_or_texts("ensemble")
    ]

    directions = section.take_texts("directions")

    options = section.take_words("options")

    per_task = {}

    for task_name, content in section.take_mapping("per_task").items():
        path = section.path(f"per_task.{task_name}")

        if task_name not in task_names:
            raise _GridError(
                f"`{path}` names no task of the system; use some of "
                f"{', '.join(task_names)}."
            )

        sub_section = _Section(content, f"{path}.")

        per_task[task_name] = _parse_settings(sub_section, variables)

        sub_section.finish()

    section.finish()

    system = SystemSpec(
        name,
        title,
        task_names,
        is_scored,
        seed,
        settings,
        per_task,
        ensemble=ensemble,
        directions=directions,
        options=options,
        **refs,
    )

    _check_borrowed(system, section)

    return system


def _parse_seed(section: _Section, is_scored: bool) -> int | None:
    seed = section.take_number("seed", 0)

    # A table compares systems seed by seed.
    if seed is not None and is_scored:
        raise _GridError(
            f"`{section.path('seed')}` is for systems that others start from, which are "
            "not scored themselves; add `score: false`."
        )

    return seed


def _parse_task_names(section: _Section, tasks: Sequence[TaskSpec]) -> list[str]:
    """Returns the tasks of a system, which it may name with wildcards."""
    names = [task.name for task in tasks]

    patterns = section.take_text_or_texts("tasks") or ["*"]

    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise _GridError(
                f"`{section.path('tasks')}` holds `{pattern}`, which matches no task; "
                f"use some of {', '.join(names)}, or wildcards."
            )

    return [n for n in names if any(fnmatchcase(n, pattern) for pattern in patterns)]


def _parse_reference(
    path: str,
    value: str,
    tasks: Sequence[TaskSpec],
    earlier: Sequence[SystemSpec],
) -> SystemRef:
    task_name, slash, name = value.rpartition("/")

    hint = "; a folder is given by `config: {init_from: DIR}`"

    if not path.endswith("init_from"):
        hint = ""

    if slash and task_name not in [task.name for task in tasks]:
        raise _GridError(
            f"`{path}` is {value!r}, which is of none of the tasks "
            f"({', '.join(task.name for task in tasks)}){hint or '; correct it'}."
        )

    _check_system(
        path,
        name,
        [system.name for system in earlier],
        which="none of the systems before it",
        hint=hint,
    )

    return SystemRef(name, task_name if slash else None)


def _check_borrowed(system: SystemSpec, section: _Section) -> None:
    """Checks what goes with a system that trains no model."""
    if system.borrows is None:
        for key in ("ensemble", "directions", "options"):
            if getattr(system, key):
                raise _GridError(
                    f"`{section.path(key)}` is of no use for a system that is trained; "
                    "leave it out, or give `decode` or `cascade`."
                )

        return

    kind = "decode" if system.cascade is None else "cascade"

    given: dict[str, object] = {
        "config_file": system.settings.config_files,
        "config": system.settings.config,
        "steps": system.settings.steps,
        "per_task": system.per_task,
        "init_from": system.init_from,
        "equal_time_with": system.equal_time_with,
        "step_time_of": system.step_time_of,
    }

    if kind == "decode":
        given["directions"] = system.directions
    else:
        given |= {"decode": system.decode, "ensemble": system.ensemble}

    for key, value in given.items():
        if value:
            raise _GridError(
                f"`{section.path(key)}` is of no use beside `{kind}`, which trains "
                "nothing; leave one of them out."
            )

    if not system.is_scored:
        raise _GridError(
            f"`{section.path('score')}` is false, but `{kind}` is there to be scored; "
            "leave one of them out."
        )

    if kind == "decode":
        if not system.options and not system.ensemble:
            raise _GridError(
                f"`{section.path('options')}` is missing; add those of `generate` by "
                "which it differs, such as `[--beam-size, 1]`, or an `ensemble`."
            )

        return

    path = section.path("directions")

    if len(system.directions) < 2:
        raise _GridError(
            f"`{path}` must be at least two, such as `[de-en, en-fr]`; add them."
        )

    pairs = [_check_direction(path, name) for name in system.directions]

    for (_, target), (source, _) in zip(pairs, pairs[1:]):
        if source != target:
            raise _GridError(
                f"`{path}` goes on from `{source}` where it has come to `{target}`; "
                "order the directions so that each begins where the last one ends."
            )


def _check_direction(path: str, name: str) -> tuple[str, str]:
    """Returns the languages of a direction."""
    try:
        return split_direction(name)
    except WarmupError:
        raise _GridError(
            f"`{path}` names `{name}`, which is no direction; write two languages with "
            "one hyphen between them, such as `en-de`."
        ) from None


def _check_needs(grid: Grid, system: SystemSpec, where: str) -> None:
    """Checks that what a system refers to is trained before it, in all its tasks."""
    order = [task.name for task in grid.tasks]

    keys = ("init_from", "equal_time_with", "step_time_of", "decode", "cascade")

    refs: list[tuple[str, SystemRef]] = [
        *((key, ref) for key in keys if (ref := getattr(system, key)) is not None),
        *(("ensemble", ref) for ref in system.ensemble),
    ]

    for key, ref in refs:
        other = grid.system(ref.system)

        if other.borrows is not None:
            raise _GridError(
                f"`{where}{key}` is `{ref}`, which trains no model; name another system."
            )

        for task_name in system.tasks:
            other_task = ref.find_task(task_name)

            if other_task not in other.tasks:
                raise _GridError(
                    f"`{where}{key}` is `{ref}`, but `{other.name}` is no system of the "
                    f"task {other_task}; name its task too, such as "
                    f"`{other.tasks[0]}/{other.name}`, or correct `tasks`."
                )

            if order.index(other_task) > order.index(task_name):
                raise _GridError(
                    f"`{where}{key}` is `{ref}`, of a task behind {task_name}; put "
                    f"{other_task} before it."
                )

    if system.cascade is None:
        return

    for task in grid.tasks:
        if task.name in system.tasks and find_like(grid, task, system) is None:
            raise _GridError(
                f"`{where}cascade` has no system before it that is trained on "
                f"{task.name}, whose test data it takes; put one there."
            )

        if task.name not in system.tasks:
            continue

        first, last = system.directions[0], system.directions[-1]

        for direction in task.directions:
            if direction is None:
                continue

            source, target = direction.split("-")

            if (source, target) != (first.split("-")[0], last.split("-")[1]):
                raise _GridError(
                    f"`{where}directions` do not lead from `{source}` to `{target}`, "
                    f"{'the' if len(task.directions) == 1 else 'a'} direction of "
                    f"{task.name}; correct them, or leave {task.name} out of its `tasks`."
                )


def find_like(grid: Grid, task: TaskSpec, system: SystemSpec) -> SystemSpec | None:
    """Finds the first system before one that is trained and scored on a task."""
    for other in grid.list_systems(task):
        if other is system:
            return None

        if other.borrows is None and other.is_scored:
            return other

    return None


def _check_directions(grid: Grid, system: SystemSpec) -> None:
    """Checks that a task says which of several directions are scored."""
    if system.borrows is not None or not system.is_scored:
        return

    for idx, task in enumerate(grid.tasks):
        names = grid.settings(task, system).config.get("dataset.directions")

        if task.name not in system.tasks or not isinstance(names, dict):
            continue

        # With one there is no choice.
        if task.directions == [None] and len(names) < 2:
            continue

        if not set(task.directions) <= names.keys():
            raise _GridError(
                f"`tasks[{idx}].direction` must be one of the directions that "
                f"`{system.name}` is trained on, or a list of them; write some of "
                f"`[{', '.join(names)}]`."
            )


def _parse_settings(section: _Section, variables: Mapping[str, str]) -> Settings:
    config_files = section.take_text_or_texts("config_file")

    config = {
        key: _expand_all(value, variables, section.path(f"config.{key}"))
        for key, value in section.take_mapping("config").items()
    }

    for key, remedy in _OWN_KEYS.items():
        if key in config:
            raise _GridError(
                f"`{section.path('config')}` sets `{key}`, which the suite sets "
                f"itself; give {remedy} instead."
            )

    return Settings(
        [_expand(file, variables) for file in config_files],
        config,
        section.take_number("steps", 1),
    )


def _check_seeds(seeds: Sequence[Any]) -> None:
    if not seeds:
        raise _GridError("`seeds` is missing; add a list such as `[1, 2, 3]`.")

    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise _GridError(
                f"`seeds` must hold whole numbers of at least 0, but holds {seed!r}; "
                "correct it."
            )

    _check_distinct("seeds", seeds)


def _check_distinct(
    path: str, values: Sequence[object], *, field: str | None = None
) -> None:
    for value in values:
        if values.count(value) > 1:
            what = "" if field is None else f" as a {field}"

            raise _GridError(f"`{path}` holds {value} twice{what}; give it once.")


def _check_system(
    path: str,
    value: object,
    names: Sequence[str],
    *,
    which: str = "none of the systems",
    hint: str = "",
) -> None:
    if value not in names:
        raise _GridError(
            f"`{path}` is {value!r}, which is {which} ({', '.join(names) or 'none'})"
            f"{hint or '; correct it'}."
        )


def _check_equal_time(grid: Grid, system: SystemSpec, where: str) -> None:
    if system.equal_time_with is None:
        if system.step_time_of is not None:
            raise _GridError(
                f"`{where}step_time_of` is of no use without `equal_time_with`; add "
                "that or leave it out."
            )

        return

    if system.step_time_of is None:
        raise _GridError(
            f"`{where}step_time_of` is missing; name the system whose steps take as "
            "long as these, from which their number is computed."
        )

    like = grid.system(system.step_time_of.system)

    if any(s.steps for s in (system.settings, *system.per_task.values())):
        raise _GridError(
            f"`{where}steps` cannot be given beside `equal_time_with`, which computes "
            "it; leave one of them out."
        )

    for task in grid.tasks:
        if task.name not in system.tasks:
            continue

        like_task = grid.task(system.step_time_of.find_task(task.name))

        keys = _find_differing_keys(
            grid.settings(task, system), grid.settings(like_task, like)
        )

        if keys:
            raise _GridError(
                f"`{where}step_time_of` is `{like.name}`, whose steps may take another "
                f"time, since `{keys[0]}` differs in {task.name}; give both the same "
                "settings, or name another system."
            )


def _find_differing_keys(a: Settings, b: Settings) -> list[str]:
    """Returns what differs, the length and rhythm of training left aside."""
    keys = [
        key
        for key in sorted(a.config.keys() | b.config.keys())
        if not key.startswith("regime.") and a.config.get(key) != b.config.get(key)
    ]

    return (["config_file"] if a.config_files != b.config_files else []) + keys


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """Replaces ``${NAME}`` by what the suite or else the environment says."""

    def replace(match: re.Match[str]) -> str:
        name = match[1]

        value = variables.get(name, os.environ.get(name))

        if value is None:
            raise _GridError(
                f"`${{{name}}}` is used, but the environment variable {name} is not "
                "set; export it."
            )

        return value

    return _VARIABLE.sub(replace, text)


def _expand_all(value: object, variables: Mapping[str, str], path: str) -> object:
    if isinstance(value, str):
        return _expand(value, variables)

    if isinstance(value, list):
        return [_expand_all(item, variables, path) for item in value]

    if isinstance(value, dict):
        return {key: _expand_all(item, variables, path) for key, item in value.items()}

    # YAML has dates as well, which no setting is.
    if value is not None and not isinstance(value, (bool, int, float)):
        raise _GridError(
            f"`{path}` is {value!r}, neither text nor number; write it in quotes."
        )

    return value


def format_setting(key: str, value: object) -> str:
    """Formats a setting for ``--config``, which reads YAML."""
    if isinstance(value, str) and not _is_plain(value):
        return f"{key}={json.dumps(value, ensure_ascii=False)}"

    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False)

    return f"{key}={value}"


def _is_plain(text: str) -> bool:
    if text != text.strip():
        return False

    try:
        return bool(YAML(typ="safe", pure=True).load(text) == text)
    except YAMLError:
        return False


class _MetricParser(ArgumentParser):
    @override
    def error(self, message: str) -> NoReturn:
        raise WarmupError(f"{message}; correct it.")


def _read_metric_args(
    args: Sequence[str], path: str
) -> tuple[list[str], MetricOptions]:
    """Reads the options as `evaluate` will, hours before it does."""
    parser = _MetricParser(add_help=False)

    add_metric_arguments(parser)

    try:
        return read_metric_arguments(parser.parse_args(args))
    except WarmupError as ex:
        raise _GridError(f"`{path}`: {ex}") from None
