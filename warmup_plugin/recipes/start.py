# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What happens to a training command before fairseq2 sees it."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from warmup_plugin.console import make_private_log
from warmup_plugin.data.directions import (
    get_pairs_config,
    list_directions,
    narrow_to_direction,
)
from warmup_plugin.data.split_files import list_split_files
from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_text_atomically
from warmup_plugin.recipes.checks import OPEN_ENDED_SCHEDULERS, read_run_config
from warmup_plugin.recipes.common import get_rank
from warmup_plugin.recipes.complete_config import (
    complete_config,
    complete_dataset,
    expand_tokenizer_path,
    find_tokenizer,
    get_sections,
)
from warmup_plugin.recipes.lora import find_run_base
from warmup_plugin.recipes.running import RecipeRunner, unstructure_config
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.tokenizer_files import is_same_tokenizer
from warmup_plugin.runs.yaml_files import dump_yaml, load_yaml


class NothingToRun(Exception):
    """Ends a command before fairseq2 starts, since its run has ended."""


@contextmanager
def start_run(
    runner: RecipeRunner[TrainConfig], run_dir: RunDir, config: TrainConfig
) -> Iterator[TrainConfig]:
    """
    Checks a training command against its run directory and completes its config.

    The config as the user gave it is kept in ``command.yaml``: only the same may
    resume the run. The one that is returned is complete: it names the run's own copy of
    the tokenizer, a vocabulary that fits, and for ``init_from`` the whole model. It is
    read again when the run resumes, so the places it came from may be gone by then.

    :param config: As the user gave it.

    :raises WarmupError: If the input is bad; then nothing has been written.
    :raises NothingToRun: If the run has ended.
    """
    stock = run_dir.take_stock()

    start = _plan_start(runner, run_dir, config)

    with _lock(run_dir):
        if get_rank() == 0:
            # Another command may have trained here since, and ended.
            if run_dir.take_stock() != stock:
                start = _plan_start(runner, run_dir, config)

            _write_start(run_dir, config, start)

        yield start.config


@dataclass(frozen=True)
class _Start:
    """Says how a run begins or goes on."""

    is_new: bool
    """``False`` if it goes on."""

    grown_from: int | None
    """The number of steps before, if it is to train longer."""

    config: TrainConfig
    """The complete one."""


def _plan_start(
    runner: RecipeRunner[TrainConfig], run_dir: RunDir, config: TrainConfig
) -> _Start:
    """
    Looks at the run directory and checks the config against it; writes nothing.

    :raises WarmupError: If the input is bad.
    :raises NothingToRun: If the run has ended.
    """
    # Every rank checks, or the others would wait for one that has ended.
    if not run_dir.has_begun():
        run_dir.check_is_usable()

        complete = complete_config(runner.resolver, run_dir, config)

        _check_models(complete)

        _check_data(complete)

        return _Start(True, None, complete)

    grown_from = _find_growth(run_dir, config)

    run_dir.refuse_changed_config(
        unstructure_config(config),
        unstructure_config(TrainConfig()),
        ignored=[] if grown_from is None else ["regime.num_steps"],
    )

    run_dir.check_last_checkpoint()

    _check_tokenizer(run_dir, config)

    if config.lora.rank is not None:
        find_run_base(run_dir)

    _check_early_stop(run_dir, config)

    complete = _resume_config(runner, run_dir, config)

    _check_data(complete)

    return _Start(False, grown_from, complete)


def _check_models(config: TrainConfig) -> None:
    """
    :raises WarmupError: If a model that a config names by its path is not there.
    """
    for key in ("model", "reference_model"):
        path = getattr(getattr(config, key), "path", None)

        if path is not None and not path.exists():
            raise WarmupError(
                f"`{key}.path` is `{path}`, which does not exist; correct it."
            )


def _check_data(config: TrainConfig) -> None:
    """
    :raises WarmupError: If the data of a run is not there.
    """
    sections = get_sections(config)

    for name in list_directions(sections["dataset"]):
        narrowed = narrow_to_direction(sections, name, find_data=True)

        for split in (config.dataset.train_split, config.dataset.valid_split):
            list_split_files(get_pairs_config(narrowed["dataset"]), split)


