# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
A ragged batch of rows, and what a model's own forward says about each row alone.

Several rows belong to one source, not sorted by it; some sources have no row; a warmup
is empty, and another one is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import pytest
import torch
from fairseq2.models.transformer import TransformerModel
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn.functional import cross_entropy
from torch import Tensor
from torch.nn import Module

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    SEPARATOR_IDX,
    WORDS,
    assert_close,
    create_layout,
    create_source,
    create_tiny_lm,
    create_tiny_model,
    create_tiny_qwen,
    device,
    pad_rows,
)
from warmup_plugin.layout import DecoderRows, join_rows

Model: TypeAlias = TransformerModel | TransformerLM

CREATE_MODEL: Final[dict[str, Callable[..., Model]]] = {
    "transformer": create_tiny_model,
    "llama": create_tiny_lm,
    "qwen": create_tiny_qwen,
}

each_model = pytest.mark.parametrize("kind", CREATE_MODEL)
"""Runs a test with the name of each kind of model."""

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
CUT = [False, False, True, False, False]

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
        torch.tensor(CUT, device=device),
        torch.ones(NUM_ROWS, device=device, dtype=torch.bool),
        torch.tensor(SOURCE_IDX, device=device),
    )


def get_ban_mask(model: Model) -> Tensor:
    return create_layout().warmup_ban_mask(model.final_proj.output_dim, device)


def lower_precision(model: Model) -> Model:
    """
    Casts the parameters to bf16.

    Not the tables of rotary positions, which stay what they are in fairseq2 too.
    """
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()

    return model


def forward_alone(model: Model, source: Sequence[int], seq: Sequence[int]) -> Tensor:
    """Returns what fairseq2's forward makes of one sequence. *Shape:* :math:`(S,V)`."""
    if isinstance(model, TransformerModel):
        logits = model(*create_source([source]), *create_source([seq]))[0]
    else:
        logits = model(*create_source([[*source, *seq]]))[0, len(source) :]

    assert isinstance(logits, Tensor)

    return logits


def score_alone(model: Model, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Scores each row alone. *Shape:* :math:`(B)` each."""
    a, b = [], []

    allowed = [SEPARATOR_IDX, *WORDS]

    for seq, warmup, idx, cut in zip(SEQS, WARMUPS, SOURCE_IDX, CUT):
        logits = forward_alone(model, SOURCES[idx], seq[:-1]).float()

        num_warmup = len(warmup) + 1

        # A forced separator does not count.
        num_counted = num_warmup - int(cut)

        targets = torch.tensor(seq[1:], device=device)

        log_probs = logits[:num_counted, allowed].log_softmax(dim=1)

        idx_in_allowed = [allowed.index(token) for token in seq[1 : num_counted + 1]]

        a.append(log_probs[range(num_counted), idx_in_allowed].sum())

        b.append(
            -cross_entropy(
                logits[num_warmup:],
                targets[num_warmup:],
                pad_idx=None,
                label_smoothing=label_smoothing,
            )
        )

    return torch.stack(a), torch.stack(b)


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
