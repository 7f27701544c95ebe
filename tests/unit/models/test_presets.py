# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from fairseq2.models.nllb import NllbConfig
from fairseq2.runtime.dependency import DependencyContainer

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

    def test_presets_are_new_objects_each_time(self) -> None:
        container = DependencyContainer()

        register_presets(container)

        # A run overrides fields of its config.
        one = container.resolve(NllbConfig, key="transformer_tiny")

        one.vocab_size = 1

        two = container.resolve(NllbConfig, key="transformer_tiny")

        assert two.vocab_size == 6000
