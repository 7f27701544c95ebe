# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, final

from fairseq2.models.hg import HuggingFaceConfig
from fairseq2.models.llama import LLAMA_FAMILY, LLaMAConfig
from fairseq2.models.llama.config import LLaMARoPEScaleConfig
from fairseq2.utils.config import cast_config_type
from torch import Tensor
from typing_extensions import override

from warmup_plugin.models.hugging_face.causal_lm import (
    get_rope_type,
    read_num_key_value_heads,
    read_rope,
    rename_from_hg,
    rename_to_hg,
)
from warmup_plugin.models.hugging_face.fields import ConfigFields
from warmup_plugin.models.hugging_face.format import HuggingFaceFormat

_EPS: Final = 1e-5
"""The epsilon of :class:`~fairseq2.nn.RMSNorm`, which fairseq2's LLaMA does not set."""

_ROTARY_PROJ: Final = re.compile(
    r"decoder\.layers\.[0-9]+\.self_attn\.([qk])_proj\.weight"
)


@final
class LlamaHuggingFaceFormat(HuggingFaceFormat):
    """
    Reads and writes Llama.

    The dropout of attention weights, which fairseq2's LLaMA does not have, is not
    read; the dropout of layers, which Llama does not have, is not written.
    """

    family = LLAMA_FAMILY

    model_types = ("llama",)

    @override
    def from_hg_config(self, hg_config: Mapping[str, object]) -> LLaMAConfig:
        fields = ConfigFields(hg_config, self.family)

        fields.require("hidden_act", "silu", default="silu")
        fields.require_eps("rms_norm_eps", _EPS, default=1e-6)
        fields.require_off("attention_bias", "mlp_bias")

        config = LLaMAConfig(
            model_dim=fields.read_size("hidden_size"),
            max_seq_len=fields.read_size("max_position_embeddings", 2048),
            vocab_size=fields.read_size("vocab_size"),
            tied_embeddings=fields.read_flag("tie_word_embeddings", False),
            num_layers=fields.read_size("num_hidden_layers"),
            num_attn_heads=fields.read_size("num_attention_heads"),
            ffn_inner_dim=fields.read_size("intermediate_size"),
            ffn_inner_dim_scale=1.0,
            ffn_inner_dim_multiplier=1.0,
            ffn_inner_dim_multiple_of=1,
            # Tied embeddings demand it; without tensor parallelism nothing else does.
            shard_embed_dim=False,
        )

        config.num_key_value_heads = read_num_key_value_heads(
            fields, config.num_attn_heads, config.num_attn_heads
        )

        head_dim = config.model_dim // config.num_attn_heads

        if head_dim == 0 or head_dim % 2 != 0:
            raise fields.refuse(
                "num_attention_heads",
                config.num_attn_heads,
                f"a number that divides `hidden_size`, {config.model_dim}, into heads of even size,",
            )

        if fields.read_size("head_dim", head_dim) != head_dim:
            raise fields.refuse(
                "head_dim",
                fields.get("head_dim"),
                f"{head_dim}, `hidden_size` divided by `num_attention_heads`,",
            )

        config.pad_idx = _read_pad_idx(fields, config.vocab_size)

        config.rope_theta, scaling = read_rope(fields)

        if scaling is not None:
            config.use_scaled_rope = True
            config.rope_scale = _read_rope_scale(scaling)

        return config

    @override
    def from_hg_state_dict(
        self, hg_state_dict: dict[str, Tensor], config: object
    ) -> dict[str, Tensor]:
        config = cast_config_type(config, LLaMAConfig)

        state_dict = rename_from_hg(
            hg_state_dict, tied_embeddings=config.tied_embeddings
        )

        for name, num_heads in _list_rotary_projs(state_dict, config):
            weight = state_dict[name]

            # Other shapes are for whoever compares them with those of the model.
            if weight.ndim == 2 and weight.size(0) % (2 * num_heads) == 0:
                # (H x E, M) -> (H, 2, E / 2, M)
                weight = weight.unflatten(0, (num_heads, 2, -1))

                # (H, 2, E / 2, M) -> (H x E, M)
                state_dict[name] = weight.transpose(1, 2).flatten(0, 2)

        return state_dict

    @override
    def to_hg_config(self, config: object) -> HuggingFaceConfig:
        config = cast_config_type(config, LLaMAConfig)

        rope_scaling: dict[str, object] | None = None

        if config.use_scaled_rope:
            scale = config.rope_scale

            low_freq_factor, high_freq_factor = scale.frequency_factors

            rope_scaling = {
                "rope_type": "llama3",
                "factor": float(scale.factor),
                "low_freq_factor": float(low_freq_factor),
                "high_freq_factor": float(high_freq_factor),
                "original_max_position_embeddings": scale.original_context_length,
                # Where transformers 5 has it, and CTranslate2 looks for it.
                "rope_theta": float(config.rope_theta),
            }

        data: dict[str, object] = {
            "vocab_size": config.vocab_size,
            "hidden_size": config.model_dim,
            "intermediate_size": get_ffn_inner_dim(config),
            "max_position_embeddings": config.max_seq_len,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_attn_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.model_dim // config.num_attn_heads,
            "hidden_act": "silu",
            "rms_norm_eps": _EPS,
            "rope_theta": float(config.rope_theta),
            "rope_scaling": rope_scaling,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "pad_token_id": config.pad_idx,
            "tie_word_embeddings": config.tied_embeddings,
        }

        return HuggingFaceConfig(data, kls_name="LlamaConfig", arch="LlamaForCausalLM")

    @override
    def to_hg_state_dict(
        self, state_dict: dict[str, object], config: object
    ) -> dict[str, object]:
        config = cast_config_type(config, LLaMAConfig)

        state_dict = dict(state_dict)

        for name, num_heads in _list_rotary_projs(state_dict, config):
            weight = state_dict[name]

            if not isinstance(weight, Tensor):
                raise TypeError(
                    f"`state_dict` must hold tensors, but holds `{type(weight)}`."
                )

            # (H x E, M) -> (H, E / 2, 2, M)
            weight = weight.unflatten(0, (num_heads, -1, 2))

            # (H, E / 2, 2, M) -> (H x E, M)
            state_dict[name] = weight.transpose(1, 2).flatten(0, 2)

        return rename_to_hg(state_dict, tied_embeddings=config.tied_embeddings)


