# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
From log-probabilities to a loss per source: pure tensor arithmetic.

Every objective takes ``warmup_log_probs`` a = log P(c|x), ``target_log_probs``
b = log P(y|c,x) and ``proposal_log_probs`` q, the log-probability of c under the
distribution it was drawn from, each :math:`(N,K)`, natural logarithm, fp32. q never
carries a gradient; for fresh draws from the model itself it equals a. The importance
weight exp(a - q) keeps draws from any other proposal correct.

Sequence probabilities underflow, so nothing here leaves the log domain.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


class Objective(Protocol):
    """Turns the log-probabilities of K candidates into a loss per source."""

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


def elbo_loss(
    warmup_log_probs: Tensor, target_log_probs: Tensor, proposal_log_probs: Tensor
) -> Tensor:
    r"""
    Estimates Jensen's bound :math:`-E_{c}[\log P(y|c,x)] \ge -\log P(y|x)`.

    The value is :math:`-\frac1K \sum_k r_k b_k` with :math:`r = e^{a-q}`; its gradient
    :math:`-\frac1K \sum_k r_k [\nabla b_k + (b_k - \bar b_{-k}) \nabla a_k]` uses the
    mean reward of the *other* candidates as baseline: a baseline that contained
    :math:`b_k` would correlate with :math:`\nabla a_k` and bias the estimate. With
    K = 1 there is no other candidate; then a gets no gradient.
    """
    num_warmups = target_log_probs.size(1)

    # (N, K)
    ratios = (warmup_log_probs - proposal_log_probs).exp().detach()

    # (N, K) -> (N)
    losses = -(ratios * target_log_probs).mean(dim=1)

    if num_warmups > 1:
        rewards = target_log_probs.detach()

        # (N, K)
        baselines = (rewards.sum(dim=1, keepdim=True) - rewards) / (num_warmups - 1)

        coefs = -ratios * (rewards - baselines) / num_warmups

        losses = losses + _zero_with_grad(warmup_log_probs, coefs).sum(dim=1)

    return losses


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


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """
    Computes 1 / Σ w² of normalised weights.

    :param log_weights: The unnormalised log-weights. *Shape:* :math:`(N,K)`.

    :returns: Between 1 (one candidate decides) and K. *Shape:* :math:`(N)`.
    """
    return log_weights.softmax(dim=1).square().sum(dim=1).reciprocal()
