# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The estimators against the exact sum over all warmups, by ``check_estimators.py``.

Here a warmup has at most two words, so that there are 21.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Final, final

import pytest
import torch
from fairseq2.models.transformer import TransformerModel
from fairseq2.models.transformer_lm import TransformerLM
from torch import Tensor

from scripts.bench_common import FIRST_WORD_IDX
from scripts.check_estimators import (
    check_backward,
    check_sampler,
    describe_spread,
    measure,
)
from scripts.check_risk import RISK_ESTIMATORS, check_risk_backward, enumerate_outputs
from scripts.enumerable import PROBLEMS, SETTING, SOURCE, TARGET, Problem, flatten_grad
from scripts.estimators import (
    ESTIMATORS,
    ON_POLICY,
    PROPOSALS,
    WITH_EMPTY,
    Draws,
    Enumeration,
    Exact,
    Trials,
    compute_exact,
    compute_jensen_bound,
    compute_nll,
    draw,
    enumerate_warmups,
    list_warmups,
    run_trials,
)
from tests.common import (
    BOS_IDX,
    SEPARATOR_IDX,
    assert_close,
    assert_equal,
    create_candidates,
    device,
    forward_alone,
)
from warmup_plugin.objectives import elbo_loss
from warmup_plugin.scoring import keep_all

NUM_WARMUPS: Final = 1 + 4 + 4 * 4

WORDS: Final = range(FIRST_WORD_IDX, SETTING.vocab_size)


@final
@dataclass(frozen=True)
class Case:
    problem: Problem

    enumeration: Enumeration

    def draw(
        self, num_trials: int, num_warmups: int, proposal: str = ON_POLICY
    ) -> Draws:
        torch.manual_seed(0)

        return draw(
            self.problem,
            self.enumeration,
            PROPOSALS[proposal],
            num_trials,
            num_warmups,
        )

    def measure(self, objective: str, draws: Draws) -> dict[str, float]:
        estimator = ESTIMATORS[objective]

        return measure(
            run_trials(self.enumeration, draws, estimator.objective, keep_all),
            self.enumeration,
            compute_exact(self.enumeration, estimator.claim),
        )


@cache
def get_case(kind: str) -> Case:
    problem = PROBLEMS[kind](2)

    return Case(problem, enumerate_warmups(problem))


@pytest.fixture(params=PROBLEMS)
def case(request: pytest.FixtureRequest) -> Case:
    return get_case(request.param)


@pytest.fixture
def lm_case() -> Case:
    """The one whose gradient depends more on log P(c|x)."""
    return get_case("decoder-only")


def score_warmups_alone(problem: Problem) -> tuple[Tensor, Tensor]:
    """
    Scores every warmup with gradient. *Shape:* :math:`(C)` each.

    Nothing of the package is used but the model itself: one forward for each.
    """
    module = problem.model.module

    assert isinstance(module, (TransformerModel, TransformerLM))

    allowed = [SEPARATOR_IDX, *WORDS]

    a, b = [], []

    for length in range(3):
        for warmup in product(WORDS, repeat=length):
            seq = [BOS_IDX, *warmup, SEPARATOR_IDX, *TARGET[1:]]

            logits = forward_alone(module, SOURCE, seq[:-1])

            log_probs = logits[:, allowed].log_softmax(dim=1)

            # A separator after two words costs nothing.
            tokens = [*warmup, SEPARATOR_IDX][:2]

            a.append(sum(log_probs[i, allowed.index(t)] for i, t in enumerate(tokens)))

            # y is learned with all tokens but the separator.
            others = [t for t in range(SETTING.vocab_size) if t != SEPARATOR_IDX]

            log_probs = logits[length + 1 :, others].log_softmax(dim=1)

            b.append(
                sum(log_probs[i, others.index(t)] for i, t in enumerate(TARGET[1:]))
            )

    return torch.stack(a), torch.stack(b)  # type: ignore[arg-type]


