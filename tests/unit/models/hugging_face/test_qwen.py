# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Final

import pytest
import torch
from fairseq2.models.qwen import QwenConfig, register_qwen_configs
from fairseq2.runtime.dependency import DependencyContainer

from tests.unit.models.hugging_face.cases import (
    assert_one_sentence,
    assert_refused,
    create_case,
    load_weights,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.qwen import QwenHuggingFaceFormat

# The fields of `Qwen/Qwen2.5-7B` that describe the model. The published ones have values
# for the window as well, which is not used.
QWEN_2_5_7B: Final[dict[str, object]] = {
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "model_type": "qwen2",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}

# The fields of `Qwen/Qwen3-0.6B` that describe the model.
QWEN_3_0_6B: Final[dict[str, object]] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def get_arch(name: str) -> QwenConfig:
    container = DependencyContainer()

    register_qwen_configs(container)

    config = container.resolve(QwenConfig, key=name)

    assert isinstance(config, QwenConfig)

    return config


class TestQwenHuggingFaceFormat:
    def test_published_config_is_architecture_of_fairseq2(self) -> None:
        hg_format = QwenHuggingFaceFormat()

        config = hg_format.from_hg_config(QWEN_2_5_7B)

        # fairseq2's has the length of the version for instructions.
        config.max_seq_len = 32_768

        assert config == get_arch("qwen25_7b")

        assert hg_format.from_hg_config(QWEN_3_0_6B) == get_arch("qwen3_0.6b")

    def test_to_hg_config_describes_published_model(self) -> None:
        hg_config = QwenHuggingFaceFormat().to_hg_config(get_arch("qwen3_0.6b"))

        data = {**hg_config.data, "model_type": "qwen3"}

        assert QWEN_3_0_6B.items() <= data.items()

        assert hg_config.kls_name == "Qwen3Config"
        assert hg_config.arch == "Qwen3ForCausalLM"

        hg_config = QwenHuggingFaceFormat().to_hg_config(get_arch("qwen25_7b"))

        data = {
            **hg_config.data,
            "model_type": "qwen2",
            "max_position_embeddings": 131072,
        }

        assert QWEN_2_5_7B.items() <= data.items()

        assert hg_config.kls_name == "Qwen2Config"
        assert hg_config.arch == "Qwen2ForCausalLM"
        assert "head_dim" not in data

    @pytest.mark.parametrize("hg_config", [QWEN_2_5_7B, QWEN_3_0_6B])
    @pytest.mark.parametrize(
        "field,value,expected",
        [
            ("model_type", "qwen2_moe", "'qwen2' or 'qwen3'"),
            ("hidden_act", "gelu", "'silu'"),
            ("rms_norm_eps", 1e-5, "1e-06"),
            ("use_sliding_window", True, "false"),
            ("layer_types", ["full_attention", "sliding_attention"], "every layer"),
            ("layer_types", "full_attention", "every layer"),
            ("layer_types", [[]], "every layer"),
            ("rope_scaling", "yarn", "an object"),
            ("head_dim", 7, "an even number"),
            ("head_dim", 0, "a positive integer"),
            ("num_key_value_heads", 3, "a divisor of `num_attention_heads`"),
            ("num_hidden_layers", 1.0, "a positive integer"),
        ],
    )
    def test_from_hg_config_raises_error_when_field_does_not_fit(
        self, hg_config: dict[str, object], field: str, value: object, expected: str
    ) -> None:
        assert_refused(
            QwenHuggingFaceFormat(), {**hg_config, field: value}, field, expected
        )

    def test_from_hg_config_raises_error_when_qwen3_has_bias(self) -> None:
        hg_config = {**QWEN_3_0_6B, "attention_bias": True}

        assert_refused(QwenHuggingFaceFormat(), hg_config, "attention_bias", "false")

    @pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
    @pytest.mark.parametrize("kind", ["linear", "yarn", "llama3"])
    def test_from_hg_config_raises_error_when_positions_are_scaled(
        self, name: str, kind: str
    ) -> None:
        hg_config = {**QWEN_3_0_6B, name: {"rope_type": kind, "factor": 4.0}}

        assert_refused(
            QwenHuggingFaceFormat(), hg_config, f"{name}.rope_type", "'default'"
        )

    def test_from_hg_config_uses_defaults_of_transformers(self) -> None:
        hg_config = {**QWEN_3_0_6B, "num_attention_heads": 64}

        for field in ("head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta"):
            del hg_config[field]

        config = QwenHuggingFaceFormat().from_hg_config(hg_config)

        assert config.head_dim == 128
        assert config.num_key_value_heads == 32
        assert config.rope_theta == 10_000.0

        hg_config["model_type"] = "qwen2"

        # Here it is `hidden_size` divided by `num_attention_heads`.
        assert QwenHuggingFaceFormat().from_hg_config(hg_config).head_dim is None

    @pytest.mark.parametrize(
        "qkv_proj_bias,q_norm,k_norm",
        [
            (True, True, True),
            (True, True, False),
            (False, False, False),
            (False, False, True),
        ],
    )
    def test_to_hg_config_raises_error_when_it_is_neither_qwen2_nor_qwen3(
        self, qkv_proj_bias: bool, q_norm: bool, k_norm: bool
    ) -> None:
        config = QwenConfig(qkv_proj_bias=qkv_proj_bias, q_norm=q_norm, k_norm=k_norm)

        with pytest.raises(WarmupError, match="`q_norm` and `k_norm`") as info:
            QwenHuggingFaceFormat().to_hg_config(config)

        assert_one_sentence(str(info.value))

    def test_from_hg_state_dict_drops_tables_of_rotary_positions(self) -> None:
        family, hg_model = create_case("qwen3")

        hg_state_dict = hg_model.state_dict()

        hg_state_dict["model.rotary_emb.inv_freq"] = torch.ones(2)

        load_weights(family, hg_model, hg_state_dict)

    @pytest.mark.parametrize("case", ["qwen2", "qwen3"])
    def test_state_dict_of_untied_model_keeps_head(self, case: str) -> None:
        family, hg_model = create_case(case)

        config = family.hg_format.from_hg_config(hg_model.config.to_dict())

        weights = family.hg_format.from_hg_state_dict(hg_model.state_dict(), config)

        embed = weights["decoder_frontend.embed.weight"]

        assert not torch.equal(weights["final_proj.weight"], embed)
