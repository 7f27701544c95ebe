# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from functools import partial
from typing import Final

from fairseq2.models.llama import LLaMAConfig
from fairseq2.models.nllb import NllbConfig
from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer

# The dimensions of the model, the layers of the encoder and of the decoder, the heads, the
# inner dimensions of feed-forward networks, and dropout.
_ENCODER_DECODERS: Final = {
    # Learns toy tasks in a minute on a CPU.
    "transformer_test": (64, 2, 4, 128, 0.1),
    # The model of the synthetic pair.
    "transformer_demo": (128, 2, 4, 256, 0.1),
    # Transformer-Tiny, the size commonly used for Multi30k.
    "transformer_tiny": (128, 4, 4, 256, 0.3),
    # Sentence translation on one GPU.
    "transformer_small": (256, 6, 4, 1024, 0.1),
    # The size of the base model of arXiv 1706.03762, pre-norm.
    "transformer_base": (512, 6, 8, 2048, 0.1),
}

# The dimensions of the model, its layers and heads. The inner dimensions, of three
# projections, are as large as two of four times the dimensions of the model.
_DECODERS: Final = {
    # For tests and toy tasks.
    "llama_test": (64, 2, 4, 176),
    # 1.4 M parameters with 5,000 tokens.
    "llama_tiny": (128, 4, 4, 352),
    # Sentence translation on one GPU.
    "llama_small": (256, 6, 4, 704),
    "llama_base": (512, 12, 8, 1408),
}


def register_presets(container: DependencyContainer) -> None:
    """
    Registers small models for training from scratch.

    The training recipe sets their ``vocab_size`` and ``pad_idx`` from the tokenizer.
    """
    encoder_decoder = ConfigRegistrar(container, NllbConfig)

    for name, size in _ENCODER_DECODERS.items():
        encoder_decoder(name)(partial(_create_encoder_decoder, *size))

    decoder = ConfigRegistrar(container, LLaMAConfig)

    for name, decoder_size in _DECODERS.items():
        decoder(name)(partial(_create_decoder, *decoder_size))


def _create_encoder_decoder(
    model_dim: int,
    num_layers: int,
    num_heads: int,
    ffn_inner_dim: int,
    dropout_p: float,
) -> NllbConfig:
    """
    Creates one of fairseq2's ``nllb`` family: a pre-norm Transformer with sinusoidal
    positions and one embedding shared by encoder, decoder and output.
    """
    return NllbConfig(
        model_dim=model_dim,
        max_seq_len=512,
        vocab_size=6000,
        pad_idx=0,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        num_encoder_attn_heads=num_heads,
        num_decoder_attn_heads=num_heads,
        ffn_inner_dim=ffn_inner_dim,
        dropout_p=dropout_p,
    )


def _create_decoder(
    model_dim: int, num_layers: int, num_heads: int, ffn_inner_dim: int
) -> LLaMAConfig:
    """
    Creates one of fairseq2's ``llama`` family: rotary positions, gated feed-forward
    networks and, unlike the public models, one embedding for input and output, which
    would be most of a small model otherwise.
    """
    return LLaMAConfig(
        model_dim=model_dim,
        max_seq_len=512,
        vocab_size=6000,
        pad_idx=0,
        tied_embeddings=True,
        num_layers=num_layers,
        num_attn_heads=num_heads,
        num_key_value_heads=num_heads,
        ffn_inner_dim=ffn_inner_dim,
        ffn_inner_dim_scale=1.0,
        ffn_inner_dim_multiple_of=1,
        dropout_p=0.1,
        # Tied embeddings demand it.
        shard_embed_dim=False,
    )
