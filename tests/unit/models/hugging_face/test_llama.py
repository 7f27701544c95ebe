# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest
import torch
from fairseq2.models.llama import LLaMAConfig, register_llama_configs
from fairseq2.models.llama.config import LLaMARoPEScaleConfig
from fairseq2.models.llama.factory import create_llama_model
from fairseq2.models.llama.interop import convert_llama_state_dict
from fairseq2.runtime.dependency import DependencyContainer

from tests.common import assert_close, assert_equal
from tests.unit.models.hugging_face.cases import (
    assert_refused,
    create_case,
    create_llama,
    load_weights,
    run_hg_model,
    run_model,
)
from warmup_plugin.models.hugging_face.llama import (
    LlamaHuggingFaceFormat,
    get_ffn_inner_dim,
)

# The fields of `meta-llama/Llama-3.2-1B` that describe the model.
LLAMA_3_2_1B: Final[dict[str, object]] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}

# Of models of Meta at Hugging Face.
INTERMEDIATE_SIZES: Final = {
    "7b": 11008,
    "13b": 13824,
    "33b": 17920,
    "65b": 22016,
    "llama2_7b": 11008,
    "llama2_13b": 13824,
    "llama2_70b": 28672,
    "llama3_8b": 14336,
    "llama3_70b": 28672,
    "llama3_1_8b": 14336,
    "llama3_1_70b": 28672,
    "llama3_2_1b": 8192,
    "llama3_2_3b": 8192,
}


def get_arch(name: str) -> LLaMAConfig:
    container = DependencyContainer()

    register_llama_configs(container)

    config = container.resolve(LLaMAConfig, key=name)

    assert isinstance(config, LLaMAConfig)

    return config


def from_hg(**changes: object) -> LLaMAConfig:
    return LlamaHuggingFaceFormat().from_hg_config({**LLAMA_3_2_1B, **changes})


