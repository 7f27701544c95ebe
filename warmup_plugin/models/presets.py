# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from fairseq2.models.llama import LLaMAConfig
from fairseq2.models.nllb import NllbConfig
from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer


def register_presets(container: DependencyContainer) -> None:
    """
    Registers small models for training from scratch.

    The training recipe sets their ``vocab_size`` and ``pad_idx`` from the tokenizer.
    """
    _register_encoder_decoders(container)

    _register_decoders(container)


def _register_encoder_decoders(container: DependencyContainer) -> None:
    """
    They belong to fairseq2's ``nllb`` family: a pre-norm Transformer with sinusoidal
    positions and one embedding shared by encoder, decoder and output.
    """
    arch = ConfigRegistrar(container, NllbConfig)

    @arch("transformer_test")
    def transformer_test() -> NllbConfig:
        """2+2 layers; learns toy tasks in a minute on a CPU."""
        config = transformer_tiny()

        config.model_dim = 64
        config.num_encoder_layers = 2
        config.num_decoder_layers = 2
        config.ffn_inner_dim = 128
        config.dropout_p = 0.1

        return config

    @arch("transformer_demo")
    def transformer_demo() -> NllbConfig:
        """2+2 layers, 128 dimensions; the model of the synthetic pair."""
        config = transformer_test()

        config.model_dim = 128
        config.ffn_inner_dim = 256

        return config

    @arch("transformer_tiny")
    def transformer_tiny() -> NllbConfig:
        """Transformer-Tiny, the size commonly used for Multi30k."""
        return NllbConfig(
            model_dim=128,
            max_seq_len=512,
            vocab_size=6000,
            pad_idx=0,
            num_encoder_layers=4,
            num_decoder_layers=4,
            num_encoder_attn_heads=4,
            num_decoder_attn_heads=4,
            ffn_inner_dim=256,
            dropout_p=0.3,
        )

    @arch("transformer_small")
    def transformer_small() -> NllbConfig:
        """6+6 layers, 256 dimensions; sentence translation on one GPU."""
        config = transformer_tiny()

        config.model_dim = 256
        config.num_encoder_layers = 6
        config.num_decoder_layers = 6
        config.ffn_inner_dim = 1024
        config.dropout_p = 0.1

        return config

    @arch("transformer_base")
    def transformer_base() -> NllbConfig:
        """The size of the base model of arXiv 1706.03762, pre-norm."""
        config = transformer_small()

        config.model_dim = 512
        config.num_encoder_attn_heads = 8
        config.num_decoder_attn_heads = 8
        config.ffn_inner_dim = 2048

        return config


def _register_decoders(container: DependencyContainer) -> None:
    """
    They belong to fairseq2's ``llama`` family: rotary positions, gated feed-forward
    networks and, unlike the public models, one embedding for input and output, which
    would be most of a small model otherwise.
    """
    arch = ConfigRegistrar(container, LLaMAConfig)

    @arch("llama_test")
    def llama_test() -> LLaMAConfig:
        """2 layers; for tests and toy tasks."""
        config = llama_tiny()

        config.model_dim = 64
        config.num_layers = 2
        config.ffn_inner_dim = 176

        return config

    @arch("llama_tiny")
    def llama_tiny() -> LLaMAConfig:
        """4 layers, 128 dimensions; 1.4 M parameters with 5,000 tokens."""
        return LLaMAConfig(
            model_dim=128,
            max_seq_len=512,
            vocab_size=6000,
            pad_idx=0,
            tied_embeddings=True,
            num_layers=4,
            num_attn_heads=4,
            num_key_value_heads=4,
            # Of three projections, as large as two of four times the dimensions.
            ffn_inner_dim=352,
            ffn_inner_dim_scale=1.0,
            ffn_inner_dim_multiple_of=1,
            dropout_p=0.1,
            # Tied embeddings demand it.
            shard_embed_dim=False,
        )

    @arch("llama_small")
    def llama_small() -> LLaMAConfig:
        """6 layers, 256 dimensions; sentence translation on one GPU."""
        config = llama_tiny()

        config.model_dim = 256
        config.num_layers = 6
        config.ffn_inner_dim = 704

        return config

    @arch("llama_base")
    def llama_base() -> LLaMAConfig:
        """12 layers, 512 dimensions."""
        config = llama_small()

        config.model_dim = 512
        config.num_layers = 12
        config.num_attn_heads = 8
        config.num_key_value_heads = 8
        config.ffn_inner_dim = 1408

        return config