class TestEnumerateWarmups:
    @pytest.mark.parametrize("max_warmup_len", [1, 2, 3])
    def test_probabilities_sum_to_one(self, case: Case, max_warmup_len: int) -> None:
        problem = replace(case.problem, max_warmup_len=max_warmup_len)

        with torch.no_grad():
            scores = problem.model.score(
                problem.model.encode(*problem.repeat_source(1)),
                problem.join(list_warmups(problem)),
                problem.excluded(),
            )

        assert_close(scores.warmup_log_probs.exp().sum(), 1.0, rtol=0.0, atol=1e-5)

    def test_value_and_gradient_equal_those_of_plain_sum(self, case: Case) -> None:
        a, b = score_warmups_alone(case.problem)

        assert_close(case.enumeration.warmup_log_probs.float(), a.detach())
        assert_close(case.enumeration.target_log_probs.float(), b.detach())

        for claim, loss in [
            (compute_nll, -(a.exp() * b.exp()).sum().log()),
            (compute_jensen_bound, -(a.exp() * b).sum()),
        ]:
            exact = compute_exact(case.enumeration, claim)

            assert exact.value == pytest.approx(loss.item(), rel=1e-5)

            expected = flatten_grad(loss, case.problem.model).double()

            error = exact.coefs @ case.enumeration.grads - expected

            assert error.norm() < 1e-4 * expected.norm()

    def test_coordinates_keep_lengths_and_angles(self, case: Case) -> None:
        grads, coordinates = case.enumeration.grads, case.enumeration.coordinates

        assert_close(coordinates @ coordinates.T, grads @ grads.T)

    def test_find_returns_numbers_of_warmups(self, case: Case) -> None:
        assert case.enumeration.num_warmups == NUM_WARMUPS

        # The empty one, the four of one word, then those of two.
        candidates = create_candidates([[[], [5]], [[8, 8], [5, 5]]], 2)

        assert_equal(case.enumeration.find(candidates), [[0, 1], [20, 5]])

        narrow = create_candidates([[[], [6]]], 2)

        assert narrow.seqs.size(1) == 1

        assert_equal(case.enumeration.find(narrow), [[0, 2]])

    def test_warmups_differ_in_what_they_say_of_target(self, case: Case) -> None:
        spread = describe_spread("", case.enumeration)

        assert spread.total_prob == pytest.approx(1.0, abs=1e-5)
        assert spread.entropy > 2.0
        assert spread.target_log_prob_max - spread.target_log_prob_min > 3.0
        assert spread.bound > spread.nll + 0.2
        assert 0.1 < spread.ess_share < 0.7
        assert spread.warmup_grad_share > 0.05


class TestRunTrials:
    @pytest.mark.parametrize("proposal", PROPOSALS)
    @pytest.mark.parametrize("name", ["marginal", "elbo"])
    def test_gradient_is_that_of_objective(
        self, lm_case: Case, name: str, proposal: str
    ) -> None:
        draws = lm_case.draw(3, 4, proposal)

        objective = ESTIMATORS[name].objective

        trials = run_trials(lm_case.enumeration, draws, objective, keep_all)

        a, b = score_warmups_alone(lm_case.problem)

        losses = objective(
            a[draws.idx], b[draws.idx], draws.candidates.proposal_log_probs
        )

        assert_close(trials.losses.float(), losses.detach(), rtol=1e-5, atol=1e-5)

        expected = flatten_grad(losses.sum(), lm_case.problem.model).double()

        error = trials.coefs.sum(dim=0) @ lm_case.enumeration.grads - expected

        assert error.norm() < 1e-4 * expected.norm()

        assert trials.num_rows == 4.0

    def test_backward_pass_agrees(self, case: Case) -> None:
        torch.manual_seed(0)

        assert check_backward(case.problem, case.enumeration, 50) < 1e-4

        wrong = replace(case.enumeration, grads=1.01 * case.enumeration.grads)

        assert check_backward(case.problem, wrong, 50) > 0.005


class TestMeasure:
    def test_call_works(self) -> None:
        # One warmup and one parameter; a has no gradient, and that of b is 1.
        enumeration = Enumeration(
            warmups=create_candidates([[[]]], 1),
            warmup_log_probs=torch.zeros(1),
            target_log_probs=torch.zeros(1),
            grads=torch.tensor([[0.0], [1.0]], device=device),
            coordinates=torch.tensor([[0.0, 0.0], [0.0, 1.0]], device=device),
        )

        trials = Trials(
            losses=torch.tensor([3.0, 5.0], device=device),
            coefs=torch.tensor([[7.0, 1.0], [9.0, 4.0]], device=device),
            num_rows=1.5,
        )

        exact = Exact(
            value=2.0,
            coefs=torch.zeros(2),
            grad=torch.tensor([0.0, 2.0], device=device),
        )

        # Gradients 1 and 4: mean 2.5, variance 2 x 1.5² / (2 - 1) = 4.5.
        assert measure(trials, enumeration, exact) == pytest.approx(
            {
                "num_rows": 1.5,
                "grad_bias": 0.5 / 2.0,
                "grad_bias_noise": (4.5 / 4.0 / 2.0) ** 0.5,
                "grad_variance": 4.5 / 4.0,
                # Values 1.5 and 2.5 times the exact one.
                "value_bias": 1.0,
                "value_bias_noise": 0.5,
            }
        )


