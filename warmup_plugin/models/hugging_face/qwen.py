# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

from fairseq2.models.hg import HuggingFaceConfig
from fairseq2.models.qwen import QWEN_FAMILY, QwenConfig
from fairseq2.utils.config import cast_config_type
from torch import Tensor
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.causal_lm import (
    get_rope_type,
    read_num_key_value_heads,
    read_rope,
    rename_from_hg,
    rename_to_hg,
)
from warmup_plugin.models.hugging_face.fields import ConfigFields
from warmup_plugin.models.hugging_face.format import HuggingFaceFormat

_EPS: Final = 1e-6
"""The epsilon of the layer norms, a constant in fairseq2's Qwen."""

_LAYER_TYPE: Final = "full_attention"

_QWEN2_FEATURES: Final = (True, False, False)
"""``qkv_proj_bias``, ``q_norm`` and ``k_norm`` of Qwen2."""

_QWEN3_FEATURES: Final = (False, True, True)
"""``qkv_proj_bias``, ``q_norm`` and ``k_norm`` of Qwen3."""


@final
class QwenHuggingFaceFormat(HuggingFaceFormat):
    """
    Reads and writes Qwen2, which Qwen2.5 is too, and Qwen3.

    The dropout of attention weights, which fairseq2's Qwen does not have, is not read;
    the dropout of layers, which Qwen does not have, is not written.
    """

    family = QWEN_FAMILY

    model_types = ("qwen2", "qwen3")

    @override
    def from_hg_config(self, hg_config: Mapping[str, object]) -> QwenConfig:
        fields = ConfigFields(hg_config, self.family)

        model_type = fields.get("model_type")

        if model_type not in self.model_types:
            raise fields.refuse("model_type", model_type, "'qwen2' or 'qwen3'")

        qwen3 = model_type == "qwen3"

        fields.require("hidden_act", "silu", default="silu")
        fields.require_eps("rms_norm_eps", _EPS, default=1e-6)
        fields.require_off("use_sliding_window")

        # Qwen2 has biases whatever this field says.
        if qwen3:
            fields.require_off("attention_bias")

        layer_types = fields.get("layer_types")

        if layer_types is not None:
            if not isinstance(layer_types, list) or any(
                layer_type != _LAYER_TYPE for layer_type in layer_types
            ):
                raise fields.refuse(
                    "layer_types", layer_types, f"{_LAYER_TYPE!r} for every layer"
                )

        theta, scaling = read_rope(fields)

        if scaling is not None:
            raise scaling.refuse("rope_type", get_rope_type(scaling), "'default'")

        model_dim = fields.read_size("hidden_size")

        num_heads = fields.read_size("num_attention_heads")

        default_head_dim = model_dim // num_heads

        # Only `null` means the quotient in Qwen3, a missing field means 128.
        if qwen3 and not fields.has("head_dim"):
            head_dim = 128
        else:
            head_dim = fields.read_size("head_dim", default_head_dim)

        if head_dim % 2 != 0:
            raise fields.refuse("head_dim", head_dim, "an even number")

        return QwenConfig(
            model_dim=model_dim,
            max_seq_len=fields.read_size("max_position_embeddings", 32_768),
            vocab_size=fields.read_size("vocab_size"),
            tied_embeddings=fields.read_flag("tie_word_embeddings", False),
            num_layers=fields.read_size("num_hidden_layers"),
            num_attn_heads=num_heads,
            num_key_value_heads=read_num_key_value_heads(fields, num_heads, 32),
            head_dim=None if head_dim == default_head_dim else head_dim,
            qkv_proj_bias=not qwen3,
            q_norm=qwen3,
            k_norm=qwen3,
            ffn_inner_dim=fields.read_size("intermediate_size"),
            rope_theta=theta,
        )

    @override
    def from_hg_state_dict(
        self, hg_state_dict: dict[str, Tensor], config: object
    ) -> dict[str, Tensor]:
        config = cast_config_type(config, QwenConfig)

        return rename_from_hg(hg_state_dict, tied_embeddings=config.tied_embeddings)

    @override
    def to_hg_config(self, config: object) -> HuggingFaceConfig:
        config = cast_config_type(config, QwenConfig)

        features = (config.qkv_proj_bias, config.q_norm, config.k_norm)

        if features not in (_QWEN2_FEATURES, _QWEN3_FEATURES):
            raise WarmupError(
                f"`qkv_proj_bias`, `q_norm` and `k_norm` of the model are {features}, but have to be {_QWEN2_FEATURES} to write it as Qwen2 or {_QWEN3_FEATURES} as Qwen3; train with an architecture of fairseq2's."
            )

        default_head_dim = config.model_dim // config.num_attn_heads

        data: dict[str, object] = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.model_dim,
            "intermediate_size": config.ffn_inner_dim,
            "max_position_embeddings": config.max_seq_len,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_attn_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "hidden_act": "silu",
            "rms_norm_eps": _EPS,
            "rope_theta": float(config.rope_theta),
            "rope_scaling": None,
            "attention_dropout": 0.0,
            "use_sliding_window": False,
            "sliding_window": None,
            # fairseq2 sets fields of an existing object, which has 32 layers by then.
            "layer_types": [_LAYER_TYPE] * config.num_layers,
            "tie_word_embeddings": config.tied_embeddings,
        }

        if features == _QWEN3_FEATURES:
            data["head_dim"] = config.head_dim or default_head_dim
            data["attention_bias"] = False

            return HuggingFaceConfig(
                data, kls_name="Qwen3Config", arch="Qwen3ForCausalLM"
            )

        # Not a field of its class, but transformers does read it.
        if config.head_dim not in (None, default_head_dim):
            data["head_dim"] = config.head_dim

        return HuggingFaceConfig(data, kls_name="Qwen2Config", arch="Qwen2ForCausalLM")

    @override
    def to_hg_state_dict(
        self, state_dict: dict[str, object], config: object
    ) -> dict[str, object]:
        config = cast_config_type(config, QwenConfig)

        return rename_to_hg(state_dict, tied_embeddings=config.tied_embeddings)
