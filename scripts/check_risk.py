# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

r"""
The part of ``check_estimators.py`` about minimum risk training.

An output has at most three of four words, or two behind a warmup of at most one, so that
the expected risk :math:`\sum_y P(y|x) \Delta(y)`, with warmups :math:`\sum_{c,y} P(c,y|x)
\Delta(y)`, and its gradient are known exactly. What is drawn is drawn as the criterion
``mrt`` does; that its backward pass computes what is summed here is checked beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import create_fake_gangs
from fairseq2.metrics import Mean, MetricBag
from torch import Tensor

from scripts.bench_common import FIRST_WORD_IDX, format_table
from scripts.enumerable import (
    PROBLEMS,
    SOURCE,
    TARGET,
    Problem,
    flatten_grad,
    list_texts,
    measure_frequencies,
    measure_grads,
    to_coordinates,
)
from warmup_plugin.criteria import CriterionContext, WarmupSection
from warmup_plugin.criteria.look import Pairs
from warmup_plugin.criteria.mrt import create_mrt_criterion, create_output_sampler
from warmup_plugin.criteria.mrt_config import MrtConfig
from warmup_plugin.criteria.outputs import Output, build_output_rows
from warmup_plugin.metrics.sentence import create_sentence_metric
from warmup_plugin.models.scorable import make_scorable
from warmup_plugin.objectives import (
    expected_risk_loss,
    marginal_loss,
    score_function_loss,
)
from warmup_plugin.sampling import draw_candidates

NUMS_SAMPLES: Final = (1, 2, 4, 16)

_MAX_WARMUP_LEN: Final = 1

_MAX_LENS: Final = {False: 3, True: 2}
"""The most words of an output, without warmup and with one."""

# Some share letters, so that few outputs have the same chrF++.
_WORDS: Final = ("ka", "kat", "mi", "mit")

_REFERENCE: Final = "kat ka mit"

_METRIC: Final = create_sentence_metric("chrf", None)

_NUM_BACKWARD_TRIALS: Final = 50

_NUM_BACKWARD_SAMPLES: Final = 4


def write_text(tokens: Sequence[int]) -> str:
    return " ".join(_WORDS[token - FIRST_WORD_IDX] for token in tokens)


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Computes what N trials minimise from log P of all outputs, their risks and how often
each was drawn. *Shape:* :math:`(N,O)` each."""


def _compute_risk(
    log_probs: Tensor, risks: Tensor, counts: Tensor, *, alpha: float
) -> Tensor:
    return expected_risk_loss(log_probs, risks, counts > 0.0, alpha=alpha)


@final
@dataclass(frozen=True)
class RiskEstimator:
    """Holds the fields of ``MrtConfig`` that choose an estimator, and what it computes."""

    fields: Mapping[str, Any]

    loss: Loss

    def create_config(self, num_samples: int, with_warmups: bool) -> MrtConfig:
        return MrtConfig(
            num_samples=num_samples,
            with_warmups=with_warmups,
            max_len_a=0.0,
            max_len_b=_MAX_LENS[with_warmups],
            **self.fields,
        )


def _create_estimator(
    loss: Callable[..., Tensor], estimator: str, **options: Any
) -> RiskEstimator:
    return RiskEstimator({"estimator": estimator, **options}, partial(loss, **options))


RISK_ESTIMATORS: Final[Mapping[str, RiskEstimator]] = {
    "risk, alpha = 1": _create_estimator(_compute_risk, "risk", alpha=1.0),
    "risk, alpha = 0.005": _create_estimator(_compute_risk, "risk", alpha=0.005),
    "reinforce": _create_estimator(score_function_loss, "reinforce", baseline=True),
    "reinforce, no baseline": _create_estimator(
        score_function_loss, "reinforce", baseline=False
    ),
}


def is_defined(estimator: RiskEstimator, num_samples: int) -> bool:
    """Tells whether the criterion takes so few samples."""
    return not estimator.create_config(num_samples, False).validate().errors


