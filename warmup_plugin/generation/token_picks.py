# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""One warmup of each row, whose tokens are picked or drawn one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.top_tokens import find_top
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import RowDecoder
from warmup_plugin.sampling.tokens import sample_tokens
from warmup_plugin.sampling.truncation import truncate_log_probs


@final
@dataclass(frozen=True)
class WrittenWarmups:
    """Holds one warmup of each group, written token by token."""

    seqs: list[list[int]]
    """Without separator."""

    token_log_probs: list[list[float]]
    """Of each token and of the separator."""

    log_probs: list[float]


class TokenPick:
    """Picks the likeliest token."""

    def __call__(self, logits: Tensor, groups: Tensor | None, step_nr: int) -> Tensor:
        """
        :param logits: *Shape:* :math:`(A,V)`.
        :param groups: The groups that the rows belong to; ``None`` for all, one row
            each. *Shape:* :math:`(A)`.
        :param step_nr: The number of tokens that the group has picked before.

        :returns: *Shape:* :math:`(A)`.
        """
        return find_top(logits, 1)[1].squeeze(1)


@final
class TokenDraw(TokenPick):
    """Draws a token by uniform numbers that belong to its group."""

    def __init__(
        self,
        uniforms: Tensor,
        *,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
    ) -> None:
        """
        :param uniforms: A number for each group and step. *Shape:* :math:`(M,T)`,
            fp64.

        See :class:`GenerationConfig` for the other parameters.
        """
        self._uniforms = uniforms
        self._temperature = temperature
        self._top_k = top_k
        self._top_p = top_p

    def __call__(self, logits: Tensor, groups: Tensor | None, step_nr: int) -> Tensor:
        # (M)
        uniforms = self._uniforms[:, step_nr]

        if groups is not None:
            uniforms = uniforms.index_select(0, groups)

        if self._temperature != 1.0:
            logits = logits / self._temperature

        if self._top_k is not None or self._top_p is not None:
            logits = truncate_log_probs(
                torch.log_softmax(logits, dim=1), self._top_k, self._top_p
            )

        tokens, _ = sample_tokens(logits, uniforms=uniforms.unsqueeze(1))

        return tokens.squeeze(1)


@torch.no_grad()
def write_warmups(
    decoder: RowDecoder,
    logits: Tensor,
    layout: DecoderLayout,
    pick: TokenPick,
    *,
    max_warmup_len: int,
) -> WrittenWarmups:
    """
    Writes one warmup for each row, which stay as they are, so that they may be rewound.

    Some rows have then been fed tokens beyond their separator.

    :param logits: Of the first token. *Shape:* :math:`(M,V)`.
    """
    num_rows, num_logits = logits.shape

    device = logits.device

    allowed = layout.warmup_tokens(num_logits, device)

    seqs, token_log_probs = [], []

    done = torch.zeros(num_rows, dtype=torch.bool, device=device)

    for step_nr in range(max_warmup_len):
        logits = allowed.restrict(logits.float())

        # (M)
        tokens = pick(logits, None, step_nr)

        # (M)
        log_probs = logits.gather(1, tokens.unsqueeze(1)).squeeze(1)

        log_probs = log_probs - logits.logsumexp(dim=1)

        check_numbers(log_probs)

        seqs.append(tokens.masked_fill(done, layout.separator_idx))

        token_log_probs.append(log_probs.masked_fill(done, 0.0))

        done = done | (tokens == layout.separator_idx)

        if step_nr + 1 == max_warmup_len or bool(done.all()):
            break

        logits = decoder.step(tokens.unsqueeze(1))

    all_seqs = torch.stack(seqs, dim=1).tolist()

    all_log_probs = torch.stack(token_log_probs, dim=1).tolist()

    warmups, warmup_log_probs = [], []

    for seq, seq_log_probs in zip(all_seqs, all_log_probs):
        if layout.separator_idx in seq:
            length = seq.index(layout.separator_idx)
        else:
            length = len(seq)

            # Forced at the limit, hence certain.
            seq_log_probs = [*seq_log_probs, 0.0]

        warmups.append(seq[:length])

        warmup_log_probs.append(seq_log_probs[: length + 1])

    return WrittenWarmups(
        warmups, warmup_log_probs, [sum(values) for values in warmup_log_probs]
    )


def check_numbers(log_probs: Tensor) -> None:
    if bool(log_probs.isnan().any()):
        raise WarmupError(
            "The model gave a token a probability that is not a number, so its training has diverged; use an earlier checkpoint."
        )
