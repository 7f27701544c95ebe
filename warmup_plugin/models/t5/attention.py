# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Attention that sees by how much a key is away from a query.

T5 has no position encoder. Each head of a stack adds a learned bias to its logits, one
number for each range of distances, the same in all layers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, final

import torch
import torch.nn as nn
from fairseq2.data_type import DataType
from fairseq2.device import Device
from fairseq2.error import NotSupportedError
from fairseq2.models.transformer import AttentionBias, AttentionBiasCache
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import Module, Parameter
from torch.nn.functional import embedding, scaled_dot_product_attention
from typing_extensions import override

from warmup_plugin.models.traits import BiasedSDPA


@final
class T5PositionBias(Module):
    """Computes the bias of each head for the distances of keys from queries."""

    def __init__(
        self,
        num_heads: int,
        num_buckets: int,
        max_distance: int,
        *,
        bidirectional: bool,
        init_std: float,
        device: Device | None = None,
        dtype: DataType | None = None,
    ) -> None:
        """
        :param num_buckets: The number of ranges of distances.
        :param max_distance: The distance from which on all are in one bucket.
        :param bidirectional: If ``True``, half of the buckets are for keys behind the
            query; else all those are as if they stood at the query.
        :param init_std: The standard deviation of new weights.
        """
        super().__init__()

        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.init_std = init_std

        self.weight = Parameter(
            torch.empty((num_buckets, num_heads), device=device, dtype=dtype)
        )

        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.init_std)

    @override
    def forward(self, relative_positions: Tensor) -> Tensor:
        """
        :param relative_positions: The position of each key minus that of each query.
            *Shape:* :math:`(*,Q,L)`.

        :returns: *Shape:* :math:`(*,H,Q,L)`.
        """
        buckets = self._get_buckets(relative_positions)

        # (*, Q, L, H) -> (*, H, Q, L)
        return embedding(buckets, self.weight).movedim(-1, -3).contiguous()

    if TYPE_CHECKING:
        __call__ = forward

    def _get_buckets(self, relative_positions: Tensor) -> Tensor:
        num_buckets = self.num_buckets

        if self.bidirectional:
            num_buckets //= 2

            first_bucket = torch.where(relative_positions > 0, num_buckets, 0)

            distances = relative_positions.abs()
        else:
            first_bucket = torch.zeros_like(relative_positions)

            distances = (-relative_positions).clamp(min=0)

        # The first half holds one distance each, the others grow exponentially.
        num_exact = num_buckets // 2

        # In this order, and in fp32: at the border of two buckets the last bit counts.
        share = torch.log(distances.clamp(min=1).float() / num_exact) / math.log(
            self.max_distance / num_exact
        )

        ranges = num_exact + (share * (num_buckets - num_exact)).long()

        ranges = ranges.clamp(max=num_buckets - 1)

        return first_bucket + torch.where(distances < num_exact, distances, ranges)

    @override
    def extra_repr(self) -> str:
        """:meta private:"""
        return (
            f"num_buckets={self.num_buckets}, "
            f"max_distance={self.max_distance}, "
            f"bidirectional={self.bidirectional}"
        )


@final
class T5BiasCache(AttentionBiasCache):  # type: ignore[misc]
    """Hands the bias that a stack has computed once to all of its layers."""

    def __init__(self, attn_bias: Tensor | None) -> None:
        """
        :param attn_bias: The position bias, minus infinity where nothing is seen;
            ``None`` if the layout of the batch does not tell the positions. *Shape:*
            :math:`(N,H,S,S_{kv})`, or with 1 for N.
        """
        super().__init__()

        self.attn_bias = attn_bias


@final
class T5SDPA(BiasedSDPA):
    """Computes dot-product attention, not scaled, with the bias of its stack."""

    bias: AttentionBias
    """What the mask of the stack is."""

    dropout_p: float
    """The dropout probability on attention weights."""

    scale: float
    """What multiplies the logits: 1, T5 has the scale in its weights."""

    def __init__(self, bias: AttentionBias, *, dropout_p: float = 0.0) -> None:
        super().__init__()

        self.bias = bias
        self.dropout_p = dropout_p
        self.scale = 1.0

    @override
    def forward(
        self,
        q: Tensor,
        q_layout: BatchLayout,
        k: Tensor,
        k_layout: BatchLayout,
        v: Tensor,
        bias_cache: AttentionBiasCache,
        *,
        needs_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if needs_weights:
            raise NotSupportedError("`T5SDPA` does not support `needs_weights`.")

        if q_layout.packed or k_layout.packed:
            raise NotSupportedError(
                "`T5SDPA` does not support packed batches; pad them instead."
            )

        if not isinstance(bias_cache, T5BiasCache) or bias_cache.attn_bias is None:
            raise ValueError(
                "`bias_cache` must hold the position bias of a `T5Encoder` or `T5Decoder`."
            )

        # (N, S, H, K) -> (N, H, S, K)
        attns = scaled_dot_product_attention(
            q.transpose(-2, -3),
            k.transpose(-2, -3),
            v.transpose(-2, -3),
            attn_mask=bias_cache.attn_bias.to(q.dtype),
            dropout_p=self.dropout_p if self.training else 0.0,
            scale=self.scale,
        )

        # (N, H, S, V) -> (N, S, H, V)
        return attns.transpose(-2, -3), None

    @override
    def extra_repr(self) -> str:
        """:meta private:"""
        return f"bias={self.bias}, dropout_p={self.dropout_p:G}, scale={self.scale:G}"
