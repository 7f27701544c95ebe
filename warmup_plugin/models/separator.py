# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Module


def has_tied_embeddings(model: Module) -> bool:
    """
    Tells whether a token is written by the same row by which it is read.

    :param model: A ``TransformerModel`` or ``TransformerLM``.
    """
    frontend, proj = cast(Any, model).decoder_frontend, cast(Any, model).final_proj

    return frontend.embed.weight is proj.weight


@torch.no_grad()
def prepare_separator(
    model: Module, separator_idx: int, eos_idx: int, begin_indices: Sequence[int]
) -> None:
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
    """
    frontend, proj = cast(Any, model).decoder_frontend, cast(Any, model).final_proj

    embed_weight: Tensor = frontend.embed.weight

    for weight in (proj.weight, proj.bias):
        if weight is not None and not weight.is_meta:
            weight[separator_idx] = weight[eos_idx]

    if has_tied_embeddings(model) or embed_weight.is_meta:
        return

    begins = embed_weight[list(dict.fromkeys(begin_indices))]

    embed_weight[separator_idx] = begins.float().mean(dim=0).to(embed_weight.dtype)
