# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a model's own forward says about every warmup, and how draws are judged by it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    SEPARATOR_IDX,
    WORDS,
    Model,
    create_layout,
    create_source,
    device,
    forward_alone,
    list_sentences,
)
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.sampling import Candidates, WarmupSampler

each_kind = pytest.mark.parametrize("kind", ["transformer", "llama"])
"""Runs a test with the name of an encoder-decoder and of a decoder-only model."""

# In a decoder-only model, prompts of different lengths.
SOURCES = [[5, 6, EOS_IDX], [7, 7, 5, 6, 5, EOS_IDX]]


def draw_with(
    sampler: WarmupSampler,
    model: Model,
    num_warmups: int,
    max_warmup_len: int,
    *,
    sources: Sequence[Sequence[int]] = SOURCES,
    prefix: Sequence[int] = (BOS_IDX,),
    seed: int = 0,
) -> Candidates:
    torch.manual_seed(seed)

    wrapper = create_conditional_model(model)

    with torch.no_grad():
        source = wrapper.encode(*create_source(sources))

    return sampler(
        wrapper,
        source,
        create_layout(prefix_len=len(prefix)),
        torch.tensor([prefix] * len(sources), device=device),
        num_warmups=num_warmups,
        max_warmup_len=max_warmup_len,
    )


@torch.no_grad()
def enumerate_log_probs(
    model: Model,
    max_warmup_len: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> tuple[list[tuple[int, ...]], Tensor]:
    """
    Lists every warmup and its log-probability for each source of ``SOURCES``.

    Nothing of the package is used but the model itself: one forward without cache for
    every single prefix.
    """
    warmups = [tuple(words) for words in list_sentences(max_warmup_len)]

    log_probs = torch.zeros((len(SOURCES), len(warmups)), device=device)

    for n, source in enumerate(SOURCES):
        for i, warmup in enumerate(warmups):
            logits = forward_alone(model, source, [BOS_IDX, *warmup])

            # A separator after a warmup of full length costs nothing.
            tokens = [*warmup, SEPARATOR_IDX][:max_warmup_len]

            for token, step_logits in zip(tokens, logits / temperature):
                probs = {t: math.exp(step_logits[t]) for t in (SEPARATOR_IDX, *WORDS)}

                kept = _truncate(probs, top_k, top_p)

                prob = kept.get(token, 0.0) / sum(kept.values())

                log_probs[n, i] += math.log(prob) if prob > 0.0 else -math.inf

    return warmups, log_probs


def _truncate(
    probs: dict[int, float], top_k: int | None, top_p: float | None
) -> dict[int, float]:
    """Keeps the likeliest tokens, unnormalised."""
    ordered = sorted(probs, key=lambda token: -probs[token])[:top_k]

    kept: dict[int, float] = {}

    for token in ordered:
        kept[token] = probs[token]

        total = sum(probs[token] for token in ordered)

        if top_p is not None and sum(kept.values()) >= top_p * total:
            break

    return kept


def to_lists(candidates: Candidates) -> list[tuple[int, ...]]:
    return [
        tuple(seq[:seq_len])
        for seq, seq_len in zip(candidates.seqs.tolist(), candidates.seq_lens.tolist())
    ]


def to_indices(candidates: Candidates, warmups: Sequence[tuple[int, ...]]) -> Tensor:
    """Finds candidates in a list of warmups. *Shape:* :math:`(N,K)`."""
    numbers = {warmup: i for i, warmup in enumerate(warmups)}

    idx = torch.tensor([numbers[w] for w in to_lists(candidates)], device=device)

    return idx.view_as(candidates.proposal_log_probs)


def assert_follows(counts: Tensor, probs: Tensor) -> None:
    """Asserts that ``counts`` are draws from ``probs``; a chi-square test."""
    expected = counts.sum() * probs.double()

    assert not counts[probs == 0.0].any()

    # Rare outcomes share a cell.
    cell_idx = torch.where(expected < 10.0, 0, torch.arange(1, 1 + len(probs)))

    zeros = expected.new_zeros(1 + len(probs))

    counts, expected = (
        zeros.index_add(0, cell_idx, x.double()) for x in (counts, expected)
    )

    used = expected > 0.0

    chi_square = float(((counts - expected) ** 2 / expected)[used].sum())

    freedom = int(used.sum()) - 1

    assert freedom >= 1

    # Wilson and Hilferty: the cube root of a chi-square variable over its degrees of
    # freedom is nearly normal. 3.72 standard deviations: p = 0.0001.
    variance = 2.0 / (9.0 * freedom)

    assert chi_square < freedom * (1.0 - variance + 3.72 * math.sqrt(variance)) ** 3