def get_ffn_inner_dim(config: LLaMAConfig) -> int:
    """
    Returns the size of the inner projections of the feed-forward networks.

    It takes the steps of :class:`~fairseq2.models.llama.LLaMAFactory` and of
    :class:`~fairseq2.models.transformer.GLUFeedForwardNetwork`, roundings included.
    """
    inner_dim = int(config.ffn_inner_dim * config.ffn_inner_dim_multiplier)

    inner_dim = int(inner_dim * config.ffn_inner_dim_scale)

    multiple_of = config.ffn_inner_dim_multiple_of

    return -(-inner_dim // multiple_of) * multiple_of


def _read_pad_idx(fields: ConfigFields, vocab_size: int) -> int | None:
    pad_idx = fields.get("pad_token_id")

    # Some checkpoints write "none" as -1.
    if pad_idx is None or pad_idx == -1:
        return None

    # Many have no token for padding and name another one instead. For fairseq2 that
    # would mean that the other one is never to be learned.
    for name in ("bos_token_id", "eos_token_id"):
        other = fields.get(name)

        if pad_idx in (other if isinstance(other, list) else [other]):
            return None

    if (
        not isinstance(pad_idx, int)
        or isinstance(pad_idx, bool)
        or not (0 <= pad_idx < vocab_size)
    ):
        raise fields.refuse(
            "pad_token_id", pad_idx, f"null or less than `vocab_size`, {vocab_size},"
        )

    return pad_idx


def _read_rope_scale(scaling: ConfigFields) -> LLaMARoPEScaleConfig:
    if get_rope_type(scaling) != "llama3":
        raise scaling.refuse("rope_type", get_rope_type(scaling), "'llama3' or null")

    low_freq_factor = scaling.read_positive("low_freq_factor")
    high_freq_factor = scaling.read_positive("high_freq_factor")

    if high_freq_factor <= low_freq_factor:
        raise scaling.refuse(
            "high_freq_factor",
            high_freq_factor,
            f"more than `low_freq_factor`, {low_freq_factor:g},",
        )

    return LLaMARoPEScaleConfig(
        factor=scaling.read_positive("factor"),
        frequency_factors=(low_freq_factor, high_freq_factor),
        original_context_length=scaling.read_size("original_max_position_embeddings"),
    )


def _list_rotary_projs(
    state_dict: Mapping[str, object], config: LLaMAConfig
) -> list[tuple[str, int]]:
    """
    Lists the projections whose outputs are rotated, and their numbers of heads.

    fairseq2 rotates neighbours, Hugging Face the two halves of a head; the rows of the
    weights are sorted accordingly.
    """
    num_heads = {"q": config.num_attn_heads, "k": config.num_key_value_heads}

    matches = map(_ROTARY_PROJ.fullmatch, state_dict)

    return [(m.group(), num_heads[m.group(1)]) for m in matches if m is not None]
