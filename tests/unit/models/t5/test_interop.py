# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.models.hg import save_hugging_face_model
from torch import Tensor

from tests.common import assert_equal
from tests.unit.models.t5.cases import CONFIGS, create_config, create_random_model
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.t5 import (
    T5Config,
    T5HuggingFaceFormat,
    convert_t5_state_dict,
)

FORMAT = T5HuggingFaceFormat()

# The fields of `google-t5/t5-small`, which says neither what is the default of its
# time nor what came later.
T5_SMALL: dict[str, Any] = {
    "architectures": ["T5ForConditionalGeneration"],
    "d_ff": 2048,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "n_positions": 512,
    "num_heads": 8,
    "num_layers": 6,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}

# Those of `google/mt5-small`.
MT5_SMALL: dict[str, Any] = {
    "architectures": ["MT5ForConditionalGeneration"],
    "d_ff": 1024,
    "d_kv": 64,
    "d_model": 512,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "mt5",
    "num_decoder_layers": 8,
    "num_heads": 6,
    "num_layers": 8,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": 250112,
}


def to_hg(config: T5Config) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the weights of a new model, ours and those of Hugging Face."""
    state_dict: dict[str, Any] = create_random_model(config).state_dict()

    hg_state_dict: dict[str, Any] = FORMAT.to_hg_state_dict(state_dict, config)

    return state_dict, hg_state_dict


class TestConvertT5StateDict:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_way_there_and_back_is_identity(self, name: str) -> None:
        config = CONFIGS[name]

        state_dict, hg_state_dict = to_hg(config)

        assert ("lm_head.weight" in hg_state_dict) == (not config.tied_embeddings)

        output = FORMAT.from_hg_state_dict(hg_state_dict, config)

        assert set(output) == set(state_dict)

        for key, weight in state_dict.items():
            assert_equal(output[key], weight)

        # One tensor, so that loaders hand it out once.
        embed = output["encoder_frontend.embed.weight"]

        assert output["decoder_frontend.embed.weight"] is embed

        assert (output["final_proj.weight"] is embed) == config.tied_embeddings

    def test_own_names_are_left_alone(self) -> None:
        config = create_config()

        state_dict, _ = to_hg(config)

        output = convert_t5_state_dict(dict(state_dict), config)

        assert list(output) == list(state_dict)

        assert all(output[key] is state_dict[key] for key in state_dict)

    @pytest.mark.parametrize("tied", [True, False])
    def test_known_surplus_is_dropped(self, tied: bool) -> None:
        config = create_config(tied_embeddings=tied)

        state_dict, hg_state_dict = to_hg(config)

        embed = hg_state_dict["shared.weight"]

        hg_state_dict["encoder.embed_tokens.weight"] = embed.clone()
        hg_state_dict["decoder.embed_tokens.weight"] = embed.clone()

        hg_state_dict[
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        ] = torch.zeros(8, 2)

        if tied:
            hg_state_dict["lm_head.weight"] = embed.clone()

        given = dict(hg_state_dict)

        output = FORMAT.from_hg_state_dict(hg_state_dict, config)

        assert set(output) == set(state_dict)

        assert hg_state_dict == given

        # As tools write it that know which of equal tensors to leave out.
        for name in ("shared.weight", "encoder.embed_tokens.weight"):
            del hg_state_dict[name]

        assert set(FORMAT.from_hg_state_dict(hg_state_dict, config)) == set(state_dict)

    def test_what_is_not_known_is_kept(self) -> None:
        config = create_config()

        _, hg_state_dict = to_hg(config)

        surplus = {
            # Not a copy.
            "encoder.embed_tokens.weight": hg_state_dict["shared.weight"] + 1.0,
            # A layer too many.
            "encoder.block.2.layer.0.SelfAttention.q.weight": torch.zeros(1),
            # Of a gated network.
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": torch.zeros(1),
            "adapter.weight": torch.zeros(1),
        }

        output = FORMAT.from_hg_state_dict({**hg_state_dict, **surplus}, config)

        for name, weight in surplus.items():
            assert output[name] is weight


class TestT5HuggingFaceFormat:
    def test_names_are_those_of_hugging_face(self) -> None:
        assert FORMAT.family == "t5"
        assert FORMAT.model_types == ("t5", "mt5")

    @pytest.mark.parametrize("name", CONFIGS)
    def test_way_there_and_back_is_identity(self, name: str, tmp_path: Path) -> None:
        config = replace(
            CONFIGS[name],
            pad_idx=3,
            dropout_p=0.3,
            norm_eps=1e-5,
            num_position_buckets=10,
            max_position_distance=30,
        )

        hg_config = FORMAT.to_hg_config(config)

        # Through the file: transformers adds fields to it.
        save_hugging_face_model(tmp_path, {"x": torch.zeros(1)}, hg_config)

        content = json.loads((tmp_path / "config.json").read_text())

        assert content["model_type"] == ("mt5" if name == "mt5" else "t5")

        assert FORMAT.from_hg_config(content) == config

    def test_public_configs_are_read(self) -> None:
        assert FORMAT.from_hg_config(T5_SMALL) == T5Config()

        expected = T5Config(
            vocab_size=250_112,
            tied_embeddings=False,
            num_encoder_layers=8,
            num_decoder_layers=8,
            num_attn_heads=6,
            ffn_inner_dim=1024,
            gated_ffn=True,
            activation="gelu",
        )

        assert FORMAT.from_hg_config(MT5_SMALL) == expected

        # The defaults of the class.
        for name in ("feed_forward_proj", "tie_word_embeddings", "num_decoder_layers"):
            hg_config = {k: v for k, v in MT5_SMALL.items() if k != name}

            assert FORMAT.from_hg_config(hg_config) == expected

    def test_absent_values_have_defaults(self) -> None:
        for name in (
            "decoder_start_token_id",
            "dropout_rate",
            "is_encoder_decoder",
            "layer_norm_epsilon",
            "pad_token_id",
            "relative_attention_num_buckets",
        ):
            hg_config = {k: v for k, v in T5_SMALL.items() if k != name}

            assert FORMAT.from_hg_config(hg_config) == T5Config()

            assert FORMAT.from_hg_config({**hg_config, name: None}) == T5Config()

    @pytest.mark.parametrize(
        "name, value, message",
        [
            ("model_type", "umt5", "is 'umt5' .*one of 't5', 'mt5' "),
            ("model_type", None, "is missing"),
            ("feed_forward_proj", "gated-silu", "is 'gated-silu' .*'gated-gelu'"),
            ("feed_forward_proj", "gelu", "is 'gelu' "),
            ("feed_forward_proj", 1, "is 1 "),
            ("dense_act_fn", "silu", "is 'silu' .*has to be 'relu'"),
            ("is_gated_act", True, "is true .*has to be false"),
            ("is_encoder_decoder", False, "is false .*has to be true"),
            ("tie_word_embeddings", "yes", "is 'yes' .*true or false"),
            ("d_model", None, "is missing"),
            ("d_model", 51.2, "is 51.2 .*a positive integer"),
            ("d_kv", "64", "a positive integer"),
            ("d_ff", 0, "is 0 .*a positive integer"),
            ("num_heads", True, "a positive integer"),
            ("num_layers", [6], "a positive integer"),
            ("num_decoder_layers", 0, "a positive integer"),
            ("vocab_size", None, "is missing"),
            ("relative_attention_num_buckets", 3, "an integer from 4 on"),
            ("relative_attention_max_distance", 16, "an integer from 17 on"),
            ("pad_token_id", -1, "an integer from 0 on"),
            ("pad_token_id", 32128, "is 32128 .*less than `vocab_size`, 32128,"),
            ("decoder_start_token_id", 1, "is 1 .*has to be 0"),
            ("dropout_rate", 1.5, "at least 0 and less than 1"),
            ("layer_norm_epsilon", "small", "a positive number"),
        ],
    )
    def test_bad_value_is_refused(self, name: str, value: object, message: str) -> None:
        hg_config = {**T5_SMALL, name: value}

        # The pad is compared after the start.
        if name == "pad_token_id":
            hg_config["decoder_start_token_id"] = value

        with pytest.raises(WarmupError, match=f"^`{name}` .*{message}"):
            FORMAT.from_hg_config(hg_config)

    def test_other_config_is_refused(self) -> None:
        for call in (
            lambda: FORMAT.to_hg_config(object()),
            lambda: FORMAT.to_hg_state_dict({}, object()),
            lambda: FORMAT.from_hg_state_dict({}, object()),
        ):
            with pytest.raises(TypeError):
                call()
