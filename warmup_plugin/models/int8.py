# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Large projections with 8-bit weights, for inference on CPUs."""

from __future__ import annotations

from typing import Final, final

import torch
from fairseq2.nn import (
    ColumnShardedLinear,
    Linear,
    Projection,
    RowShardedLinear,
    TiedProjection,
)
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.models.lora import LoraProjection

_LEAST_SIZE: Final = 1 << 18
"""The weights of a projection, such as 512 by 512, from which on 8 bits are faster: rows of
activations must be quantised each time."""

_MAX: Final = 127

# The sharded ones are whole in a single process.
_LINEAR: Final = (Linear, ColumnShardedLinear, RowShardedLinear, TiedProjection)


@final
class Int8Projection(Projection):
    """
    Projects with weights of 8 bits, one scale an output, and activations of 8 bits, one
    scale a row.

    Products are summed up exactly, in 32 bits, and no row looks at another: what comes out
    for a row does not depend on the batch that it is in.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """
        :param weight: What is quantised, to the nearest. *Shape:* :math:`(H_{out},H_{inp})`.
        :param bias: *Shape:* :math:`(H_{out})`.
        """
        super().__init__(input_dim=weight.size(1), output_dim=weight.size(0))

        weight = weight.detach().float()

        # (H_out)
        scale = _get_scale(weight).squeeze(-1)

        # (H_inp, H_out), a transposed view, which the product takes as it is.
        quantized = _quantize(weight, scale.unsqueeze(-1)).t()

        self.register_buffer("weight", quantized, persistent=False)
        self.register_buffer("weight_scale", scale, persistent=False)

        self.register_buffer(
            "bias", None if bias is None else bias.detach().float(), persistent=False
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        # (N, H_inp)
        rows = x.reshape(-1, self.input_dim).float()

        # (N, 1)
        scale = _get_scale(rows)

        # (N, H_out)
        y = torch._int_mm(_quantize(rows, scale), self.weight).float()

        y.mul_(scale).mul_(self.weight_scale)

        if self.bias is not None:
            y.add_(self.bias)

        return y.to(x.dtype).view(*x.shape[:-1], self.output_dim)


def _get_scale(rows: Tensor) -> Tensor:
    """Returns what the largest value of each row is to be divided by."""
    return rows.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-30).div_(_MAX)


def _quantize(rows: Tensor, scale: Tensor) -> Tensor:
    return (rows / scale).round_().to(torch.int8)


def quantize_projections(model: Module) -> int:
    """
    Replaces the large projections of a model, in place, by ones of 8 bits.

    Projections that share a weight with each other or with an embedding get their own
    copy of it; that of the embedding stays as it is.

    :returns: The number of projections that were replaced.

    :raises WarmupError: If the model is not on the CPU.
    """
    num_replaced = 0

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            input_scale = _find_input_scale(child)

            if input_scale is None:
                continue

            weight, bias = child.weight, child.bias

            if isinstance(child, LoraProjection):
                weight = child.compute_merged_weight()

            assert isinstance(weight, Tensor)
            assert bias is None or isinstance(bias, Tensor)

            if weight.device.type != "cpu":
                raise WarmupError(
                    "`--int8` is for models on the CPU; leave it out, or take `model.dtype=bfloat16` on a GPU."
                )

            if weight.numel() < _LEAST_SIZE:
                continue

            setattr(parent, name, Int8Projection(weight * input_scale, bias))

            num_replaced += 1

    return num_replaced


def _find_input_scale(module: Module) -> float | None:
    """Returns what a projection multiplies its inputs by; ``None`` if it is not known."""
    if isinstance(module, _LINEAR):
        return 1.0

    # Those of our own families declare it.
    scale = getattr(module, "input_scale", None)

    return scale if isinstance(scale, float) else None
