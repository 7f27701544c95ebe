# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, final

import torch
from fairseq2.models.hg import HuggingFaceConfig
from fairseq2.models.nllb import NLLB_FAMILY, NllbConfig
from fairseq2.utils.config import cast_config_type
from torch import Tensor
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.fields import ConfigFields
from warmup_plugin.models.hugging_face.format import HuggingFaceFormat, NameMap

_HG_ORDER: Final = (1, 3, 0, 2)
"""The indices at Hugging Face of PAD, UNK, BOS and EOS, which are 0 to 3 here."""

_FS2_ORDER: Final = (2, 0, 3, 1)
"""The indices here of BOS, PAD, EOS and UNK, which are 0 to 3 at Hugging Face."""

_HG_BOS_IDX, _HG_PAD_IDX, _HG_EOS_IDX = range(3)

_FS2_PAD_IDX: Final = 0

_HG_EMBEDS: Final = (
    "model.shared.weight",
    "model.encoder.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "lm_head.weight",
)
"""The names of the one embedding; a file has some of them or all."""

_FS2_EMBEDS: Final = (
    "encoder_frontend.embed.weight",
    "decoder_frontend.embed.weight",
    "final_proj.weight",
)

_SURPLUS: Final = re.compile(
    r"model\.(encoder|decoder)\.(embed_positions\.(weights|_float_tensor)|version)"
    r"|final_logits_bias"
)
"""What older versions of ``transformers`` stored and all versions ignore."""

_ATTENTION_MODULES: Final = (
    ("q_proj", "q_proj"),
    ("k_proj", "k_proj"),
    ("v_proj", "v_proj"),
    ("out_proj", "output_proj"),
)

_LAYER_MODULES: Final = (
    *((f"self_attn.{hg}", f"self_attn.{fs2}") for hg, fs2 in _ATTENTION_MODULES),
    ("self_attn_layer_norm", "self_attn_layer_norm"),
    ("fc1", "ffn.inner_proj"),
    ("fc2", "ffn.output_proj"),
    ("final_layer_norm", "ffn_layer_norm"),
)

_DECODER_LAYER_MODULES: Final = (
    *_LAYER_MODULES,
    *(
        (f"encoder_attn.{hg}", f"encoder_decoder_attn.{fs2}")
        for hg, fs2 in _ATTENTION_MODULES
    ),
    ("encoder_attn_layer_norm", "encoder_decoder_attn_layer_norm"),
)

_NAMES: Final = NameMap(
    [
        ("model.encoder.layer_norm", "encoder.layer_norm"),
        ("model.decoder.layer_norm", "decoder.layer_norm"),
        *(
            (f"model.encoder.layers.*.{hg}", f"encoder.layers.*.{fs2}")
            for hg, fs2 in _LAYER_MODULES
        ),
        *(
            (f"model.decoder.layers.*.{hg}", f"decoder.layers.*.{fs2}")
            for hg, fs2 in _DECODER_LAYER_MODULES
        ),
    ]
)


def from_hg_token_idx(idx: int) -> int:
    """Returns the index here of a token of Hugging Face."""
    return _FS2_ORDER[idx] if 0 <= idx < len(_FS2_ORDER) else idx


def to_hg_token_idx(idx: int) -> int:
    """Returns the index at Hugging Face of a token of this package."""
    return _HG_ORDER[idx] if 0 <= idx < len(_HG_ORDER) else idx


def from_hg_token_order(rows: Tensor) -> Tensor:
    """
    Sorts rows that belong to tokens from the order of Hugging Face to fairseq2's.

    Hugging Face begins with BOS, PAD, EOS and UNK; fairseq2's tokenizer of NLLB and
    the tokenizers of this package begin with PAD, UNK, BOS and EOS. All further tokens
    are in the same order.

    :param rows: *Shape:* :math:`(V,*)`.

    :returns: A copy. *Shape:* Same as ``rows``.
    """
    return _sort(rows, _HG_ORDER)


def to_hg_token_order(rows: Tensor) -> Tensor:
    """Undoes :func:`from_hg_token_order`."""
    return _sort(rows, _FS2_ORDER)


def _sort(rows: Tensor, order: tuple[int, ...]) -> Tensor:
    # Fewer rows do not fit any model, which is reported when shapes are compared.
    order = order if rows.size(0) >= len(order) else ()

    indices = torch.arange(rows.size(0), device=rows.device)

    indices[: len(order)] = torch.tensor(order, device=rows.device)

    return rows.index_select(0, indices)


