# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import final

from fairseq2.datasets import Seq2SeqBatch
from fairseq2.metrics import Mean, MetricBag
from fairseq2.utils.stopwatch import Stopwatch
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.criteria.base import (
    Criterion,
    CriterionContext,
    WeighedWarmup,
    num_target_tokens,
)
from warmup_plugin.errors import WarmupError


@final
class SftCriterion(Criterion):
    """Minimises -log P(y|x) without warmup: the baseline."""

    def __init__(self, context: CriterionContext) -> None:
        self._context = context
        self._draw_time = Stopwatch(device=context.gangs.device)

    @override
    def add_metrics(self, metric_bag: MetricBag) -> None:
        pass

    @override
    def compute_loss(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, step_nr: int
    ) -> Tensor:
        context = self._context

        loss = self._forward(context.dp_model, batch, context.label_smoothing)

        update_loss(loss, batch, metric_bag)

        return loss

    @override
    def evaluate(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, shown: Sequence[int]
    ) -> list[list[WeighedWarmup]]:
        # The bare model: ranks may have different numbers of validation batches.
        loss = self._forward(self._context.model.module, batch, 0.0)

        update_loss(loss, batch, metric_bag)

        return []

    def _forward(
        self, model: Module, batch: Seq2SeqBatch, label_smoothing: float
    ) -> Tensor:
        inputs, targets = batch.as_auto_regressive()

        source_seqs, source_layout = batch.as_source_input()

        loss: Tensor = model(
            source_seqs,
            source_layout,
            *inputs.as_target_input(),
            targets=targets.seqs,
            label_smoothing=label_smoothing,
            reduction="sum",
        )

        return loss

    @property
    @override
    def max_warmup_len(self) -> int | None:
        return None

    @property
    @override
    def draw_time(self) -> Stopwatch:
        return self._draw_time


def create_sft_criterion(context: CriterionContext) -> Criterion:
    """Creates the criterion ``sft``."""
    return SftCriterion(context)


def update_loss(loss: Tensor, batch: Seq2SeqBatch, metric_bag: MetricBag) -> None:
    """
    Logs a summed loss per target token.

    :raises WarmupError: If the loss is not finite.
    """
    num_targets = num_target_tokens(batch)

    value = float(loss.detach()) / num_targets

    if not math.isfinite(value):
        raise WarmupError(
            f"The loss is {value}; training has diverged: lower `optimizer.config.lr` or set `trainer.max_grad_norm`. The checkpoints saved so far are intact."
        )

    metric_bag.get("nll_loss", Mean).update(value, weight=num_targets)
