# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Drawing tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from warmup_plugin.errors import WarmupError

_BLOCK_SIZE: Final = 64
"""The number of tokens whose probabilities are summed before they are looked at."""


def sample_tokens(
    logits: Tensor, num_samples: int = 1, *, uniforms: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """
    Draws tokens by inverting the cumulative distribution.

    In two steps, first a block of tokens, then one of its tokens, so that the running
    sum is only over blocks. Its terms are in fp64: in fp32 the tail of a large
    vocabulary is lost. ``torch.multinomial`` and sorting cost many times as much
    (``scripts/bench_sampling.py``).

    :param logits: *Shape:* :math:`(B,V)`.
    :param num_samples: The number k of independent draws a row.
    :param uniforms: The uniform numbers to draw by, from [0, 1); ``None`` for those of
        the default generator. *Shape:* :math:`(B,k)`, fp64.

    :returns: The tokens and their log-probabilities. *Shape:* :math:`(B,k)` each.
    """
    num_rows, num_logits = logits.shape

    num_blocks = -(-num_logits // _BLOCK_SIZE)

    # (B, 1)
    max_logits = logits.amax(dim=1, keepdim=True)

    # (B, V')
    probs = logits.new_zeros((num_rows, num_blocks * _BLOCK_SIZE))

    torch.sub(logits, max_logits, out=probs[:, :num_logits]).exp_()

    # What pads the last block has no probability.
    probs[:, num_logits:] = 0.0

    # (B, V') -> (B, G, V' / G)
    blocks = probs.unflatten(1, (num_blocks, _BLOCK_SIZE))

    # (B, G)
    sums = blocks.sum(dim=2, dtype=torch.float64)

    cumulative = sums.cumsum(dim=1)

    # (B, 1)
    total = cumulative[:, -1:]

    if uniforms is None:
        uniforms = torch.rand(
            (num_rows, num_samples), dtype=torch.float64, device=logits.device
        )

    # Below one also after rounding, or u * total = total lies behind every entry;
    # `right=True` never picks a token of probability zero, not even for u = 0.
    u = uniforms.clamp(max=1.0 - 1e-12) * total

    # (B, k)
    block_idx = torch.searchsorted(cumulative, u, right=True)

    # Probabilities that are not numbers end up behind the last block; the caller finds
    # them in the log-probability of what was drawn.
    block_idx = block_idx.clamp_(max=num_blocks - 1)

    # (B, k, V' / G)
    inner = blocks.gather(1, block_idx.unsqueeze(2).expand(-1, -1, _BLOCK_SIZE))

    inner = inner.cumsum(dim=2, dtype=torch.float64)

    # What is left of u within the block, kept there whatever rounding did.
    rest = u - (cumulative - sums).gather(1, block_idx)

    rest = rest.clamp(min=0.0).minimum(inner[:, :, -1] * (1.0 - 1e-12))

    inner_idx = torch.searchsorted(inner, rest.unsqueeze(2), right=True).squeeze(2)

    tokens = block_idx * _BLOCK_SIZE + inner_idx.clamp_(max=_BLOCK_SIZE - 1)

    tokens = tokens.clamp_(max=num_logits - 1)

    log_probs = logits.gather(1, tokens) - (max_logits + total.log().to(logits.dtype))

    return tokens, log_probs


def draw_line_uniforms(
    seed: int, line_numbers: Sequence[int], num_draws: int, num_steps: int
) -> Tensor:
    """
    Draws the numbers that tokens are drawn by, for each line of a text apart.

    A counter-based generator for each line (Salmon et al., 2011): what a line gets
    depends on nothing but the seed and its number. A longer limit only adds to it.

    :param num_draws: The number K of sequences that are drawn for a line.

    :returns: One row for each line and draw. *Shape:* :math:`(NK,T)`, fp64.
    """
    parts = []

    for line_number in line_numbers:
        rng = np.random.Generator(np.random.Philox(key=[seed, line_number]))

        # (T, K) -> (K, T)
        parts.append(rng.random((num_steps, num_draws)).T)

    return torch.from_numpy(np.concatenate(parts))


def check_finite(log_probs: Tensor) -> None:
    """
    Checks the log-probabilities of warmups that were drawn.

    :raises WarmupError: If one of them is not finite.
    """
    if not bool(log_probs.isfinite().all()):
        raise WarmupError(
            "The model gave a warmup a probability that is not a number; training has diverged: lower `optimizer.config.lr` or set `trainer.max_grad_norm`, and restart from an earlier checkpoint."
        )
