# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

MIN_TEMPERATURE: Final = 1e-4
"""The least temperature of any draw: logits divided by much less are no longer finite, and
all that is drawn is then one token, for ever."""


def truncate_log_probs(
    log_probs: Tensor, top_k: int | None, top_p: float | None
) -> Tensor:
    """
    Cuts a distribution to its likeliest tokens and normalises what is left.

    Importance weights correct how often a token is drawn, not that it is never drawn:
    warmups outside of the support are missing from every estimate of P(y|x), which is
    therefore too small, however many warmups are drawn.

    :param log_probs: Normalised; minus infinity for banned tokens, which are never
        kept. *Shape:* :math:`(B,V)`.
    :param top_k: The most tokens to keep; ``None`` for no limit.
    :param top_p: The share of the mass, of what ``top_k`` keeps, that the smallest set
        of likeliest tokens has to reach; it holds at least one. ``None`` for all of it.
        See Holtzman et al., 2020, arXiv 1904.09751.

    :returns: *Shape:* Same as ``log_probs``.
    """
    if top_k is None and top_p is None:
        return log_probs

    vocab_size = log_probs.size(-1)

    num_top = vocab_size if top_k is None else min(top_k, vocab_size)

    # (B, T), decreasing; of equal tokens only as many as there is room for
    top_log_probs, top_idx = log_probs.topk(num_top, dim=-1)

    if top_p is not None:
        probs = top_log_probs.double().exp()

        # The mass of a token and of all after it. Summed from the small end, for
        # otherwise `top_p=1.0` would lose tokens that vanish beside the first.
        tail = probs.flip(-1).cumsum(dim=-1).flip(-1)

        # A mass that misses `top_p` by the rounding of fp32 has reached it.
        kept = tail > (1.0 - top_p) * (1.0 + 1e-5) * tail[:, :1]

        kept[:, 0] = True

        top_log_probs = top_log_probs.masked_fill(~kept, -torch.inf)

    truncated = torch.full_like(log_probs, -torch.inf)

    return truncated.scatter(-1, top_idx, top_log_probs.log_softmax(dim=-1))
