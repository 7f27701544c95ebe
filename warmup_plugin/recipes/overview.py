# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a training command says of itself before the first step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import device
from torch.nn import Module

from warmup_plugin.criteria.mrt_config import MrtConfig

if TYPE_CHECKING:
    from warmup_plugin.recipes.train_config import TrainConfig


def describe_training(
    config: TrainConfig,
    out: Path,
    model: Module,
    *,
    device: device,
    num_processes: int,
    num_batches: int,
    smooths_loss: bool,
) -> list[str]:
    """
    Describes model, criterion, sizes and the place of the logs, one line each.

    :param num_batches: The number of batches of a process in an epoch.
    :param smooths_loss: As of :attr:`Criterion.smooths_loss`.
    """
    return [
        _describe_model(config, model, device, num_processes),
        _describe_criterion(config, smooths_loss),
        _describe_steps(config, num_processes, num_batches),
        f"Logs: {out / 'logs' / 'rank_0.log'} (with config, environment and modules) and {out / 'metrics'} (all figures).",
    ]


def _describe_model(
    config: TrainConfig, model: Module, device: device, num_processes: int
) -> str:
    section = config.model

    name = section.name or " ".join(p for p in (section.family, section.arch) if p)

    if config.init_from is not None:
        name += f" from {config.init_from} ({config.init_checkpoint})"
    elif section.path is not None:
        name += f" from {section.path}"

    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]

    num = sum(size for size, _ in sizes)

    num_trained = sum(size for size, is_trained in sizes if is_trained)

    trained = "" if num_trained == num else f", {num_trained:,} of them trained"

    dtype = str(section.dtype).removeprefix("torch.")

    precision = config.trainer.mixed_precision

    if precision.mode != "off":
        dtype += f" with mixed precision in {str(precision.dtype).removeprefix('torch.')}"  # fmt: skip

    processes = "1 process" if num_processes == 1 else f"{num_processes} processes"

    where = device.type

    if device.type == "cpu":
        where += f", {torch.get_num_threads()} thread(s) each"

    return (
        f"Model: {name}; {num:,} parameters{trained}; {dtype}; {processes} on {where}."
    )


def _describe_criterion(config: TrainConfig, smooths_loss: bool) -> str:
    text = f"Criterion: {config.criterion.name}"

    if config.criterion.name == "warmup":
        warmup = config.warmup

        text += f" with K = {warmup.num_warmups} warmups a source of at most {warmup.max_warmup_len} tokens, objective {warmup.objective.name}, sampler {warmup.sampler.name}"

    smoothing = config.criterion.label_smoothing

    mrt = config.criterion.config

    if isinstance(mrt, MrtConfig):
        return f"{text} with {mrt.num_samples} samples a source, scored by {mrt.metric.name}, estimator {mrt.estimator}."

    if smoothing > 0.0:
        includes = "does not include"

        if smooths_loss:
            includes = "includes"

            if config.criterion.name == "warmup":
                includes += " for the pairs of plain directions"

        text += f"; label smoothing {smoothing:g}, which the loss shown of training {includes}"

    return f"{text}."


def _describe_steps(config: TrainConfig, num_processes: int, num_batches: int) -> str:
    regime = config.regime

    num_accumulate = config.trainer.grad_accumulation.num_batches

    batches = num_processes * num_accumulate

    size = f"at most {config.dataset.max_num_tokens:,} tokens a side"

    if batches > 1:
        size = f"{batches} batches of {size}"

    steps = "steps without end"

    if regime.num_steps is not None:
        num_epochs = regime.num_steps * num_accumulate / num_batches

        steps = f"{regime.num_steps:,} steps ({num_epochs:.3g} epochs)"

    optimizer = config.optimizer.name

    lr = getattr(config.optimizer.config, "lr", None)

    if isinstance(lr, float):
        optimizer += f" with learning rate {lr:g}"

    parts = [
        f"Training: {steps} of {size}",
        f"{optimizer}, scheduler {config.lr_scheduler.name}",
        f"figures every {regime.publish_metrics_every_n_steps} steps",
    ]

    if regime.validate_every_n_steps is not None:
        parts[-1] += f", validation every {regime.validate_every_n_steps}"

        if regime.score_metric is not None:
            parts.append(f"best checkpoint by {regime.score_metric}")

    return f"{'; '.join(parts)}."