@final
@dataclass(frozen=True)
class OutputEnumeration:
    """Holds all O outputs that there are, with their warmups if they have any, in fp64."""

    numbers: Mapping[object, int]
    """The number of each output, by what :func:`_get_key` says."""

    log_probs: Tensor
    """log P(y|x) or log P(c,y|x). *Shape:* :math:`(O)`."""

    risks: Tensor
    """*Shape:* :math:`(O)`."""

    grads: Tensor
    """The gradients of ``log_probs``. *Shape:* :math:`(O,W)`."""

    coordinates: Tensor
    """See :func:`~scripts.enumerable.to_coordinates`. *Shape:* :math:`(O,O)`."""

    warmup_grad: Tensor
    """The part of log P(c|x) in the gradient of the expected risk. *Shape:*
    :math:`(W)`."""

    @property
    def coefs(self) -> Tensor:
        """What multiplies ``grads`` in the gradient of the expected risk. *Shape:*
        :math:`(O)`."""
        return self.log_probs.exp() * self.risks

    def count(self, outputs: Sequence[Output], num_trials: int) -> Tensor:
        """Counts how often each trial has drawn each output. *Shape:* :math:`(N,O)`."""
        counts = self.log_probs.new_zeros((num_trials, self.log_probs.size(0)))

        trials = torch.tensor([o.source for o in outputs])

        numbers = torch.tensor([self.numbers[_get_key(o)] for o in outputs])

        counts[trials, numbers] = counts.new_tensor([o.count for o in outputs])

        return counts


def _get_key(output: Output) -> object:
    warmup = output.warmup

    return None if warmup is None else tuple(warmup), tuple(output.target)


def list_outputs(problem: Problem, with_warmups: bool) -> list[Output]:
    """Lists all outputs of the problem's source."""
    max_warmup_len, max_len = problem.max_warmup_len, _MAX_LENS[with_warmups]

    return [
        Output(
            0,
            [*target],
            len(target) == max_len,
            None if warmup is None else [*warmup],
            warmup is not None and len(warmup) == max_warmup_len,
        )
        for warmup in (list_texts(max_warmup_len) if with_warmups else [None])
        for target in list_texts(max_len)
    ]


def enumerate_outputs(problem: Problem, with_warmups: bool) -> OutputEnumeration:
    """Scores and differentiates every output, one backward pass each."""
    outputs = list_outputs(problem, with_warmups)

    model, layout = problem.model, problem.layout

    target_seqs, _ = problem.repeat_target(1)

    # (O), (O)
    a, b = model.score(
        model.encode(*problem.repeat_source(1)),
        build_output_rows(layout, outputs, target_seqs[:, : layout.prefix_len]),
        layout.unwritten_tokens(model.num_logits, target_seqs.device),
    )

    # (O, W)
    grads = torch.stack([flatten_grad(log_prob, model) for log_prob in a + b]).double()

    texts = [write_text(output.target) for output in outputs]

    scores = _METRIC(texts, [[_REFERENCE]] * len(texts), [""] * len(texts))

    log_probs = (a + b).detach().double()

    risks = 1.0 - torch.tensor(scores, dtype=torch.float64)

    warmup_grad = torch.zeros_like(grads[0])

    if with_warmups:
        coefs = (log_probs.exp() * risks).float()

        warmup_grad = flatten_grad((coefs * a).sum(), model).double()

    return OutputEnumeration(
        {_get_key(output): n for n, output in enumerate(outputs)},
        log_probs,
        risks,
        grads,
        to_coordinates(grads),
        warmup_grad,
    )