class TestLlamaHuggingFaceFormat:
    def test_to_hg_config_describes_published_model(self) -> None:
        hg_config = LlamaHuggingFaceFormat().to_hg_config(get_arch("llama3_2_1b"))

        scaling: Any = LLAMA_3_2_1B["rope_scaling"]

        assert hg_config.data == {
            **LLAMA_3_2_1B,
            "pad_token_id": 128_004,
            # Twice, for the readers that look for it here.
            "rope_scaling": {**scaling, "rope_theta": 500000.0},
        }

        assert hg_config.kls_name == "LlamaConfig"

    def test_published_config_is_architecture_of_fairseq2(self) -> None:
        config = from_hg()

        arch = get_arch("llama3_2_1b")

        # The same size, which fairseq2 writes as a product.
        assert get_ffn_inner_dim(arch) == get_ffn_inner_dim(config) == 8192

        for name in ("", "_scale", "_multiplier", "_multiple_of"):
            name = f"ffn_inner_dim{name}"

            setattr(arch, name, getattr(config, name))

        assert replace(arch, pad_idx=None) == config

    @pytest.mark.parametrize("arch", INTERMEDIATE_SIZES)
    def test_intermediate_size_of_each_architecture_is_published_one(
        self, arch: str
    ) -> None:
        hg_config = LlamaHuggingFaceFormat().to_hg_config(get_arch(arch))

        assert hg_config.data["intermediate_size"] == INTERMEDIATE_SIZES[arch]

    @pytest.mark.parametrize(
        "inner_dim,scale,multiplier,multiple_of",
        [
            (100, 2 / 3, 1.0, 256),
            (100, 2 / 3, 1.0, 1),
            (101, 2 / 3, 1.3, 7),
            (77, 1.0, 1.0, 1),
            (77, 1.0, 1.5, 1),
            (256, 1.0, 1.0, 256),
            (257, 1.0, 1.0, 256),
            (33, 0.7, 1.9, 3),
        ],
    )
    def test_intermediate_size_is_that_of_model(
        self, inner_dim: int, scale: float, multiplier: float, multiple_of: int
    ) -> None:
        config = LLaMAConfig(
            model_dim=16,
            vocab_size=8,
            num_layers=1,
            num_attn_heads=2,
            num_key_value_heads=2,
            ffn_inner_dim=inner_dim,
            ffn_inner_dim_scale=scale,
            ffn_inner_dim_multiplier=multiplier,
            ffn_inner_dim_multiple_of=multiple_of,
        )

        with torch.device("meta"):
            model = create_llama_model(config)

        weight = model.get_parameter("decoder.layers.0.ffn.inner_proj.weight")

        hg_format = LlamaHuggingFaceFormat()

        hg_config = hg_format.to_hg_config(config)

        assert hg_config.data["intermediate_size"] == weight.size(0)

        # What is read again is another product of the same size.
        config = hg_format.from_hg_config(hg_config.data)

        with torch.device("meta"):
            model = create_llama_model(config)

        other = model.get_parameter("decoder.layers.0.ffn.inner_proj.weight")

        assert other.shape == weight.shape

    @pytest.mark.parametrize(
        "field,value,expected",
        [
            ("hidden_act", "gelu", "'silu'"),
            ("rms_norm_eps", 1e-6, "1e-05"),
            ("rms_norm_eps", "1e-5", "1e-05"),
            ("attention_bias", True, "false"),
            ("mlp_bias", True, "false"),
            ("head_dim", 128, "64, `hidden_size` divided by"),
            ("num_attention_heads", 4096, "heads of even size"),
            ("num_key_value_heads", 5, "a divisor of `num_attention_heads`, 32"),
            ("num_key_value_heads", 64, "a divisor of `num_attention_heads`, 32"),
            ("tie_word_embeddings", "yes", "true or false"),
            ("rope_theta", 0, "a positive number"),
            ("rope_theta", "x", "a positive number"),
            ("pad_token_id", 128256, "less than `vocab_size`, 128256"),
            ("pad_token_id", -2, "less than `vocab_size`, 128256"),
            ("pad_token_id", True, "less than `vocab_size`, 128256"),
            ("pad_token_id", "0", "less than `vocab_size`, 128256"),
            ("rope_scaling", 4.0, "an object"),
        ],
    )
    def test_from_hg_config_raises_error_when_field_does_not_fit(
        self, field: str, value: object, expected: str
    ) -> None:
        hg_config: dict[str, object] = {**LLAMA_3_2_1B, field: value}

        if field == "num_attention_heads":
            hg_config.update(head_dim=None, num_key_value_heads=None)

        assert_refused(LlamaHuggingFaceFormat(), hg_config, field, expected)

    def test_from_hg_config_raises_error_when_default_does_not_fit(self) -> None:
        hg_config = {**LLAMA_3_2_1B}

        del hg_config["rms_norm_eps"]

        assert_refused(
            LlamaHuggingFaceFormat(), hg_config, "rms_norm_eps", "1e-06 (its default)"
        )

    @pytest.mark.parametrize(
        "change,field,expected",
        [
            ({"rope_type": "linear"}, "rope_scaling.rope_type", "'llama3'"),
            ({"rope_type": None}, "rope_scaling.rope_type", "'llama3'"),
            ({"type": "yarn"}, "rope_scaling.rope_type", "'llama3'"),
            ({"factor": 0}, "rope_scaling.factor", "a positive number"),
            ({"factor": None}, "rope_scaling.factor", "published"),
            ({"high_freq_factor": 1.0}, "rope_scaling.high_freq_factor", "more than"),
            (
                {"original_max_position_embeddings": 0.5},
                "rope_scaling.original_max_position_embeddings",
                "a positive integer",
            ),
        ],
    )
    def test_from_hg_config_raises_error_when_rope_scaling_does_not_fit(
        self, change: dict[str, object], field: str, expected: str
    ) -> None:
        scaling = LLAMA_3_2_1B["rope_scaling"]

        assert isinstance(scaling, dict)

        hg_config = {**LLAMA_3_2_1B, "rope_scaling": {**scaling, **change}}

        assert_refused(LlamaHuggingFaceFormat(), hg_config, field, expected)

    def test_from_hg_config_reads_each_spelling_of_rope_scaling(self) -> None:
        scaling: Any = LLAMA_3_2_1B["rope_scaling"]

        rest = {k: v for k, v in scaling.items() if k != "rope_type"}

        expected = LLaMARoPEScaleConfig(32.0, (1.0, 4.0), 8192)

        spellings: list[dict[str, object]] = [
            {"rope_scaling": {**rest, "rope_type": "llama3"}},
            {"rope_scaling": {**rest, "type": "llama3"}},
            {
                "rope_scaling": None,
                "rope_theta": None,
                "rope_parameters": {**scaling, "rope_theta": 500_000.0},
            },
        ]

        for changes in spellings:
            config = from_hg(**changes)

            assert config.use_scaled_rope
            assert config.rope_scale == expected
            assert config.rope_theta == 500_000.0

    def test_from_hg_config_does_not_scale_when_rope_is_default(self) -> None:
        spellings: list[dict[str, object]] = [
            {"rope_scaling": None},
            {"rope_scaling": {}},
            {"rope_scaling": {"rope_type": "default"}},
            {"rope_scaling": {"type": "default"}},
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        ]

        for changes in spellings:
            config = from_hg(**changes)

            assert not config.use_scaled_rope
            assert config.rope_theta == 500_000.0

    @pytest.mark.parametrize(
        "changes,pad_idx",
        [
            ({}, None),
            ({"pad_token_id": None}, None),
            ({"pad_token_id": -1}, None),
            ({"pad_token_id": 0, "bos_token_id": 1}, 0),
            # Were this the index of padding, the other token would not be learned.
            ({"pad_token_id": 2, "eos_token_id": 2}, None),
            ({"pad_token_id": 2, "eos_token_id": [1, 2]}, None),
            ({"pad_token_id": 1, "bos_token_id": 1}, None),
        ],
    )
    def test_from_hg_config_reads_token_of_padding_only_if_it_is_no_other(
        self, changes: dict[str, object], pad_idx: int | None
    ) -> None:
        assert from_hg(**changes).pad_idx == pad_idx

    def test_from_hg_config_uses_defaults_of_transformers(self) -> None:
        config = LlamaHuggingFaceFormat().from_hg_config(
            {
                "hidden_size": 16,
                "intermediate_size": 37,
                "num_attention_heads": 4,
                "num_hidden_layers": 1,
                "rms_norm_eps": 9.999999747378752e-06,
                "vocab_size": 8,
            }
        )

        assert config.num_key_value_heads == 4
        assert config.max_seq_len == 2048
        assert config.rope_theta == 10_000.0
        assert not config.tied_embeddings

    @pytest.mark.parametrize("case", ["llama", "llama_tied"])
    def test_from_hg_state_dict_equals_conversion_of_fairseq2(self, case: str) -> None:
        _, hg_model = create_case(case)

        hg_format = LlamaHuggingFaceFormat()

        config = hg_format.from_hg_config(hg_model.config.to_dict())

        weights = hg_format.from_hg_state_dict(hg_model.state_dict(), config)

        state_dict: dict[str, object] = dict(hg_model.state_dict())

        expected = convert_llama_state_dict(state_dict, config)

        assert set(weights) == set(expected)

        for name, weight in weights.items():
            assert_equal(weight, expected[name])

    def test_from_hg_state_dict_drops_tables_of_rotary_positions(self) -> None:
        family, hg_model = create_case("llama")

        hg_state_dict = hg_model.state_dict()

        hg_state_dict["model.layers.1.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
        hg_state_dict["model.rotary_emb.inv_freq"] = torch.ones(2)

        load_weights(family, hg_model, hg_state_dict)

    def test_from_hg_state_dict_ignores_head_when_embeddings_are_tied(self) -> None:
        family, hg_model = create_case("llama_tied")

        hg_state_dict = {n: w.clone() for n, w in hg_model.state_dict().items()}

        # transformers ignores it as well.
        hg_state_dict["lm_head.weight"].zero_()

        model = load_weights(family, hg_model, hg_state_dict)

        assert_close(
            run_model(model).logits, run_hg_model(hg_model).logits, rtol=0, atol=3e-5
        )

    def test_each_feature_of_positions_is_visible_in_logits(self) -> None:
        family, hg_model = create_case("llama_scaled_rope")

        model = load_weights(family, hg_model, hg_model.state_dict())

        logits = run_model(model).logits

        settings = {
            "hidden_size": 32,
            "max_position_embeddings": 64,
        }

        # Without scaling, and with another base.
        for theta in (100.0, 50.0):
            other = create_llama(rope_theta=theta, **settings)

            other.load_state_dict(hg_model.state_dict())

            assert (run_hg_model(other).logits - logits).abs().max() > 0.1

        # As if the rows of the rotated projections had not been sorted.
        for proj in ("q_proj", "k_proj"):
            name = f"layers.0.self_attn.{proj}.weight"

            with torch.no_grad():
                model.get_parameter(f"decoder.{name}").copy_(
                    hg_model.get_parameter(f"model.{name}")
                )

        assert (run_model(model).logits - logits).abs().max() > 0.1
