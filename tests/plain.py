# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The method as one would first write it, to compare with.

Every candidate is a sequence of its own with a copy of its source, read by fairseq2's
own forward, all of it with gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fairseq2.nn.functional import cross_entropy
from torch import Tensor

from tests.common import SEPARATOR_IDX, WORDS, Model, device, forward_alone
from warmup_plugin.sampling import Candidates

Seqs = Sequence[Sequence[int]]


def score_plainly(
    model: Model,
    sources: Seqs,
    targets: Seqs,
    candidates: Candidates,
    *,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """
    Computes a and b.

    :param targets: ``[prefix] y EOS`` with one token of prefix.

    :returns: *Shape:* :math:`(N,K)` each.
    """
    warmup_log_probs, target_log_probs = [], []

    allowed = [SEPARATOR_IDX, *WORDS]

    rows = zip(
        candidates.seqs.tolist(),
        candidates.seq_lens.tolist(),
        candidates.cut.tolist(),
        candidates.source_idx().tolist(),
    )

    for seq, seq_len, cut, n in rows:
        prefix, *target = targets[n]

        warmup = [*seq[:seq_len], SEPARATOR_IDX]

        # (S, V)
        logits = forward_alone(model, sources[n], [prefix, *warmup, *target[:-1]])

        warmup_logits, target_logits = logits.split([len(warmup), len(target)])

        if cut:
            # The forced separator is no choice of the model.
            warmup, warmup_logits = warmup[:-1], warmup_logits[:-1]

        # (S, A), A allowed tokens
        log_probs = warmup_logits[:, allowed].log_softmax(dim=1)

        idx = [allowed.index(token) for token in warmup]

        warmup_log_probs.append(log_probs[range(len(warmup)), idx].sum())

        target_log_probs.append(_score(target_logits, target, label_smoothing))

    shape = candidates.proposal_log_probs.shape

    return (
        torch.stack(warmup_log_probs).view(shape),
        torch.stack(target_log_probs).view(shape),
    )


def score_targets_plainly(
    model: Model,
    sources: Seqs,
    targets: Seqs,
    *,
    with_separator: bool = True,
    label_smoothing: float = 0.0,
) -> Tensor:
    """
    Computes log P(y|x) without warmup. *Shape:* :math:`(N)`.

    :param with_separator: If ``True``, behind the empty warmup; else behind the prefix.
    """
    log_probs = []

    for source, (prefix, *target) in zip(sources, targets):
        given = [prefix, SEPARATOR_IDX] if with_separator else [prefix]

        logits = forward_alone(model, source, [*given, *target[:-1]])

        log_probs.append(_score(logits[len(given) - 1 :], target, label_smoothing))

    return torch.stack(log_probs)


def _score(logits: Tensor, tokens: Sequence[int], label_smoothing: float) -> Tensor:
    """Computes log P(y|c,x), in which every token counts but the separator."""
    allowed = [token for token in range(logits.size(1)) if token != SEPARATOR_IDX]

    return -cross_entropy(
        logits[:, allowed],
        torch.tensor([allowed.index(token) for token in tokens], device=device),
        pad_idx=None,
        label_smoothing=label_smoothing,
    )
