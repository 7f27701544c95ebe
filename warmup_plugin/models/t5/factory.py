# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import final

import torch.nn as nn
from fairseq2.gang import get_current_gangs
from fairseq2.models.transformer import (
    SDPA,
    FeedForwardNetwork,
    GLUFeedForwardNetwork,
    IdentityBias,
    MultiheadAttention,
    StandardFeedForwardNetwork,
    StandardMultiheadAttention,
    StandardTransformerDecoderLayer,
    StandardTransformerEncoderLayer,
    TransformerDecoderLayer,
    TransformerEmbeddingFrontend,
    TransformerEncoderLayer,
    TransformerModel,
    TransformerNormOrder,
)
from fairseq2.models.transformer.sdpa.torch import TorchSDPA
from fairseq2.nn import (
    ColumnShardedLinear,
    LayerNorm,
    Linear,
    Projection,
    RMSNorm,
    StandardEmbedding,
)
from torch import Tensor
from torch.nn import GELU, Parameter, ReLU
from torch.nn.functional import linear
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.models.t5.attention import T5SDPA, T5PositionBias
from warmup_plugin.models.t5.config import T5Config
from warmup_plugin.models.t5.stacks import T5Decoder, T5Encoder


def create_t5_model(config: T5Config) -> TransformerModel:
    """
    Creates a T5 model, its weights drawn as for training from scratch.

    :raises WarmupError: If its layers are to be divided by tensor parallelism.
    """
    # Each rank would have some heads, but the position bias of all.
    if get_current_gangs().tp.size > 1:
        raise WarmupError(
            f"`gang.tensor_parallel_size` must be 1 for models of the family `t5`, but is {get_current_gangs().tp.size}."
        )

    # Without `pad_idx`: the decoder begins with PAD and learns it.
    embed = StandardEmbedding(config.vocab_size, config.model_dim, init_fn=_init_normal)

    frontend = TransformerEmbeddingFrontend(
        config.model_dim,
        embed,
        pos_encoder=None,
        no_scale=True,
        dropout_p=config.dropout_p,
    )

    encoder = T5Encoder(
        [_create_encoder_layer(config) for _ in range(config.num_encoder_layers)],
        _create_layer_norm(config),
        _create_position_bias(config, bidirectional=True),
        dropout_p=config.dropout_p,
    )

    decoder = T5Decoder(
        [_create_decoder_layer(config) for _ in range(config.num_decoder_layers)],
        _create_layer_norm(config),
        _create_position_bias(config, bidirectional=False),
        dropout_p=config.dropout_p,
    )

    final_proj: Projection

    if config.tied_embeddings:
        final_proj = T5TiedProjection(embed.weight)
    else:
        final_proj = Linear(
            config.model_dim,
            config.vocab_size,
            bias=False,
            init_fn=_init_normal,
        )

    return TransformerModel(
        config.model_dim,
        frontend,
        encoder,
        frontend,
        decoder,
        final_proj,
        config.pad_idx,
        config.max_seq_len,
        config.max_seq_len,
    )


def _create_encoder_layer(config: T5Config) -> TransformerEncoderLayer:
    return StandardTransformerEncoderLayer(
        _create_attention(
            config, T5SDPA(T5Encoder.MASK_BIAS, dropout_p=config.dropout_p)
        ),
        _create_layer_norm(config),
        _create_ffn(config),
        _create_layer_norm(config),
        norm_order=TransformerNormOrder.PRE,
        dropout_p=config.dropout_p,
    )


def _create_decoder_layer(config: T5Config) -> TransformerDecoderLayer:
    return StandardTransformerDecoderLayer(
        _create_attention(
            config, T5SDPA(T5Decoder.MASK_BIAS, dropout_p=config.dropout_p)
        ),
        _create_layer_norm(config),
        _create_attention(
            config, TorchSDPA(IdentityBias(), dropout_p=config.dropout_p, scale=1.0)
        ),
        _create_layer_norm(config),
        _create_ffn(config),
        _create_layer_norm(config),
        norm_order=TransformerNormOrder.PRE,
        dropout_p=config.dropout_p,
    )


def _create_attention(config: T5Config, sdpa: SDPA) -> MultiheadAttention:
    attn = StandardMultiheadAttention(
        config.model_dim,
        config.num_attn_heads,
        sdpa,
        head_dim=config.head_dim,
        qkv_proj_init_fn=_init_projection,
        output_proj_init_fn=_init_projection,
        bias=False,
    )

    head_dim = config.head_dim

    def init_query_projection(proj: Linear) -> None:
        # The scale of dot-product attention is part of the weights.
        nn.init.normal_(proj.weight, std=(proj.input_dim * head_dim) ** -0.5)

    assert isinstance(attn.q_proj, ColumnShardedLinear)

    # fairseq2 has one initialiser for queries, keys and values.
    attn.q_proj.init_fn = init_query_projection

    attn.q_proj.reset_parameters()

    return attn


def _create_ffn(config: T5Config) -> FeedForwardNetwork:
    activation = GELU(approximate="tanh") if config.activation == "gelu" else ReLU()

    if config.gated_ffn:
        return GLUFeedForwardNetwork(
            config.model_dim,
            config.ffn_inner_dim,
            bias=False,
            gate_activation=activation,
            inner_dim_scale=1.0,
            inner_dropout_p=config.dropout_p,
            proj_init_fn=_init_projection,
        )

    return StandardFeedForwardNetwork(
        config.model_dim,
        config.ffn_inner_dim,
        bias=False,
        inner_activation=activation,
        inner_dropout_p=config.dropout_p,
        proj_init_fn=_init_projection,
    )


def _create_layer_norm(config: T5Config) -> LayerNorm:
    return RMSNorm(config.model_dim, bias=False, eps=config.norm_eps)


def _create_position_bias(config: T5Config, *, bidirectional: bool) -> T5PositionBias:
    return T5PositionBias(
        config.num_attn_heads,
        config.num_position_buckets,
        config.max_position_distance,
        bidirectional=bidirectional,
        init_std=config.model_dim**-0.5,
    )


@final
class T5TiedProjection(Projection):
    """Projects with the weight of the embedding, which is large, what is scaled down."""

    weight: Parameter
    bias: None

    def __init__(self, weight: Parameter) -> None:
        super().__init__(input_dim=weight.size(1), output_dim=weight.size(0))

        self.weight = weight
        self.bias = None

    @override
    def forward(self, x: Tensor) -> Tensor:
        return linear(x * self.input_scale, self.weight)

    @property
    def input_scale(self) -> float:
        """What inputs are multiplied by; see ``models/int8.py``."""
        return float(self.input_dim**-0.5)


def _init_normal(module: StandardEmbedding | Linear) -> None:
    nn.init.normal_(module.weight)


def _init_projection(proj: Linear) -> None:
    nn.init.normal_(proj.weight, std=proj.input_dim**-0.5)
