# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, cast, final

import torch
from fairseq2.models.hg import HuggingFaceConfig
from fairseq2.utils.config import cast_config_type
from torch import Tensor
from typing_extensions import override

from warmup_plugin.models.hugging_face import HuggingFaceFormat
from warmup_plugin.models.hugging_face.fields import ConfigFields
from warmup_plugin.models.t5.config import T5_FAMILY, T5Config

Activation: TypeAlias = Literal["relu", "gelu"]

_EMBED: Final = "encoder_frontend.embed.weight"

_DECODER_EMBED: Final = "decoder_frontend.embed.weight"

_FINAL_PROJ: Final = "final_proj.weight"

_HG_EMBEDS: Final = (
    "shared.weight",
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
)
"""One matrix; a file has the first name, and may have the others."""

_HG_UNUSED: Final = (
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
)
"""Left in some files from a time when it was made, but not read."""

_MT5_VOCAB_SIZE: Final = 250_112


def convert_t5_state_dict(
    state_dict: dict[str, object], config: T5Config
) -> dict[str, object]:
    """
    Renames the weights of Hugging Face's format; others are returned as they are.

    Names that are not known are kept.
    """
    hg_embed_name = next((n for n in _HG_EMBEDS if n in state_dict), None)

    if hg_embed_name is None:
        return state_dict

    hg_state_dict = dict(state_dict)

    hg_state_dict.pop(_HG_UNUSED, None)

    embed = hg_state_dict.pop(hg_embed_name)

    copies = list(_HG_EMBEDS)

    if config.tied_embeddings:
        copies.append("lm_head.weight")

    for name in copies:
        if _are_equal(hg_state_dict.get(name), embed):
            del hg_state_dict[name]

    names = _map_names(config)

    output = {names.get(name, name): value for name, value in hg_state_dict.items()}

    output[_EMBED] = output[_DECODER_EMBED] = embed

    if config.tied_embeddings:
        output[_FINAL_PROJ] = embed

    return output


def _are_equal(a: object, b: object) -> bool:
    if a is b:
        return True

    return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


def _map_names(config: T5Config) -> dict[str, str]:
    """Maps each name of Hugging Face to ours; embeddings and what is tied aside."""
    if config.gated_ffn:
        ffn = {"wi_0": "gate_proj", "wi_1": "inner_proj", "wo": "output_proj"}
    else:
        ffn = {"wi": "inner_proj", "wo": "output_proj"}

    attn = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "output_proj"}

    # In the order of Hugging Face's numbers.
    sublayers = {
        "encoder": [
            ("SelfAttention", "self_attn", attn),
            ("DenseReluDense", "ffn", ffn),
        ],
        "decoder": [
            ("SelfAttention", "self_attn", attn),
            ("EncDecAttention", "encoder_decoder_attn", attn),
            ("DenseReluDense", "ffn", ffn),
        ],
    }

    num_layers = {
        "encoder": config.num_encoder_layers,
        "decoder": config.num_decoder_layers,
    }

    names = {}

    for stack in ("encoder", "decoder"):
        for layer_idx in range(num_layers[stack]):
            layer = f"{stack}.layers.{layer_idx}"

            for idx, (hg_kind, kind, projs) in enumerate(sublayers[stack]):
                hg_sublayer = f"{stack}.block.{layer_idx}.layer.{idx}"

                for hg_proj, proj in projs.items():
                    hg_name = f"{hg_sublayer}.{hg_kind}.{hg_proj}.weight"

                    names[hg_name] = f"{layer}.{kind}.{proj}.weight"

                hg_name = f"{hg_sublayer}.layer_norm.weight"

                names[hg_name] = f"{layer}.{kind}_layer_norm.weight"

        # Hugging Face has it in the first layer, which hands it on.
        hg_name = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"

        names[f"{hg_name}.weight"] = f"{stack}.position_bias.weight"

        names[f"{stack}.final_layer_norm.weight"] = f"{stack}.layer_norm.weight"

    if not config.tied_embeddings:
        names["lm_head.weight"] = _FINAL_PROJ

    return names


_FFNS: Final[Mapping[str, tuple[bool, Activation]]] = {
    "relu": (False, "relu"),
    "gelu_new": (False, "gelu"),
    "gated-relu": (True, "relu"),
    "gated-gelu": (True, "gelu"),
    "gated-gelu_new": (True, "gelu"),
}
"""What values of ``feed_forward_proj`` mean: gated or not, and the activation. Without a
gate, ``gelu`` is another function there than with one."""

_HG_FFNS: Final = {
    (False, "relu"): "relu",
    (False, "gelu"): "gelu_new",
    (True, "relu"): "gated-relu",
    (True, "gelu"): "gated-gelu",
}

_HG_ACTIVATIONS: Final = {"relu": "relu", "gelu": "gelu_new"}