def _create_context(problem: Problem) -> CriterionContext:
    module = problem.model.module

    make_scorable(module)

    return CriterionContext(
        model=problem.model,
        dp_model=module,
        layout=problem.layout,
        gangs=create_fake_gangs(torch.device("cpu")),
        label_smoothing=0.0,
        warmup=WarmupSection(max_warmup_len=problem.max_warmup_len),
        objective=marginal_loss,
        sampler=draw_candidates,
        reference=None,
        plain_directions=frozenset(),
        publish_every_n_steps=None,
        decode=write_text,
    )


def _create_batch(num_trials: int) -> Seq2SeqBatch:
    """Creates a batch whose sources are the trials."""
    return Seq2SeqBatch(
        torch.tensor([SOURCE] * num_trials),
        [len(SOURCE)] * num_trials,
        torch.tensor([TARGET] * num_trials),
        [len(TARGET)] * num_trials,
        example={
            "indices": list(range(num_trials)),
            "sources": [""] * num_trials,
            "references": [[_REFERENCE]] * num_trials,
        },
    )


def draw_counts(
    problem: Problem,
    enumeration: OutputEnumeration,
    config: MrtConfig,
    num_trials: int,
    seed: int,
) -> Tensor:
    """Draws as ``mrt`` does; see :meth:`OutputEnumeration.count`."""
    sample = create_output_sampler(_create_context(problem), config, seed)

    # Other draws for each N.
    step_nr = config.num_samples

    pairs = Pairs.of(_create_batch(num_trials))

    return enumeration.count(sample(pairs, range(num_trials), step_nr), num_trials)


def compute_coefs(enumeration: OutputEnumeration, counts: Tensor, loss: Loss) -> Tensor:
    """
    Computes what multiplies the gradients of all outputs in those of N trials.

    *Shape:* :math:`(N,O)`.
    """
    log_probs = enumeration.log_probs.expand_as(counts).clone().requires_grad_()

    losses = loss(log_probs, enumeration.risks.expand_as(counts), counts)

    [coefs] = torch.autograd.grad(losses.sum(), log_probs)

    return coefs


def check_risk_backward(
    problem: Problem,
    enumeration: OutputEnumeration,
    estimator: RiskEstimator,
    with_warmups: bool,
    seed: int,
) -> float:
    """
    Compares a sum over the enumeration with a training step of ``mrt``.

    :returns: The difference of the gradients, relative to their length.
    """
    config = estimator.create_config(_NUM_BACKWARD_SAMPLES, with_warmups)

    criterion = create_mrt_criterion(
        _create_context(problem), config, _METRIC, seed=seed
    )

    metric_bag = MetricBag(torch.device("cpu"))

    metric_bag.add("nll_loss", Mean())

    criterion.add_metrics(metric_bag)

    loss = criterion.compute_loss(
        _create_batch(_NUM_BACKWARD_TRIALS), metric_bag, step_nr=config.num_samples
    )

    grad = flatten_grad(loss, problem.model).double()

    counts = draw_counts(problem, enumeration, config, _NUM_BACKWARD_TRIALS, seed)

    coefs = compute_coefs(enumeration, counts, estimator.loss)

    expected = coefs.sum(dim=0) @ enumeration.grads

    return float((grad - expected).norm() / expected.norm())


@final
@dataclass(frozen=True)
class RiskRow:
    """Holds what was measured of an estimator, relative to the exact gradient."""

    estimator: str

    num_samples: int

    num_distinct: float
    """The mean number of distinct samples of a trial, which are differentiated."""

    grad_bias: float

    grad_bias_noise: float
    """The length that ``grad_bias`` is expected to have without any bias."""

    grad_variance: float

    cosine: float
    """Between the mean and the exact gradient."""


@final
@dataclass(frozen=True)
class RiskReport:
    """Holds everything that was measured with one model, with warmups or without."""

    model: str

    with_warmups: bool

    num_outputs: int

    total_prob: float
    """The sum of their probabilities, which is 1."""

    expected_risk: float

    risk_std: float
    """The standard deviation of the risk under P(y|x)."""

    warmup_grad_share: float
    """The length of what log P(c|x) contributes to the exact gradient."""

    frequency_error: float
    """See :func:`~scripts.enumerable.measure_frequencies`; of the most samples."""

    backward_error: float
    """The largest of :func:`check_risk_backward`."""

    rows: Sequence[RiskRow]


