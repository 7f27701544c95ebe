# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import pytest
import torch
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.models.transformer import TransformerModel
from fairseq2.runtime.dependency import DependencyContainer
from torch import Tensor
from torch.nn import Module
from torch.optim import SGD

from tests.common import (
    CREATE_MODEL,
    Model,
    assert_close,
    assert_equal,
    create_candidates,
    create_tiny_model,
    device,
    get_last_layer_norm,
    list_sentences,
)
from tests.plain import score_plainly, score_targets_plainly
from tests.unit.criteria.cases import (
    SOURCES,
    TARGETS,
    FixedSampler,
    SpiedSampler,
    compute_grads,
    create_batch,
    create_criterion,
    create_metric_bag,
    create_off_policy_candidates,
    differentiate,
    get_metric,
    measure_error,
)
from tests.unit.sampling.cases import each_kind
from warmup_plugin.criteria import warmup as warmup_module
from warmup_plugin.criteria.base import Criterion, WeighedWarmup
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.health import CollapseDetector, WarmupShares
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import plain_rows
from warmup_plugin.metrics.training import register_metric_descriptors
from warmup_plugin.models.conditional import RowCoefs, evaluation_mode
from warmup_plugin.objectives import (
    Objective,
    best_loss,
    elbo_loss,
    joint_loss,
    marginal_loss,
)
from warmup_plugin.sampling import Candidates, WarmupSampler, draw_candidates
from warmup_plugin.sampling.samplers import StochasticBeamSampler
from warmup_plugin.scoring import CandidateScores, score_candidates

# A cut one, equal ones, an empty one.
WARMUPS: Final = [[[5, 6], [], [7, 7, 6], [6]], [[6], [6], [5, 5, 5], [7, 5]]]

KEEPS: Final = [
    KeepSection(name="all"),
    KeepSection(name="resample", num=1),
    KeepSection(name="top", num=1),
    KeepSection(name="mass", mass=0.7),
]


def create_sharp_model() -> TransformerModel:
    """
    Creates a model whose output depends on its warmup: the share of P(c|x) in the
    gradient of P(y|x) is 15 %, so that a tolerance of 3 % sees it.
    """
    model = create_tiny_model(num_layers=2, seed=1)

    with torch.no_grad():
        for parameter in get_last_layer_norm(model).parameters():
            parameter.mul_(2.0)

    return model


def create_twins(kind: str) -> tuple[Model, Model]:
    """Creates a model and one that is the same and stays as fairseq2 made it."""
    model, twin = (CREATE_MODEL[kind](num_layers=2) for _ in range(2))

    return model, twin


@contextmanager
def record_passes(model: Model) -> Iterator[list[dict[str, Any]]]:
    """Lists what the differentiable passes are given."""
    passes = []

    def record(module: Module, args: Any, kwargs: dict[str, Any]) -> None:
        if "rows" in kwargs:
            passes.append(kwargs)

    handle = model.register_forward_pre_hook(record, with_kwargs=True)

    try:
        yield passes
    finally:
        handle.remove()


