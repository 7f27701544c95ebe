# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from warmup_plugin.layout import DecoderLayout, join_rows
from warmup_plugin.models.conditional import ConditionalModel, EncodedSource
from warmup_plugin.objectives import Objective
from warmup_plugin.sampling import Candidates


@final
@dataclass(frozen=True)
class WeighedCandidates:
    """Holds what one look at K candidates without gradient tells about them."""

    warmup_log_probs: Tensor
    """a = log P(c|x). *Shape:* :math:`(N,K)`."""

    target_log_probs: Tensor
    """b = log P(y|c,x). *Shape:* :math:`(N,K)`."""

    losses: Tensor
    """The value of the objective. *Shape:* :math:`(N)`."""

    warmup_coefs: Tensor
    """The derivative of the loss with respect to a. *Shape:* :math:`(N,K)`."""

    target_coefs: Tensor
    """The derivative of the loss with respect to b. *Shape:* :math:`(N,K)`."""


@torch.no_grad()
def weigh_candidates(
    model: ConditionalModel,
    source: EncodedSource,
    layout: DecoderLayout,
    candidates: Candidates,
    target_seqs: Tensor,
    target_seq_lens: Tensor,
    objective: Objective,
) -> WeighedCandidates:
    r"""
    Scores candidates and differentiates the objective with respect to the scores.

    By the chain rule :math:`\nabla L = \sum_k \frac{\partial L}{\partial a_k} \nabla
    a_k + \frac{\partial L}{\partial b_k} \nabla b_k`, so the derivatives found here are
    all that the differentiable pass needs, and it may leave candidates out (see
    :func:`keep_candidates`). The model must be in evaluation mode: dropout would add
    noise of several nats to long targets, and the weights are exponentials.

    :param target_seqs: ``[prefix] y EOS``, padded. *Shape:* :math:`(N,S_{tgt})`.
    :param target_seq_lens: *Shape:* :math:`(N)`.
    """
    with_separator = torch.ones_like(candidates.cut)

    rows = join_rows(
        layout,
        target_seqs,
        target_seq_lens,
        candidates.seqs,
        candidates.seq_lens,
        candidates.cut,
        with_separator,
        candidates.source_idx(),
    )

    if candidates.on_policy:
        # Drawing has already found a; its positions need no output projection.
        rows = replace(rows, warmup_mask=torch.zeros_like(rows.warmup_mask))

    ban_mask = layout.warmup_ban_mask(model.num_logits, target_seqs.device)

    scores = model.score(source, rows, ban_mask)

    shape = candidates.proposal_log_probs.shape

    # (B) -> (N, K)
    target_log_probs = scores.target_log_probs.view(shape)

    if candidates.on_policy:
        warmup_log_probs = candidates.proposal_log_probs
    else:
        warmup_log_probs = scores.warmup_log_probs.view(shape)

    losses, warmup_coefs, target_coefs = differentiate_objective(
        objective, warmup_log_probs, target_log_probs, candidates.proposal_log_probs
    )

    return WeighedCandidates(
        warmup_log_probs, target_log_probs, losses, warmup_coefs, target_coefs
    )


def differentiate_objective(
    objective: Objective,
    warmup_log_probs: Tensor,
    target_log_probs: Tensor,
    proposal_log_probs: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Computes the losses and their derivatives with respect to a and b.

    :returns: The losses, *Shape:* :math:`(N)`, and the two derivatives, *Shape:*
        :math:`(N,K)` each.
    """
    # Validation runs in inference mode, whose tensors autograd refuses.
    with torch.inference_mode(False), torch.set_grad_enabled(True):
        a = warmup_log_probs.clone().requires_grad_()
        b = target_log_probs.clone().requires_grad_()

        losses = objective(a, b, proposal_log_probs.clone())

        coefs = torch.autograd.grad(losses.sum(), [a, b], materialize_grads=True)

    # Where an objective does not depend on a or b, autograd's zero has a gradient.
    return losses.detach(), coefs[0].detach(), coefs[1].detach()


@final
@dataclass(frozen=True)
class KeptCandidates:
    """Holds the rows of the differentiable pass."""

    rows: Tensor
    """Their numbers among the candidates, ``n * K + k``. *Shape:* :math:`(R)`."""

    warmup_coefs: Tensor
    """What multiplies :math:`\\nabla a`. *Shape:* :math:`(R)`."""

    target_coefs: Tensor
    """What multiplies :math:`\\nabla b`. *Shape:* :math:`(R)`."""


@torch.no_grad()
def keep_candidates(
    warmup_coefs: Tensor, target_coefs: Tensor, num_kept: int | None
) -> KeptCandidates:
    r"""
    Chooses the candidates that the differentiable pass sees.

    With ``num_kept`` n, n candidates of each source are *resampled* with probability
    :math:`p_k \propto |\partial L/\partial a_k| + |\partial L/\partial b_k|` and their
    coefficients divided by :math:`n p_k`: the mean of the gradient stays what it was.
    Sampling by the weight :math:`w_k` alone would be unbiased too, but its variance
    has no bound: a candidate of weight :math:`10^{-6}` whose :math:`\nabla a` counts
    1/K would come up once in a million draws and then count a million times as much.
    The draws are systematic (one uniform number, equidistant points), so that a
    candidate is kept at least :math:`\lfloor n p_k \rfloor` times; one that is kept
    twice is one row with twice the coefficient.

    :param num_kept: The number of candidates to resample for each source; ``None``
        keeps all. All sources keep the same number, duplicates merged.
    """
    num_sources, num_warmups = warmup_coefs.shape

    device = warmup_coefs.device

    if num_kept is None:
        return KeptCandidates(
            torch.arange(num_sources * num_warmups, device=device),
            warmup_coefs.flatten(),
            target_coefs.flatten(),
        )

    # (N, K)
    magnitudes = (warmup_coefs.abs() + target_coefs.abs()).double()

    # An objective that is flat in every candidate keeps any of them, with zero.
    magnitudes = magnitudes + magnitudes.sum(dim=1, keepdim=True).eq(0)

    # (N, K)
    cumulative = magnitudes.cumsum(dim=1)

    # (N, 1)
    total = cumulative[:, -1:]

    probs = magnitudes / total

    # Divided by the very sum that they end with: rounding neither loses a point nor
    # gives one to a candidate of probability zero.
    upper = cumulative / total * num_kept

    u = torch.rand((num_sources, 1), dtype=torch.float64, device=device)

    # The number of points u, u + 1, … below each upper bound: (N, K)
    below = (upper - u).ceil().clamp(min=0)

    counts = below.diff(dim=1, prepend=below.new_zeros((num_sources, 1)))

    # (N, K)
    factors = (counts / (num_kept * probs)).to(warmup_coefs.dtype)

    rows = counts.flatten().nonzero().squeeze(1)

    return KeptCandidates(
        rows,
        (warmup_coefs * factors.nan_to_num()).flatten().index_select(0, rows),
        (target_coefs * factors.nan_to_num()).flatten().index_select(0, rows),
    )
