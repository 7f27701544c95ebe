# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a suite runs: tasks × systems × seeds, as one YAML file says it."""

from __future__ import annotations

import re
import shlex
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, NoReturn, TypeAlias, final

from typing_extensions import override

from warmup_plugin.data.directions import split_direction
from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.arguments import (
    add_metric_arguments,
    read_metric_arguments,
)
from warmup_plugin.metrics.base import DEFAULT_METRICS
from warmup_plugin.metrics.registry import MetricOptions
from warmup_plugin.suite.schema import (
    ONE_OR_MORE,
    entry,
    get_key,
    read_section,
    read_text,
    read_value,
    read_word,
    refuse,
    whole_number,
)

# They become the names of folders, and parts of `--only`.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

# What the suite itself sets in the config of a run.
_OWN_KEYS: Final = {
    "common.seed": "`seeds`",
    "regime.num_steps": "`steps`",
}


def _read_name(value: object, path: str) -> str:
    name = read_text(value, path)

    if not _NAME.fullmatch(name):
        raise WarmupError(
            f"`{path}` is `{name}`, but it names folders; use letters, digits, `.`, `_`, `+` and `-` only."
        )

    return name


def _read_config(value: object, path: str) -> Mapping[str, object]:
    config: Mapping[str, object] = read_value(Mapping[str, object], value, path)

    for key, remedy in _OWN_KEYS.items():
        if key in config:
            raise WarmupError(
                f"`{path}` sets `{key}`, which the suite sets itself; give {remedy} instead."
            )

    return config


def _read_direction(value: object, path: str) -> str:
    name = read_text(value, path)

    try:
        split_direction(name)
    except WarmupError:
        raise WarmupError(
            f"`{path}` names `{name}`, which is no direction; write two languages with one hyphen between them, such as `en-de`."
        ) from None

    return name


def _read_command(value: object, path: str) -> list[str]:
    command = read_text(value, path)

    try:
        words = shlex.split(command)
    except ValueError as ex:
        raise WarmupError(
            f"`{path}` is `{command}`, which is no command ({ex}); correct it."
        ) from None

    if not words:
        raise WarmupError(f"`{path}` is an empty command; correct it.")

    return words


def _read_label(value: object, path: str) -> str:
    label = read_text(value, path)

    if "," in label:
        raise WarmupError(
            f"`{path}` is a label with a comma, which `evaluate` cannot be given; use labels without."
        )

    return label


def _read_split(value: object, path: str) -> SplitSpec:
    # One that is where the run was trained is given by its name.
    content = {"name": value} if isinstance(value, str) else value

    if not isinstance(content, dict):
        raise refuse(
            path, "the name of a split or `{name: NAME, data: FOLDER}`", content
        )

    return read_section(SplitSpec, content, path)


def _read_x(value: object, path: str) -> float:
    # The axis is logarithmic.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise refuse(path, "a number greater than 0", value)

    return float(value)


def _read_ref(value: object, path: str) -> SystemRef:
    task, slash, system = read_text(value, path).rpartition("/")

    return SystemRef(system, task if slash else None)


_Name: TypeAlias = Annotated[str, _read_name]
_Word: TypeAlias = Annotated[str, read_word]
_Direction: TypeAlias = Annotated[str, _read_direction]