@final
class T5HuggingFaceFormat(HuggingFaceFormat):
    """
    Says how T5 v1.0, v1.1, FLAN-T5 and mT5 are written and read.

    The way back from what was written leads to the same configuration, but for
    ``max_seq_len``: the format has no such limit.
    """

    family = T5_FAMILY

    model_types = ("t5", "mt5")

    @override
    def to_hg_config(self, config: object) -> HuggingFaceConfig:
        config = cast_config_type(config, T5Config)

        data: dict[str, object] = {
            "vocab_size": config.vocab_size,
            "d_model": config.model_dim,
            "d_kv": config.head_dim,
            "d_ff": config.ffn_inner_dim,
            "num_layers": config.num_encoder_layers,
            "num_decoder_layers": config.num_decoder_layers,
            "num_heads": config.num_attn_heads,
            "relative_attention_num_buckets": config.num_position_buckets,
            "relative_attention_max_distance": config.max_position_distance,
            "dropout_rate": config.dropout_p,
            "layer_norm_epsilon": config.norm_eps,
            "feed_forward_proj": _HG_FFNS[config.gated_ffn, config.activation],
            # transformers derives both when a configuration is created, but fairseq2
            # sets its fields afterwards, and what a file says about them is believed.
            "is_gated_act": config.gated_ffn,
            "dense_act_fn": _HG_ACTIVATIONS[config.activation],
            "tie_word_embeddings": config.tied_embeddings,
            "pad_token_id": config.pad_idx,
            "decoder_start_token_id": config.pad_idx,
            "is_encoder_decoder": True,
        }

        # The classes compute the same; that of mT5 tells which tokenizer belongs to it.
        is_mt5 = (
            config.gated_ffn
            and config.activation == "gelu"
            and not config.tied_embeddings
            and config.vocab_size == _MT5_VOCAB_SIZE
        )

        prefix = "MT5" if is_mt5 else "T5"

        return HuggingFaceConfig(
            data, kls_name=f"{prefix}Config", arch=f"{prefix}ForConditionalGeneration"
        )

    @override
    def from_hg_config(self, hg_config: Mapping[str, object]) -> T5Config:
        # A field that is `null` is absent.
        given = {name: value for name, value in hg_config.items() if value is not None}

        fields = ConfigFields(given, T5_FAMILY)

        model_type = fields.read_choice("model_type", self.model_types)

        fields.require("is_encoder_decoder", True, default=True)

        gated_ffn, activation = self._read_ffn(fields)

        num_encoder_layers = fields.read_size("num_layers")

        pad_idx = fields.read_size("pad_token_id", 0, least=0)

        # The decoder begins with PAD, here and in the format's own examples.
        fields.require("decoder_start_token_id", pad_idx, default=pad_idx)

        vocab_size = fields.read_size("vocab_size")

        if pad_idx >= vocab_size:
            raise fields.refuse(
                "pad_token_id", pad_idx, f"less than `vocab_size`, {vocab_size},"
            )

        num_buckets = fields.read_size("relative_attention_num_buckets", 32, least=4)

        return T5Config(
            model_dim=fields.read_size("d_model"),
            vocab_size=vocab_size,
            pad_idx=pad_idx,
            tied_embeddings=fields.read_flag("tie_word_embeddings", model_type == "t5"),
            num_encoder_layers=num_encoder_layers,
            num_decoder_layers=fields.read_size(
                "num_decoder_layers", num_encoder_layers
            ),
            num_attn_heads=fields.read_size("num_heads"),
            head_dim=fields.read_size("d_kv"),
            ffn_inner_dim=fields.read_size("d_ff"),
            gated_ffn=gated_ffn,
            activation=activation,
            num_position_buckets=num_buckets,
            max_position_distance=fields.read_size(
                "relative_attention_max_distance", 128, least=num_buckets // 2 + 1
            ),
            norm_eps=fields.read_positive("layer_norm_epsilon", 1e-6),
            dropout_p=fields.read_probability("dropout_rate", 0.1),
        )

    def _read_ffn(self, fields: ConfigFields) -> tuple[bool, Activation]:
        name = fields.read_choice(
            "feed_forward_proj",
            tuple(_FFNS),
            "relu" if fields.get("model_type") == "t5" else "gated-gelu",
        )

        gated_ffn, activation = _FFNS[name]

        # transformers would rather believe these.
        fields.require("is_gated_act", gated_ffn, default=gated_ffn)

        hg_activation = _HG_ACTIVATIONS[activation]

        fields.require("dense_act_fn", hg_activation, default=hg_activation)

        return gated_ffn, activation

    @override
    def to_hg_state_dict(
        self, state_dict: dict[str, object], config: object
    ) -> dict[str, object]:
        config = cast_config_type(config, T5Config)

        hg_names = {name: hg_name for hg_name, name in _map_names(config).items()}

        hg_names[_EMBED] = _HG_EMBEDS[0]

        tied = {_DECODER_EMBED}

        if config.tied_embeddings:
            tied.add(_FINAL_PROJ)

        return {
            hg_names.get(name, name): value
            for name, value in state_dict.items()
            if name not in tied
        }

    @override
    def from_hg_state_dict(
        self, hg_state_dict: dict[str, Tensor], config: object
    ) -> dict[str, Tensor]:
        config = cast_config_type(config, T5Config)

        state_dict = convert_t5_state_dict(
            cast(dict[str, object], hg_state_dict), config
        )

        return cast(dict[str, Tensor], state_dict)
