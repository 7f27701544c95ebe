# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Final

import pytest
import torch
from torch import Tensor

from tests.common import assert_close, assert_equal, device
from warmup_plugin.objectives import (
    Objective,
    TemperedObjective,
    best_loss,
    effective_sample_size,
    elbo_loss,
    entropy_term,
    joint_loss,
    marginal_loss,
    reference_kl_term,
    requires_distinct,
)

plain_marginal_loss: Final = partial(marginal_loss, control_variate=False)


def entropy_objective(
    warmup_log_probs: Tensor, target_log_probs: Tensor, proposal_log_probs: Tensor
) -> Tensor:
    """Takes the place of an objective; b does not enter."""
    return entropy_term(warmup_log_probs, proposal_log_probs)


def kl_objective(
    warmup_log_probs: Tensor, target_log_probs: Tensor, proposal_log_probs: Tensor
) -> Tensor:
    """Takes b for the log-probabilities under the reference."""
    return reference_kl_term(warmup_log_probs, target_log_probs, proposal_log_probs)


all_objectives: Final = [
    marginal_loss,
    plain_marginal_loss,
    elbo_loss,
    best_loss,
    joint_loss,
    TemperedObjective(marginal_loss, 20.0),
    entropy_objective,
    kl_objective,
]


def log(values: object) -> Tensor:
    return torch.tensor(values, device=device, dtype=torch.float64).log()


