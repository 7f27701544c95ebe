# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""A small batch, criteria to feed it to, and how their gradients are compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import create_fake_gangs
from fairseq2.metrics import Mean, MetricBag
from fairseq2.metrics.common import add_seq2seq_batch_metrics
from torch import Tensor
from torch.nn import Module

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    EOS_IDX,
    Model,
    create_candidates,
    create_layout,
    device,
    get_last_layer_norm,
    pad_rows,
)
from tests.unit.sampling.cases import SOURCES as SOURCES
from warmup_plugin.criteria import Criterion, CriterionContext, WarmupSection
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.warmup import create_warmup_criterion
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import ConditionalModel, EncodedSource
from warmup_plugin.models.scorable import create_conditional_model, make_scorable
from warmup_plugin.objectives import Objective, marginal_loss
from warmup_plugin.sampling import Candidates, WarmupSampler, draw_candidates

# Four tokens to predict and two.
TARGETS = [[BOS_IDX, 6, 5, 7, EOS_IDX], [BOS_IDX, 7, EOS_IDX]]

# One is empty, two are cut at three tokens, two are equal.
WARMUPS = [[[5, 6], [], [7, 7, 6], [6]], [[6], [6], [5, 5, 5], [7, 5]]]

PROPOSAL_LOG_PROBS = [[-4.5, -2.0, -5.5, -2.5], [-2.5, -3.5, -3.0, -6.0]]

KEEPS = [
    KeepSection(name="all"),
    KeepSection(name="resample", num=1),
    KeepSection(name="top", num=1),
    KeepSection(name="mass", mass=0.7),
]

each_keep = pytest.mark.parametrize("keep", KEEPS, ids=lambda keep: str(keep.name))
"""Runs a test with each way to keep candidates."""


def create_sharp_model(kind: str) -> Model:
    """
    Creates a model whose output depends on its warmup: without the part of P(c|x) the
    gradient of P(y|x) is 15 % off, so that a tolerance of 3 % sees it.
    """
    model = CREATE_MODEL[kind](num_layers=2, seed={"transformer": 1, "llama": 3}[kind])

    with torch.no_grad():
        for parameter in get_last_layer_norm(model).parameters():
            parameter.mul_(2.0)

    return model


def create_twins(kind: str) -> tuple[Model, Model]:
    """Creates a model and one that is the same, to be left as fairseq2 made it."""
    return create_sharp_model(kind), create_sharp_model(kind)


def create_batch(
    sources: Sequence[Sequence[int]] = SOURCES,
    targets: Sequence[Sequence[int]] = TARGETS,
    *,
    directions: Sequence[str] | None = None,
    given_lens: Sequence[int] | None = None,
) -> Seq2SeqBatch:
    """
    :param directions: The direction of each pair, of a run with several.
    :param given_lens: How many tokens of each target are not learned.
    """
    example: dict[str, object] = {}

    if directions is not None:
        example["directions"] = list(directions)

    if given_lens is not None:
        example["given_lens"] = list(given_lens)

    return Seq2SeqBatch(*pad_rows(sources), *pad_rows(targets), example=example or None)


class SpiedSampler:
    """Remembers what another sampler has drawn."""

    def __init__(self, sampler: WarmupSampler) -> None:
        self.drawn: list[Candidates] = []
        self.distinct = getattr(sampler, "distinct", False)
        self.enumerates_empty = getattr(sampler, "enumerates_empty", False)
        self._sampler = sampler

    def __call__(self, *args: Any, **kwargs: Any) -> Candidates:
        candidates = self._sampler(*args, **kwargs)

        self.drawn.append(candidates)

        return candidates


