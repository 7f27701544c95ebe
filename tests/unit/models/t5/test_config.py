# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any, Final

import pytest
from fairseq2.device import META_DEVICE
from fairseq2.runtime.dependency import DependencyContainer

from warmup_plugin.models.t5 import T5Config, create_t5_model, register_t5_configs

# (dimensions, dimensions a head, inner, heads, layers of encoder and of decoder)
SIZES: Final = {
    "t5_small": (512, 64, 2048, 8, 6),
    "t5_base": (768, 64, 3072, 12, 12),
    "t5_large": (1024, 64, 4096, 16, 24),
    "t5_3b": (1024, 128, 16384, 32, 24),
    "t5_v1_1_small": (512, 64, 1024, 6, 8),
    "t5_v1_1_base": (768, 64, 2048, 12, 12),
    "t5_v1_1_large": (1024, 64, 2816, 16, 24),
    "t5_v1_1_xl": (2048, 64, 5120, 32, 24),
}
"""What the public config.json files say."""

for size in ("small", "base", "large", "xl"):
    SIZES[f"mt5_{size}"] = SIZES[f"flan_t5_{size}"] = SIZES[f"t5_v1_1_{size}"]

NUM_PARAMETERS: Final = {
    "t5_small": 60_506_624,
    "t5_base": 222_903_552,
    "t5_large": 737_668_096,
    "t5_3b": 2_851_598_336,
    "t5_v1_1_small": 76_961_152,
    "t5_v1_1_base": 247_577_856,
    "mt5_small": 300_176_768,
    "mt5_base": 582_401_280,
    "flan_t5_base": 247_577_856,
}
"""What is known of the public models, tied weights counted once."""


def get_preset(name: str) -> T5Config:
    container = DependencyContainer()

    register_t5_configs(container)

    return container.resolve(T5Config, key=name)


class TestRegisterT5Configs:
    @pytest.mark.parametrize("name", SIZES)
    def test_preset_equals_public_model(self, name: str) -> None:
        config = get_preset(name)

        assert config.num_encoder_layers == config.num_decoder_layers

        assert SIZES[name] == (
            config.model_dim,
            config.head_dim,
            config.ffn_inner_dim,
            config.num_attn_heads,
            config.num_decoder_layers,
        )

        is_v1_0 = name in ("t5_small", "t5_base", "t5_large", "t5_3b")

        assert config.tied_embeddings == is_v1_0
        assert config.gated_ffn == (not is_v1_0)
        assert config.activation == ("relu" if is_v1_0 else "gelu")

        assert config.vocab_size == (250_112 if name.startswith("mt5") else 32_128)

        assert (config.num_position_buckets, config.max_position_distance) == (32, 128)

        assert (config.pad_idx, config.norm_eps, config.dropout_p) == (0, 1e-6, 0.1)

        assert not config.validate().has_error()

    @pytest.mark.parametrize("name", NUM_PARAMETERS)
    def test_number_of_parameters_is_that_of_public_model(self, name: str) -> None:
        with META_DEVICE:
            model = create_t5_model(get_preset(name))

        assert sum(p.numel() for p in model.parameters()) == NUM_PARAMETERS[name]

    def test_test_preset_is_tiny(self) -> None:
        config = get_preset("t5_test")

        assert not config.validate().has_error()

        assert (config.num_encoder_layers, config.num_decoder_layers) == (2, 2)

        assert (config.model_dim, config.ffn_inner_dim) == (64, 128)

    def test_presets_are_new_objects_each_time(self) -> None:
        # A run overrides fields of its config.
        container = DependencyContainer()

        register_t5_configs(container)

        container.resolve(T5Config, key="mt5_small").vocab_size = 1

        assert container.resolve(T5Config, key="mt5_small").vocab_size == 250_112


class TestT5Config:
    @pytest.mark.parametrize(
        "options, message",
        [
            ({"model_dim": 0}, "`model_dim` must be greater than"),
            ({"num_decoder_layers": 0}, "`num_decoder_layers` must"),
            ({"pad_idx": 32_128}, "`pad_idx` must be an index"),
            ({"pad_idx": -1}, "`pad_idx` must be an index"),
            ({"activation": "silu"}, "`activation` must be `relu` or `gelu`"),
            ({"num_position_buckets": 3}, "`num_position_buckets` must"),
            ({"max_position_distance": 16}, "`max_position_distance` must"),
            ({"norm_eps": 0.0}, "`norm_eps` must"),
            ({"dropout_p": 1.0}, "`dropout_p` must"),
        ],
    )
    def test_validate_returns_error_when_field_is_wrong(
        self, options: dict[str, Any], message: str
    ) -> None:
        result = T5Config(**options).validate()

        assert result.has_error()

        assert message in str(result)

    def test_smallest_values_work(self) -> None:
        config = T5Config(
            num_position_buckets=4, max_position_distance=3, dropout_p=0.0
        )

        assert not config.validate().has_error()
