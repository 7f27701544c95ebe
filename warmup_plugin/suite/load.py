# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Loads a grid, and checks what its fields say of each other."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any, Final

from warmup_plugin.data.test_sets import is_test_set
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.parsing import read_yaml
from warmup_plugin.presets import find_preset
from warmup_plugin.suite.grid import Grid, Settings, SystemSpec, TaskSpec
from warmup_plugin.suite.schema import get_key, read_section

# Neither fairseq2's own `${env:NAME}` nor the `{source}` of a prompt.
_VARIABLE: Final = re.compile(r"\$\{([A-Z_][A-Z0-9_]*)\}")

_TRAINING_FIELDS: Final = (
    *("config_files", "config", "steps", "per_task", "is_scored"),
    *("init_from", "equal_time_with", "step_time_of"),
)

# The fields that are of no use beside others, and to a system that has none of these.
_USELESS: Final = {
    "cascade": (*_TRAINING_FIELDS, "decode", "ensemble"),
    "decode": (*_TRAINING_FIELDS, "directions"),
    None: ("ensemble", "directions", "options"),
}

_OPTIONS_OF_TASK: Final = (
    *("--split", "--data", "--checkpoint", "--direction", "--output", "-o"),
)


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
        grid: Grid = read_section(Grid, content)

        out = _expand(grid.out, os.environ).expanduser()

        # All other texts may name it.
        grid = _expand(replace(grid, out=out), {**os.environ, "OUT": str(out)})

        _check_grid(grid)
    except WarmupError as ex:
        raise WarmupError(f"{file}: {ex}") from None

    return grid


def check_config_files(grid: Grid) -> None:
    """
    Checks that the files and presets of a grid are there, hours before a run needs them.

    :raises WarmupError: One is not.
    """
    settings: list[tuple[str, Settings]] = [
        *((f"tasks[{idx}]", task) for idx, task in enumerate(grid.tasks)),
        *((f"systems[{idx}]", system) for idx, system in enumerate(grid.systems)),
    ]

    for idx, system in enumerate(grid.systems):
        for task_name, part in system.per_task.items():
            settings.append((f"systems[{idx}].per_task.{task_name}", part))

    for where, part in settings:
        for file in part.config_files:
            if not Path(file).expanduser().is_file() and find_preset(file) is None:
                raise WarmupError(
                    f"`{where}.config_file` names `{file}`, which is neither a file nor a preset; correct it: `python -m recipes.train --list-presets` lists them."
                )


def check_splits(grid: Grid) -> None:
    """
    Checks that what is to be translated is in its folder, hours before a run has learned
    to translate it. A folder that is not there may still be made.

    :raises WarmupError: It is not.
    """
    for idx, task in enumerate(grid.tasks):
        own_folder = task.config.get("dataset.path")

        for split in task.splits:
            folder = split.data if split.data is not None else own_folder

            if not isinstance(folder, str) or is_test_set(split.name):
                continue

            root = Path(folder).expanduser()

            # Directions may have folders of their own.
            files = [f / split.name for f in (root, *root.glob("*/"))]

            if any(root.glob("*")) and not any(
                f.exists() or any(f.parent.glob(f"{escape(f.name)}.*")) for f in files
            ):
                raise WarmupError(
                    f"`tasks[{idx}].split` names `{split.name}`, but `{root}` has no file or folder of that name; correct it."
                )


def _expand(value: Any, variables: Mapping[str, str]) -> Any:
    """Replaces ``${NAME}`` in all texts of a value."""

    def look_up(match: re.Match[str]) -> str:
        name = match[1]

        if name not in variables:
            raise WarmupError(
                f"`${{{name}}}` is used, but the environment variable {name} is not set; export it."
            )

        return variables[name]

    if isinstance(value, str):
        return _VARIABLE.sub(look_up, value)

    if isinstance(value, Path):
        return Path(_expand(str(value), variables))

    if isinstance(value, (list, tuple)):
        return [_expand(item, variables) for item in value]

    if isinstance(value, dict):
        return {key: _expand(item, variables) for key, item in value.items()}

    if is_dataclass(value) and not isinstance(value, type):
        names = [description.name for description in fields(value)]

        return replace(
            value, **{n: _expand(getattr(value, n), variables) for n in names}
        )

    return value


