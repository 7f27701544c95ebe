# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

import torch
from torch import Tensor
from torch.nn import Module


@final
@dataclass(frozen=True)
class PreparedRow:
    """Says which row of a weight is made of which others."""

    weights: Sequence[str]
    """The names of the weight, several if it is tied."""

    row: int

    mean_of: Sequence[int]
    """The rows whose mean it is."""


def has_tied_embeddings(model: Module) -> bool:
    """
    Tells whether a token is written by the same row by which it is read.

    :param model: A ``TransformerModel`` or ``TransformerLM``.
    """
    frontend, proj = cast(Any, model).decoder_frontend, cast(Any, model).final_proj

    return frontend.embed.weight is proj.weight


def prepare_separator(
    model: Module,
    separator_idx: int,
    eos_idx: int,
    begin_indices: Sequence[int],
    *,
    ends_like_text: bool = False,
) -> list[PreparedRow]:
    """
    Makes the separator look like what it stands for, in a model that never wrote it.

    Its row of the output projection becomes that of EOS, so that a warmup ends where a
    sentence would end; neither of the two is allowed where the other one is. Its input
    embedding becomes that of the token before a target, so that what follows begins as a
    target does. Where one matrix serves both, its row becomes that of EOS.

    Parameters on the meta device are left alone: other ranks get them from the first
    one, a run that resumes from its checkpoint.

    :param model: A ``TransformerModel`` or ``TransformerLM``, before a data parallel
        wrapper is put around it.
    :param begin_indices: The tokens that targets follow; of several the mean is taken.
    :param ends_like_text: If ``True``, the separator is only read, see
        :class:`~warmup_plugin.DecoderLayout`: its row is that of the token before a
        target, and no more.

    :returns: What :func:`prepare_rows` does the same to the weights of the model by.
    """
    frontend, proj = cast(Any, model).decoder_frontend, cast(Any, model).final_proj

    # The parameters themselves: each is one object under all its names.
    state_dict = model.state_dict(keep_vars=True)

    def describe(weight: Tensor, mean_of: Sequence[int]) -> PreparedRow:
        names = [name for name, other in state_dict.items() if other is weight]

        return PreparedRow(names, separator_idx, list(mean_of))

    rows = []

    if not ends_like_text:
        weights = [w for w in (proj.weight, proj.bias) if w is not None]

        rows += [describe(weight, [eos_idx]) for weight in weights]

    if ends_like_text or not has_tied_embeddings(model):
        rows.append(describe(frontend.embed.weight, list(dict.fromkeys(begin_indices))))

    # Tied ones under each of their names.
    prepare_rows(model.state_dict(), rows)

    return rows


@torch.no_grad()
def prepare_rows(weights: Mapping[str, Tensor], rows: Sequence[PreparedRow]) -> None:
    """Overwrites rows of weights, in place, where they are there."""
    for row in rows:
        for name in row.weights:
            weight = weights.get(name)

            if weight is not None and not weight.is_meta:
                mean = weight[list(row.mean_of)].float().mean(dim=0)

                weight[row.row] = mean.to(weight.dtype)
