# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tests.warm_python import get_warm_python
from warmup_plugin.data.synthetic import write_synthetic_pair
from warmup_plugin.data.train_tokenizer import train_tokenizer

ROOT: Final = Path(__file__).resolve().parent.parent

# The parts of an option that are no Python names: `a__b` stands for `a.b`.
Options = dict[str, object]

SHORT_OUTPUTS: Final[Options] = {
    "generation__max_len_a": 0.0,
    "generation__max_len_b": 8,
}
"""Further options: what has learned nothing ends nowhere."""


def write_tiny_text(folder: Path, *, num_train: int = 60) -> Path:
    """Writes a synthetic pair whose splits take no time."""
    write_synthetic_pair(folder, num_train=num_train, num_valid=6, num_test=5)

    return folder


def write_tiny_tokenizer(file: Path, text_folder: Path) -> Path:
    """Trains a tokenizer of 120 tokens."""
    inputs = [text_folder / "train.src", text_folder / "train.tgt"]

    train_tokenizer(inputs, file, vocab_size=120)

    return file


def tiny_options(
    text_folder: Path, tokenizer: Path | None, **options: object
) -> Options:
    """
    Returns the settings of a run of a few steps.

    :param options: Further ones, with ``__`` for a dot; ``None`` removes one.
    """
    defaults: Options = {
        "model.arch": "transformer_test",
        "dataset.path": text_folder,
        "dataset.source_lang": "src",
        "dataset.target_lang": "tgt",
        "dataset.max_num_tokens": 400,
        "tokenizer.path": tokenizer,
        "criterion.name": "sft",
        "lr_scheduler.config.num_warmup_steps": 10,
        "regime.num_steps": 2,
        "regime.validate_every_n_steps": 2,
        "regime.checkpoint_every_n_steps": 2,
        "regime.publish_metrics_every_n_steps": 1,
        "warmup.num_warmups": 2,
        "warmup.max_warmup_len": 3,
    }

    for name, value in options.items():
        defaults[name.replace("__", ".")] = value

    return {name: value for name, value in defaults.items() if value is not None}


def to_args(out: Path, options: Options, *further: object) -> list[str]:
    """Returns the arguments of ``recipes.train``."""
    pairs = [f"{name}={value}" for name, value in options.items()]

    return [str(out), "--no-rich", *map(str, further), "--config", *pairs]


def take_snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Returns the modification time and the content of every file."""
    return {
        str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def load_weights(run_dir: Path, step: int) -> dict[str, Tensor]:
    """Loads the tensors of a checkpoint, of all its shards."""
    folder = run_dir / "checkpoints" / f"step_{step}" / "model"

    weights: dict[str, Any] = {}

    for file in sorted(folder.rglob("*.pt")):
        shard = torch.load(file, map_location="cpu", weights_only=True)

        weights.update({f"{file.name}:{name}": shard[name] for name in shard})

    assert weights, folder

    return weights


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()

    for name in a:
        assert torch.equal(a[name], b[name]), name


def command_environment(**variables: str) -> dict[str, str]:
    """Returns the environment of a command that starts in a process of its own."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables}

    # Set by fairseq2 in this process if it has run a recipe, for the files of that.
    for name in ("TORCH_CPP_LOG_LEVEL", "NCCL_DEBUG", "NCCL_DEBUG_FILE"):
        env.pop(name, None)

    return env


def python_command(
    *args: object, is_warm: bool = True, env: dict[str, str] | None = None
) -> Sequence[str]:
    """
    Returns the command line of a program in Python, in a process of its own.

    :param is_warm: ``False`` where imports count, or what SIGKILL leaves.
    :param env: That of the process, if it is not :func:`command_environment`.
    """
    python = sys.executable

    if is_warm:
        python = get_warm_python(command_environment() if env is None else env)

    return [python, *map(str, args)]