def _check_grid(grid: Grid) -> None:
    _check_distinct("seeds", grid.seeds)

    _check_distinct("tasks", [task.name for task in grid.tasks])

    _check_distinct("systems", [system.name for system in grid.systems])

    # Two rows of the table must not look alike.
    _check_distinct("systems", [s.title for s in grid.systems], field="title")

    for idx, task in enumerate(grid.tasks):
        _check_task(task, f"tasks[{idx}].")

    for idx, system in enumerate(grid.systems):
        where = f"systems[{idx}]."

        _check_tasks(grid, system, where)

        _check_refs(grid, system, where)

        _check_use(system, where)

        if system.cascade is not None:
            _check_cascade(grid, system, where)
        elif system.decode is None:
            _check_equal_time(grid, system, where)

            _check_trained_directions(grid, system)

    scored = [system.name for system in grid.systems if system.is_scored]

    for name in grid.baselines:
        _check_known("baseline", name, scored, "systems that are scored")

    _check_distinct("baseline", grid.baselines)

    _check_figure(grid, scored)


def _check_distinct(
    path: str, values: Sequence[object], *, field: str | None = None
) -> None:
    for value in values:
        if values.count(value) > 1:
            what = "" if field is None else f" as a {field}"

            raise WarmupError(f"`{path}` holds {value} twice{what}; give it once.")


def _check_known(
    path: str,
    name: str,
    known: Iterable[str],
    kinds: str,
    remedy: str = "correct it",
) -> None:
    """:param kinds: What the known ones are, in the plural."""
    known = list(dict.fromkeys(known))

    if name not in known:
        raise WarmupError(
            f"`{path}` names `{name}`, which is none of the {kinds} ({', '.join(known) or 'none'}); {remedy}."
        )


def _check_task(task: TaskSpec, where: str) -> None:
    # The outputs of a run are called like their splits, wherever these are.
    _check_distinct(f"{where}split", [split.name for split in task.splits])

    _check_distinct(f"{where}direction", task.directions)

    try:
        task.metric_options
    except WarmupError as ex:
        raise WarmupError(f"`{where}metrics`: {ex}") from None


def _check_tasks(grid: Grid, system: SystemSpec, where: str) -> None:
    names = [task.name for task in grid.tasks]

    for pattern in system.tasks:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise WarmupError(
                f"`{where}tasks` holds `{pattern}`, which matches no task; use some of {', '.join(names)}, or wildcards."
            )

    own_names = [task.name for task in grid.list_tasks(system)]

    for name in system.per_task:
        _check_known(f"{where}per_task", name, own_names, "tasks of the system")


def _check_refs(grid: Grid, system: SystemSpec, where: str) -> None:
    """Checks that what a system refers to is trained before it, in all its tasks."""
    order = [task.name for task in grid.tasks]

    names = [other.name for other in grid.systems]

    for key, ref in system.refs:
        path, remedy = f"{where}{key}", "correct it"

        if key == "init_from":
            remedy = "a folder is given by `config: {init_from: DIR}`"

        if ref.task is not None:
            _check_known(path, ref.task, order, "tasks", remedy)

        earlier = names[: names.index(system.name)]

        _check_known(path, ref.system, earlier, "systems before it", remedy)

        other = grid.system(ref.system)

        if other.borrows is not None:
            raise WarmupError(
                f"`{path}` is `{ref}`, which trains no model; name another system."
            )

        # All of one seed are trained with the first of the grid.
        if other.seed is None and system.seed not in (None, grid.seeds[0]):
            raise WarmupError(
                f"`{path}` is `{ref}`, which is not trained with the seed {system.seed} before it; give `{other.name}` that `seed` too, or `{system.name}` the first of `seeds`."
            )

        for task in grid.list_tasks(system):
            other_task = grid.task(ref.find_task(task.name))

            if not other.is_of(other_task):
                first = grid.list_tasks(other)[0]

                raise WarmupError(
                    f"`{path}` is `{ref}`, but `{other.name}` is no system of the task {other_task.name}; name its task too, such as `{first.name}/{other.name}`, or correct `tasks`."
                )

            if order.index(other_task.name) > order.index(task.name):
                raise WarmupError(
                    f"`{path}` is `{ref}`, of a task behind {task.name}; put {other_task.name} before it."
                )


def _check_use(system: SystemSpec, where: str) -> None:
    """Checks that a system has nothing that is of no use to it."""
    kind = next((kind for kind in ("cascade", "decode") if getattr(system, kind)), None)

    remedy = (
        "for a system that is trained; leave it out, or give `decode` or `cascade`"
        if kind is None
        else f"beside `{kind}`, which trains nothing; leave one of them out"
    )

    # What a system has that says nothing else.
    plain = _expand(SystemSpec(name=system.name), {})

    for description in fields(SystemSpec):
        name = description.name

        if name in _USELESS[kind] and getattr(system, name) != getattr(plain, name):
            raise WarmupError(f"`{where}{get_key(description)}` is of no use {remedy}.")

    if kind == "decode" and not system.options and not system.ensemble:
        raise WarmupError(
            f"`{where}options` is missing; add those of `generate` by which it differs, such as `[--beam-size, 1]`, or an `ensemble`."
        )

    # The task's own come behind these, and would go before them.
    for option in map(str, system.options):
        if (name := option.split("=")[0]) in _OPTIONS_OF_TASK:
            raise WarmupError(
                f"`{where}options` holds `{name}`, which the suite gives itself, by what the task says; leave it out."
            )

    # A table compares systems seed by seed.
    if system.seed is not None and system.is_scored:
        raise WarmupError(
            f"`{where}seed` is for systems that others start from, which are not scored themselves; add `score: false`."
        )


