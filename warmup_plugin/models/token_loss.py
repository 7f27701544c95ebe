# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
From hidden states to token log-probabilities, never with all logits in memory at once.

The output projection is the largest matrix of a small model and, with the 250,000 tokens
of a multilingual vocabulary, its logits are the largest tensor of a training step. So
only counted positions reach it, and those in chunks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from fairseq2.nn import Projection
from torch import Tensor
from typing_extensions import override

from warmup_plugin.layout import ExcludedTokens

MAX_NUM_LOGITS: Final = 1 << 25
"""The number of logits that are in memory at once: 128 MiB in fp32."""

_NUM_CACHED_LOGITS: Final = 1 << 22
"""The number that a CPU goes over several times without much waiting for its memory."""

_MIN_NUM_POSITIONS: Final = 128
"""With fewer at once, the projection and the gradient of its matrix cost more than that
saves."""


def compute_log_probs(
    proj: Projection,
    hidden: Tensor,
    targets: Tensor,
    *,
    num_warmup: int,
    excluded: ExcludedTokens,
) -> Tensor:
    """
    Computes the log-probability of each target token.

    :param proj: The output projection.
    :param hidden: The decoder output. *Shape:* :math:`(P,M)`.
    :param targets: *Shape:* :math:`(P)`.
    :param num_warmup: The number of positions, the first ones, that count in P(c|x); the
        others count in P(y|c,x).
    :param excluded: The tokens of probability zero in each; the others are normalised.

    :returns: Natural logarithm, fp32. *Shape:* :math:`(P)`.
    """
    log_probs = []

    for part, in_warmup in _chunks(proj, hidden.size(0), num_warmup, hidden.device):
        # (P', V)
        logits = proj(hidden[part]).float()

        banned = excluded.in_warmup if in_warmup else excluded.in_target

        if banned.numel() > 0:
            logits = logits.index_fill(1, banned, -torch.inf)

        target_logits = logits.gather(1, targets[part].unsqueeze(1)).squeeze(1)

        if torch.is_grad_enabled():
            log_totals = logits.logsumexp(dim=1)
        else:
            # In place, in half the time.
            max_logits = logits.amax(dim=1, keepdim=True)

            totals = logits.sub_(max_logits).exp_().sum(dim=1)

            log_totals = max_logits.squeeze(1) + totals.log()

        log_probs.append(target_logits - log_totals)

    if not log_probs:
        # Connected, for a backward through nothing.
        return hidden.float().sum(dim=1)

    return torch.cat(log_probs)


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    @override
    def forward(
        ctx: Any,
        proj: Projection,
        hidden: Tensor,
        targets: Tensor,
        coefs: Tensor,
        num_warmup: int,
        excluded: ExcludedTokens,
        label_smoothing: float,
        token_losses: list[Tensor] | None,
        *params: Tensor,
    ) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)

        hidden_grad = torch.zeros_like(hidden)

        # Sums of many chunks in a low precision would lose the small ones.
        param_grads = [torch.zeros_like(p, dtype=torch.float32) for p in params]

        # `autocast` would keep casts of the parameters whose graph is freed here.
        device_type = hidden.device.type

        autocast = torch.autocast(
            device_type,
            dtype=torch.get_autocast_dtype(device_type),
            enabled=torch.is_autocast_enabled(device_type),
            cache_enabled=False,
        )

        for part, in_warmup in _chunks(proj, hidden.size(0), num_warmup, hidden.device):
            with torch.enable_grad(), autocast:
                inputs = hidden[part].detach().requires_grad_()

                raw_logits = proj(inputs)

            # In place: the backward of a projection does not need its result.
            logits = raw_logits.detach().float()

            losses, grad = _differentiate(
                logits,
                targets[part],
                coefs[part],
                excluded.in_warmup if in_warmup else excluded.in_target,
                0.0 if in_warmup else label_smoothing,
            )

            total += losses.sum()

            if token_losses is not None:
                token_losses.append(losses)

            grads = torch.autograd.grad(
                raw_logits, [inputs, *params], grad.to(raw_logits.dtype)
            )

            hidden_grad[part] = grads[0]

            for param_grad, g in zip(param_grads, grads[1:]):
                param_grad += g

        ctx.save_for_backward(
            hidden_grad, *(g.to(p.dtype) for g, p in zip(param_grads, params))
        )

        return total

    @staticmethod
    @override
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, *param_grads = ctx.saved_tensors

        return (
            None,
            hidden_grad * grad.to(hidden_grad.dtype),
            None,
            None,
            None,
            None,
            None,
            None,
            *(g * grad.to(g.dtype) for g in param_grads),
        )


