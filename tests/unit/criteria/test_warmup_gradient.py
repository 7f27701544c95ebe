# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The gradient of a training step is that of the method as one would first write it."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.common import (
    Model,
    assert_close,
    assert_equal,
    create_candidates,
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
    create_given_candidates,
    create_metric_bag,
    create_twins,
    differentiate,
    get_metric,
    measure_error,
    record_passes,
)
from tests.unit.sampling.cases import each_kind
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.objectives import (
    Objective,
    best_loss,
    elbo_loss,
    joint_loss,
    marginal_loss,
)
from warmup_plugin.sampling import Candidates, WarmupSampler, draw_candidates
from warmup_plugin.sampling.samplers import StochasticBeamSampler

stochastic_beam = StochasticBeamSampler()

simple_marginal_loss = partial(marginal_loss, control_variate=False)


def compute_plain_grads(
    model: Model,
    objective: Objective,
    candidates: Candidates,
    *,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> tuple[float, Tensor]:
    """
    :returns: The sum of the objective over sources, and the gradient of what is
        trained.
    """
    a, b = score_plainly(model, SOURCES, TARGETS, candidates)

    losses = objective(a, b, candidates.proposal_log_probs)

    loss = losses.sum()

    if label_smoothing > 0.0:
        # The weights know nothing of smoothing; only what is weighed is smoothed.
        a_coefs, b_coefs = torch.autograd.grad(loss, [a, b], retain_graph=True)

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
            (marginal_loss, stochastic_beam, {}),
            (marginal_loss, draw_candidates, {"label_smoothing": 0.2}),
            (
                marginal_loss,
                draw_candidates,
                {"label_smoothing": 0.2, "sft_weight": 0.5},
            ),
            (simple_marginal_loss, draw_candidates, {}),
            (simple_marginal_loss, partial(draw_candidates, temperature=1.5), {}),
            (elbo_loss, draw_candidates, {}),
            (elbo_loss, partial(draw_candidates, temperature=1.5), {}),
            (best_loss, draw_candidates, {}),
            (joint_loss, stochastic_beam, {}),
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
            max_warmup_len=2,
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

        def run(*source_idx: int) -> Tensor:
            criterion = create_criterion(
                model,
                sampler=FixedSampler(create_given_candidates(source_idx)),
                max_warmup_len=3,
                sft_weight=0.3,
            )

            batch = create_batch(
                [SOURCES[n] for n in source_idx], [TARGETS[n] for n in source_idx]
            )

            return compute_grads(model, criterion, batch)

        alone = run(0) + run(1)

        # Sources, prompts, targets and warmups of different lengths.
        assert measure_error(run(0, 1), alone) < 1e-5
        assert measure_error(run(1, 0), alone) < 1e-5

    @pytest.mark.parametrize(
        ("objective", "num_kept"),
        [(marginal_loss, 1), (marginal_loss, 3), (elbo_loss, 2), (joint_loss, 1)],
    )
    @each_kind
    def test_gradient_is_unbiased_when_few_are_kept(
        self, kind: str, objective: Objective, num_kept: int
    ) -> None:
        model, twin = create_twins(kind)

        _, expected = compute_plain_grads(twin, objective, create_given_candidates())

        # The same two sources many times are many draws in one pass.
        num_copies, num_seeds = 30, 10

        criterion = create_criterion(
            model,
            objective=objective,
            sampler=FixedSampler(create_given_candidates((0, 1) * num_copies)),
            keep=KeepSection(name="resample", num=num_kept),
            max_warmup_len=3,
        )

        batch = create_batch(SOURCES * num_copies, TARGETS * num_copies)

        # (S, P), S seeds
        grads = torch.stack(
            [compute_grads(model, criterion, batch, seed=s) for s in range(num_seeds)]
        )

        grads = grads / num_copies

        # Of the whole vector: the root of E|mean - exact|².
        standard_error = (grads.var(dim=0).sum() / num_seeds).sqrt()

        error = (grads.mean(dim=0) - expected).norm()

        assert 0.0 < error < 2.5 * standard_error

        # Narrow enough to see a bias.
        assert standard_error < 0.05 * expected.norm()

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    @each_kind
    def test_gradient_approaches_that_of_enumeration(
        self, kind: str, temperature: float
    ) -> None:
        model, twin = create_twins(kind)

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

    @each_kind
    def test_joint_is_exact_when_nothing_is_missing(self, kind: str) -> None:
        model, twin = create_twins(kind)

        # All thirteen, in whatever order they are drawn.
        criterion = create_criterion(
            model,
            objective=joint_loss,
            sampler=stochastic_beam,
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