def compute_plain_grads(
    model: Model,
    objective: Objective,
    candidates: Candidates,
    *,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> tuple[float, Tensor]:
    """
    Does what the criterion does as one would first write it.

    :returns: The sum of the objective over sources, and the gradient.
    """
    a, b = score_plainly(model, SOURCES, TARGETS, candidates)

    losses = objective(a, b, candidates.proposal_log_probs)

    if label_smoothing == 0.0:
        loss = losses.sum()
    else:
        # The weights know nothing of smoothing; only what is weighed is smoothed.
        a_coefs, b_coefs = torch.autograd.grad(losses.sum(), [a, b], retain_graph=True)

        _, smooth_b = score_plainly(
            model, SOURCES, TARGETS, candidates, label_smoothing=label_smoothing
        )

        loss = (a_coefs * a + b_coefs * smooth_b).sum()

    if sft_weight > 0.0:
        log_probs = score_targets_plainly(
            model, SOURCES, TARGETS, label_smoothing=label_smoothing
        )

        loss = loss - sft_weight * log_probs.sum()

    return float(losses.detach().sum()), differentiate(model, loss)


class TestGradient:
    @pytest.mark.parametrize(
        ("objective", "sampler", "kwargs"),
        [
            (marginal_loss, draw_candidates, {}),
            (marginal_loss, partial(draw_candidates, temperature=0.6), {}),
            (marginal_loss, partial(draw_candidates, top_k=2), {}),
            (marginal_loss, StochasticBeamSampler(), {}),
            (marginal_loss, draw_candidates, {"label_smoothing": 0.2}),
            (marginal_loss, draw_candidates, {"sft_weight": 0.5}),
            (
                marginal_loss,
                draw_candidates,
                {"sft_weight": 0.5, "label_smoothing": 0.2},
            ),
            (partial(marginal_loss, control_variate=False), draw_candidates, {}),
            (
                partial(marginal_loss, control_variate=False),
                partial(draw_candidates, temperature=1.5),
                {},
            ),
            (elbo_loss, draw_candidates, {}),
            (elbo_loss, partial(draw_candidates, temperature=1.5), {}),
            (best_loss, draw_candidates, {}),
            (joint_loss, StochasticBeamSampler(), {}),
        ],
    )
    @each_kind
    def test_gradient_equals_plain_one(
        self,
        kind: str,
        objective: Objective,
        sampler: WarmupSampler,
        kwargs: dict[str, Any],
    ) -> None:
        model, twin = create_twins(kind)

        spied_sampler = SpiedSampler(sampler)

        criterion = create_criterion(
            model,
            objective=objective,
            sampler=spied_sampler,
            num_warmups=6,
            max_warmup_len=3,
            **kwargs,
        )

        metric_bag = create_metric_bag(criterion)

        grads = compute_grads(model, criterion, create_batch(), metric_bag=metric_bag)

        [candidates] = spied_sampler.drawn

        expected_loss, expected_grads = compute_plain_grads(
            twin, objective, candidates, **kwargs
        )

        assert measure_error(grads, expected_grads) < 1e-4

        # The value of the objective is logged, not that of what is differentiated.
        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            expected_loss / 6, rel=1e-4
        )

        # Both kinds of warmups were among them.
        assert bool(candidates.cut.any()) and not bool(candidates.cut.all())

    @each_kind
    def test_sources_do_not_touch_each_other(self, kind: str) -> None:
        model, _ = create_twins(kind)

        def run(*sources: int) -> Tensor:
            candidates = create_off_policy_candidates(WARMUPS, max_warmup_len=3)

            # One of them, or both in any order.
            rows = [4 * n + k for n in sources for k in range(4)]

            sampler = FixedSampler(
                Candidates(
                    candidates.seqs[rows],
                    candidates.seq_lens[rows],
                    candidates.cut[rows],
                    candidates.proposal_log_probs[list(sources)],
                )
            )

            criterion = create_criterion(
                model, sampler=sampler, max_warmup_len=3, sft_weight=0.3
            )

            batch = create_batch(
                [SOURCES[n] for n in sources], [TARGETS[n] for n in sources]
            )

            return compute_grads(model, criterion, batch)

        together, alone = run(0, 1), run(0) + run(1)

        # Sources, prompts, targets and warmups of different lengths.
        assert measure_error(together, alone) < 1e-5
        assert measure_error(run(1, 0), alone) < 1e-5

    @pytest.mark.parametrize("num_kept", [1, 2])
    @pytest.mark.parametrize(
        "objective",
        [
            marginal_loss,
            partial(marginal_loss, control_variate=False),
            elbo_loss,
            joint_loss,
        ],
    )
    @each_kind
    def test_gradient_is_unbiased_when_few_are_kept(
        self, kind: str, objective: Objective, num_kept: int
    ) -> None:
        model, twin = create_twins(kind)

        candidates = create_off_policy_candidates(WARMUPS, max_warmup_len=3)

        _, expected = compute_plain_grads(twin, objective, candidates)

        # The same two sources many times are many draws in one pass.
        num_copies, num_seeds = 30, 12

        criterion = create_criterion(
            model,
            objective=objective,
            sampler=FixedSampler(
                create_off_policy_copies(candidates, num_copies=num_copies)
            ),
            keep=KeepSection(name="resample", num=num_kept),
            max_warmup_len=3,
        )

        batch = create_batch(SOURCES * num_copies, TARGETS * num_copies)

        # (S, P), S seeds
        grads = torch.stack(
            [compute_grads(model, criterion, batch, seed=s) for s in range(num_seeds)]
        )

        grads = grads / num_copies

        # Of the whole vector: sqrt(E|mean - exact|²).
        standard_error = (grads.var(dim=0).sum() / num_seeds).sqrt()

        error = (grads.mean(dim=0) - expected).norm()

        assert 0.0 < error < 2.5 * standard_error

        # The bound is narrow enough to see a bias.
        assert standard_error < 0.06 * expected.norm()

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_gradient_approaches_that_of_enumeration(self, temperature: float) -> None:
        model, twin = create_sharp_model(), create_sharp_model()

        # The exact sum over all thirteen warmups of at most two words.
        candidates = create_candidates([list_sentences(2)], max_warmup_len=2)

        a, b = score_plainly(twin, SOURCES[:1], TARGETS[:1], candidates)

        # It misses none, or P(c|x) would not sum to 1.
        assert_close(a.exp().sum(dim=1), [1.0])

        exact_loss = -torch.logsumexp(a + b, dim=1).sum()

        exact_grads = differentiate(twin, exact_loss)

        num_draws = 250

        batch = create_batch(SOURCES[:1] * num_draws, TARGETS[:1] * num_draws)

        criterion = create_criterion(
            model,
            sampler=partial(draw_candidates, temperature=temperature),
            num_warmups=16,
            max_warmup_len=2,
        )

        metric_bag = create_metric_bag(criterion)

        grads = compute_grads(model, criterion, batch, metric_bag=metric_bag)

        assert measure_error(grads / num_draws, exact_grads) < 0.03

        # Four tokens to predict.
        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            float(exact_loss.detach()) / 4, rel=0.005
        )

    def test_joint_is_exact_when_nothing_is_missing(self) -> None:
        model, twin = create_sharp_model(), create_sharp_model()

        # All thirteen, in whatever order they are drawn.
        criterion = create_criterion(
            model,
            objective=joint_loss,
            sampler=StochasticBeamSampler(),
            num_warmups=13,
            max_warmup_len=2,
        )

        grads = compute_grads(model, criterion, create_batch())

        candidates = create_candidates([list_sentences(2)] * 2, max_warmup_len=2)

        _, expected = compute_plain_grads(twin, joint_loss, candidates)

        assert measure_error(grads, expected) < 1e-4

    @each_kind
    def test_label_smoothing_does_not_enter_weights(self, kind: str) -> None:
        seen = []

        for label_smoothing in (0.0, 0.5):
            model, _ = create_twins(kind)

            criterion = create_criterion(model, label_smoothing=label_smoothing)

            metric_bag = create_metric_bag(criterion)

            with record_passes(model) as passes:
                compute_grads(model, criterion, create_batch(), metric_bag=metric_bag)

            seen.append((passes[0]["coefs"], get_metric(metric_bag, "nll_loss")))

        (coefs, loss), (smooth_coefs, smooth_loss) = seen

        assert_equal(smooth_coefs.warmup, coefs.warmup)
        assert_equal(smooth_coefs.target, coefs.target)

        assert smooth_loss == loss

    @each_kind
    def test_dropout_does_not_enter_weights(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = spy_on_scores(monkeypatch)

        model = CREATE_MODEL[kind](num_layers=2, dropout_p=0.5)

        grads = compute_grads(
            model, create_criterion(model, max_warmup_len=6), create_batch()
        )

        assert model.training

        plain_model, _ = create_twins(kind)

        plain_grads = compute_grads(
            plain_model,
            create_criterion(plain_model, max_warmup_len=6),
            create_batch(),
        )

        (candidates, scores), (plain_candidates, plain_scores) = seen

        # Without noise the same is drawn and weighed alike.
        assert_equal(candidates.seqs, plain_candidates.seqs)
        assert_close(scores.warmup_log_probs, plain_scores.warmup_log_probs)
        assert_close(scores.target_log_probs, plain_scores.target_log_probs)

        # But there is dropout in the pass that learns.
        assert measure_error(grads, plain_grads) > 0.1

    @pytest.mark.parametrize("max_num_tokens", [None, 20])
    @each_kind
    def test_all_parameters_learn_under_autocast(
        self, kind: str, max_num_tokens: int | None
    ) -> None:
        model, _ = create_twins(kind)

        # Given ones, since draws may differ by rounding.
        sampler = FixedSampler(create_off_policy_candidates(WARMUPS, max_warmup_len=3))

        criterion = create_criterion(
            model,
            sampler=sampler,
            max_warmup_len=3,
            max_num_tokens=max_num_tokens,
            kl_weight=0.1,
            reference=CREATE_MODEL[kind](seed=1),
        )

        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion.compute_loss(
                create_batch(), create_metric_bag(criterion), step_nr=1
            )

        loss.backward()

        fp32_grads = compute_grads(model, criterion, create_batch()).split(
            [parameter.numel() for parameter in model.parameters()]
        )

        for (name, parameter), fp32_grad in zip(model.named_parameters(), fp32_grads):
            assert parameter.grad is not None, name

            grad = parameter.grad.flatten()

            # A bias of keys changes no attention: its gradient is rounding.
            if fp32_grad.norm() > 1e-4:
                assert measure_error(grad, fp32_grad) < 0.1, name

    @pytest.mark.parametrize("keep", KEEPS, ids=lambda keep: str(keep.name))
    @each_kind
    def test_steps_lower_loss(self, kind: str, keep: KeepSection) -> None:
        model = CREATE_MODEL[kind]()

        criterion = create_criterion(model, max_warmup_len=2, keep=keep)

        batch = create_batch(SOURCES * 4, TARGETS * 4)

        optimizer = SGD(model.parameters(), lr=0.02)

        losses = []

        torch.manual_seed(0)

        for step_nr in range(1, 25):
            metric_bag = create_metric_bag(criterion)

            loss = criterion.compute_loss(batch, metric_bag, step_nr=step_nr)

            optimizer.zero_grad()

            loss.backward()

            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)

            optimizer.step()

            losses.append(get_metric(metric_bag, "nll_loss"))

        assert losses[-1] < losses[0] - 0.5


