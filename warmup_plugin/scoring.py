# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from warmup_plugin.layout import DecoderLayout, DecoderRows, join_rows
from warmup_plugin.models.conditional import ConditionalModel, EncodedSource
from warmup_plugin.objectives import Objective
from warmup_plugin.sampling import Candidates


@final
@dataclass(frozen=True)
class CandidateScores:
    """Holds what one look at K candidates without gradient tells about them."""

    warmup_log_probs: Tensor
    """a = log P(c|x). *Shape:* :math:`(N,K)`."""

    target_log_probs: Tensor
    """b = log P(y|c,x). *Shape:* :math:`(N,K)`."""


@torch.no_grad()
def score_candidates(
    model: ConditionalModel,
    source: EncodedSource,
    layout: DecoderLayout,
    candidates: Candidates,
    target_seqs: Tensor,
    target_seq_lens: Tensor,
) -> CandidateScores:
    """
    Scores candidates; the targets from where drawing has left off, if it tells.

    The model must be in evaluation mode: dropout would add noise of several nats to
    long targets, and the weights are exponentials.

    :param target_seqs: ``[prefix] y EOS``, padded. *Shape:* :math:`(N,S_{tgt})`.
    :param target_seq_lens: *Shape:* :math:`(N)`.
    """
    # Equal warmups are scored once.
    # (D), (B)
    distinct, places = candidates.distinct()

    rows = _join_candidates(layout, target_seqs, target_seq_lens, candidates, distinct)

    excluded = layout.excluded_tokens(model.num_logits, target_seqs.device)

    shape = candidates.proposal_log_probs.shape

    warmup_log_probs = candidates.warmup_log_probs

    if warmup_log_probs is not None:
        # Found by drawing; its positions need no output projection.
        rows = replace(rows, warmup_mask=torch.zeros_like(rows.warmup_mask))

        past = candidates.past

        if past is not None and past.decoder.scores_any_length:
            past_lens = past.seq_lens

            if past.rows is not None or distinct.size(0) < past_lens.size(0):
                past.decoder.select(
                    distinct if past.rows is None else past.rows[distinct]
                )

                past_lens = past_lens[distinct]

            target_log_probs = past.decoder.score(rows, past_lens, excluded)

            return CandidateScores(
                warmup_log_probs, target_log_probs[places].view(shape)
            )

    scores = model.score(source, rows, excluded)

    if warmup_log_probs is None:
        warmup_log_probs = scores.warmup_log_probs[places].view(shape)

    return CandidateScores(
        warmup_log_probs, scores.target_log_probs[places].view(shape)
    )


def _join_candidates(
    layout: DecoderLayout,
    target_seqs: Tensor,
    target_seq_lens: Tensor,
    candidates: Candidates,
    idx: Tensor,
) -> DecoderRows:
    """
    Joins some candidates with the targets of their sources.

    :param idx: *Shape:* :math:`(D)`.
    """
    cut = candidates.cut[idx]

    return join_rows(
        layout,
        target_seqs,
        target_seq_lens,
        candidates.seqs[idx],
        candidates.seq_lens[idx],
        cut,
        torch.ones_like(cut),
        candidates.source_idx()[idx],
    )


@torch.no_grad()
def score_warmups(
    model: ConditionalModel,
    source: EncodedSource,
    layout: DecoderLayout,
    candidates: Candidates,
    prefixes: Tensor,
) -> Tensor:
    """
    Scores the warmups of candidates by another model than drew them.

    :param prefixes: The tokens before a warmup. *Shape:* :math:`(N,P)`.

    :returns: log P(c|x). *Shape:* :math:`(N,K)`.
    """
    num_sources, prefix_len = prefixes.shape

    distinct, places = candidates.distinct()

    # Rows that end with their separator.
    rows = _join_candidates(
        layout,
        prefixes,
        torch.full((num_sources,), prefix_len, device=prefixes.device),
        candidates,
        distinct,
    )

    excluded = layout.excluded_tokens(model.num_logits, prefixes.device)

    scores = model.score(source, rows, excluded)

    shape = candidates.proposal_log_probs.shape

    return scores.warmup_log_probs[places].view(shape)