class TestEstimators:
    def test_bias_of_marginal_decreases_as_one_over_num_warmups(
        self, lm_case: Case
    ) -> None:
        few, some, many = (
            lm_case.measure("marginal", lm_case.draw(num_trials, num_warmups))
            for num_trials, num_warmups in [(4000, 4), (1500, 16), (500, 64)]
        )

        assert few["value_bias"] / some["value_bias"] == pytest.approx(4.0, rel=0.3)

        assert 2.5 < few["grad_bias"] / some["grad_bias"] < 5.0
        assert 2.5 < some["grad_bias"] / many["grad_bias"] < 8.0

    @pytest.mark.parametrize("num_warmups", [2, 4, 16])
    def test_control_variate_lowers_variance(
        self, case: Case, num_warmups: int
    ) -> None:
        draws = case.draw(1000, num_warmups)

        with_it, without = (
            case.measure(name, draws) for name in ("marginal", "marginal, no baseline")
        )

        assert with_it["grad_variance"] < 0.99 * without["grad_variance"]

        assert with_it["value_bias"] == without["value_bias"]

    @pytest.mark.parametrize("num_warmups", [2, 4, 16])
    def test_elbo_is_unbiased(self, case: Case, num_warmups: int) -> None:
        draws = case.draw(1000, num_warmups)

        row = case.measure("elbo", draws)

        assert row["grad_bias"] < 5 * row["grad_bias_noise"]

        assert abs(row["value_bias"]) < 5 * row["value_bias_noise"]

        # The noise is not so large that anything would pass.
        other = measure(
            run_trials(case.enumeration, draws, elbo_loss, keep_all),
            case.enumeration,
            compute_exact(case.enumeration, compute_nll),
        )

        assert other["value_bias"] > 5 * other["value_bias_noise"]

    @pytest.mark.parametrize("name", ["marginal", "joint"])
    def test_all_warmups_drawn_make_sum_exact(self, case: Case, name: str) -> None:
        row = case.measure(name, case.draw(20, NUM_WARMUPS, "stochastic beam"))

        assert row["grad_bias"] < 1e-6
        assert row["grad_variance"] < 1e-12
        assert abs(row["value_bias"]) < 1e-6

    @pytest.mark.parametrize("proposal", PROPOSALS)
    def test_marginal_approaches_gradient_with_any_proposal(
        self, lm_case: Case, proposal: str
    ) -> None:
        few, many = (
            lm_case.measure("marginal", lm_case.draw(num_trials, num_warmups, proposal))
            for num_trials, num_warmups in [(1000, 2), (2000, 20)]
        )

        assert few["grad_bias"] > 0.4

        assert many["grad_bias"] < 0.25


@final
@dataclass(frozen=True)
class AllDraws:
    """Holds every draw that there may be, and its probability."""

    draws: Draws

    probs: Tensor
    """*Shape:* :math:`(N)`, N draws."""

    def measure(self, case: Case, name: str) -> tuple[float, Tensor]:
        """Returns the exact mean of an estimator, its gradient in coordinates."""
        objective = ESTIMATORS[name].objective

        trials = run_trials(case.enumeration, self.draws, objective, keep_all)

        grad = (self.probs @ trials.coefs) @ case.enumeration.coordinates

        return float(self.probs @ trials.losses), grad


def list_draws_with_empty(case: Case, proposal: str, num_warmups: int) -> AllDraws:
    """Lists every K - 1 warmups that are not empty, in every order."""
    draws = case.draw(3000, num_warmups, proposal)

    assert bool((draws.idx[:, 0] == 0).all())

    # (C)
    q = torch.full((NUM_WARMUPS,), torch.nan, dtype=torch.float64, device=device)

    q[draws.idx] = draws.candidates.proposal_log_probs.double()

    # None is missing, and they are what the sampler says.
    assert q[0].exp().item() == pytest.approx(1 / num_warmups)

    probs = q[1:].exp() * num_warmups / (num_warmups - 1)

    assert_close(probs.sum().float(), 1.0, rtol=0.0, atol=1e-5)

    drawn = torch.cartesian_prod(*[torch.arange(1, NUM_WARMUPS)] * (num_warmups - 1))

    drawn = drawn.view(-1, num_warmups - 1)

    idx = torch.cat([torch.zeros_like(drawn[:, :1]), drawn], dim=1)

    candidates = replace(draws.candidates, proposal_log_probs=q[idx])

    return AllDraws(Draws(candidates, idx), probs[drawn - 1].prod(dim=1))


