# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from functools import partial
from typing import Final

import pytest
import torch
from torch import Tensor

from tests.common import assert_close, assert_equal, device
from warmup_plugin.objectives import (
    Objective,
    best_loss,
    effective_sample_size,
    elbo_loss,
    marginal_loss,
)

plain_marginal_loss: Final = partial(marginal_loss, control_variate=False)


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

        # r = (2, 1/2)
        assert_close(losses, [(2.0 * 1.0 + 0.5 * 2.0) / 2])
        assert_close(b_grads, [[-2.0 / 2, -0.5 / 2]])
        assert_close(a_grads, [[-2.0 * 1.0 / 2, 0.5 * 1.0 / 2]])

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


class TestObjectives:
    @pytest.mark.parametrize(
        "objective", [marginal_loss, plain_marginal_loss, elbo_loss, best_loss]
    )
    def test_call_stays_finite_when_target_log_probs_are_far_apart(
        self, objective: Objective
    ) -> None:
        a = torch.tensor([[-3.0, -5.0, -4.0]], device=device)
        b = torch.tensor([[-10.0, -1e4, -2e4]], device=device)

        losses, a_grads, b_grads = differentiate(objective, a, b, q=a)

        for tensor in (losses, a_grads, b_grads):
            assert bool(tensor.isfinite().all())

        # All of them far from zero: exp(b) alone would underflow.
        losses, a_grads, b_grads = differentiate(objective, a, b - 1e4, q=a)

        for tensor in (losses, a_grads, b_grads):
            assert bool(tensor.isfinite().all())

        assert bool((losses > 9e3).all())

    @pytest.mark.parametrize("objective", [marginal_loss, plain_marginal_loss])
    @pytest.mark.parametrize("gap", [-1e4, 1e4])
    def test_marginal_stays_finite_when_importance_is_extreme(
        self, objective: Objective, gap: float
    ) -> None:
        a = torch.tensor([[-3.0, -5.0, -4.0]], device=device)
        b = torch.tensor([[-10.0, -11.0, -12.0]], device=device)

        q = a - torch.tensor([[gap, 0.0, 0.0]], device=device)

        losses, a_grads, b_grads = differentiate(objective, a, b, q)

        for tensor in (losses, a_grads, b_grads):
            assert bool(tensor.isfinite().all())

        assert bool((a_grads.abs() <= 1.0).all())

    @pytest.mark.parametrize(
        "objective", [marginal_loss, plain_marginal_loss, elbo_loss, best_loss]
    )
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


class CategoricalToy:
    """
    Six warmups, few enough to sum over: P(c) is a softmax of ``theta``, and P(y|c) a
    function of ``phi``, about as different from warmup to warmup as one word makes it.
    """

    def __init__(self) -> None:
        self.theta = torch.tensor(
            [0.6, -0.4, 1.1, -1.0, 0.0, -0.2], device=device, dtype=torch.float64
        ).requires_grad_()

        self.phi = torch.tensor(
            [-0.8, 0.7, -0.3, 1.0, -0.1, 0.4], device=device, dtype=torch.float64
        ).requires_grad_()

    def log_probs(self) -> tuple[Tensor, Tensor]:
        """Returns log P(c) and log P(y|c). *Shape:* :math:`(6)` each."""
        return self.theta.log_softmax(dim=0), 2.0 * self.phi - self.phi.exp()

    def grad(self, loss: Tensor) -> Tensor:
        """Returns the derivatives with respect to all twelve parameters."""
        return torch.cat(torch.autograd.grad(loss, [self.theta, self.phi]))

    def exact(self) -> tuple[Tensor, Tensor]:
        """Sums over every warmup: -log P(y) and its gradient."""
        a, b = self.log_probs()

        loss = -torch.logsumexp(a + b, dim=0)

        return loss.detach(), self.grad(loss)

    def exact_elbo(self) -> tuple[Tensor, Tensor]:
        a, b = self.log_probs()

        loss = -(a.exp() * b).sum()

        return loss.detach(), self.grad(loss)

    def estimate(
        self,
        objective: Objective,
        num_warmups: int,
        *,
        temperature: float = 1.0,
        num_draws: int = 40_000,
    ) -> tuple[Tensor, Tensor]:
        """
        Runs an objective on many independent draws of K warmups.

        :returns: The losses and the gradients of all draws. *Shape:* :math:`(N)` and
            :math:`(N,12)`.
        """
        torch.manual_seed(1)

        a, b = (log_probs.detach() for log_probs in self.log_probs())

        # (6)
        q = (self.theta.detach() / temperature).log_softmax(dim=0)

        # (N, K)
        drawn = torch.multinomial(
            q.exp(), num_draws * num_warmups, replacement=True
        ).view(num_draws, num_warmups)

        losses, a_grads, b_grads = differentiate(
            objective, a[drawn], b[drawn], q[drawn]
        )

        def sum_by_warmup(grads: Tensor) -> Tensor:
            sums = torch.zeros((num_draws, 6), device=device, dtype=torch.float64)

            return sums.scatter_add(1, drawn, grads)

        # The derivatives of a and b with respect to the parameters: (6, 6), (6)
        a_jacobian = torch.eye(6, device=device) - a.exp()
        b_jacobian = 2.0 - self.phi.detach().exp()

        grads = torch.cat(
            [sum_by_warmup(a_grads) @ a_jacobian, sum_by_warmup(b_grads) * b_jacobian],
            dim=1,
        )

        return losses, grads


