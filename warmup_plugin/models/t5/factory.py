# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import final

import torch.nn as nn
from fairseq2.gang import get_current_gangs
from fairseq2.models.transformer import (
    SDPA,
    AttentionBias,
    FeedForwardNetwork,
    GLUFeedForwardNetwork,
    IdentityBias,
    MultiheadAttention,
    StandardFeedForwardNetwork,
    StandardMultiheadAttention,
    StandardTransformerDecoderLayer,
    StandardTransformerEncoderLayer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEmbeddingFrontend,
    TransformerEncoder,
    TransformerEncoderLayer,
    TransformerFrontend,
    TransformerModel,
    TransformerNormOrder,
)
from fairseq2.models.transformer.sdpa.torch import TorchSDPA
from fairseq2.nn import (
    ColumnShardedLinear,
    Embedding,
    LayerNorm,
    Linear,
    Projection,
    RMSNorm,
    StandardEmbedding,
)
from torch import Tensor
from torch.nn import GELU, Module, Parameter, ReLU
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
    return T5Factory(config).create_model()


@final
class T5Factory:
    """Creates the parts of a T5 model."""

    def __init__(self, config: T5Config) -> None:
        self._config = config

    def create_model(self) -> TransformerModel:
        config = self._config

        # Each rank would have some heads, but the position bias of all.
        if get_current_gangs().tp.size > 1:
            raise WarmupError(
                f"`gang.tensor_parallel_size` must be 1 for models of the family `t5`, but is {get_current_gangs().tp.size}."
            )

        embed = self.create_embedding()

        frontend = self.create_frontend(embed)

        encoder = self.create_encoder()

        decoder = self.create_decoder()

        final_proj = self.create_final_projection(embed)

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

    def create_embedding(self) -> StandardEmbedding:
        config = self._config

        # Without `pad_idx`: the decoder begins with PAD and learns it.
        return StandardEmbedding(
            config.vocab_size, config.model_dim, init_fn=_init_embedding
        )

    def create_frontend(self, embed: Embedding) -> TransformerFrontend:
        config = self._config

        return TransformerEmbeddingFrontend(
            config.model_dim,
            embed,
            pos_encoder=None,
            no_scale=True,
            dropout_p=config.dropout_p,
        )

    def create_encoder(self) -> TransformerEncoder:
        config = self._config

        layers = [self.create_encoder_layer() for _ in range(config.num_encoder_layers)]

        return T5Encoder(
            layers,
            self.create_layer_norm(),
            self.create_position_bias(bidirectional=True),
            dropout_p=config.dropout_p,
        )

    def create_encoder_layer(self) -> TransformerEncoderLayer:
        return StandardTransformerEncoderLayer(
            self.create_self_attention(T5Encoder.MASK_BIAS),
            self.create_layer_norm(),
            self.create_ffn(),
            self.create_layer_norm(),
            norm_order=TransformerNormOrder.PRE,
            dropout_p=self._config.dropout_p,
        )

    def create_decoder(self) -> TransformerDecoder:
        config = self._config

        layers = [self.create_decoder_layer() for _ in range(config.num_decoder_layers)]

        return T5Decoder(
            layers,
            self.create_layer_norm(),
            self.create_position_bias(bidirectional=False),
            dropout_p=config.dropout_p,
        )

    def create_decoder_layer(self) -> TransformerDecoderLayer:
        return StandardTransformerDecoderLayer(
            self.create_self_attention(T5Decoder.MASK_BIAS),
            self.create_layer_norm(),
            self.create_encoder_decoder_attention(),
            self.create_layer_norm(),
            self.create_ffn(),
            self.create_layer_norm(),
            norm_order=TransformerNormOrder.PRE,
            dropout_p=self._config.dropout_p,
        )

    def create_self_attention(self, mask_bias: AttentionBias) -> MultiheadAttention:
        sdpa = T5SDPA(mask_bias, dropout_p=self._config.dropout_p)

        return self.create_attention(sdpa)

    def create_encoder_decoder_attention(self) -> MultiheadAttention:
        sdpa = TorchSDPA(IdentityBias(), dropout_p=self._config.dropout_p, scale=1.0)

        return self.create_attention(sdpa)

    def create_attention(self, sdpa: SDPA) -> MultiheadAttention:
        config = self._config

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

    def create_ffn(self) -> FeedForwardNetwork:
        config = self._config

        if config.gated_ffn:
            return GLUFeedForwardNetwork(
                config.model_dim,
                config.ffn_inner_dim,
                bias=False,
                gate_activation=self.create_activation(),
                inner_dim_scale=1.0,
                inner_dropout_p=config.dropout_p,
                proj_init_fn=_init_projection,
            )

        return StandardFeedForwardNetwork(
            config.model_dim,
            config.ffn_inner_dim,
            bias=False,
            inner_activation=self.create_activation(),
            inner_dropout_p=config.dropout_p,
            proj_init_fn=_init_projection,
        )

    def create_activation(self) -> Module:
        if self._config.activation == "gelu":
            return GELU(approximate="tanh")

        return ReLU()

    def create_layer_norm(self) -> LayerNorm:
        config = self._config

        return RMSNorm(config.model_dim, bias=False, eps=config.norm_eps)

    def create_position_bias(self, *, bidirectional: bool) -> T5PositionBias:
        config = self._config

        return T5PositionBias(
            config.num_attn_heads,
            config.num_position_buckets,
            config.max_position_distance,
            bidirectional=bidirectional,
            init_std=config.model_dim**-0.5,
        )

    def create_final_projection(self, embed: StandardEmbedding) -> Projection:
        config = self._config

        if config.tied_embeddings:
            return T5TiedProjection(embed.weight)

        return Linear(
            config.model_dim,
            config.vocab_size,
            bias=False,
            init_fn=_init_final_projection,
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


def _init_embedding(embed: StandardEmbedding) -> None:
    nn.init.normal_(embed.weight)


def _init_projection(proj: Linear) -> None:
    nn.init.normal_(proj.weight, std=proj.input_dim**-0.5)


def _init_final_projection(proj: Linear) -> None:
    nn.init.normal_(proj.weight)