def check_risk(
    model_name: str, with_warmups: bool, num_trials: int, seed: int
) -> RiskReport:
    """Measures the estimators of ``mrt`` with one model."""
    problem = PROBLEMS[model_name](_MAX_WARMUP_LEN)

    enumeration = enumerate_outputs(problem, with_warmups)

    probs, risks = enumeration.log_probs.exp(), enumeration.risks

    exact = enumeration.coefs @ enumeration.coordinates

    rows = []

    for num_samples in NUMS_SAMPLES:
        # All draw alike, and this one also a single output.
        config = RISK_ESTIMATORS["reinforce, no baseline"].create_config(
            num_samples, with_warmups
        )

        counts = draw_counts(problem, enumeration, config, num_trials, seed)

        for name, estimator in RISK_ESTIMATORS.items():
            if not is_defined(estimator, num_samples):
                continue

            coefs = compute_coefs(enumeration, counts, estimator.loss)

            grads = coefs @ enumeration.coordinates

            cosine = torch.cosine_similarity(grads.mean(dim=0), exact, dim=0)

            rows.append(
                RiskRow(
                    name,
                    num_samples,
                    float((counts > 0.0).sum()) / num_trials,
                    **measure_grads(grads, exact),
                    cosine=float(cosine),
                )
            )

    mean = (probs * risks).sum()

    return RiskReport(
        model=model_name,
        with_warmups=with_warmups,
        num_outputs=probs.size(0),
        total_prob=float(probs.sum()),
        expected_risk=float(mean),
        risk_std=float((probs * (risks - mean).square()).sum().sqrt()),
        warmup_grad_share=float(enumeration.warmup_grad.norm() / exact.norm()),
        frequency_error=measure_frequencies(counts.sum(dim=0), probs),
        backward_error=max(
            check_risk_backward(problem, enumeration, e, with_warmups, seed)
            for e in RISK_ESTIMATORS.values()
        ),
        rows=rows,
    )


def format_risk_report(report: RiskReport) -> str:
    """Formats the tables of one model, with warmups or without."""
    what = "pairs of warmup and output" if report.with_warmups else "outputs"

    lines = [
        f"{report.model}, mrt: {report.num_outputs} {what}, whose probabilities sum to {report.total_prob:.6f}",
        f"expected risk {report.expected_risk:.3f}, standard deviation {report.risk_std:.3f}; frequencies of draws are off by {report.frequency_error:.1f} sigma",
        f"A backward pass differs from the sum over the enumeration by {report.backward_error:.1e} of its length.",
    ]

    if report.with_warmups:
        lines.append(
            f"log P(c|x) contributes {100 * report.warmup_grad_share:.0f} % of the length of the gradient"
        )

    def format_rows(title: str, format_cell: Callable[[RiskRow], str]) -> str:
        cells = {(r.estimator, r.num_samples): format_cell(r) for r in report.rows}

        return format_table(
            [title, *(f"N = {n}" for n in NUMS_SAMPLES)],
            [
                [name, *(cells.get((name, n), "") for n in NUMS_SAMPLES)]
                for name in RISK_ESTIMATORS
            ],
        )

    return "\n\n".join(
        [
            "\n".join(lines),
            format_rows(
                "bias of gradient (noise), %",
                lambda r: f"{100 * r.grad_bias:.1f} ({100 * r.grad_bias_noise:.1f})",
            ),
            format_rows("variance of gradient", lambda r: f"{r.grad_variance:.3g}"),
            format_rows("cosine of mean gradient", lambda r: f"{r.cosine:.3f}"),
        ]
    )
