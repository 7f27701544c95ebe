# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import Gangs
from fairseq2.metrics import Mean, MetricBag, Sum
from fairseq2.metrics.common import add_seq2seq_batch_metrics
from fairseq2.recipe.trainer import TrainUnit
from fairseq2.utils.stopwatch import Stopwatch
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from typing_extensions import override

from warmup_plugin.criteria.config import WarmupSection
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.objectives import Objective
from warmup_plugin.sampling import WarmupSampler


@final
@dataclass(frozen=True)
class CriterionContext:
    """Holds what a criterion may need."""

    model: ConditionalModel
    """The bare model, for passes without gradient."""

    dp_model: Module
    """The model in its data parallel wrapper, for passes with gradient."""

    layout: DecoderLayout

    gangs: Gangs

    label_smoothing: float

    warmup: WarmupSection

    objective: Objective

    sampler: WarmupSampler

    reference: ConditionalModel | None
    """The frozen model that the warmups are held near."""

    plain_directions: frozenset[str]
    """Of several directions, those that are trained without warmup."""

    publish_every_n_steps: int | None
    """Health figures that cost a pass are measured on these steps only."""

    decode: Callable[[Sequence[int]], str] | None = None
    """Turns the tokens of an output into text, for what scores texts."""

    num_template_tokens: Mapping[str, int] = field(default_factory=dict)
    """See :class:`~warmup_plugin.WarmupGenerator`; by the names of the directions. The first
    is that of batches which name none, or others."""


@final
@dataclass(frozen=True)
class WeighedWarmup:
    """Holds a sampled warmup to be shown to people."""

    tokens: list[int]

    weight: float
    """Its share of the K candidates' likelihood."""

    warmup_log_prob: float
    """log P(c|x)."""

    target_log_prob: float
    """log P(y|c,x)."""


class Criterion(ABC):
    """Says what a training step minimises."""

    def add_metrics(self, metric_bag: MetricBag) -> None:
        """Adds the criterion's metrics, the same for training and validation;
        ``nll_loss`` is there already."""

    @abstractmethod
    def compute_loss(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, step_nr: int
    ) -> Tensor:
        """
        Computes the loss of a training batch.

        What is to be logged goes to ``metric_bag``, the loss by :func:`update_loss`.

        :returns: The sum over sources; fairseq2's trainer divides the gradients by the
            number of target tokens of all ranks. *Shape:* scalar.
        """

    @abstractmethod
    def evaluate(
        self,
        batch: Seq2SeqBatch,
        metric_bag: MetricBag,
        *,
        step_nr: int,
        shown: Sequence[int],
    ) -> list[list[WeighedWarmup]]:
        """
        Updates the metrics with a validation batch.

        :param step_nr: The number of training steps so far.
        :param shown: The sources of the batch whose warmups are to be shown.

        :returns: The warmups of each of them; nothing if the criterion draws none.
        """

    @property
    def max_warmup_len(self) -> int | None:
        """The most tokens of a warmup; ``None`` if the model writes none."""
        return None

    def get_max_warmup_len(self, step_nr: int, direction: str | None) -> int | None:
        """
        Returns the most tokens of a warmup at a step.

        :param direction: One of several; ``None`` for the only one.

        :returns: 0 if the warmup is empty, ``None`` if there is no separator either.
        """
        return self.max_warmup_len

    @property
    def smooths_loss(self) -> bool:
        """``True`` if what training reports as its loss includes label smoothing."""
        return False

    def process_metric_values(
        self, values: MutableMapping[str, object], step_time: float
    ) -> None:
        """
        Changes what is logged of training.

        :param step_time: The seconds that the steps took since it was called last.
        """


def num_target_tokens(batch: Seq2SeqBatch) -> int:
    """
    Counts the tokens to predict.

    fairseq2's ``Seq2SeqBatch.num_target_elements`` counts sources as well.
    """
    _, targets = batch.as_auto_regressive()

    num_given = sum(_list_given(batch) or ())

    return targets.num_elements - num_given


def get_given_lens(batch: Seq2SeqBatch) -> Tensor | None:
    """
    Returns the number of tokens that each target begins with, behind its prefix, which
    are read and not learned; ``None`` for none.

    They are ``example["given_lens"]`` of a batch, and of few batches. *Shape:* :math:`(N)`.
    """
    given_lens = _list_given(batch)

    if given_lens is None:
        return None

    return torch.tensor(given_lens, device=batch.target_seqs.device)


