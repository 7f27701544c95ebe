# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
fairseq2's standard stacks, plus one position bias each.

The bias belongs to the stack and not to a layer: FSDP divides the parameters layer by
layer, and the bias would be computed once a layer, in a checkpointed one twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

import torch
from fairseq2.models.transformer import (
    AttentionBias,
    AttentionBiasCache,
    CausalAttentionBias,
    IdentityBias,
    TransformerDecoder,
    TransformerEncoder,
)
from fairseq2.models.transformer.attention_bias import maybe_get_attention_bias_tensor
from fairseq2.nn import BatchLayout, IncrementalStateBag, LayerNorm
from torch import Tensor
from torch.nn import Dropout, Module, ModuleList
from typing_extensions import override

from warmup_plugin.fairseq2_doors import call_layer_hooks
from warmup_plugin.models.t5.attention import T5BiasCache, T5PositionBias
from warmup_plugin.models.traits import BiasedDecoder


class _Stack(Module):
    """What both stacks are made of."""

    def __init__(
        self,
        layers: Sequence[Module],
        layer_norm: LayerNorm,
        position_bias: T5PositionBias,
        *,
        dropout_p: float = 0.0,
    ) -> None:
        super().__init__()

        self.position_bias = position_bias

        self.layers = ModuleList(layers)

        self.layer_norm = layer_norm

        self.dropout = Dropout(dropout_p)


@final
class T5Encoder(_Stack, TransformerEncoder):
    """Represents the encoder of a T5 model."""

    MASK_BIAS: Final = IdentityBias()
    """The kind of mask that its layers have."""

    @override
    def forward(self, seqs: Tensor, seqs_layout: BatchLayout) -> Tensor:
        attn_bias = _compute_bias(
            self.position_bias, self.MASK_BIAS, seqs, seqs_layout, num_past=0
        )

        bias_cache = T5BiasCache(attn_bias)

        for layer_idx, layer in enumerate(self.layers):
            seqs = layer(seqs, seqs_layout, bias_cache)

            call_layer_hooks(self, layer_idx, seqs, seqs_layout)

        seqs = self.layer_norm(seqs)

        seqs = self.dropout(seqs)

        return seqs


@final
class T5Decoder(_Stack, TransformerDecoder, BiasedDecoder):
    """Represents the decoder of a T5 model."""

    position_bias: T5PositionBias

    float16_fault: Final = (
        "T5 and mT5 overflow in float16: their hidden states exceed its largest number, 65,504, and the loss becomes NaN"
    )

    MASK_BIAS: Final = CausalAttentionBias()
    """The kind of mask that its layers have."""

    @override
    def forward(
        self,
        seqs: Tensor,
        seqs_layout: BatchLayout,
        encoder_output: Tensor,
        encoder_output_layout: BatchLayout,
        *,
        state_bag: IncrementalStateBag | None = None,
    ) -> Tensor:
        # In training mode fairseq2's attention does not read what came before.
        if self.training or state_bag is None:
            num_past = 0
        else:
            num_past = state_bag.step_nr

        attn_bias = _compute_bias(
            self.position_bias, self.MASK_BIAS, seqs, seqs_layout, num_past
        )

        bias_cache = T5BiasCache(attn_bias)

        for layer_idx, layer in enumerate(self.layers):
            seqs = layer(
                seqs,
                seqs_layout,
                encoder_output,
                encoder_output_layout,
                bias_cache,
                state_bag=state_bag,
            )

            call_layer_hooks(self, layer_idx, seqs, seqs_layout)

        seqs = self.layer_norm(seqs)

        seqs = self.dropout(seqs)

        return seqs


def _compute_bias(
    position_bias: T5PositionBias,
    mask_bias: AttentionBias,
    seqs: Tensor,
    seqs_layout: BatchLayout,
    num_past: int,
) -> Tensor | None:
    """
    Computes the position bias with the mask.

    :param num_past: The number of keys that stand before ``seqs``.

    :returns: *Shape:* :math:`(N,H,S,S_{kv})`, or with 1 for N.
    """
    # Rows in one flat sequence: who wrote them there knows their positions.
    if seqs_layout.packed:
        return None

    device = seqs.device

    num_keys = num_past + seqs_layout.width

    # (S_kv)
    positions = torch.arange(num_keys, device=device)

    # (1, S, S_kv)
    relative_positions = (positions - positions[num_past:].unsqueeze(1)).unsqueeze(0)

    # (1, H, S, S_kv)
    bias = position_bias(relative_positions)

    if num_past == 0:
        keys_layout = seqs_layout
    else:
        keys_layout = BatchLayout((seqs.size(0), num_keys), None, device=device)

    # (S, S_kv) or (N, 1, S, S_kv)
    mask = maybe_get_attention_bias_tensor(
        mask_bias, seqs, seqs_layout, keys_layout, AttentionBiasCache()
    )

    if mask is not None:
        bias = bias + mask

    # What queries will be, or each layer would keep a copy for the backward pass.
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    else:
        dtype = seqs.dtype

    return bias.to(dtype)
