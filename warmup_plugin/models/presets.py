# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from fairseq2.models.nllb import NllbConfig
from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer


def register_presets(container: DependencyContainer) -> None:
    """
    Registers small encoder-decoders for training from scratch.

    They belong to fairseq2's ``nllb`` family: a pre-norm Transformer with sinusoidal
    positions and one embedding shared by encoder, decoder and output. The training
    recipe sets ``vocab_size`` and ``pad_idx`` from the tokenizer.
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
        """2+2 layers, 128 dimensions; the model of ``make demo``."""
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