def compute_token_loss(
    proj: Projection,
    hidden: Tensor,
    targets: Tensor,
    coefs: Tensor,
    *,
    num_warmup: int,
    excluded: ExcludedTokens,
    label_smoothing: float,
    token_losses: list[Tensor] | None = None,
) -> Tensor:
    r"""
    Computes :math:`-\sum_p \mathrm{coef}_p \log P(\mathrm{target}_p)`.

    Since the coefficients are known beforehand, each chunk of logits is differentiated
    as soon as it is there, and then forgotten; no second forward is needed.

    :param coefs: Constants. *Shape:* :math:`(P)`.
    :param num_warmup: The number of positions, the first ones, that count in P(c|x); no
        label is smoothed there.
    :param label_smoothing: As fairseq2's ``cross_entropy`` defines it: of the V tokens
        that are not excluded, the target keeps :math:`1 - \epsilon - \epsilon/(V-1)`,
        and every one gets :math:`\epsilon/(V-1)` besides.
    :param token_losses: If given, the terms of the sum are added to this list, in their
        order and without gradient; joined, their *Shape:* is :math:`(P)`.

    See :func:`compute_log_probs` for the other parameters.

    :returns: *Shape:* scalar, fp32.
    """
    params = [p for p in proj.parameters() if p.requires_grad]

    return _TokenLoss.apply(  # type: ignore[no-any-return,no-untyped-call]
        proj,
        hidden,
        targets,
        coefs,
        num_warmup,
        excluded,
        label_smoothing,
        token_losses,
        *params,
    )


def _chunks(
    proj: Projection,
    num_positions: int,
    num_warmup: int,
    device: torch.device,
) -> Iterator[tuple[slice, bool]]:
    """
    Divides positions into chunks; none of them holds both kinds.

    :returns: The positions, and ``True`` if they count in P(c|x).
    """
    size = MAX_NUM_LOGITS // proj.output_dim

    if device.type == "cpu":
        size = min(size, max(_NUM_CACHED_LOGITS // proj.output_dim, _MIN_NUM_POSITIONS))

    size = max(size, 1)

    for begin, end, in_warmup in (
        (0, num_warmup, True),
        (num_warmup, num_positions, False),
    ):
        for idx in range(begin, end, size):
            yield slice(idx, min(idx + size, end)), in_warmup


def _differentiate(
    logits: Tensor,
    targets: Tensor,
    coefs: Tensor,
    banned: Tensor,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """
    Computes the weighted losses and the derivative of their sum with respect to the
    logits.

    :param logits: Overwritten by the derivative: every pass over them that is saved
        counts. *Shape:* :math:`(P,V)`.

    :returns: The losses of the positions, *Shape:* :math:`(P)`, and *Shape:*
        :math:`(P,V)`.
    """
    targets = targets.unsqueeze(1)
    coefs = coefs.unsqueeze(1).to(logits.dtype)

    vocab_size = logits.size(1) - banned.size(0)

    # (P, 1)
    target_logits = logits.gather(1, targets)

    epsilon = label_smoothing / (vocab_size - 1)

    sums: Tensor | float = 0.0

    if label_smoothing > 0.0:
        # Zero for a moment, so that they do not count in the sum.
        sums = logits.index_fill_(1, banned, 0.0).sum(dim=1, keepdim=True)

    logits.index_fill_(1, banned, -torch.inf)

    max_logits = logits.amax(dim=1, keepdim=True)

    # (P, V)
    probs = logits.sub_(max_logits).exp_()

    total = probs.sum(dim=1, keepdim=True)

    log_total = max_logits + total.log()

    kept = 1.0 - label_smoothing - epsilon

    losses = kept * (log_total - target_logits)

    if label_smoothing > 0.0:
        losses = losses + epsilon * (vocab_size * log_total - sums)

    # kept + V * epsilon = 1
    grad = probs.mul_(coefs / total)

    if label_smoothing > 0.0:
        grad.sub_(epsilon * coefs).index_fill_(1, banned, 0.0)

    grad.scatter_add_(1, targets, -kept * coefs)

    return (coefs * losses).squeeze(1), grad