@contextmanager
def _lock(run_dir: RunDir) -> Iterator[None]:
    """Keeps a second command out of the directory while the first one trains."""
    if get_rank() != 0:
        yield

        return

    try:
        run_dir.path.mkdir(parents=True, exist_ok=True)

        fp = run_dir.lock_file.open("a")
    except OSError as ex:
        raise _make_write_error(run_dir, ex) from None

    with fp:
        try:
            fcntl.flock(fp, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WarmupError(
                f"Another command is training in `{run_dir.path}`; wait for it, stop it, or choose another output directory."
            ) from None
        except OSError:
            # A file system without locks, as some network ones are.
            pass

        yield


def _make_write_error(run_dir: RunDir, ex: OSError) -> WarmupError:
    return WarmupError(
        f"`{run_dir.path}` cannot be written ({ex.strerror}); choose an output directory that you may write to."
    )


def _write_start(run_dir: RunDir, config: TrainConfig, start: _Start) -> None:
    try:
        if start.is_new:
            # First, since it tells the files of a run from those of a user.
            write_text_atomically(
                run_dir.command_file, dump_yaml(unstructure_config(config))
            )

            tokenizer_path = find_tokenizer(config)

            if tokenizer_path is not None:
                run_dir.adopt_tokenizer(tokenizer_path)

            write_text_atomically(
                run_dir.run_file, dump_yaml(unstructure_config(start.config))
            )

        if start.grown_from is not None:
            # The old one is compared to, so that it goes last.
            for file in (run_dir.run_file, run_dir.command_file):
                content = cast("dict[str, Any]", load_yaml(file))

                content["regime"]["num_steps"] = config.regime.num_steps

                write_text_atomically(file, dump_yaml(content))

        # The folder is private, and so are the logs of the other ranks in it.
        make_private_log(run_dir.path, 0)
    except OSError as ex:
        raise _make_write_error(run_dir, ex) from None


def _find_growth(run_dir: RunDir, config: TrainConfig) -> int | None:
    """
    Returns the number of steps of a run that is to train longer, else ``None``.

    :raises WarmupError: If its learning rates would have been others all along.
    """
    if not run_dir.command_file.is_file():
        return None

    old_regime = load_yaml(run_dir.command_file).get("regime")

    old = old_regime.get("num_steps") if isinstance(old_regime, dict) else None

    new = config.regime.num_steps

    if not isinstance(old, int) or new is None or new <= old:
        return None

    scheduler = config.lr_scheduler.name

    if scheduler not in OPEN_ENDED_SCHEDULERS:
        raise WarmupError(
            f"`regime.num_steps` cannot grow from {old} to {new} with `lr_scheduler.name={scheduler}`, whose learning rates depend on it from the start; train in another output directory with `init_from={run_dir.path}` and `init_checkpoint=last`, or with `lr_scheduler.name=myle` to begin with."
        )

    return old


def _resume_config(
    runner: RecipeRunner[TrainConfig], run_dir: RunDir, command: TrainConfig
) -> TrainConfig:
    config = runner.structure(read_run_config(run_dir, complete=True))

    # The directory may have been moved since, and so may the data.
    if run_dir.tokenizer_path is not None:
        config.tokenizer.path = run_dir.tokenizer_path

    dataset = complete_dataset(command.dataset)

    dataset.prompt = config.dataset.prompt

    if dataset.directions and config.dataset.directions:
        dataset.directions = {
            name: replace(config.dataset.directions[name], path=direction.path)
            for name, direction in dataset.directions.items()
        }

    config.dataset = dataset

    config.regime.num_steps = command.regime.num_steps

    return config


def _check_tokenizer(run_dir: RunDir, config: TrainConfig) -> None:
    """Refuses to resume with another tokenizer under the same name."""
    given_path = config.tokenizer.path

    if given_path is None:
        return

    if run_dir.tokenizer_path is None:
        raise WarmupError(
            f"`{run_dir.tokenizer_file}` is missing; restore it from a copy of the run."
        )

    path = expand_tokenizer_path(given_path)

    # The run has its own copy; the original may be gone.
    if path.exists() and not is_same_tokenizer(path, run_dir.tokenizer_path):
        raise WarmupError(
            f"The tokenizer `{path}` is not the one that the run in `{run_dir.path}` was trained with; restore it or choose another output directory."
        )


def _check_early_stop(run_dir: RunDir, config: TrainConfig) -> None:
    patience = config.validation.patience

    every = config.regime.validate_every_n_steps

    if patience is None or every is None:
        return

    if run_dir.is_early_stopped(patience, every):
        if get_rank() == 0:
            print(
                f"The run in {run_dir.path} has stopped early; there is nothing to do."
            )

        raise NothingToRun()