def differentiate(
    objective: Objective, a: Tensor, b: Tensor, q: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the losses and their derivatives with respect to a and b."""
    a = a.clone().requires_grad_()
    b = b.clone().requires_grad_()

    losses = objective(a, b, q)

    grads = torch.autograd.grad(losses.sum(), [a, b], materialize_grads=True)

    return losses.detach(), grads[0].detach(), grads[1].detach()


class TestMarginalLoss:
    def test_call_works(self) -> None:
        a = log([[0.5, 0.25], [0.1, 0.2]])
        b = log([[0.2, 0.4], [0.1, 0.3]])

        losses, a_grads, b_grads = differentiate(marginal_loss, a, b, q=a)

        # (0.2 + 0.4) / 2 and (0.1 + 0.3) / 2
        assert_close(losses, -log([0.3, 0.2]))

        # w = softmax(b)
        assert_close(b_grads, [[-1 / 3, -2 / 3], [-1 / 4, -3 / 4]])

        # w minus the baseline 1/2
        assert_close(a_grads, [[1 / 6, -1 / 6], [1 / 4, -1 / 4]])

    def test_call_pushes_every_warmup_when_control_variate_is_off(self) -> None:
        a = log([[0.5, 0.25]])
        b = log([[0.2, 0.4]])

        losses, a_grads, b_grads = differentiate(plain_marginal_loss, a, b, q=a)

        assert_close(losses, -log([0.3]))

        assert_close(b_grads, [[-1 / 3, -2 / 3]])
        assert_close(a_grads, [[-1 / 3, -2 / 3]])

    def test_call_weighs_by_importance_when_proposal_is_another(self) -> None:
        a = log([[0.5, 0.25]])
        b = log([[0.2, 0.4]])
        q = log([[0.25, 0.5]])

        # exp(a - q) = (2, 1/2), so that the terms are 0.4 and 0.2: the other way
        # round than without q.
        losses, a_grads, b_grads = differentiate(plain_marginal_loss, a, b, q)

        assert_close(losses, -log([0.3]))
        assert_close(b_grads, [[-2 / 3, -1 / 3]])
        assert_close(a_grads, [[-2 / 3, -1 / 3]])

        # The baseline is 2 / 2.5 and 0.5 / 2.5.
        losses, a_grads, b_grads = differentiate(marginal_loss, a, b, q)

        assert_close(losses, -log([0.3]))
        assert_close(b_grads, [[-2 / 3, -1 / 3]])
        assert_close(a_grads, [[0.8 - 2 / 3, 0.2 - 1 / 3]])

    def test_call_does_not_push_warmups_when_none_helps_more(self) -> None:
        a = log([[0.5, 0.25, 0.1]])
        b = log([[0.2, 0.2, 0.2]])

        for q in (a, log([[0.1, 0.3, 0.6]])):
            _, a_grads, _ = differentiate(marginal_loss, a, b, q)

            assert_close(a_grads, [[0.0, 0.0, 0.0]])

    @pytest.mark.parametrize("q", [0.5, 0.01, 0.9])
    def test_call_learns_only_target_when_k_is_1(self, q: float) -> None:
        a, b = log([[0.5]]), log([[0.2]])

        losses, a_grads, b_grads = differentiate(marginal_loss, a, b, log([[q]]))

        # One draw says nothing about its own merit, whoever drew it.
        assert_close(losses, -log([0.2 * 0.5 / q]))
        assert_close(a_grads, [[0.0]])
        assert_close(b_grads, [[-1.0]])

        _, a_grads, _ = differentiate(plain_marginal_loss, a, b, log([[q]]))

        assert_close(a_grads, [[-1.0]])


class TestElboLoss:
    def test_call_works(self) -> None:
        a = log([[0.5, 0.3, 0.2]])
        b = torch.tensor([[-1.0, -2.0, -6.0]], device=device, dtype=torch.float64)

        losses, a_grads, b_grads = differentiate(elbo_loss, a, b, q=a)

        assert_close(losses, [3.0])
        assert_close(b_grads, [[-1 / 3, -1 / 3, -1 / 3]])

        # -(b_k - mean of the other two) / 3: the others' means are -4, -3.5, -1.5.
        assert_close(a_grads, [[-3.0 / 3, -1.5 / 3, 4.5 / 3]])

    def test_call_weighs_by_importance_when_proposal_is_another(self) -> None:
        a, q = log([[0.5, 0.25]]), log([[0.25, 0.5]])
        b = torch.tensor([[-1.0, -2.0]], device=device, dtype=torch.float64)

        losses, a_grads, b_grads = differentiate(elbo_loss, a, b, q)

        # The ratios (2, 1/2), normalised.
        assert_close(losses, [0.8 * 1.0 + 0.2 * 2.0])
        assert_close(b_grads, [[-0.8, -0.2]])
        assert_close(a_grads, [[-0.8 * 1.0, 0.2 * 1.0]])

    def test_call_learns_only_target_when_k_is_1(self) -> None:
        a, b = log([[0.5]]), log([[0.2]])

        losses, a_grads, b_grads = differentiate(elbo_loss, a, b, q=a)

        assert_close(losses, -log([0.2]))
        assert_close(a_grads, [[0.0]])
        assert_close(b_grads, [[-1.0]])


class TestBestLoss:
    def test_call_works(self) -> None:
        a = log([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])
        b = log([[0.1, 0.4, 0.2], [0.7, 0.6, 0.2]])

        losses, a_grads, b_grads = differentiate(best_loss, a, b, q=a)

        assert_close(losses, -log([0.3 * 0.4, 0.5 * 0.7]))

        for grads in (a_grads, b_grads):
            assert_close(grads, [[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]])


class TestJointLoss:
    def test_call_works(self) -> None:
        a = log([[0.5, 0.25]])
        b = log([[0.2, 0.4]])

        # Whoever drew them.
        for q in (a, log([[0.9, 0.01]])):
            losses, a_grads, b_grads = differentiate(joint_loss, a, b, q)

            assert_close(losses, -log([0.1 + 0.1]))

            for grads in (a_grads, b_grads):
                assert_close(grads, [[-0.5, -0.5]])


class TestTemperedObjective:
    def test_call_works_when_each_source_has_its_temperature(self) -> None:
        a = log([[0.5, 0.25], [0.1, 0.2]])
        b = log([[0.04, 0.16], [0.001, 0.027]])

        objective = TemperedObjective(
            marginal_loss, torch.tensor([2, 3], device=device)
        )

        losses, a_grads, b_grads = differentiate(objective, a, b, q=a)

        # Square and cubic roots: (0.2 + 0.4) / 2 and (0.1 + 0.3) / 2.
        assert_close(losses, -log([0.3**2, 0.2**3]))

        assert_close(b_grads, [[-1 / 3, -2 / 3], [-1 / 4, -3 / 4]])
        assert_close(a_grads, [[2 / 6, -2 / 6], [3 / 4, -3 / 4]])

    @pytest.mark.parametrize("objective", all_objectives)
    def test_call_changes_nothing_when_temperature_is_1(
        self, objective: Objective
    ) -> None:
        torch.manual_seed(0)

        a, b, q = torch.randn((3, 2, 4), device=device).unbind()

        expected = differentiate(objective, a, b, q)

        for x, y in zip(
            differentiate(TemperedObjective(objective, 1.0), a, b, q), expected
        ):
            assert_close(x, y)

    def test_marginal_becomes_elbo_when_temperature_is_high(self) -> None:
        torch.manual_seed(0)

        a, b = -10.0 * torch.rand((2, 3, 4), device=device, dtype=torch.float64)

        losses, a_grads, b_grads = differentiate(
            TemperedObjective(marginal_loss, 1e6), a, b, q=a
        )

        expected = differentiate(elbo_loss, a, b, q=a)

        assert_close(losses, expected[0], rtol=1e-4, atol=0.0)
        assert_close(b_grads, expected[2], rtol=1e-4, atol=0.0)

        # The baseline of the one contains b_k: 3/4 of a push with K = 4.
        assert_close(a_grads, 0.75 * expected[1], rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 30.0])
    def test_target_is_learned_as_fast_whatever_the_temperature(
        self, temperature: float
    ) -> None:
        a = torch.tensor([[-3.0, -5.0, -4.0]] * 2, device=device)
        b = torch.tensor([[-10.0, -90.0, -50.0], [-90.0] * 3], device=device)

        objective = TemperedObjective(marginal_loss, temperature)

        _, _, b_grads = differentiate(objective, a, b, q=a)

        assert_close(b_grads.abs().sum(dim=1), [1.0, 1.0])

    def test_call_keeps_weights_apart_from_one_hot(self) -> None:
        a = torch.tensor([[-3.0, -5.0, -4.0]], device=device)
        b = torch.tensor([[-100.0, -110.0, -120.0]], device=device)

        # By the likelihood of each of 40 tokens.
        objective = TemperedObjective(marginal_loss, 40.0)

        _, _, b_grads = differentiate(objective, a, b, q=a)

        assert_close(b_grads, -(b / 40.0).softmax(dim=1))

        assert float(b_grads.abs().min()) > 0.2

    def test_elbo_stays_what_it_is(self) -> None:
        torch.manual_seed(0)

        a, b, q = torch.randn((3, 2, 4), device=device).unbind()

        tempered = differentiate(TemperedObjective(elbo_loss, 7.0), a, b, q)

        for x, y in zip(tempered, differentiate(elbo_loss, a, b, q)):
            assert_close(x, y)

    def test_call_works_when_temperatures_are_inference_tensors(self) -> None:
        with torch.inference_mode():
            temperatures = torch.tensor([3.0], device=device)

        a = torch.tensor([[-3.0, -5.0]], device=device)

        for objective in (marginal_loss, best_loss):
            expected = differentiate(TemperedObjective(objective, 3.0), a, a, a)

            actual = differentiate(TemperedObjective(objective, temperatures), a, a, a)

            for x, y in zip(actual, expected):
                assert_equal(x, y)


class TestRequiresDistinct:
    def test_call_works(self) -> None:
        assert requires_distinct(joint_loss)
        assert requires_distinct(TemperedObjective(joint_loss, 2.0))

        for objective in (marginal_loss, plain_marginal_loss, elbo_loss, best_loss):
            assert not requires_distinct(objective)
            assert not requires_distinct(TemperedObjective(objective, 2.0))


class TestEntropyTerm:
    def test_call_works(self) -> None:
        a = torch.tensor([[-1.0, -2.0, -6.0]], device=device, dtype=torch.float64)

        losses, a_grads, _ = differentiate(entropy_objective, a, a, q=a)

        assert_close(losses, [-3.0])

        # (a_k - mean of the other two) / 3: the likely ones are made less likely.
        assert_close(a_grads, [[3.0 / 3, 1.5 / 3, -4.5 / 3]])

    def test_call_has_no_gradient_when_k_is_1(self) -> None:
        a = log([[0.5], [0.1]])

        losses, a_grads, _ = differentiate(entropy_objective, a, a, log([[0.3], [0.3]]))

        assert_close(losses, log([0.5, 0.1]))
        assert_close(a_grads, [[0.0], [0.0]])


class TestReferenceKlTerm:
    def test_call_works(self) -> None:
        a = torch.tensor([[-1.0, -2.0, -6.0]], device=device, dtype=torch.float64)

        reference = torch.tensor([[-2.0, -4.0, -3.0]], device=device).double()

        losses, a_grads, reference_grads = differentiate(kl_objective, a, reference, a)

        # 1, 2 and -3; the others' means are -1/2, -1 and 3/2.
        assert_close(losses, [0.0])
        assert_close(a_grads, [[1.5 / 3, 3.0 / 3, -4.5 / 3]])
        assert_close(reference_grads, [[0.0, 0.0, 0.0]])

    def test_call_vanishes_when_model_is_the_reference(self) -> None:
        a = log([[0.5, 0.2, 0.1]])

        for q in (a, log([[0.1, 0.3, 0.6]])):
            losses, a_grads, _ = differentiate(kl_objective, a, a, q)

            assert_close(losses, [0.0])
            assert_close(a_grads, [[0.0, 0.0, 0.0]])

    def test_call_has_no_gradient_when_k_is_1(self) -> None:
        a, reference = log([[0.5]]), log([[0.2]])

        losses, a_grads, _ = differentiate(kl_objective, a, reference, log([[0.3]]))

        assert_close(losses, log([2.5]))
        assert_close(a_grads, [[0.0]])


def assert_finite(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert bool(tensor.isfinite().all())


class TestWithEmpty:
    """The first candidate is enumerated; all draws there may be are summed up."""

    @staticmethod
    def sum_up(
        num_warmups: int, *, has_reference: bool, with_empty: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """
        Returns the mean and its gradient, and the exact sum and its gradient.

        There are four warmups, the first of which is the empty one.
        """
        logits = torch.tensor(
            [0.9, -0.4, 0.3, -1.1], device=device, dtype=torch.float64
        ).requires_grad_()

        reference = log([0.1, 0.3, 0.2, 0.4])

        a = logits.log_softmax(dim=0)

        values = a.detach() - reference if has_reference else a.detach()

        # d/da of the sum of P(c) f(c), where f depends on P(c) as well: 1 has no part
        # in it, since probabilities sum to 1.
        exact = (a.exp() * values).sum()

        # Q, of those that are not empty.
        q = (a[1:] - torch.log1p(-a[0].exp())).detach()

        drawn = torch.cartesian_prod(*[torch.arange(1, 4)] * (num_warmups - 1))

        drawn = drawn.view(-1, num_warmups - 1)

        idx = torch.cat([torch.zeros_like(drawn[:, :1]), drawn], dim=1)

        proposal_log_probs = torch.cat(
            [
                torch.full_like(q[:1], -math.log(num_warmups)),
                q + math.log((num_warmups - 1) / num_warmups),
            ]
        )[idx]

        if has_reference:
            terms = reference_kl_term(
                a[idx], reference[idx], proposal_log_probs, with_empty=with_empty
            )
        else:
            terms = entropy_term(a[idx], proposal_log_probs, with_empty=with_empty)

        mean = (q[drawn - 1].sum(dim=1).exp() * terms).sum()

        grads = [
            torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (mean, exact)
        ]

        return mean.detach(), grads[0], exact.detach(), grads[1]

    @pytest.mark.parametrize("has_reference", [False, True])
    @pytest.mark.parametrize("num_warmups", [2, 3, 4])
    def test_mean_is_exact(self, num_warmups: int, has_reference: bool) -> None:
        mean, grad, exact, exact_grad = self.sum_up(
            num_warmups, has_reference=has_reference
        )

        assert_close(mean, exact)
        assert_close(grad, exact_grad)

    @pytest.mark.parametrize("num_warmups", [2, 3])
    def test_gradient_is_wrong_when_empty_warmup_is_taken_for_a_draw(
        self, num_warmups: int
    ) -> None:
        _, grad, _, exact_grad = self.sum_up(
            num_warmups, has_reference=False, with_empty=False
        )

        assert (grad - exact_grad).norm() > 0.1 * exact_grad.norm()


@pytest.mark.parametrize("objective", all_objectives)
class TestObjectives:
    def test_call_stays_finite_when_target_log_probs_are_far_apart(
        self, objective: Objective
    ) -> None:
        a = torch.tensor([[-3.0, -5.0, -4.0]], device=device)

        # The weight of the last two underflows to zero.
        b = torch.tensor([[-10.0, -1e4, -2e4]], device=device)

        assert_finite(*differentiate(objective, a, b, q=a))

        # All of them far from zero: exp(b) alone would underflow.
        losses, a_grads, b_grads = differentiate(objective, a, b - 1e4, q=a)

        assert_finite(losses, a_grads, b_grads)

        if objective not in (entropy_objective, kl_objective):
            assert bool((losses > 9e3).all())

    @pytest.mark.parametrize("value", [-1e4, -1e-4])
    @pytest.mark.parametrize("num_warmups", [1, 3])
    def test_call_stays_finite_when_candidates_are_equal(
        self, objective: Objective, num_warmups: int, value: float
    ) -> None:
        log_probs = torch.full((2, num_warmups), value, device=device)

        for q in (log_probs, torch.zeros_like(log_probs)):
            assert_finite(*differentiate(objective, log_probs, log_probs, q))

    @pytest.mark.parametrize("gap", [-1e4, -200.0, 200.0, 1e4])
    def test_call_stays_bounded_when_importance_is_extreme(
        self, objective: Objective, gap: float
    ) -> None:
        a = torch.tensor([[-3.0, -5.0, -4.0]], device=device)
        b = torch.tensor([[-10.0, -11.0, -12.0]], device=device)

        q = a - torch.tensor([[gap, 0.0, 0.0]], device=device)

        losses, a_grads, b_grads = differentiate(objective, a, b, q)

        assert_finite(losses, a_grads, b_grads)

        assert bool((a_grads.abs() <= 20.0).all())
        assert bool((b_grads.abs() <= 1.0).all())

    def test_sources_do_not_touch_each_other(self, objective: Objective) -> None:
        torch.manual_seed(0)

        a, b, q = torch.randn((3, 2, 4), device=device).unbind()

        both = differentiate(objective, a, b, q)

        for n in range(2):
            alone = differentiate(objective, a[n:][:1], b[n:][:1], q[n:][:1])

            for x, y in zip(both, alone):
                assert_close(x[n:][:1], y)


class TestEffectiveSampleSize:
    def test_call_works(self) -> None:
        log_weights = log([[1, 1, 1, 1], [2, 2, 0, 0], [7, 0, 0, 0], [3, 1, 0, 0]])

        # 1 / (9/16 + 1/16)
        assert_close(effective_sample_size(log_weights), [4.0, 2.0, 1.0, 1.6])

        # Weights are relative, also where exp would underflow.
        assert_close(effective_sample_size(log_weights - 1e4), [4.0, 2.0, 1.0, 1.6])


@dataclass
class Estimates:
    """Holds what an objective made of many draws of K warmups."""

    probs: Tensor
    """The probability of each draw; they sum to 1. *Shape:* :math:`(M)`."""

    losses: Tensor
    """*Shape:* :math:`(M)`."""

    grads: Tensor
    """The derivatives with respect to the ten parameters. *Shape:* :math:`(M,10)`."""

    def mean_loss(self) -> Tensor:
        return (self.probs * self.losses).sum()

    def mean_grad(self) -> Tensor:
        return self.probs @ self.grads

    def bias(self, exact_grad: Tensor) -> float:
        """Returns the distance of the mean gradient, relative to the exact one."""
        return float((self.mean_grad() - exact_grad).norm() / exact_grad.norm())

    def theta_error(self, target: Tensor) -> float:
        """Returns the mean square distance of the warmups' part from ``target``."""
        return float(self.probs @ (self.grads - target)[:, :5].square().sum(dim=1))


class CategoricalToy:
    """
    Five warmups, few enough for every K-tuple of draws: P(c) is a softmax of ``theta``,
    and P(y|c) a function of ``phi``, about as different from warmup to warmup as one
    word makes it.
    """

    def __init__(self) -> None:
        self.theta = torch.tensor(
            [0.6, -0.4, 1.1, -1.0, 0.0], device=device, dtype=torch.float64
        ).requires_grad_()

        self.phi = torch.tensor(
            [-0.8, 0.7, -0.3, 1.0, -0.1], device=device, dtype=torch.float64
        ).requires_grad_()

    def log_probs(self) -> tuple[Tensor, Tensor]:
        """Returns log P(c) and log P(y|c). *Shape:* :math:`(5)` each."""
        return self.theta.log_softmax(dim=0), 2.0 * self.phi - self.phi.exp()

    def differentiate(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``loss`` and its derivatives with respect to all ten parameters."""
        grads = torch.autograd.grad(
            loss, [self.theta, self.phi], materialize_grads=True
        )

        # Where the loss does not depend on one, autograd's zero has a gradient.
        return loss.detach(), torch.cat(grads).detach()

    def exact(self, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Sums over every warmup: -log P(y), or what a tempered marginal tends to."""
        a, b = self.log_probs()

        loss = -temperature * torch.logsumexp(a + b / temperature, dim=0)

        return self.differentiate(loss)

    def exact_mean(self, objective: Objective) -> tuple[Tensor, Tensor]:
        """Returns the mean that ``elbo`` or one of the terms estimates."""
        a, b = self.log_probs()

        values = {
            elbo_loss: -b,
            entropy_objective: a,
            # The reference is frozen. It need not sum to 1 for the arithmetic.
            kl_objective: a - b.detach(),
        }

        return self.differentiate((a.exp() * values[objective]).sum())

    def proposal(self, temperature: float) -> Tensor:
        """Returns the log-probabilities that draws follow. *Shape:* :math:`(5)`."""
        return (self.theta.detach() / temperature).log_softmax(dim=0)

    def enumerate_draws(
        self, objective: Objective, num_warmups: int, *, temperature: float = 1.0
    ) -> Estimates:
        """Runs an objective on every K-tuple of independent draws."""
        # (M, K)
        drawn = torch.cartesian_prod(*[torch.arange(5, device=device)] * num_warmups)

        q = self.proposal(temperature)

        losses, grads = self.estimate(objective, drawn, q)

        return Estimates(q[drawn].sum(dim=1).exp(), losses, grads)

    def sample_draws(
        self, objective: Objective, num_warmups: int, *, temperature: float = 1.0
    ) -> Estimates:
        """Runs an objective on some of them, where they are too many."""
        torch.manual_seed(1)

        num_draws = 10_000

        q = self.proposal(temperature)

        # (M, K)
        drawn = torch.multinomial(
            q.exp(), num_draws * num_warmups, replacement=True
        ).view(num_draws, num_warmups)

        losses, grads = self.estimate(objective, drawn, q)

        return Estimates(torch.full_like(losses, 1 / num_draws), losses, grads)

    def estimate(
        self, objective: Objective, drawn: Tensor, q: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Runs an objective on draws.

        :param drawn: The warmups. *Shape:* :math:`(M,K)`.
        :param q: The log-probability of each warmup. *Shape:* :math:`(5)`.

        :returns: The losses and the gradients. *Shape:* :math:`(M)` and
            :math:`(M,10)`.
        """
        a, b = (log_probs.detach() for log_probs in self.log_probs())

        losses, a_grads, b_grads = differentiate(
            objective, a[drawn], b[drawn], q[drawn]
        )

        def sum_by_warmup(grads: Tensor) -> Tensor:
            sums = torch.zeros((drawn.size(0), 5), device=device, dtype=torch.float64)

            return sums.scatter_add(1, drawn, grads)

        # The derivatives of a and b with respect to the parameters: (5, 5), (5)
        a_jacobian = torch.eye(5, device=device) - a.exp()
        b_jacobian = 2.0 - self.phi.detach().exp()

        grads = torch.cat(
            [sum_by_warmup(a_grads) @ a_jacobian, sum_by_warmup(b_grads) * b_jacobian],
            dim=1,
        )

        return losses, grads


mean_objectives: Final = [elbo_loss, entropy_objective, kl_objective]


class TestEnumeration:
    """The proof of an objective: on a toy its mean meets the exact sum."""

    @pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
    @pytest.mark.parametrize("objective", [marginal_loss, plain_marginal_loss])
    def test_marginal_converges_as_one_over_k(
        self, objective: Objective, temperature: float
    ) -> None:
        toy = CategoricalToy()

        exact_loss, exact_grad = toy.exact()

        biases, gaps = [], []

        for num_warmups in (2, 4, 6):
            estimates = toy.enumerate_draws(
                objective, num_warmups, temperature=temperature
            )

            biases.append(num_warmups * estimates.bias(exact_grad))

            gaps.append(num_warmups * float(estimates.mean_loss() - exact_loss))

        # Jensen: the value bounds -log P(y) from above. Times K it is about constant.
        assert min(gaps) > 0.0
        assert gaps[2] == pytest.approx(gaps[1], rel=0.15)

        assert biases[2] == pytest.approx(biases[1], rel=0.15)

        estimates = toy.sample_draws(objective, 64, temperature=temperature)

        assert estimates.bias(exact_grad) < 0.05

    @pytest.mark.parametrize("num_warmups", [2, 4])
    def test_control_variate_keeps_mean_and_lowers_variance(
        self, num_warmups: int
    ) -> None:
        toy = CategoricalToy()

        with_it, without = (
            toy.enumerate_draws(objective, num_warmups)
            for objective in (marginal_loss, plain_marginal_loss)
        )

        mean = without.mean_grad()

        assert_close(with_it.losses, without.losses)
        assert_close(with_it.mean_grad(), mean)

        # Only theta is concerned.
        assert_close(with_it.grads[:, 5:], without.grads[:, 5:])

        assert with_it.theta_error(mean) < without.theta_error(mean) / 2

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_control_variate_lowers_error_when_draws_are_tempered(
        self, temperature: float
    ) -> None:
        toy = CategoricalToy()

        _, exact_grad = toy.exact()

        errors = [
            toy.enumerate_draws(objective, 4, temperature=temperature).theta_error(
                exact_grad
            )
            for objective in (marginal_loss, plain_marginal_loss)
        ]

        assert errors[0] < errors[1] / 1.5

    @pytest.mark.parametrize("objective", mean_objectives)
    @pytest.mark.parametrize("num_warmups", [2, 3])
    def test_mean_is_unbiased(self, objective: Objective, num_warmups: int) -> None:
        toy = CategoricalToy()

        exact_loss, exact_grad = toy.exact_mean(objective)

        estimates = toy.enumerate_draws(objective, num_warmups)

        assert_close(estimates.mean_loss(), exact_loss)
        assert_close(estimates.mean_grad(), exact_grad)

    @pytest.mark.parametrize("objective", mean_objectives)
    @pytest.mark.parametrize("temperature", [0.7, 1.5])
    def test_mean_converges_as_one_over_k_when_draws_are_tempered(
        self, objective: Objective, temperature: float
    ) -> None:
        toy = CategoricalToy()

        _, exact_grad = toy.exact_mean(objective)

        biases = [
            num_warmups
            * toy.enumerate_draws(objective, num_warmups, temperature=temperature).bias(
                exact_grad
            )
            for num_warmups in (2, 4, 6)
        ]

        # Were q ignored, the bias itself would be constant.
        assert biases[2] == pytest.approx(biases[1], rel=0.1)

        estimates = toy.sample_draws(objective, 64, temperature=temperature)

        assert estimates.bias(exact_grad) < 0.01

    def test_score_is_larger_when_draws_are_all_there_are(self) -> None:
        toy = CategoricalToy()

        _, exact_grad = toy.exact_mean(elbo_loss)

        # Draws without replacement: every warmup, each with certainty.
        _, grads = toy.estimate(
            elbo_loss, torch.arange(5, device=device).unsqueeze(0), torch.zeros(5)
        )

        assert_close(grads[0, :5], exact_grad[:5] * 5 / 4)
        assert_close(grads[0, 5:], exact_grad[5:])

    @pytest.mark.parametrize("temperature", [2.0, 5.0])
    def test_tempered_marginal_converges_to_value_between_bounds(
        self, temperature: float
    ) -> None:
        toy = CategoricalToy()

        exact_loss, exact_grad = toy.exact(temperature=temperature)

        assert toy.exact()[0] < exact_loss < toy.exact_mean(elbo_loss)[0]

        objective = TemperedObjective(marginal_loss, temperature)

        biases = [
            num_warmups * toy.enumerate_draws(objective, num_warmups).bias(exact_grad)
            for num_warmups in (2, 4, 6)
        ]

        assert biases[2] == pytest.approx(biases[1], rel=0.1)

        estimates = toy.sample_draws(objective, 64)

        assert estimates.bias(exact_grad) < 0.02

        # Not that of -log P(y).
        assert estimates.bias(toy.exact()[1]) > 0.1

    def test_joint_is_exact_when_every_warmup_is_there(self) -> None:
        toy = CategoricalToy()

        exact_loss, exact_grad = toy.exact()

        losses, grads = toy.estimate(
            joint_loss, torch.arange(5, device=device).unsqueeze(0), toy.proposal(1.0)
        )

        assert_close(losses.squeeze(0), exact_loss)
        assert_close(grads.squeeze(0), exact_grad)

    def test_joint_bounds_only_when_candidates_are_distinct(self) -> None:
        toy = CategoricalToy()

        exact_loss, exact_grad = toy.exact()

        distinct = torch.combinations(torch.arange(5, device=device), 4)

        losses, _ = toy.estimate(joint_loss, distinct, toy.proposal(1.0))

        assert bool((losses > exact_loss).all())

        # All the warmups, and the first once more.
        repeated = torch.tensor([[0, 1, 2, 3, 4, 0]], device=device)

        losses, _ = toy.estimate(joint_loss, repeated, toy.proposal(1.0))

        assert bool((losses < exact_loss).all())

        # More and more plain draws do not help.
        assert toy.sample_draws(joint_loss, 64).bias(exact_grad) > 0.2

    def test_wrong_sign_or_missing_term_is_seen(self) -> None:
        """Checks the proof itself: it must tell right from nearly right."""

        def without_score(
            warmup_log_probs: Tensor,
            target_log_probs: Tensor,
            proposal_log_probs: Tensor,
        ) -> Tensor:
            return marginal_loss(
                warmup_log_probs.detach(), target_log_probs, proposal_log_probs
            )

        toy = CategoricalToy()

        _, exact_grad = toy.exact()

        assert toy.sample_draws(without_score, 64).bias(exact_grad) > 0.2


def test_values_agree_when_there_is_one_candidate() -> None:
    a, b = log([[0.5], [0.1]]), log([[0.2], [0.3]])

    # -log P(y|c,x); `best` counts the warmup as well.
    for objective in (marginal_loss, plain_marginal_loss, elbo_loss):
        assert_close(objective(a, b, a), -b.squeeze(1))

    assert_equal(best_loss(a, b, a), -(a + b).squeeze(1))
