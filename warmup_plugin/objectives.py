# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
From log-probabilities to a loss per source: pure tensor arithmetic.

Every objective takes ``warmup_log_probs`` a = log P(c|x), ``target_log_probs``
b = log P(y|c,x) and ``proposal_log_probs`` q, the log-probability of c under the
distribution it was drawn from, each :math:`(N,K)`, natural logarithm, fp32. q never
carries a gradient; for fresh draws from the model itself it equals a. The importance
weight exp(a - q) keeps draws from any other proposal correct. :func:`entropy_term` and
:func:`reference_kl_term` are not objectives but terms to add to one;
:func:`expected_risk_loss` and :func:`score_function_loss` take scores of outputs in the
place of log P(y|c,x).

Sequence probabilities underflow, so nothing here leaves the log domain.
"""

from __future__ import annotations

import math
from typing import Final, Protocol, final

import torch
from torch import Tensor


class Objective(Protocol):
    """
    Turns the log-probabilities of K candidates into a loss per source.

    An objective that is wrong where two candidates of a source are equal says so by a
    true attribute ``requires_distinct``; without the attribute any draws will do (see
    :func:`~warmup_plugin.objectives.requires_distinct`).
    """

    def __call__(
        self,
        warmup_log_probs: Tensor,
        target_log_probs: Tensor,
        proposal_log_probs: Tensor,
    ) -> Tensor:
        """
        :param warmup_log_probs: log P(c|x). *Shape:* :math:`(N,K)`.
        :param target_log_probs: log P(y|c,x). *Shape:* :math:`(N,K)`.
        :param proposal_log_probs: log-probability of c under its proposal, without
            gradient. *Shape:* :math:`(N,K)`.

        :returns: The losses. *Shape:* :math:`(N)`.
        """


def requires_distinct(objective: Objective) -> bool:
    """Tells whether ``objective`` takes only candidates that differ from each other."""
    return bool(getattr(objective, "requires_distinct", False))


def _zero_with_grad(log_probs: Tensor, coefs: Tensor) -> Tensor:
    """Returns zero whose gradient is ``coefs`` times that of ``log_probs``."""
    return coefs.detach() * (log_probs - log_probs.detach())


def marginal_loss(
    warmup_log_probs: Tensor,
    target_log_probs: Tensor,
    proposal_log_probs: Tensor,
    *,
    control_variate: bool = True,
) -> Tensor:
    r"""
    Estimates :math:`-\log P(y|x) = -\log \sum_c P(c|x) P(y|c,x)`.

    The value is :math:`-\log \frac1K \sum_k e^{a_k + b_k - q_k}`. Its gradient is
    :math:`-\sum_k w_k (\nabla b_k + \nabla a_k)` with
    :math:`w = \mathrm{softmax}(a + b - q)`, a self-normalised, hence consistent,
    estimate of :math:`-\nabla \log P(y|x)` (arXiv 2502.12304, the marginal
    likelihood that the paper maximises).

    Without a control variate every sampled warmup, also one that helps less than the
    others, is made more likely: all :math:`w_k` are positive. Since
    :math:`E[\nabla a_k] = 0`, a baseline that does not depend on :math:`c_k` may be
    subtracted from :math:`w_k`. Leave one out: put the mean of the other
    :math:`p_j = e^{b_j}` in the place of :math:`p_k`; its weight is then
    :math:`\bar p_{-k} / (\bar p_{-k} + \sum_{j \ne k} p_j) = 1/K`, whatever the
    others are. So the leave-one-out baseline is the constant 1/K, and a warmup that
    is no better than the rest gets no push. With K = 1 the weight equals its
    baseline and only y is learned: one draw says nothing about its own merit.

    Off policy, with :math:`r_j = e^{a_j - q_j}` and the mean weighted by it, the same
    replacement gives :math:`r_k / \sum_j r_j`; like w it is bounded by 1 and
    consistent. (:math:`r_k / K` would have an expectation of exactly zero, but no
    bound: a warmup that the proposal makes a thousand times too rare would count a
    thousand times.)

    :param control_variate: If ``False``, subtracts nothing (for comparison).
    """
    # (N, K)
    log_ratios = warmup_log_probs - proposal_log_probs

    scores = target_log_probs + log_ratios

    num_warmups = scores.size(1)

    # (N, K) -> (N)
    losses = math.log(num_warmups) - torch.logsumexp(scores, dim=1)

    if control_variate:
        # 1/K on policy.
        coefs = log_ratios.softmax(dim=1)

        losses = losses + _zero_with_grad(warmup_log_probs, coefs).sum(dim=1)

    return losses


def _estimate_mean(
    values: Tensor,
    warmup_log_probs: Tensor,
    proposal_log_probs: Tensor,
    *,
    with_empty: bool = False,
) -> Tensor:
    r"""
    Estimates :math:`E_{c}[f(c)]` over :math:`c \sim P(c|x)`, value and gradient.

    The value is :math:`\sum_k \rho_k f_k` with :math:`\rho = \mathrm{softmax}(a - q)`;
    its gradient :math:`\sum_k \rho_k [\nabla f_k + (f_k - \bar f_{-k}) \nabla a_k]` has
    the mean of the *other* candidates as baseline: one that contained :math:`f_k` would
    correlate with :math:`\nabla a_k` and bias the estimate. With K = 1 there is no
    other candidate; then a gets no gradient.

    On policy :math:`\rho_k = 1/K` and the estimate is unbiased. Off policy the ratios
    :math:`e^{a_k - q_k} / K` would be so too, but they have no bound: they overflow
    where a - q exceeds 88, and long before that one warmup that the proposal makes too
    rare decides the step. Normalised they sum to 1. The price is a bias that shrinks as
    1/K; with K = 1, :math:`\rho = 1` and nothing is corrected. Draws without
    replacement are not independent, which the baseline assumes: where the candidates
    are all the warmups there are, the coefficient of :math:`\nabla a` is K / (K - 1)
    times the exact one.

    :param values: f. Differentiated where it has a gradient. *Shape:* :math:`(N,K)`.
    :param with_empty: If ``True``, the first candidate was enumerated, not drawn (see
        :func:`~warmup_plugin.sampling.draw.draw_candidates`). Then only :math:`E[\rho_k
        \nabla a_k]` summed over both kinds is zero, so that their baselines must have
        the same mean: :math:`\rho_0 f_0 + (1 - \rho_0) \bar f` with the mean of the
        other draws, or :math:`f_0` where there is only one draw.

    :returns: *Shape:* :math:`(N)`.
    """
    # (N, K)
    ratios = (warmup_log_probs - proposal_log_probs).detach().softmax(dim=1)

    if with_empty:
        advantages = values - _get_baselines_with_empty(values.detach(), ratios)
    else:
        num_warmups = values.size(1)

        # From the mean of the others, K / (K - 1) times as far as from the mean of all;
        # zero with K = 1.
        advantages = values - values.mean(dim=1, keepdim=True)

        advantages = advantages * (num_warmups / max(num_warmups - 1, 1))

    coefs = ratios * advantages

    # (N, K) -> (N)
    return (ratios * values + _zero_with_grad(warmup_log_probs, coefs)).sum(dim=1)


def _get_baselines_with_empty(values: Tensor, ratios: Tensor) -> Tensor:
    """Computes the baselines where the first candidate is enumerated. *Shape:*
    :math:`(N,K)`."""
    empty, drawn = values[:, :1], values[:, 1:]

    num_drawn = drawn.size(1)

    if num_drawn == 1:
        return empty.expand_as(values)

    total = drawn.sum(dim=1, keepdim=True)

    means = torch.cat([total / num_drawn, (total - drawn) / (num_drawn - 1)], dim=1)

    return ratios[:, :1] * empty + (1.0 - ratios[:, :1]) * means


def elbo_loss(
    warmup_log_probs: Tensor, target_log_probs: Tensor, proposal_log_probs: Tensor
) -> Tensor:
    r"""
    Estimates Jensen's bound :math:`-E_{c}[\log P(y|c,x)] \ge -\log P(y|x)`.

    The score function rewards a warmup by b, compared with the other candidates.
    """
    return -_estimate_mean(target_log_probs, warmup_log_probs, proposal_log_probs)


def best_loss(
    warmup_log_probs: Tensor, target_log_probs: Tensor, proposal_log_probs: Tensor
) -> Tensor:
    """
    Trains on the candidate under which the target is likeliest: -(a* + b*).

    Hard selection; no estimate of a likelihood, and q does not enter.
    """
    # (N, K) -> (N, 1)
    best_idx = target_log_probs.detach().argmax(dim=1, keepdim=True)

    # (N, K) -> (N)
    return -(warmup_log_probs + target_log_probs).gather(1, best_idx).squeeze(1)


@final
class _JointLoss:
    r"""
    Sums over *distinct* candidates: :math:`-\log \sum_k P(c_k|x) P(y|c_k,x)`.

    A part of the sum over all warmups, hence never less than :math:`-\log P(y|x)`; the
    candidates that are missing make the difference. Nothing is estimated: the gradient
    is the loss's own, :math:`-\sum_k w_k (\nabla a_k + \nabla b_k)` with :math:`w =
    \mathrm{softmax}(a + b)`, and q does not enter. It is meant for a beam, or for draws
    without replacement.

    A duplicate is counted twice, so that the value falls below :math:`-\log P(y|x)`: it
    bounds nothing. And plain draws already come in proportion to P(c|x): multiplied by
    P(c|x) again, each warmup counts by its square, and no K however large leads to the
    gradient of :math:`-\log P(y|x)`.
    """

    requires_distinct: Final = True

    def __call__(
        self,
        warmup_log_probs: Tensor,
        target_log_probs: Tensor,
        proposal_log_probs: Tensor,
    ) -> Tensor:
        # (N, K) -> (N)
        return -torch.logsumexp(warmup_log_probs + target_log_probs, dim=1)


joint_loss: Final = _JointLoss()


@final
class TemperedObjective:
    r"""
    Divides b by a temperature within an objective L: :math:`\tau L(a, b / \tau, q)`.

    With long targets b differs by tens of nats and the weights are one-hot. Divided by
    :math:`\tau` they are not: ``marginal`` becomes :math:`-\tau \log \frac1K \sum_k
    e^{a_k - q_k + b_k / \tau}` with :math:`w = \mathrm{softmax}(a - q + b / \tau)`. The
    factor :math:`\tau` keeps :math:`\sum_k |\partial L / \partial b_k| = 1`, so that
    learning rates need not change.

    With :math:`\tau = 1` it is L itself. Otherwise it no longer estimates :math:`-\log
    P(y|x)` but :math:`-\tau \log E_c[P(y|c,x)^{1/\tau}]`, which for :math:`\tau > 1`
    lies between that and Jensen's bound (the variational Rényi bound of arXiv
    1602.02311 with the prior P(c|x) as approximation). Its limit is the latter: as
    :math:`\tau \to \infty`, :math:`w_k \to \frac1K (1 + (b_k - \bar b) / \tau)` on
    policy, the value tends to :math:`-\frac1K \sum_k b_k`, the derivative with respect
    to :math:`b_k` to :math:`-\frac1K` and, with the control variate, :math:`-\tau (w_k
    - \frac1K)` to :math:`-\frac1K (b_k - \bar b)`. That is ``elbo``; only the baseline
    contains :math:`b_k`, which makes the push on a (K - 1)/K times as strong.

    Off policy the value of ``marginal``, not its gradient, gets the noise of
    :math:`-\tau \log \frac1K \sum_k e^{a_k - q_k}`, so the untempered value is the one
    to report. ``elbo`` is linear in b and stays what it is. In ``best`` and ``joint``
    :math:`\tau` strengthens a against b.

    Length normalisation is this as well: with the number of target tokens of each
    source as its :math:`\tau`, candidates are weighed by their likelihood a token.
    """

    def __init__(self, objective: Objective, temperatures: Tensor | float) -> None:
        """
        :param temperatures: :math:`\\tau`, one for all or one a source. *Shape:*
            scalar or :math:`(N)`.
        """
        self._objective = objective
        self._temperatures = temperatures

        self.requires_distinct = requires_distinct(objective)

    def __call__(
        self,
        warmup_log_probs: Tensor,
        target_log_probs: Tensor,
        proposal_log_probs: Tensor,
    ) -> Tensor:
        temperatures = torch.as_tensor(
            self._temperatures,
            dtype=target_log_probs.dtype,
            device=target_log_probs.device,
        )

        # A copy: autograd refuses the tensors of a validator's inference mode.
        # (N, 1) or (1, 1)
        temperatures = temperatures.clone().view(-1, 1)

        # (N)
        losses = self._objective(
            warmup_log_probs, target_log_probs / temperatures, proposal_log_probs
        )

        return temperatures.squeeze(1) * losses


def entropy_term(
    warmup_log_probs: Tensor, proposal_log_probs: Tensor, *, with_empty: bool = False
) -> Tensor:
    r"""
    Estimates :math:`-H(P(c|x)) = E_c[\log P(c|x)]`, in nats a source.

    Added to a loss times a weight, it rewards warmups that vary. The gradient is
    :math:`E_c[\log P(c|x) \nabla \log P(c|x)]`; the derivative of the logarithm itself
    has a mean of zero and is left out, it would only add noise.

    :param warmup_log_probs: log P(c|x). *Shape:* :math:`(N,K)`.
    :param proposal_log_probs: log-probability of c under its proposal, without
        gradient. *Shape:* :math:`(N,K)`.
    :param with_empty: ``True`` if the first candidate is the empty warmup, enumerated.

    :returns: *Shape:* :math:`(N)`.
    """
    return _estimate_mean(
        warmup_log_probs.detach(),
        warmup_log_probs,
        proposal_log_probs,
        with_empty=with_empty,
    )


def reference_kl_term(
    warmup_log_probs: Tensor,
    reference_log_probs: Tensor,
    proposal_log_probs: Tensor,
    *,
    with_empty: bool = False,
) -> Tensor:
    r"""
    Estimates :math:`\mathrm{KL}(P(c|x) \,\|\, P_{ref}(c|x))` over whole warmups, in
    nats a source.

    Added to a loss times a weight, it holds the warmups near those of a frozen model.
    An estimate may be negative, its mean is not. As in :func:`entropy_term` the
    derivative of log P(c|x) itself is left out.

    :param warmup_log_probs: log P(c|x). *Shape:* :math:`(N,K)`.
    :param reference_log_probs: The log-probability of c under the frozen model, over
        the same allowed tokens. *Shape:* :math:`(N,K)`.
    :param proposal_log_probs: log-probability of c under its proposal, without
        gradient. *Shape:* :math:`(N,K)`.
    :param with_empty: ``True`` if the first candidate is the empty warmup, enumerated.

    :returns: *Shape:* :math:`(N)`.
    """
    # (N, K)
    log_ratios = (warmup_log_probs - reference_log_probs).detach()

    return _estimate_mean(
        log_ratios, warmup_log_probs, proposal_log_probs, with_empty=with_empty
    )


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """
    Computes 1 / Σ w² of normalised weights.

    :param log_weights: The unnormalised log-weights. *Shape:* :math:`(N,K)`.

    :returns: Between 1 (one candidate decides) and K. *Shape:* :math:`(N)`.
    """
    return log_weights.softmax(dim=1).square().sum(dim=1).reciprocal()


def expected_risk_loss(
    log_probs: Tensor, risks: Tensor, mask: Tensor, *, alpha: float
) -> Tensor:
    r"""
    Computes the expected risk of sampled outputs, divided by :math:`\alpha`.

    Of the distinct samples S of a source, :math:`R = \sum_{y \in S} Q(y) \Delta(y)` with
    :math:`Q(y) = P(y|x)^\alpha / \sum_{y' \in S} P(y'|x)^\alpha` (minimum risk training,
    Shen et al., 2016, arXiv 1512.02433). Its gradient is :math:`\alpha \sum_y Q(y)
    (\Delta(y) - R) \nabla \log P(y|x)`; divided by :math:`\alpha` its size does not
    depend on how flat Q is. With :math:`\alpha = 1` and all outputs in S it is the
    gradient of the expected risk itself.

    :param log_probs: log P of each sample. *Shape:* :math:`(N,K)`.
    :param risks: :math:`\Delta`, without gradient. *Shape:* :math:`(N,K)`.
    :param mask: ``False`` where a source has fewer than K distinct samples. *Shape:*
        :math:`(N,K)`.

    :returns: :math:`R / \alpha`. *Shape:* :math:`(N)`.
    """
    # (N, K)
    scores = (alpha * log_probs).masked_fill(~mask, -torch.inf)

    # (N, K) -> (N)
    return (scores.softmax(dim=1) * risks).sum(dim=1) / alpha


def score_function_loss(
    log_probs: Tensor, risks: Tensor, counts: Tensor, *, baseline: bool
) -> Tensor:
    r"""
    Estimates the expected risk :math:`E_{y \sim P(y|x)}[\Delta(y)]` from M draws.

    The value is their mean risk, the gradient the score function
    :math:`\frac1M \sum_m (\Delta_m - b_m) \nabla \log P(y_m|x)` (REINFORCE, Williams,
    1992). With the mean risk of the *other* draws as :math:`b_m` (Kool et al., 2019) it
    stays unbiased: what does not depend on :math:`y_m` multiplies a score of mean zero.

    See :func:`expected_risk_loss` for the other parameters.

    :param counts: How often each of the distinct samples was drawn, M times in all; 0
        where a source has fewer than K of them. *Shape:* :math:`(N,K)`.
    :param baseline: If ``False``, :math:`b = 0`.

    :returns: *Shape:* :math:`(N)`.
    """
    # (N, 1)
    num_draws = counts.sum(dim=1, keepdim=True)

    mean = (counts * risks).sum(dim=1, keepdim=True) / num_draws

    # From the mean of all draws it is (M - 1) / M times as far as from that of the others.
    advantages = (risks - mean) * num_draws / (num_draws - 1.0) if baseline else risks

    coefs = counts * advantages / num_draws

    # (N, K) -> (N)
    return mean.squeeze(1) + _zero_with_grad(log_probs, coefs).sum(dim=1)