def differentiate_objective(
    objective: Objective,
    warmup_log_probs: Tensor,
    target_log_probs: Tensor,
    proposal_log_probs: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""
    Computes the losses and their derivatives with respect to a and b.

    By the chain rule :math:`\nabla L = \sum_k \frac{\partial L}{\partial a_k} \nabla
    a_k + \frac{\partial L}{\partial b_k} \nabla b_k`, so they are all that the
    differentiable pass needs to know of the objective, and it may leave candidates out
    (:func:`keep_resampled` and the others).

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
def keep_all(warmup_coefs: Tensor, target_coefs: Tensor) -> KeptCandidates:
    """
    Keeps every candidate.

    :param warmup_coefs: The derivative of the loss with respect to a. *Shape:*
        :math:`(N,K)`.
    :param target_coefs: The derivative with respect to b. *Shape:* :math:`(N,K)`.
    """
    return KeptCandidates(
        torch.arange(warmup_coefs.numel(), device=warmup_coefs.device),
        warmup_coefs.flatten(),
        target_coefs.flatten(),
    )


@torch.no_grad()
def keep_resampled(
    warmup_coefs: Tensor, target_coefs: Tensor, num_kept: int
) -> KeptCandidates:
    r"""
    Keeps candidates at random, so that the mean of the gradient stays what it was.

    Of each source n are drawn with probability
    :math:`p_k \propto |\partial L/\partial a_k| + |\partial L/\partial b_k|` and their
    coefficients divided by :math:`n p_k`.
    Drawing by the weight :math:`w_k` alone would be unbiased too, but its variance
    has no bound: a candidate of weight :math:`10^{-6}` whose :math:`\nabla a` counts
    1/K would come up once in a million draws and then count a million times as much.
    The draws are systematic (one uniform number, equidistant points), so that a
    candidate is kept at least :math:`\lfloor n p_k \rfloor` times; one that is kept
    twice is one row with twice the coefficient.

    :param num_kept: The number n, duplicates included.

    See :func:`keep_all` for the other parameters.
    """
    # (N, K)
    magnitudes = _get_magnitudes(warmup_coefs, target_coefs)

    # (N, K)
    cumulative = magnitudes.cumsum(dim=1)

    # (N, 1)
    total = cumulative[:, -1:]

    probs = magnitudes / total

    # Divided by the very sum that they end with: rounding neither loses a point nor
    # gives one to a candidate of probability zero.
    upper = cumulative / total * num_kept

    num_sources = magnitudes.size(0)

    u = torch.rand((num_sources, 1), dtype=torch.float64, device=magnitudes.device)

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


@torch.no_grad()
def keep_top(
    warmup_coefs: Tensor, target_coefs: Tensor, num_kept: int
) -> KeptCandidates:
    """
    Keeps the n candidates of each source that matter most to the gradient.

    Biased, without noise. The derivatives with respect to b are scaled to the sum that
    they had, or y would be learned with the share of its weight that was kept. The
    candidate that teaches y most is always kept: with tempered weights or an entropy
    bonus another may matter most, from which y learns nothing, and be scaled up without
    bound. So the scale is at most K.

    See :func:`keep_resampled` for the parameters.
    """
    order = _order(warmup_coefs, target_coefs)

    best = target_coefs.abs().argmax(dim=1, keepdim=True)

    # The place of each candidate in the order, the best before all.
    places = order.argsort(dim=1).scatter(1, best, -1)

    mask = torch.zeros_like(order, dtype=torch.bool)

    kept_idx = places.argsort(dim=1)[:, :num_kept]

    return _keep_masked(warmup_coefs, target_coefs, mask.scatter(1, kept_idx, True))


@torch.no_grad()
def keep_mass(
    warmup_coefs: Tensor, target_coefs: Tensor, mass: float
) -> KeptCandidates:
    """
    Keeps as many candidates of each source as make up a share of what y is learned from.

    They are taken in the order of what they matter to the gradient, so sources that are
    sure keep one and others more. The share is that of the derivatives with respect to
    b, the posterior weights; those with respect to a come near to 1/K for every
    candidate, and would keep nearly all. Biased as :func:`keep_top` is.

    :param mass: The share that must be reached, above 0 and at most 1.

    See :func:`keep_all` for the other parameters.
    """
    order = _order(warmup_coefs, target_coefs)

    weights = target_coefs.abs().double().gather(1, order)

    # What those before have reached: (N, K)
    before = weights.cumsum(dim=1) - weights

    mask = before < mass * weights.sum(dim=1, keepdim=True)

    # One at least, also where y learns nothing.
    mask[:, 0] = True

    mask = torch.zeros_like(mask).scatter(1, order, mask)

    return _keep_masked(warmup_coefs, target_coefs, mask)


def _order(warmup_coefs: Tensor, target_coefs: Tensor) -> Tensor:
    """
    Orders candidates by what they matter to the gradient, most first.

    Those below their baseline all matter 1/K in ``marginal``; of them the ones come
    first that teach y more, or rounding would decide.

    *Shape:* :math:`(N,K)`.
    """
    keys = _get_magnitudes(warmup_coefs, target_coefs) + 1e-3 * target_coefs.abs()

    return keys.argsort(dim=1, descending=True, stable=True)


def _get_magnitudes(warmup_coefs: Tensor, target_coefs: Tensor) -> Tensor:
    """Computes what candidates matter to the gradient. *Shape:* :math:`(N,K)`."""
    magnitudes = (warmup_coefs.abs() + target_coefs.abs()).double()

    # An objective that is flat in every candidate keeps any of them, with zero.
    return magnitudes + magnitudes.sum(dim=1, keepdim=True).eq(0)


def _keep_masked(
    warmup_coefs: Tensor, target_coefs: Tensor, mask: Tensor
) -> KeptCandidates:
    total = target_coefs.abs().sum(dim=1, keepdim=True)

    kept = (target_coefs.abs() * mask).sum(dim=1, keepdim=True)

    # Where none of the kept ones teaches y, there is nothing to scale.
    scale = torch.where(kept > 0.0, total / kept, 1.0)

    rows = mask.flatten().nonzero().squeeze(1)

    return KeptCandidates(
        rows,
        warmup_coefs.flatten().index_select(0, rows),
        (target_coefs * scale).flatten().index_select(0, rows),
    )