class TestWithEmpty:
    """The empty warmup is enumerated; the mean is taken over all draws there may be."""

    @pytest.mark.parametrize("num_warmups", [2, 4])
    @pytest.mark.parametrize("proposal", WITH_EMPTY)
    def test_likelihood_and_its_gradient_are_unbiased(
        self, case: Case, proposal: str, num_warmups: int
    ) -> None:
        every = list_draws_with_empty(case, proposal, num_warmups)

        exact = compute_exact(case.enumeration, compute_nll)

        trials = run_trials(
            case.enumeration,
            every.draws,
            ESTIMATORS["marginal, no baseline"].objective,
            keep_all,
        )

        likelihoods = (-trials.losses).exp() * every.probs

        # Relative to P(y|x) itself.
        ratio = likelihoods.sum() * math.exp(exact.value)

        assert ratio.item() == pytest.approx(1.0, abs=1e-5)

        # ∇P = -P ∇L
        coefs = (likelihoods @ trials.coefs) * math.exp(exact.value)

        error = coefs @ case.enumeration.coordinates - exact.grad

        assert error.norm() < 1e-4 * exact.grad.norm()

    @pytest.mark.parametrize("proposal", WITH_EMPTY)
    def test_marginal_approaches_likelihood(self, case: Case, proposal: str) -> None:
        exact = compute_exact(case.enumeration, compute_nll)

        value_biases, grad_biases = [], []

        for num_warmups in (2, 4):
            every = list_draws_with_empty(case, proposal, num_warmups)

            value, grad = every.measure(case, "marginal")

            value_biases.append(value - exact.value)

            grad_biases.append(float((grad - exact.grad).norm() / exact.grad.norm()))

        many = case.measure("marginal", case.draw(500, 64, proposal))

        # Jensen's inequality: never too small.
        assert value_biases[0] > 1.8 * value_biases[1] > 0.0

        assert grad_biases[0] > 1.2 * grad_biases[1] > 2.4 * many["grad_bias"]

    def test_baseline_changes_no_mean_of_one_draw(self, case: Case) -> None:
        # With K = 2 it is P(∅|x) and 1 - P(∅|x), whatever is drawn.
        every = list_draws_with_empty(case, "with empty", 2)

        (value, grad), (simple_value, simple_grad) = (
            every.measure(case, name) for name in ("marginal", "marginal, no baseline")
        )

        assert value == pytest.approx(simple_value)

        assert (grad - simple_grad).norm() < 1e-4 * grad.norm()

    def test_warmups_that_are_drawn_are_taken_for_what_they_are(
        self, lm_case: Case
    ) -> None:
        # The mean is wrong by much if the empty one is taken for a draw.
        every = list_draws_with_empty(lm_case, "with empty", 2)

        a = lm_case.enumeration.warmup_log_probs[every.draws.idx]

        wrong = replace(every.draws.candidates, proposal_log_probs=a)

        trials = run_trials(
            lm_case.enumeration,
            Draws(wrong, every.draws.idx),
            ESTIMATORS["marginal"].objective,
            keep_all,
        )

        exact = compute_exact(lm_case.enumeration, compute_nll)

        likelihood = ((-trials.losses).exp() * every.probs).sum()

        assert abs(float(likelihood) * math.exp(exact.value) - 1.0) > 0.05


class TestCheckSampler:
    @pytest.mark.parametrize("proposal", PROPOSALS)
    def test_call_agrees_with_right_sampler(self, case: Case, proposal: str) -> None:
        draws = case.draw(2000, 4, proposal)

        check = check_sampler(proposal, case.enumeration, draws)

        assert check.log_prob_error < 1e-5
        assert check.frequency_error < 4.5

    def test_call_finds_wrong_proposal_log_probs(self, case: Case) -> None:
        draws = case.draw(2000, 4, "temperature 0.7")

        a = draws.candidates.warmup_log_probs

        assert a is not None

        wrong = replace(
            draws, candidates=replace(draws.candidates, proposal_log_probs=a)
        )

        check = check_sampler("temperature 0.7", case.enumeration, wrong)

        assert check.frequency_error > 10.0

    def test_call_finds_wrong_order_of_beam(self, case: Case) -> None:
        draws = case.draw(2000, 16, "stochastic beam")

        wrong = replace(draws, idx=draws.idx.flip(1))

        check = check_sampler("stochastic beam", case.enumeration, wrong)

        assert check.frequency_error > 10.0
        assert check.log_prob_error > 0.1


class TestCheckRisk:
    def test_call_finds_wrong_sum(self) -> None:
        problem = PROBLEMS["decoder-only"](1)

        right = enumerate_outputs(problem, True)

        wrong = replace(right, grads=1.01 * right.grads)

        estimator = RISK_ESTIMATORS["risk, alpha = 1"]

        error, other_error = (
            check_risk_backward(problem, enumeration, estimator, True, 0)
            for enumeration in (right, wrong)
        )

        assert error < 1e-4 and other_error > 0.005