def measure_bias(grads: Tensor, exact: Tensor) -> tuple[float, float]:
    """Returns the relative bias of estimated gradients and its standard error."""
    bias = (grads.mean(dim=0) - exact).norm() / exact.norm()

    error = (grads.var(dim=0).sum() / grads.size(0)).sqrt() / exact.norm()

    return float(bias), float(error)


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

        for num_warmups in (2, 8, 32):
            losses, grads = toy.estimate(
                objective, num_warmups, temperature=temperature
            )

            bias, error = measure_bias(grads, exact_grad)

            biases.append(bias)

            gaps.append(float(losses.mean() - exact_loss))

        # Jensen: on average the value bounds -log P(y) from above.
        assert gaps[0] > gaps[1] > gaps[2] > 0.0

        # K times 4 divides the bias by 4, asymptotically; noise is about 1 %.
        assert biases[1] < biases[0] / 2
        assert biases[2] < biases[1] / 2 + 3 * error
        assert biases[2] < 0.04

        assert gaps[2] == pytest.approx(gaps[1] / 4, rel=0.3)

    @pytest.mark.parametrize("num_warmups", [2, 4, 8])
    def test_control_variate_keeps_mean_and_lowers_variance(
        self, num_warmups: int
    ) -> None:
        toy = CategoricalToy()

        losses, grads = toy.estimate(marginal_loss, num_warmups)

        plain_losses, plain_grads = toy.estimate(plain_marginal_loss, num_warmups)

        assert_close(losses, plain_losses)

        difference = grads - plain_grads

        # Zero within four standard errors, in each of the twelve parameters.
        errors = difference.std(dim=0) / math.sqrt(difference.size(0))

        assert bool((difference.mean(dim=0).abs() <= 4 * errors).all())

        # Only theta is concerned.
        assert_close(grads[:, 6:], plain_grads[:, 6:])

        assert grads[:, :6].var(dim=0).sum() < plain_grads[:, :6].var(dim=0).sum() / 2

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_control_variate_lowers_error_when_draws_are_tempered(
        self, temperature: float
    ) -> None:
        toy = CategoricalToy()

        _, exact_grad = toy.exact()

        errors = []

        for objective in (marginal_loss, plain_marginal_loss):
            _, grads = toy.estimate(objective, 4, temperature=temperature)

            errors.append(float((grads - exact_grad)[:, :6].square().sum(dim=1).mean()))

        assert errors[0] < errors[1] / 1.5

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    @pytest.mark.parametrize("num_warmups", [2, 4])
    def test_elbo_is_unbiased(self, num_warmups: int, temperature: float) -> None:
        toy = CategoricalToy()

        exact_loss, exact_grad = toy.exact_elbo()

        losses, grads = toy.estimate(elbo_loss, num_warmups, temperature=temperature)

        assert_close(losses.mean(), exact_loss, rtol=0.02, atol=0.0)

        bias, error = measure_bias(grads, exact_grad)

        assert error < 0.02

        assert bias < 3 * error

    def test_elbo_bounds_marginal(self) -> None:
        toy = CategoricalToy()

        assert toy.exact_elbo()[0] > toy.exact()[0]

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

        _, grads = toy.estimate(without_score, 32)

        bias, _ = measure_bias(grads, exact_grad)

        assert bias > 0.2


def test_values_agree_when_there_is_one_candidate() -> None:
    a, b = log([[0.5], [0.1]]), log([[0.2], [0.3]])

    # -log P(y|c,x); `best` counts the warmup as well.
    for objective in (marginal_loss, plain_marginal_loss, elbo_loss):
        assert_close(objective(a, b, a), -b.squeeze(1))

    assert_equal(best_loss(a, b, a), -(a + b).squeeze(1))