def _list_given(batch: Seq2SeqBatch) -> list[int] | None:
    # Other readers put something else there, or nothing.
    if not isinstance(batch.example, Mapping):
        return None

    given_lens: list[int] | None = batch.example.get("given_lens")

    return given_lens


def update_batch_metrics(batch: Seq2SeqBatch, metric_bag: MetricBag) -> None:
    """Counts the examples and tokens of ``batch``."""
    num_targets = num_target_tokens(batch)

    counts = {
        "num_examples": batch.num_examples,
        "num_elements": batch.num_source_elements + num_targets,
        "num_source_elements": batch.num_source_elements,
        "num_target_elements": num_targets,
    }

    for name, count in counts.items():
        metric_bag.get(name, Sum).update(count)
        metric_bag.get(f"total_{name}", Sum).update(count)

    metric_bag.get("padding", Sum).update(batch.padding)


def check_loss(value: float) -> None:
    """
    Checks what is minimised.

    :raises WarmupError: If it is not finite.
    """
    if not math.isfinite(value):
        raise WarmupError(
            f"The loss is {value}; training has diverged: lower `optimizer.config.lr` or set `trainer.max_grad_norm`. The checkpoints saved so far are intact."
        )


def update_loss(
    loss: Tensor, num_targets: int, metric_bag: MetricBag, *, part: str | None = None
) -> None:
    """
    Logs a summed loss per target token.

    :param num_targets: The number of tokens that it is the sum over.
    :param part: A metric of its own, besides ``nll_loss``, of the pairs that it is of.

    :raises WarmupError: If the loss is not finite.
    """
    value = float(loss.detach()) / num_targets

    check_loss(value)

    metric_bag.get("nll_loss", Mean).update(value, weight=num_targets)

    if part is not None:
        metric_bag.get(part, Mean).update(value, weight=num_targets)


@final
class CriterionTrainUnit(TrainUnit[Seq2SeqBatch]):
    """Trains with a criterion."""

    def __init__(
        self,
        criterion: Criterion,
        optimizer: Optimizer,
        gangs: Gangs,
        *,
        on_step: Callable[[int], None] = lambda step_nr: None,
        num_steps: int | None = None,
    ) -> None:
        """
        :param on_step: Called with its number when a step begins, on all ranks.
        :param num_steps: The step that training ends with, to tell the time left.
        """
        self._criterion = criterion
        self._on_step = on_step
        self._num_steps = num_steps
        self._step_nr = 0

        # When this process began to train, and with which step.
        self._begin: tuple[float, int] | None = None

        self._step_time = Stopwatch(device=gangs.device)

        # fairseq2 tells when a step begins, not when it ends.
        optimizer.register_step_post_hook(lambda *_: self._step_time.stop())

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        add_seq2seq_batch_metrics(metric_bag)

        metric_bag.add("nll_loss", Mean())

        self._criterion.add_metrics(metric_bag)

    @override
    def set_step_nr(self, step_nr: int) -> None:
        self._on_step(step_nr)

        self._step_nr = step_nr

        if self._begin is None:
            self._begin = (monotonic(), step_nr)

        self._step_time.stop()

        self._step_time.start()

    @override
    def process_batch(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag
    ) -> tuple[Tensor, int]:
        loss = self._criterion.compute_loss(batch, metric_bag, step_nr=self._step_nr)

        update_batch_metrics(batch, metric_bag)

        # The trainer divides by the tokens of all ranks and micro-batches; dividing
        # here as well would scale the gradients twice.
        return loss, num_target_tokens(batch)

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        # A curve of it would not meet that of the validations.
        if self._criterion.smooths_loss and "nll_loss" in values:
            values["smoothed_loss"] = values.pop("nll_loss")

        time_left = self._estimate_time_left()

        if time_left is not None:
            values["time_left"] = time_left

        self._criterion.process_metric_values(
            values, self._step_time.get_elapsed_time()
        )

        self._step_time.reset()

    def _estimate_time_left(self) -> float | None:
        """Estimates the seconds to the last step, validations and checkpoints included."""
        if self._begin is None or self._num_steps is None:
            return None

        num_steps_left = self._num_steps - self._step_nr

        if num_steps_left <= 0:
            return None

        begin, first_step_nr = self._begin

        num_steps_done = self._step_nr - first_step_nr + 1

        return num_steps_left * (monotonic() - begin) / num_steps_done
