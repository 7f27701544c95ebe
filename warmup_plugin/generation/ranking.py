# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Choosing among the outputs of several warmups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from warmup_plugin.generation.hypothesis import Hypothesis
from warmup_plugin.layout import DecoderLayout, join_rows
from warmup_plugin.models.conditional import ConditionalModel, EncodedSource


def rank_by_log_prob(candidates: Sequence[Hypothesis]) -> list[Hypothesis]:
    """
    Orders candidates by ``score``, log P(c,y|x) divided by length ** length_penalty.

    :returns: The candidates that differ in warmup or output.
    """
    distinct = {(tuple(h.warmup), tuple(h.target)): h for h in candidates}

    return sorted(distinct.values(), key=lambda h: -h.score)


@torch.no_grad()
def rank_by_marginal(
    model: ConditionalModel,
    encoded: EncodedSource,
    layout: DecoderLayout,
    prefixes: Tensor,
    candidates: Sequence[Sequence[Hypothesis]],
    *,
    max_warmup_len: int,
    length_penalty: float,
) -> list[list[Hypothesis]]:
    r"""
    Orders outputs by :math:`\frac{1}{K} \sum_k P(y|c_k,x)`, an estimate of P(y|x) from
    all K warmups that were drawn.

    Of equal outputs the one whose own warmup makes it likeliest is kept.

    :param prefixes: The tokens before a warmup. *Shape:* :math:`(N,P)`.
    :param candidates: K of each source.

    :returns: The distinct outputs of each source; ``score`` is the logarithm of the
        mean, divided by length ** length_penalty, ``weight`` its share among them.
    """
    distinct = [_keep_distinct(group) for group in candidates]

    # One target for each output, one row for each pair of output and warmup.
    targets: list[list[int]] = []

    warmups: list[list[int]] = []

    target_idx: list[int] = []

    source_idx: list[int] = []

    prefix_rows = prefixes.tolist()

    for n, (group, outputs) in enumerate(zip(candidates, distinct)):
        for output in outputs:
            for candidate in group:
                warmups.append(candidate.warmup)

                target_idx.append(len(targets))

                source_idx.append(n)

            targets.append([*prefix_rows[n], *output.target, layout.eos_idx])

    device = prefixes.device

    target_seqs, target_lens = _pad(targets, layout.pad_idx, device)

    warmup_seqs, warmup_lens = _pad(warmups, layout.pad_idx, device)

    yes = torch.ones_like(warmup_lens, dtype=torch.bool)

    rows = join_rows(
        layout,
        target_seqs,
        target_lens,
        warmup_seqs,
        warmup_lens,
        warmup_lens == max_warmup_len,
        yes,
        torch.tensor(target_idx, device=device),
        torch.tensor(source_idx, device=device),
    )

    # log P(c|x) is known.
    rows = replace(rows, warmup_mask=torch.zeros_like(rows.warmup_mask))

    excluded = layout.excluded_tokens(model.num_logits, device)

    log_probs = model.score(encoded, rows, excluded).target_log_probs.tolist()

    ranked = []

    at = 0

    for group, outputs in zip(candidates, distinct):
        num_warmups = len(group)

        # (J, K) -> (J)
        marginals = (
            torch.tensor(log_probs[at : at + len(outputs) * num_warmups])
            .double()
            .view(len(outputs), num_warmups)
            .logsumexp(dim=1)
            .sub(torch.tensor(float(num_warmups)).log())
        )

        at += len(outputs) * num_warmups

        scored = []

        for output, marginal, weight in zip(
            outputs, marginals.tolist(), marginals.softmax(dim=0).tolist()
        ):
            length = len(output.target) + 1

            scored.append(
                replace(output, score=marginal / length**length_penalty, weight=weight)
            )

        ranked.append(sorted(scored, key=lambda h: -h.score))

    return ranked


def rank_by_mbr(
    candidates: Sequence[Hypothesis], decode: Callable[[Sequence[int]], str]
) -> list[Hypothesis]:
    """
    Orders outputs by their mean chrF++ against the outputs of all warmups: minimum Bayes
    risk (Kumar and Byrne, 2004), the warmups being draws from P(c|x).

    Of equal outputs the likeliest is kept.

    :returns: The distinct outputs; ``score`` is the mean chrF++, from 0 to 100,
        ``weight`` the share of the warmups with this output.
    """
    # Its import takes a while, and few rank by it.
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(word_order=2)

    texts = [decode(candidate.target) for candidate in candidates]

    counts: dict[str, int] = {}

    for text in texts:
        counts[text] = counts.get(text, 0) + 1

    utilities = {
        text: sum(
            # An output is a perfect translation of itself, empty ones too.
            count
            * (100.0 if text == other else metric.sentence_score(text, [other]).score)
            for other, count in counts.items()
        )
        / len(texts)
        for text in counts
    }

    best: dict[str, Hypothesis] = {}

    for candidate, text in zip(candidates, texts):
        if text not in best or candidate.log_prob > best[text].log_prob:
            best[text] = candidate

    scored = [
        replace(h, score=utilities[text], weight=counts[text] / len(texts))
        for text, h in best.items()
    ]

    return sorted(scored, key=lambda h: (-h.score, -h.log_prob))


def _keep_distinct(candidates: Sequence[Hypothesis]) -> list[Hypothesis]:
    best: dict[tuple[int, ...], Hypothesis] = {}

    for candidate in candidates:
        key = tuple(candidate.target)

        if key not in best or candidate.target_log_prob > best[key].target_log_prob:
            best[key] = candidate

    return list(best.values())


def _pad(
    seqs: Sequence[Sequence[int]], pad_idx: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    lens = [len(seq) for seq in seqs]

    width = max(lens)

    padded = [[*seq, *[pad_idx] * (width - len(seq))] for seq in seqs]

    return (
        torch.tensor(padded, dtype=torch.long, device=device).view(len(seqs), width),
        torch.tensor(lens, device=device),
    )