@dataclass(frozen=True, kw_only=True)
class _Titled:
    name: _Name

    given_title: str | None = entry("title", default=None)

    @property
    def title(self) -> str:
        """What the table calls it."""
        return self.given_title or self.name


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Holds what `train` is told."""

    config_files: Annotated[Sequence[str], ONE_OR_MORE] = entry(
        "config_file", default=()
    )
    """Files or presets, of which later ones go before earlier ones."""

    config: Annotated[Mapping[str, object], _read_config] = field(default_factory=dict)
    """Keys, with dots, and values of ``--config``."""

    steps: Annotated[int, whole_number(1)] | None = None
    """``None`` for those of the config."""

    def override(self, other: Settings) -> Settings:
        return Settings(
            config_files=other.config_files or self.config_files,
            config={**self.config, **other.config},
            steps=self.steps if other.steps is None else other.steps,
        )


@dataclass(frozen=True, kw_only=True)
class _MetricSpec:
    """Chooses metrics, by the options that `evaluate` and `compare` call the same."""

    metric_names: Sequence[str] = entry("metrics", default=DEFAULT_METRICS)

    target_lang: _Word | None = None

    labels: Sequence[Annotated[str, _read_label]] = ()

    bleu_tokenize: _Word | None = None

    comet_model: _Word | None = None

    cometkiwi_model: _Word | None = None

    metricx_model: _Word | None = None

    comet_gpus: _Word | None = None

    bertscore_model: _Word | None = None

    bertscore_layers: _Word | None = None

    @property
    def metric_args(self) -> list[str]:
        """The options."""
        args = []

        for description in fields(_MetricSpec):
            value = getattr(self, description.name)

            # An empty text is for the option to refuse.
            if value or value == "":
                option = get_key(description).replace("_", "-")

                text = value if isinstance(value, str) else ",".join(value)

                args += [f"--{option}", text]

        return args

    @property
    def metrics(self) -> Sequence[str]:
        return self._read_options[0]

    @property
    def metric_options(self) -> MetricOptions:
        return self._read_options[1]

    @cached_property
    def _read_options(self) -> tuple[list[str], MetricOptions]:
        """Reads the options as `evaluate` will, hours before it does."""
        parser = _MetricParser(add_help=False)

        add_metric_arguments(parser)

        return read_metric_arguments(parser.parse_args(self.metric_args))


class _MetricParser(ArgumentParser):
    @override
    def error(self, message: str) -> NoReturn:
        raise WarmupError(f"{message}; correct it.")


@final
@dataclass(frozen=True)
class SplitSpec:
    """Describes a split that is translated and scored."""

    name: str

    data: str | None = None
    """The folder that it is in; ``None`` for that of the run."""


@final
@dataclass(frozen=True, kw_only=True)
class TaskSpec(_MetricSpec, Settings, _Titled):
    """Describes a data set, how it is trained on and what is scored."""

    prepare: Sequence[Annotated[Sequence[str], _read_command]] = ()
    """Commands behind ``python -m warmup_plugin`` that are run once, first."""

    splits: Annotated[Sequence[Annotated[SplitSpec, _read_split]], ONE_OR_MORE] = entry(
        "split"
    )

    checkpoint: _Word = "best"

    given_directions: Annotated[Sequence[_Direction], ONE_OR_MORE] = entry(
        "direction", default=()
    )

    x: Annotated[float, _read_x] | None = None
    """Where it stands on the axis of the figure."""

    @property
    def directions(self) -> Sequence[str | None]:
        """Those that are scored of runs with several; ``None`` alone for that of the
        run."""
        return self.given_directions or [None]


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


_Ref: TypeAlias = Annotated[SystemRef, _read_ref]


@final
@dataclass(frozen=True, kw_only=True)
class SystemSpec(Settings, _Titled):
    """Describes one way to train, by how it differs from the task's."""

    tasks: Annotated[Sequence[str], ONE_OR_MORE] = ("*",)
    """The tasks that it is part of, with wildcards."""

    is_scored: bool = entry("score", default=True)
    """If ``False``, it is only what others start from."""

    seed: Annotated[int, whole_number(0)] | None = None
    """If given, it is trained once, with this seed, for all seeds of those that start
    from it."""

    per_task: Mapping[str, Settings] = field(default_factory=dict)

    init_from: _Ref | None = None
    """The system from whose model this one starts."""

    equal_time_with: _Ref | None = None
    """The system for as long as which this one is trained."""

    step_time_of: _Ref | None = None
    """The system whose step takes as long as one of this."""

    decode: _Ref | None = None
    """The system whose model writes with other options; then this one trains none."""

    ensemble: Annotated[Sequence[_Ref], ONE_OR_MORE] = ()
    """Further systems whose models write with that of ``decode``."""

    cascade: _Ref | None = None
    """The system whose model translates by way of other languages."""

    directions: Sequence[_Direction] = ()
    """Those of a cascade, one after the other."""

    options: Sequence[_Word] = ()
    """Those of `generate` or, for a cascade, of `translate`."""

    def is_of(self, task: TaskSpec) -> bool:
        """Tells whether it is part of a task."""
        return any(fnmatchcase(task.name, pattern) for pattern in self.tasks)

    @property
    def borrows(self) -> SystemRef | None:
        """The system whose model it uses as it is; ``None`` if it trains one."""
        return self.decode or self.cascade

    @property
    def refs(self) -> list[tuple[str, SystemRef]]:
        """The systems that must be trained first, each with the field that names it."""
        keys = ("init_from", "equal_time_with", "step_time_of", "decode")

        refs = [(key, getattr(self, key)) for key in keys]

        refs += [("ensemble", ref) for ref in self.ensemble]

        refs.append(("cascade", self.cascade))

        return [(key, ref) for key, ref in refs if ref is not None]

    @property
    def needs(self) -> list[SystemRef]:
        """The systems that must be trained first, each once."""
        return list(dict.fromkeys(ref for _, ref in self.refs))


@final
@dataclass(frozen=True)
class FigureSpec:
    """Describes a figure of the tasks that have an ``x``."""

    x_title: str = entry("x")
    """What ``x`` is."""

    metric: str = entry()
    """The key of a score."""

    gain_over: str | None = None
    """The system from which differences are drawn; ``None`` for scores."""


def _read_path(value: object, path: str) -> Path:
    return Path(read_text(value, path))


@final
@dataclass(frozen=True, kw_only=True)
class Grid:
    """Describes a suite."""

    name: _Name

    out: Annotated[Path, _read_path]

    seeds: Sequence[Annotated[int, whole_number(0)]] = entry(
        remedy="add a list such as `[1, 2, 3]`"
    )

    baselines: Annotated[Sequence[str], ONE_OR_MORE] = entry(
        "baseline",
        remedy="name the system, or a list of systems, that the others are tested against",
    )
    """The systems against which the others are tested."""

    tasks: Sequence[TaskSpec] = entry(remedy="add at least one")

    systems: Sequence[SystemSpec] = entry(remedy="add at least one")

    figure: FigureSpec | None = None

    def system(self, name: str) -> SystemSpec:
        return next(system for system in self.systems if system.name == name)

    def task(self, name: str) -> TaskSpec:
        return next(task for task in self.tasks if task.name == name)

    def list_systems(self, task: TaskSpec) -> list[SystemSpec]:
        """Lists the systems of a task."""
        return [system for system in self.systems if system.is_of(task)]

    def list_tasks(self, system: SystemSpec) -> list[TaskSpec]:
        """Lists the tasks that a system is part of."""
        return [task for task in self.tasks if system.is_of(task)]

    def find_like(self, task: TaskSpec, system: SystemSpec) -> SystemSpec | None:
        """Finds the first system before one that is trained and scored on a task."""
        for other in self.list_systems(task):
            if other is system:
                return None

            if other.borrows is None and other.is_scored:
                return other

        return None

    def settings(self, task: TaskSpec, system: SystemSpec) -> Settings:
        """Returns what `train` is told, the most specific setting last."""
        settings = task.override(system)

        return settings.override(system.per_task.get(task.name, Settings()))
