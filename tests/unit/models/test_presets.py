# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from fairseq2.models.llama import LLaMAConfig, create_llama_model
from fairseq2.models.nllb import NllbConfig
from fairseq2.runtime.dependency import DependencyContainer

from warmup_plugin.models.hugging_face.llama import get_ffn_inner_dim
from warmup_plugin.models.presets import register_presets


class TestRegisterPresets:
    def test_call_registers_presets(self) -> None:
        container = DependencyContainer()

        register_presets(container)

        configs = {
            name: container.resolve(NllbConfig, key=f"transformer_{name}")
            for name in ("test", "demo", "tiny", "small", "base")
        }

        # (layers of encoder and of decoder, dimensions, inner, heads, dropout)
        expected = {
            "test": (2, 2, 64, 128, 4, 0.1),
            "demo": (2, 2, 128, 256, 4, 0.1),
            # As used for Multi30k.
            "tiny": (4, 4, 128, 256, 4, 0.3),
            "small": (6, 6, 256, 1024, 4, 0.1),
            "base": (6, 6, 512, 2048, 8, 0.1),
        }

        for name, config in configs.items():
            assert config.num_encoder_attn_heads == config.num_decoder_attn_heads

            assert expected[name] == (
                config.num_encoder_layers,
                config.num_decoder_layers,
                config.model_dim,
                config.ffn_inner_dim,
                config.num_decoder_attn_heads,
                config.dropout_p,
            )

            # A tokenizer of ours pads with 0.
            assert config.pad_idx == 0

    def test_call_registers_presets_of_decoders(self) -> None:
        container = DependencyContainer()

        register_presets(container)

        # (layers, dimensions, inner, heads)
        expected = {
            "test": (2, 64, 176, 4),
            "tiny": (4, 128, 352, 4),
            "small": (6, 256, 704, 4),
            "base": (12, 512, 1408, 8),
        }

        for name, numbers in expected.items():
            config = container.resolve(LLaMAConfig, key=f"llama_{name}")

            # As Hugging Face stores it, without factors.
            assert get_ffn_inner_dim(config) == config.ffn_inner_dim

            assert config.num_key_value_heads == config.num_attn_heads

            assert numbers == (
                config.num_layers,
                config.model_dim,
                config.ffn_inner_dim,
                config.num_attn_heads,
            )

            assert config.dropout_p == 0.1 and config.max_seq_len == 512

    def test_decoder_has_one_embedding(self) -> None:
        container = DependencyContainer()

        register_presets(container)

        config = container.resolve(LLaMAConfig, key="llama_tiny")

        config.vocab_size = 5000

        model = create_llama_model(config)

        num_parameters = sum(p.numel() for p in model.parameters())

        # Attention, feed-forward networks and norms of four layers, and a last norm.
        layers = 4 * (4 * 128**2 + 3 * 128 * 352 + 2 * 128) + 128

        assert num_parameters == layers + 5000 * 128 == 1_443_968

    def test_presets_are_new_objects_each_time(self) -> None:
        container = DependencyContainer()

        register_presets(container)

        # A run overrides fields of its config.
        one = container.resolve(NllbConfig, key="transformer_tiny")

        one.vocab_size = 1

        two = container.resolve(NllbConfig, key="transformer_tiny")

        assert two.vocab_size == 6000
