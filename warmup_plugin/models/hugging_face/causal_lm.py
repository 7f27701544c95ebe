# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What LLaMA and Qwen have in common at Hugging Face."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from torch import Tensor

from warmup_plugin.models.hugging_face.fields import ConfigFields
from warmup_plugin.models.hugging_face.format import NameMap

_NAMES: Final = NameMap(
    [
        ("model.embed_tokens", "decoder_frontend.embed"),
        ("model.norm", "decoder.layer_norm"),
        ("lm_head", "final_proj"),
    ]
    + [
        (f"model.layers.*.{hg_name}", f"decoder.layers.*.{fs2_name}")
        for hg_name, fs2_name in [
            ("input_layernorm", "self_attn_layer_norm"),
            ("self_attn.q_proj", "self_attn.q_proj"),
            ("self_attn.k_proj", "self_attn.k_proj"),
            ("self_attn.v_proj", "self_attn.v_proj"),
            ("self_attn.q_norm", "self_attn.q_norm"),
            ("self_attn.k_norm", "self_attn.k_norm"),
            ("self_attn.o_proj", "self_attn.output_proj"),
            ("post_attention_layernorm", "ffn_layer_norm"),
            ("mlp.gate_proj", "ffn.gate_proj"),
            ("mlp.up_proj", "ffn.inner_proj"),
            ("mlp.down_proj", "ffn.output_proj"),
        ]
    ]
)

_SURPLUS: Final = re.compile(r"model\.(layers\.[0-9]+\.self_attn\.)?rotary_emb\..*")
"""Tables of rotary positions, which older versions of ``transformers`` stored."""

_HG_HEAD: Final = "lm_head.weight"

_FS2_EMBED: Final = "decoder_frontend.embed.weight"

_FS2_HEAD: Final = "final_proj.weight"


def rename_from_hg(
    hg_state_dict: Mapping[str, Tensor], *, tied_embeddings: bool
) -> dict[str, Tensor]:
    """Renames weights to fairseq2's names, and ties the embedding to the output."""
    state_dict = {
        _NAMES.from_hg(name): weight
        for name, weight in hg_state_dict.items()
        if not _SURPLUS.fullmatch(name)
    }

    # A file may hold an output projection even so; transformers ignores it.
    if tied_embeddings and _FS2_EMBED in state_dict:
        state_dict[_FS2_HEAD] = state_dict[_FS2_EMBED]

    return state_dict


def rename_to_hg(
    state_dict: Mapping[str, object], *, tied_embeddings: bool
) -> dict[str, object]:
    """Undoes :func:`rename_from_hg`. A tied output projection is left out."""
    hg_state_dict = {_NAMES.to_hg(name): weight for name, weight in state_dict.items()}

    if tied_embeddings:
        hg_state_dict.pop(_HG_HEAD, None)

    return hg_state_dict


def read_rope(fields: ConfigFields) -> tuple[float, ConfigFields | None]:
    """
    Reads the base of the rotary positions, and how their frequencies are scaled.

    Three spellings are in use: ``rope_scaling`` with ``type``, with ``rope_type``, and,
    since version 5 of ``transformers``, ``rope_parameters`` that hold ``rope_theta`` as
    well.

    :returns: The base, and the fields of the scaling under names without the name of
        the object; ``None`` if there is no scaling.
    """
    for name in ("rope_parameters", "rope_scaling"):
        scaling = fields.nested(name)

        if scaling is not None:
            break

    # All classes of transformers that are read here have this default.
    theta = fields.read_positive("rope_theta", 10_000.0)

    if scaling is None:
        return theta, None

    if scaling.get("rope_theta") is not None:
        theta = scaling.read_positive("rope_theta")

    if get_rope_type(scaling) == "default":
        return theta, None

    return theta, scaling


def get_rope_type(scaling: ConfigFields) -> object:
    # As in transformers, the older spelling wins if there are both.
    return scaling.get("type") or scaling.get("rope_type")


def read_num_key_value_heads(fields: ConfigFields, num_heads: int, default: int) -> int:
    """
    Reads the number of heads of keys and values.

    :param default: What a missing field means; ``null`` means as many as of queries.
    """
    name = "num_key_value_heads"

    num = fields.read_size(name, num_heads if fields.has(name) else default)

    if num_heads % num != 0:
        raise fields.refuse(
            name, num, f"a divisor of `num_attention_heads`, {num_heads},"
        )

    return num