def _check_equal_time(grid: Grid, system: SystemSpec, where: str) -> None:
    if (system.equal_time_with is None) != (system.step_time_of is None):
        raise WarmupError(
            f"`{where}equal_time_with` needs `step_time_of`, the system whose steps take as long as these, and that needs it; give both or neither."
        )

    if system.step_time_of is None:
        return

    if any(settings.steps for settings in (system, *system.per_task.values())):
        raise WarmupError(
            f"`{where}steps` cannot be given beside `equal_time_with`, which computes it; leave one of them out."
        )

    like = grid.system(system.step_time_of.system)

    for task in grid.list_tasks(system):
        like_task = grid.task(system.step_time_of.find_task(task.name))

        a, b = grid.settings(task, system), grid.settings(like_task, like)

        keys = [] if a.config_files == b.config_files else ["config_file"]

        # The length and rhythm of training are left aside.
        keys += [
            key
            for key in sorted(a.config.keys() | b.config.keys())
            if not key.startswith("regime.") and a.config.get(key) != b.config.get(key)
        ]

        if keys:
            raise WarmupError(
                f"`{where}step_time_of` is `{like.name}`, whose steps may take another time, since `{keys[0]}` differs in {task.name}; give both the same settings, or name another system."
            )


def _check_trained_directions(grid: Grid, system: SystemSpec) -> None:
    """Checks that a task says which of several directions are scored."""
    if not system.is_scored:
        return

    for idx, task in enumerate(grid.tasks):
        names = grid.settings(task, system).config.get("dataset.directions")

        if not system.is_of(task) or not isinstance(names, dict):
            continue

        # With one there is no choice.
        if task.directions == [None] and len(names) < 2:
            continue

        if not set(task.directions) <= names.keys():
            raise WarmupError(
                f"`tasks[{idx}].direction` must be one of the directions that `{system.name}` is trained on, or a list of them; write some of `[{', '.join(names)}]`."
            )


def _check_cascade(grid: Grid, system: SystemSpec, where: str) -> None:
    path = f"{where}directions"

    if len(system.directions) < 2:
        raise WarmupError(
            f"`{path}` must be at least two, such as `[de-en, en-fr]`; add them."
        )

    pairs = [name.split("-") for name in system.directions]

    for (_, target), (source, _) in zip(pairs, pairs[1:]):
        if source != target:
            raise WarmupError(
                f"`{path}` goes on from `{source}` where it has come to `{target}`; order the directions so that each begins where the last one ends."
            )

    for task in grid.list_tasks(system):
        if grid.find_like(task, system) is None:
            raise WarmupError(
                f"`{where}cascade` has no system before it that is trained on {task.name}, whose test data it takes; put one there."
            )

        for direction in task.directions:
            if direction in (None, f"{pairs[0][0]}-{pairs[-1][1]}"):
                continue

            source, target = str(direction).split("-")

            raise WarmupError(
                f"`{path}` do not lead from `{source}` to `{target}`, {'the' if len(task.directions) == 1 else 'a'} direction of {task.name}; correct them, or leave {task.name} out of its `tasks`."
            )


def _check_figure(grid: Grid, scored: Sequence[str]) -> None:
    tasks = [task for task in grid.tasks if task.x is not None]

    figure = grid.figure

    if figure is None:
        if tasks:
            raise WarmupError(
                "`x` of a task is of no use without `figure`; add that, such as `figure: {x: pairs, metric: bleu}`, or leave it out."
            )

        return

    _check_distinct("tasks", [task.x for task in tasks], field="number `x`")

    if len(tasks) < 2:
        raise WarmupError(
            "`figure` needs tasks with different numbers `x`; give them, such as the number of their pairs."
        )

    scores = [
        key for task in tasks for name in task.metrics for key in METRICS[name].names
    ]

    _check_known("figure.metric", figure.metric, scores, "scores of tasks with an `x`")

    if figure.gain_over is not None:
        known = "systems that are scored"

        _check_known("figure.gain_over", figure.gain_over, scored, known)
