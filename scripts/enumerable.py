# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Models so small that all their warmups or outputs can be listed, and gradients beside an
exact one.

No trial needs a backward pass: its gradient is a sum of those of what it has drawn, which
are known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Final, final

import torch
from fairseq2.models.llama import LLaMAConfig, create_llama_model
from fairseq2.models.transformer import TransformerModel
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import Module

from scripts.bench_common import (
    BOS_IDX,
    EOS_IDX,
    FIRST_WORD_IDX,
    PAD_IDX,
    Setting,
    create_layout,
    create_model,
)
from warmup_plugin.layout import (
    DecoderLayout,
    DecoderRows,
    ExcludedTokens,
    join_rows,
)
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.sampling import Candidates

SETTING: Final = Setting(
    name="enumeration",
    model_dim=16,
    num_layers=2,
    # Four of them are words.
    vocab_size=FIRST_WORD_IDX + 4,
    source_len=3,
    target_len=9,
    warmup_len=3,
    num_warmups=4,
)

SOURCE: Final = [5, 6, EOS_IDX]

TARGET: Final = [BOS_IDX, 6, 5, 7, 8, 6, 5, 5, 8, EOS_IDX]


@final
@dataclass(frozen=True)
class Problem:
    """Holds a model and the length of its warmups, so short that they can be listed."""

    model: ConditionalModel
    """In evaluation mode."""

    layout: DecoderLayout

    max_warmup_len: int

    def repeat_source(self, num_sources: int) -> tuple[Tensor, BatchLayout]:
        """Returns the source N times."""
        seqs = torch.tensor([SOURCE]).expand(num_sources, -1)

        return seqs, BatchLayout.of(seqs)

    def repeat_target(self, num_sources: int) -> tuple[Tensor, Tensor]:
        """Returns the target N times, and N times its length."""
        seqs = torch.tensor([TARGET]).expand(num_sources, -1)

        return seqs, torch.full((num_sources,), len(TARGET))

    def excluded(self) -> ExcludedTokens:
        """Lists the tokens without probability in each part of a row."""
        return self.layout.excluded_tokens(self.model.num_logits, torch.device("cpu"))

    def join(self, candidates: Candidates) -> DecoderRows:
        """Builds the decoder sequences of candidates of the repeated source."""
        return join_rows(
            self.layout,
            *self.repeat_target(candidates.proposal_log_probs.size(0)),
            candidates.seqs,
            candidates.seq_lens,
            candidates.cut,
            torch.ones_like(candidates.cut),
            candidates.source_idx(),
        )


def create_decoder_only_problem(max_warmup_len: int) -> Problem:
    config = LLaMAConfig(
        model_dim=SETTING.model_dim,
        max_seq_len=32,
        vocab_size=SETTING.vocab_size,
        pad_idx=PAD_IDX,
        num_layers=SETTING.num_layers,
        num_attn_heads=SETTING.num_heads,
        num_key_value_heads=SETTING.num_heads // 2,
        ffn_inner_dim=4 * SETTING.model_dim,
    )

    return _create_problem(create_llama_model(config), max_warmup_len, seed=2)


PROBLEMS: Final[Mapping[str, Callable[[int], Problem]]] = {
    "encoder-decoder": lambda max_len: _create_problem(
        create_model(SETTING, torch.device("cpu")), max_len, seed=5
    ),
    "decoder-only": create_decoder_only_problem,
}


def _create_problem(
    model: TransformerModel | TransformerLM, max_warmup_len: int, *, seed: int
) -> Problem:
    torch.manual_seed(seed)

    # Large weights, so that y depends on c, and small logits, so that no token is
    # nearly certain.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=3.0 / math.sqrt(parameter.size(1)))

        layer_norm = model.decoder.layer_norm

        assert isinstance(layer_norm, Module)

        for parameter in layer_norm.parameters():
            parameter.mul_(0.3)

    return Problem(
        create_conditional_model(model.eval()), create_layout(SETTING), max_warmup_len
    )


def list_texts(max_len: int) -> list[tuple[int, ...]]:
    """Lists every sequence of at most ``max_len`` words, the empty one first."""
    words = range(FIRST_WORD_IDX, SETTING.vocab_size)

    return [
        text for length in range(max_len + 1) for text in product(words, repeat=length)
    ]


def flatten_grad(value: Tensor, model: ConditionalModel) -> Tensor:
    """Computes the gradient with respect to all parameters. *Shape:* :math:`(W)`."""
    grads = torch.autograd.grad(
        value,
        list(model.module.parameters()),
        retain_graph=True,
        materialize_grads=True,
    )

    return torch.cat([grad.flatten() for grad in grads])


def to_coordinates(grads: Tensor) -> Tensor:
    """
    Writes gradients in an orthonormal basis of what they span, in which lengths and
    distances are the same.

    :param grads: M gradients with respect to W parameters. *Shape:* :math:`(M,W)`.

    :returns: *Shape:* :math:`(M,M)`.
    """
    # (W, M) = (W, M) x (M, M)
    _, triangle = torch.linalg.qr(grads.T)

    coordinates: Tensor = triangle.T

    return coordinates


def measure_grads(grads: Tensor, exact_grad: Tensor) -> dict[str, float]:
    """
    Measures bias and variance of the gradients of N trials, relative to the length of the
    exact one and to its square.

    The noise is the length that the bias is expected to have if there is none.

    :param grads: *Shape:* :math:`(N,M)`.
    :param exact_grad: *Shape:* :math:`(M)`.
    """
    num_trials = grads.size(0)

    mean = grads.mean(dim=0)

    length = float(exact_grad.norm())

    variance = float((grads - mean).square().sum()) / (num_trials - 1) / length**2

    return {
        "grad_bias": float((mean - exact_grad).norm()) / length,
        "grad_bias_noise": math.sqrt(variance / num_trials),
        "grad_variance": variance,
    }


def measure_frequencies(counts: Tensor, probs: Tensor) -> float:
    """
    Returns the largest difference between how often something was drawn and how often it
    should be, in standard deviations.

    :param counts: *Shape:* :math:`(C)`.
    :param probs: *Shape:* :math:`(C)`.
    """
    # (C)
    expected = counts.sum() * probs

    deviations = (counts - expected) / (expected * (1.0 - probs)).sqrt()

    # Counts of less are far from normal.
    return float(deviations[expected >= 10.0].abs().max())
