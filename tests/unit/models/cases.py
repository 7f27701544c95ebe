# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
A ragged batch of rows, and what a model's own forward says about each row alone.

Several rows belong to one source, not sorted by it; some sources have no row; a warmup
is empty, and another one is cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import Module

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    SEPARATOR_IDX,
    Model,
    assert_close,
    create_candidates,
    create_layout,
    device,
    pad_rows,
)
from tests.plain import score_plainly
from warmup_plugin.layout import DecoderRows, ExcludedTokens, join_rows

# The last one, the longest, has no row; nor has the third.
SOURCES = [
    [5, 6, EOS_IDX],
    [7, 7, 5, 6, 5, EOS_IDX],
    [6, EOS_IDX],
    [7, 5, EOS_IDX],
    [5, 5, 7, 6, 6, 7, 5, EOS_IDX],
]
TARGETS = [
    [BOS_IDX, 6, 5, 7, EOS_IDX],
    [BOS_IDX, 7, EOS_IDX],
    [BOS_IDX, 5, EOS_IDX],
    [BOS_IDX, EOS_IDX],
    [BOS_IDX, 6, 6, EOS_IDX],
]

WARMUPS = [[5, 6], [], [7, 7, 7], [6], [7, 5]]
SOURCE_IDX = [1, 0, 0, 1, 3]

MAX_WARMUP_LEN: Final = 3

NUM_ROWS: Final = len(WARMUPS)

SEQS = [
    [BOS_IDX, *warmup, SEPARATOR_IDX, *TARGETS[idx][1:]]
    for warmup, idx in zip(WARMUPS, SOURCE_IDX)
]
"""The whole sequence of each row."""


def build_rows() -> DecoderRows:
    target_seqs, target_seq_lens = pad_rows(TARGETS)

    warmups, warmup_lens = pad_rows(WARMUPS)

    return join_rows(
        create_layout(),
        target_seqs,
        torch.tensor(target_seq_lens, device=device),
        warmups,
        torch.tensor(warmup_lens, device=device),
        torch.tensor([n == MAX_WARMUP_LEN for n in warmup_lens], device=device),
        torch.ones(NUM_ROWS, device=device, dtype=torch.bool),
        torch.tensor(SOURCE_IDX, device=device),
    )


def get_excluded(model: Model) -> ExcludedTokens:
    return create_layout().excluded_tokens(model.final_proj.output_dim, device)


def lower_precision(model: Model) -> Model:
    """
    Casts the parameters to bf16.

    Not the tables of rotary positions, which stay what they are in fairseq2 too.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()

    return model


def score_alone(model: Model, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Scores each row alone. *Shape:* :math:`(B)` each."""
    scores = [
        score_plainly(
            model,
            [SOURCES[idx]],
            [TARGETS[idx]],
            create_candidates([[warmup]], MAX_WARMUP_LEN),
            label_smoothing=label_smoothing,
        )
        for warmup, idx in zip(WARMUPS, SOURCE_IDX)
    ]

    a, b = zip(*scores)

    return torch.cat(a).flatten(), torch.cat(b).flatten()


def create_coefs() -> tuple[Tensor, Tensor]:
    """Creates numbers to multiply a and b with. *Shape:* :math:`(B)` each."""
    return (
        torch.tensor([1.0, -2.0, 3.0, 0.5, -0.7], device=device),
        torch.tensor([-0.5, 1.0, 0.0, -2.0, 0.3], device=device),
    )


def differentiate(loss: Tensor, model: Model) -> dict[str, Tensor]:
    """Returns the gradient of each parameter; all of them must have one."""
    names, parameters = zip(*model.named_parameters())

    return dict(zip(names, torch.autograd.grad(loss, parameters)))


def assert_close_gradients(
    a: dict[str, Tensor], b: dict[str, Tensor], *, atol: float = 1e-5
) -> None:
    assert list(a) == list(b)

    for name in a:
        assert_close(a[name], b[name], rtol=1e-4, atol=atol)


@contextmanager
def spy(module: Module) -> Iterator[list[tuple[Tensor, Any]]]:
    """Lists the first input and the output of each call of ``module``."""
    calls: list[tuple[Tensor, Any]] = []

    def note(_: Module, args: Any, output: Any) -> None:
        calls.append((args[0], output))

    handle = module.register_forward_hook(note)

    try:
        yield calls
    finally:
        handle.remove()


def count_tokens(calls: list[tuple[Tensor, Any]]) -> list[int]:
    """Returns the number of tokens that each call was given."""
    return [x.shape[:-1].numel() for x, _ in calls]