@final
class NllbHuggingFaceFormat(HuggingFaceFormat):
    """
    Reads and writes M2M100, the class of ``transformers`` for NLLB.

    Dropouts that fairseq2's NLLB has no setting for (of attention weights, activations
    and whole layers) are not read and are written as 0; no output depends on them.
    """

    family = NLLB_FAMILY

    model_types = ("m2m_100",)

    @override
    def from_hg_config(self, hg_config: Mapping[str, object]) -> NllbConfig:
        fields = ConfigFields(hg_config, self.family)

        fields.require("activation_function", "relu", default="relu")
        fields.require("scale_embedding", True, default=True)
        fields.require("tie_word_embeddings", True, default=True)

        # Both the order of the tokens and the first position depend on them.
        fields.require("bos_token_id", _HG_BOS_IDX, default=_HG_BOS_IDX)
        fields.require("pad_token_id", _HG_PAD_IDX, default=_HG_PAD_IDX)
        fields.require("eos_token_id", _HG_EOS_IDX, default=_HG_EOS_IDX)

        config = NllbConfig(
            model_dim=fields.read_size("d_model"),
            max_seq_len=fields.read_size("max_position_embeddings", 1024),
            vocab_size=fields.read_size("vocab_size"),
            pad_idx=_FS2_PAD_IDX,
            num_encoder_layers=fields.read_size("encoder_layers"),
            num_decoder_layers=fields.read_size("decoder_layers"),
            num_encoder_attn_heads=fields.read_size("encoder_attention_heads"),
            num_decoder_attn_heads=fields.read_size("decoder_attention_heads"),
            ffn_inner_dim=fields.read_size("encoder_ffn_dim"),
            dropout_p=fields.read_probability("dropout", 0.1),
        )

        decoder_ffn_dim = fields.read_size("decoder_ffn_dim")

        if decoder_ffn_dim != config.ffn_inner_dim:
            raise fields.refuse(
                "decoder_ffn_dim",
                decoder_ffn_dim,
                f"`encoder_ffn_dim`, {config.ffn_inner_dim},",
            )

        # With 2 the frequencies of the positions divide by zero.
        if config.model_dim % 2 != 0 or config.model_dim < 4:
            raise fields.refuse(
                "d_model", config.model_dim, "an even number of at least 4"
            )

        for name in ("encoder_attention_heads", "decoder_attention_heads"):
            num_heads = fields.read_size(name)

            if config.model_dim % num_heads != 0:
                raise fields.refuse(
                    name, num_heads, f"a divisor of `d_model`, {config.model_dim},"
                )

        if config.vocab_size < len(_HG_ORDER):
            raise fields.refuse(
                "vocab_size", config.vocab_size, f"at least {len(_HG_ORDER)}"
            )

        return config

    @override
    def from_hg_state_dict(
        self, hg_state_dict: dict[str, Tensor], config: object
    ) -> dict[str, Tensor]:
        cast_config_type(config, NllbConfig)

        state_dict = {
            _NAMES.from_hg(name): weight
            for name, weight in hg_state_dict.items()
            if name not in _HG_EMBEDS and not _SURPLUS.fullmatch(name)
        }

        embeds = [hg_state_dict[n] for n in _HG_EMBEDS if n in hg_state_dict]

        if embeds:
            # If they differ, which tied weights should not, transformers uses the
            # first one as well.
            embed = from_hg_token_order(embeds[0])

            state_dict.update((name, embed) for name in _FS2_EMBEDS)

        return state_dict

    @override
    def to_hg_config(self, config: object) -> HuggingFaceConfig:
        config = cast_config_type(config, NllbConfig)

        if config.pad_idx != _FS2_PAD_IDX:
            raise WarmupError(
                f"`pad_idx` of the model is {config.pad_idx}, but has to be {_FS2_PAD_IDX} to write it as M2M100, whose vocabulary begins with the four special tokens; train with a tokenizer of `train_tokenizer`."
            )

        data = {
            "vocab_size": config.vocab_size,
            "d_model": config.model_dim,
            "max_position_embeddings": config.max_seq_len,
            "encoder_layers": config.num_encoder_layers,
            "num_hidden_layers": config.num_encoder_layers,
            "decoder_layers": config.num_decoder_layers,
            "encoder_attention_heads": config.num_encoder_attn_heads,
            "decoder_attention_heads": config.num_decoder_attn_heads,
            "encoder_ffn_dim": config.ffn_inner_dim,
            "decoder_ffn_dim": config.ffn_inner_dim,
            "activation_function": "relu",
            "scale_embedding": True,
            "tie_word_embeddings": True,
            "dropout": config.dropout_p,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "encoder_layerdrop": 0.0,
            "decoder_layerdrop": 0.0,
            "bos_token_id": _HG_BOS_IDX,
            "pad_token_id": _HG_PAD_IDX,
            "eos_token_id": _HG_EOS_IDX,
            "decoder_start_token_id": _HG_EOS_IDX,
        }

        return HuggingFaceConfig(
            data, kls_name="M2M100Config", arch="M2M100ForConditionalGeneration"
        )

    @override
    def to_hg_state_dict(
        self, state_dict: dict[str, object], config: object
    ) -> dict[str, object]:
        cast_config_type(config, NllbConfig)

        hg_state_dict = {
            _NAMES.to_hg(name): weight
            for name, weight in state_dict.items()
            if name not in _FS2_EMBEDS
        }

        embeds = [state_dict[n] for n in _FS2_EMBEDS if n in state_dict]

        if embeds:
            if not isinstance(embeds[0], Tensor):
                raise TypeError(
                    f"`state_dict` must hold tensors, but holds `{type(embeds[0])}`."
                )

            hg_state_dict[_HG_EMBEDS[0]] = to_hg_token_order(embeds[0])

        return hg_state_dict