def create_off_policy_copies(candidates: Candidates, *, num_copies: int) -> Candidates:
    """Repeats candidates, with all their sources."""
    return Candidates(
        candidates.seqs.repeat(num_copies, 1),
        candidates.seq_lens.repeat(num_copies),
        candidates.cut.repeat(num_copies),
        candidates.proposal_log_probs.repeat(num_copies, 1),
    )


def spy_on_scores(
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[Candidates, CandidateScores]]:
    """Records what a criterion draws and how it scores it."""
    seen = []

    def record(*args: Any) -> CandidateScores:
        scores = score_candidates(*args)

        seen.append((args[3], scores))

        return scores

    monkeypatch.setattr(warmup_module, "score_candidates", record)

    return seen


NUM_TARGET_TOKENS: Final = torch.tensor([[4.0], [2.0]], device=device)


@each_kind
class TestSettings:
    """Each setting changes the gradient as its formula says; the formulas by hand."""

    def check(
        self,
        kind: str,
        compute_coefs: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        *,
        reference: Model | None = None,
        objective: Objective = marginal_loss,
        **kwargs: Any,
    ) -> None:
        """
        :param compute_coefs: The derivatives with respect to a and b, from a, b and q.
        """
        model, twin = create_twins(kind)

        candidates = create_off_policy_candidates(WARMUPS, max_warmup_len=3)

        criterion = create_criterion(
            model,
            sampler=FixedSampler(candidates),
            reference=reference,
            objective=objective,
            max_warmup_len=3,
            **kwargs,
        )

        metric_bag = create_metric_bag(criterion)

        grads = compute_grads(model, criterion, create_batch(), metric_bag=metric_bag)

        a, b = score_plainly(twin, SOURCES, TARGETS, candidates)

        q = candidates.proposal_log_probs

        u, v = compute_coefs(a.detach(), b.detach(), q)

        expected = differentiate(twin, (u * a + v * b).sum())

        assert measure_error(grads, expected) < 1e-4

        # What is logged is the objective itself.
        losses = objective(a.detach(), b.detach(), q)

        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            float(losses.sum()) / 6, rel=1e-4
        )

        # The setting makes a difference.
        plain_criterion = create_criterion(
            model,
            sampler=FixedSampler(candidates),
            objective=objective,
            max_warmup_len=3,
        )

        plain_grads = compute_grads(model, plain_criterion, create_batch())

        assert measure_error(plain_grads, expected) > 0.02

    @pytest.mark.parametrize(
        ("weight_temperature", "length_normalized", "temperatures"),
        [
            (2.5, False, torch.tensor(2.5, device=device)),
            (0.5, False, torch.tensor(0.5, device=device)),
            (1.0, True, NUM_TARGET_TOKENS),
            (2.5, True, 2.5 * NUM_TARGET_TOKENS),
        ],
    )
    def test_weights_are_tempered(
        self,
        kind: str,
        weight_temperature: float,
        length_normalized: bool,
        temperatures: Tensor,
    ) -> None:
        def compute_coefs(a: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
            baseline = (a - q).softmax(dim=1)

            weights = (a - q + b / temperatures).softmax(dim=1)

            return temperatures * (baseline - weights), -weights

        self.check(
            kind,
            compute_coefs,
            weight_temperature=weight_temperature,
            length_normalized=length_normalized,
        )

    def test_hard_selection_is_tempered(self, kind: str) -> None:
        def compute_coefs(a: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
            best = torch.zeros_like(b).scatter(1, b.argmax(dim=1, keepdim=True), 1.0)

            return -2.5 * best, -best

        self.check(kind, compute_coefs, objective=best_loss, weight_temperature=2.5)

    def test_entropy_is_rewarded(self, kind: str) -> None:
        def compute_coefs(a: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
            ratios = (a - q).softmax(dim=1)

            weights = (a - q + b).softmax(dim=1)

            # 4 / 3 times as far from the mean of the others as from that of all.
            advantages = (a - a.mean(dim=1, keepdim=True)) * 4 / 3

            return ratios - weights + 0.7 * ratios * advantages, -weights

        self.check(kind, compute_coefs, entropy_weight=0.7)

    def test_distance_to_reference_is_punished(self, kind: str) -> None:
        reference = CREATE_MODEL[kind](seed=1)

        def compute_coefs(a: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
            ratios = (a - q).softmax(dim=1)

            weights = (a - q + b).softmax(dim=1)

            with torch.no_grad():
                reference_a, _ = score_plainly(
                    CREATE_MODEL[kind](seed=1),
                    SOURCES,
                    TARGETS,
                    create_candidates(WARMUPS, max_warmup_len=3),
                )

            distances = a - reference_a

            advantages = (distances - distances.mean(dim=1, keepdim=True)) * 4 / 3

            return ratios - weights + 0.7 * ratios * advantages, -weights

        self.check(kind, compute_coefs, reference=reference, kl_weight=0.7)

        assert all(parameter.grad is None for parameter in reference.parameters())

    def test_terms_are_added_up(self, kind: str) -> None:
        # The temperature is that of the objective alone.
        def compute_coefs(a: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
            ratios = (a - q).softmax(dim=1)

            weights = (a - q + b / 2.5).softmax(dim=1)

            with torch.no_grad():
                reference_a, _ = score_plainly(
                    CREATE_MODEL[kind](seed=1),
                    SOURCES,
                    TARGETS,
                    create_candidates(WARMUPS, max_warmup_len=3),
                )

            values = 0.2 * a + 0.3 * (a - reference_a)

            advantages = (values - values.mean(dim=1, keepdim=True)) * 4 / 3

            return 2.5 * (ratios - weights) + ratios * advantages, -weights

        self.check(
            kind,
            compute_coefs,
            reference=CREATE_MODEL[kind](seed=1),
            weight_temperature=2.5,
            entropy_weight=0.2,
            kl_weight=0.3,
        )

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    def test_sft_loss_is_mixed_in(self, kind: str, label_smoothing: float) -> None:
        grads = []

        for sft_weight in (0.0, 0.3):
            model, twin = create_twins(kind)

            criterion = create_criterion(
                model,
                sampler=FixedSampler(create_candidates(WARMUPS, max_warmup_len=3)),
                # Once a source, however many of its candidates are kept.
                keep=KeepSection(name="top", num=2),
                max_warmup_len=3,
                sft_weight=sft_weight,
                label_smoothing=label_smoothing,
            )

            grads.append(compute_grads(model, criterion, create_batch()))

        plain = score_targets_plainly(
            twin, SOURCES, TARGETS, label_smoothing=label_smoothing
        )

        expected = differentiate(twin, -0.3 * plain.sum())

        assert measure_error(grads[1] - grads[0], expected) < 1e-4

    @pytest.mark.parametrize("keep", KEEPS, ids=lambda keep: str(keep.name))
    def test_kept_rows_are_those_of_section(self, kind: str, keep: KeepSection) -> None:
        model, twin = create_twins(kind)

        candidates = create_off_policy_candidates(WARMUPS, max_warmup_len=3)

        criterion = create_criterion(
            model, sampler=FixedSampler(candidates), keep=keep, max_warmup_len=3
        )

        with record_passes(model) as passes:
            grads = compute_grads(model, criterion, create_batch())

        [kwargs] = passes

        num_rows = kwargs["rows"].seqs.size(0)

        coefs = kwargs["coefs"]

        assert isinstance(coefs, RowCoefs)

        assert coefs.warmup.shape == coefs.target.shape == (num_rows,)

        a, b = (x.detach() for x in score_plainly(twin, SOURCES, TARGETS, candidates))

        ratios = (a - candidates.proposal_log_probs).softmax(dim=1)

        weights = (a - candidates.proposal_log_probs + b).softmax(dim=1)

        magnitudes = (ratios - weights).abs() + weights

        shares = magnitudes / magnitudes.sum(dim=1, keepdim=True)

        if keep.name == "all":
            assert num_rows == 8
        elif keep.name == "mass":
            ordered = shares.sort(dim=1, descending=True).values

            before = ordered.cumsum(dim=1) - ordered

            assert num_rows == int((before < 0.7).sum())

            # Not the same number for each.
            assert num_rows == 3
        else:
            assert num_rows == 2

        if keep.name in ("top", "mass"):
            # The whole weight of y is learned.
            assert_close(coefs.target.sum(), -2.0)

        if keep.name == "top":
            warmups = kwargs["rows"].seqs[:, 1:4].tolist()

            for n, k in enumerate(shares.argmax(dim=1).tolist()):
                assert warmups[n][: len(WARMUPS[n][k])] == WARMUPS[n][k]

        assert grads.isfinite().all() and grads.norm() > 0.0


class TestMaxNumTokens:
    # Five sources, whose rows may have 2 to 6 tokens of y and 3 of c.
    sources: Final = [SOURCES[n] for n in (0, 1, 1, 0, 1)]
    targets: Final = [
        TARGETS[0],
        TARGETS[1],
        [*TARGETS[0][:-1], 5, 6, *TARGETS[0][-1:]],
        TARGETS[1],
        TARGETS[1],
    ]
    warmups: Final = [WARMUPS[n] for n in (0, 1, 1, 0, 1)]

    def run(
        self,
        model: Model,
        *,
        publish_every_n_steps: int | None = 1,
        reference: Model | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, float]]:
        """Returns the gradient and all metrics."""
        sampler = FixedSampler(
            create_off_policy_candidates(self.warmups, max_warmup_len=3)
        )

        criterion = create_criterion(
            model,
            sampler=sampler,
            max_warmup_len=3,
            publish_every_n_steps=publish_every_n_steps,
            reference=reference,
            **kwargs,
        )

        metric_bag = create_metric_bag(criterion)

        grads = compute_grads(
            model,
            criterion,
            create_batch(self.sources, self.targets),
            metric_bag=metric_bag,
        )

        return grads, {name: get_metric(metric_bag, name) for name in METRICS}

    # All at once, a few, each source and row alone.
    @pytest.mark.parametrize("max_num_tokens", [1000, 70, 60, 1])
    @each_kind
    def test_result_does_not_depend_on_it(self, kind: str, max_num_tokens: int) -> None:
        model, _ = create_twins(kind)

        kwargs: dict[str, Any] = {
            "reference": CREATE_MODEL[kind](seed=1),
            "kl_weight": 0.3,
            "sft_weight": 0.3,
            "label_smoothing": 0.1,
        }

        expected, expected_metrics = self.run(model, **kwargs)

        grads, metrics = self.run(model, max_num_tokens=max_num_tokens, **kwargs)

        assert measure_error(grads, expected) < 1e-5

        assert metrics == pytest.approx(expected_metrics, rel=1e-4)

    @pytest.mark.parametrize("max_num_tokens", [70, 60, 45, 30])
    @each_kind
    def test_no_pass_holds_more_tokens(self, kind: str, max_num_tokens: int) -> None:
        model, _ = create_twins(kind)

        num_tokens: list[int] = []

        # Each call of the decoder, of drawing, weighing and learning, with the lengths
        # of its rows; prompts do not count.
        def record(module: Module, args: Any) -> None:
            layout = args[1]

            begins = (layout.position_indices == 0).sum()

            num_tokens.append(args[0].size(0) - 0 * int(begins))

        handle = model.decoder.register_forward_pre_hook(record)

        self.run(model, max_num_tokens=max_num_tokens)

        handle.remove()

        print(num_tokens)


METRICS: Final = (
    "nll_loss",
    "warmup_k",
    "warmup_ess",
    "warmup_len",
    "warmup_entropy",
    "warmup_empty",
    "warmup_cut",
    "warmup_duplicate",
    "warmup_repetition",
    "warmup_gain",
)