class FixedSampler:
    """Returns given candidates; if asked for a few sources, those of the next ones."""

    distinct = True

    def __init__(self, candidates: Candidates) -> None:
        self.group_sizes: list[int] = []
        self._candidates = candidates
        self._begin = 0

    def __call__(
        self,
        model: ConditionalModel,
        source: EncodedSource,
        layout: DecoderLayout,
        prefixes: Tensor,
        *,
        num_warmups: int,
        max_warmup_len: int,
    ) -> Candidates:
        candidates = self._candidates

        num_sources, num_candidates = candidates.proposal_log_probs.shape

        assert source.memory.num_sources == prefixes.size(0)
        assert num_warmups == num_candidates

        end = self._begin + prefixes.size(0)

        of_sources = slice(self._begin, end)

        of_rows = slice(self._begin * num_warmups, end * num_warmups)

        assert end <= num_sources

        self.group_sizes.append(prefixes.size(0))

        self._begin = end % num_sources

        return Candidates(
            candidates.seqs[of_rows],
            candidates.seq_lens[of_rows],
            candidates.cut[of_rows],
            candidates.proposal_log_probs[of_sources],
        )


def create_given_candidates(source_idx: Sequence[int] = (0, 1)) -> Candidates:
    """
    Creates four warmups a source, of at most three tokens, from a proposal that is no
    model's.

    :param source_idx: Which source of ``SOURCES`` each of the batch is.
    """
    candidates = create_candidates([WARMUPS[n] for n in source_idx], max_warmup_len=3)

    q = torch.tensor(PROPOSAL_LOG_PROBS, device=device)[list(source_idx)]

    return replace(candidates, proposal_log_probs=q)


def create_criterion(
    model: Model,
    factory: Callable[[CriterionContext], Criterion] = create_warmup_criterion,
    *,
    objective: Objective = marginal_loss,
    sampler: WarmupSampler = draw_candidates,
    reference: Model | None = None,
    plain_directions: Sequence[str] = (),
    label_smoothing: float = 0.0,
    publish_every_n_steps: int | None = None,
    keep: KeepSection | None = None,
    **kwargs: Any,
) -> Criterion:
    """
    Creates a criterion and switches ``model`` to training.

    :param keep: ``None`` keeps all.
    :param kwargs: The fields of ``WarmupSection``.
    """
    make_scorable(model)

    model.train()

    context = CriterionContext(
        model=create_conditional_model(model),
        dp_model=model,
        layout=create_layout(),
        gangs=create_fake_gangs(device),
        label_smoothing=label_smoothing,
        warmup=WarmupSection(keep=keep or KeepSection(name="all"), **kwargs),
        objective=objective,
        sampler=sampler,
        reference=create_conditional_model(reference) if reference else None,
        plain_directions=frozenset(plain_directions),
        publish_every_n_steps=publish_every_n_steps,
    )

    return factory(context)


def create_metric_bag(criterion: Criterion) -> MetricBag:
    metric_bag = MetricBag(device)

    add_seq2seq_batch_metrics(metric_bag)

    metric_bag.add("nll_loss", Mean())

    criterion.add_metrics(metric_bag)

    return metric_bag


def get_metric(metric_bag: MetricBag, name: str) -> float:
    return float(metric_bag.metrics[name].compute())


def differentiate(model: Model, loss: Tensor) -> Tensor:
    """Returns the gradient of all parameters as one vector."""
    grads = torch.autograd.grad(loss, list(model.parameters()))

    return torch.cat([grad.flatten() for grad in grads])


def compute_grads(
    model: Model,
    criterion: Criterion,
    batch: Seq2SeqBatch,
    *,
    metric_bag: MetricBag | None = None,
    seed: int = 0,
) -> Tensor:
    """Takes a training step but for the optimizer's part."""
    torch.manual_seed(seed)

    metric_bag = metric_bag or create_metric_bag(criterion)

    loss = criterion.compute_loss(batch, metric_bag, step_nr=1)

    return differentiate(model, loss)


@contextmanager
def record_passes(model: Model) -> Iterator[list[dict[str, Any]]]:
    """Lists what the calls of differentiable passes are given."""
    passes = []

    def record(module: Module, args: Any, kwargs: dict[str, Any]) -> None:
        if "rows" in kwargs:
            passes.append(kwargs)

    handle = model.register_forward_pre_hook(record, with_kwargs=True)

    try:
        yield passes
    finally:
        handle.remove()


def measure_error(actual: Tensor, expected: Tensor) -> float:
    """Computes the relative error of a vector."""
    return float((actual - expected).norm() / expected.norm())
