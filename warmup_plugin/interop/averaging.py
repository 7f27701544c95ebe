# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import MODEL_METADATA_FILE
from warmup_plugin.interop.checkpoints import (
    load_weights,
    new_folder,
    write_weights,
)
from warmup_plugin.runs.run_dir import RunDir


@dataclass(frozen=True)
class Average:
    """Describes a run directory that holds an averaged model."""

    path: Path

    steps: list[int]
    """The checkpoints that were averaged, in ascending order."""


def average_checkpoints(
    run_dir: RunDir, *, num: int, best: bool, output: Path | None = None
) -> Average:
    """
    Averages the weights of checkpoints, and writes a run directory of their mean.

    :param num: The number of checkpoints.
    :param best: If ``True``, those with the best validation scores, else the last.
    :param output: ``None`` for ``RUN_DIR/average/best_N`` or ``last_N``.

    :raises WarmupError: If there are not as many, or the output exists.
    """
    if num < 1:
        raise WarmupError(
            f"The number of checkpoints to average must be at least 1, but is {num}."
        )

    run_dir.check_is_run()

    steps = _choose_steps(run_dir, num, best)

    if output is None:
        output = run_dir.path / "average" / f"{'best' if best else 'last'}_{num}"

    output = output.expanduser()

    with new_folder(output) as folder:
        weights = _average(run_dir, steps)

        target = RunDir(folder)

        # The mean is written as the last of them, whose validation it follows.
        write_weights(target, steps[-1], weights)

        files = [
            (run_dir.run_file, target.run_file),
            (run_dir.checkpoint_dir / MODEL_METADATA_FILE, target.checkpoint_dir),
        ]

        for file, place in files:
            shutil.copy(file, place)

        if run_dir.tokenizer_path is not None:
            target.adopt_tokenizer(run_dir.tokenizer_path)

        target.write_versions({"averaged_steps": steps})

        # Not the temporary name.
        target.write_card(name=output.name)

        folder.joinpath("average.json").write_text(
            json.dumps({"run": str(run_dir.path), "steps": steps}) + "\n",
            encoding="utf-8",
        )

    return Average(output, steps)


def _choose_steps(run_dir: RunDir, num: int, best: bool) -> list[int]:
    steps: Sequence[int]

    if best:
        scores = run_dir.scores()

        steps = sorted(scores, key=lambda step: (-scores[step], step))

        kind, key = "checkpoints with a score", "regime.keep_best_n_checkpoints"
    else:
        steps = run_dir.checkpoint_steps()[::-1]

        kind, key = "checkpoints", "regime.keep_last_n_checkpoints"

    if len(steps) < num:
        raise WarmupError(
            f"`{run_dir.path}` has {len(steps)} {kind}, but {num} are to be averaged; train with `{key}` set to {num} or more, or ask for fewer."
        )

    return sorted(steps[:num])


def _average(run_dir: RunDir, steps: Sequence[int]) -> dict[str, Tensor]:
    """Averages in fp32, with one checkpoint in memory at a time beside the sum."""
    sums: dict[str, Tensor] = {}

    dtypes: dict[str, torch.dtype] = {}

    for step in steps:
        weights = load_weights(run_dir, step)

        if not sums:
            dtypes = {name: weight.dtype for name, weight in weights.items()}

            sums = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}  # fmt: skip

        if weights.keys() != sums.keys():
            raise WarmupError(
                f"The checkpoints of the steps {steps[0]} and {step} in `{run_dir.path}` hold different weights; average others."
            )

        for name, weight in weights.items():
            sums[name] += weight.float()

    return {name: (total / len(steps)).to(dtypes[name]) for name, total in sums.items()}
