# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a decoder declares of itself for which fairseq2's interfaces have no word."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from fairseq2.models.transformer import SDPA
from torch import Tensor
from torch.nn import Module

PositionBias: TypeAlias = Callable[[Tensor], Tensor]
"""Maps the positions of keys minus those of queries, *Shape:* :math:`(*,Q,L)`, to what
they add to attention logits, *Shape:* :math:`(*,H,Q,L)`."""


class BiasedDecoder:
    """A decoder that adds a bias of positions to the logits of its self-attention, the
    same in all layers, which have :class:`BiasedSDPA`."""

    position_bias: PositionBias


class BiasedSDPA(SDPA):
    """Scaled dot-product attention with a bias of positions that its stack computes."""


def find_position_bias(decoder: Module) -> PositionBias | None:
    """Returns the bias of a decoder; ``None`` if it has none."""
    return decoder.position_bias if isinstance(decoder, BiasedDecoder) else None


def find_float16_fault(model: Module) -> str | None:
    """Returns why a model must not compute in float16, as the attribute
    ``float16_fault`` of its decoder says it; ``None`` if it may."""
    fault: str | None = getattr(getattr(model, "decoder", None), "float16_fault", None)

    return fault
