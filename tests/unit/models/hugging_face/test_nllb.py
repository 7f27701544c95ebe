# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
import torch
from fairseq2.models.nllb import NllbConfig

from tests.common import assert_equal
from tests.unit.models.hugging_face.cases import (
    VOCAB_SIZE,
    assert_refused,
    create_case,
    create_m2m100,
    load_weights,
    run_hg_model,
    run_model,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.nllb import (
    NllbHuggingFaceFormat,
    from_hg_token_idx,
    from_hg_token_order,
    to_hg_token_idx,
    to_hg_token_order,
)

# The fields of `facebook/nllb-200-distilled-600M` that describe the model.
NLLB_600M: Final[dict[str, object]] = {
    "activation_dropout": 0.0,
    "activation_function": "relu",
    "attention_dropout": 0.1,
    "bos_token_id": 0,
    "d_model": 1024,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "decoder_layerdrop": 0,
    "decoder_layers": 12,
    "decoder_start_token_id": 2,
    "dropout": 0.1,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "encoder_layerdrop": 0,
    "encoder_layers": 12,
    "eos_token_id": 2,
    "is_encoder_decoder": True,
    "max_position_embeddings": 1024,
    "model_type": "m2m_100",
    "num_hidden_layers": 12,
    "pad_token_id": 1,
    "scale_embedding": True,
    "vocab_size": 256206,
}

NLLB_600M_CONFIG: Final = NllbConfig(
    num_encoder_layers=12, num_decoder_layers=12, ffn_inner_dim=4096
)
"""fairseq2's architecture ``dense_600m``."""


class TestTokenOrder:
    def test_index_of_each_special_token(self) -> None:
        # Hugging Face has <s>, <pad>, </s> and <unk>.
        hg_tokens = ["BOS", "PAD", "EOS", "UNK", "a", "b"]

        tokens = ["PAD", "UNK", "BOS", "EOS", "a", "b"]

        for idx, token in enumerate(tokens):
            assert hg_tokens[to_hg_token_idx(idx)] == token

        for idx, token in enumerate(hg_tokens):
            assert tokens[from_hg_token_idx(idx)] == token

        # -100 is what transformers does not count.
        assert to_hg_token_idx(-100) == from_hg_token_idx(-100) == -100

    def test_order_moves_rows_as_indices_move(self) -> None:
        rows = torch.arange(12).view(6, 2)

        hg_rows = to_hg_token_order(rows)

        for idx in range(6):
            assert_equal(hg_rows[to_hg_token_idx(idx)], rows[idx])

        assert_equal(from_hg_token_order(hg_rows), rows)

    def test_order_returns_copy(self) -> None:
        rows = torch.arange(6)

        from_hg_token_order(rows).zero_()
        to_hg_token_order(rows).zero_()

        assert_equal(rows, torch.arange(6))


class TestNllbHuggingFaceFormat:
    def test_published_config_is_architecture_of_fairseq2(self) -> None:
        config = NllbHuggingFaceFormat().from_hg_config(NLLB_600M)

        assert config == NLLB_600M_CONFIG

    def test_to_hg_config_describes_published_model(self) -> None:
        hg_config = NllbHuggingFaceFormat().to_hg_config(NLLB_600M_CONFIG)

        assert hg_config.kls_name == "M2M100Config"

        written = {"model_type": "m2m_100", "is_encoder_decoder": True}

        # Its dropout of attention weights has no counterpart.
        expected = {**NLLB_600M, "attention_dropout": 0.0}

        assert expected.items() <= {**hg_config.data, **written}.items()

    @pytest.mark.parametrize(
        "field,value,expected",
        [
            ("decoder_ffn_dim", 2048, "`encoder_ffn_dim`, 4096"),
            ("activation_function", "gelu", "'relu'"),
            ("scale_embedding", False, "true"),
            ("tie_word_embeddings", False, "true"),
            ("pad_token_id", 0, "1"),
            ("pad_token_id", None, "1"),
            ("bos_token_id", 2, "0"),
            ("bos_token_id", False, "0"),
            ("eos_token_id", 3, "2"),
            ("d_model", 1023, "an even number"),
            ("d_model", 2, "an even number of at least 4"),
            ("d_model", "1024", "a positive integer"),
            ("d_model", True, "a positive integer"),
            ("vocab_size", 3, "at least 4"),
            ("encoder_layers", 0, "a positive integer"),
            ("decoder_layers", -1, "a positive integer"),
            ("encoder_attention_heads", 3, "a divisor of `d_model`, 1024"),
            ("decoder_attention_heads", 5, "a divisor of `d_model`, 1024"),
            ("max_position_embeddings", 1.5, "a positive integer"),
            ("dropout", 1.0, "at least 0 and less than 1"),
            ("dropout", "0", "at least 0 and less than 1"),
            ("dropout", float("nan"), "at least 0 and less than 1"),
        ],
    )
    def test_from_hg_config_raises_error_when_field_does_not_fit(
        self, field: str, value: object, expected: str
    ) -> None:
        assert_refused(
            NllbHuggingFaceFormat(), {**NLLB_600M, field: value}, field, expected
        )

    @pytest.mark.parametrize(
        "field",
        [
            "d_model",
            "vocab_size",
            "encoder_layers",
            "decoder_layers",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
        ],
    )
    def test_from_hg_config_raises_error_when_size_is_missing(self, field: str) -> None:
        hg_config = {**NLLB_600M}

        del hg_config[field]

        assert_refused(NllbHuggingFaceFormat(), hg_config, field, "published")

    def test_from_hg_config_uses_defaults_of_transformers(self) -> None:
        hg_config = {**NLLB_600M}

        for field in (
            "activation_function",
            "bos_token_id",
            "dropout",
            "eos_token_id",
            "max_position_embeddings",
            "pad_token_id",
            "scale_embedding",
        ):
            del hg_config[field]

        config = NllbHuggingFaceFormat().from_hg_config(hg_config)

        assert config == NLLB_600M_CONFIG

    def test_to_hg_config_raises_error_when_pad_is_not_first(self) -> None:
        config = replace(NLLB_600M_CONFIG, pad_idx=1)

        with pytest.raises(WarmupError, match="`pad_idx` of the model is 1, but"):
            NllbHuggingFaceFormat().to_hg_config(config)

    def test_from_hg_state_dict_drops_what_transformers_ignores(self) -> None:
        family, hg_model = create_case("nllb")

        hg_state_dict = hg_model.state_dict()

        for name in (
            "model.encoder.embed_positions.weights",
            "model.decoder.embed_positions.weights",
            "model.encoder.version",
            "model.decoder.version",
            "final_logits_bias",
        ):
            hg_state_dict[name] = torch.ones(3)

        # The positions of another model are learned; dropping those would be wrong.
        hg_state_dict["model.encoder.embed_positions.weight"] = torch.ones(3)

        config = family.hg_format.from_hg_config(hg_model.config.to_dict())

        weights = family.hg_format.from_hg_state_dict(hg_state_dict, config)

        expected = set(family.create_model(config).state_dict())

        assert set(weights) - expected == {"model.encoder.embed_positions.weight"}
        assert expected <= set(weights)

    @pytest.mark.parametrize(
        "name",
        [
            "model.shared.weight",
            "model.encoder.embed_tokens.weight",
            "model.decoder.embed_tokens.weight",
            "lm_head.weight",
        ],
    )
    def test_from_hg_state_dict_takes_embedding_under_any_name(self, name: str) -> None:
        family, hg_model = create_case("nllb")

        hg_state_dict = {
            n: weight
            for n, weight in hg_model.state_dict().items()
            if n == name or weight.size(0) != VOCAB_SIZE
        }

        model = load_weights(family, hg_model, hg_state_dict)

        torch.testing.assert_close(
            run_model(model).logits, run_hg_model(hg_model).logits
        )

    def test_tied_weights_are_one_tensor(self) -> None:
        family, hg_model = create_case("nllb")

        config = family.hg_format.from_hg_config(hg_model.config.to_dict())

        weights = family.hg_format.from_hg_state_dict(hg_model.state_dict(), config)

        embed = weights["final_proj.weight"]

        assert weights["encoder_frontend.embed.weight"] is embed
        assert weights["decoder_frontend.embed.weight"] is embed

    def test_token_order_is_visible_in_logits(self) -> None:
        family, hg_model = create_case("nllb")

        model = load_weights(family, hg_model, hg_model.state_dict())

        embed = model.get_parameter("final_proj.weight")

        # As if the four special tokens had not been sorted.
        with torch.no_grad():
            embed.copy_(to_hg_token_order(embed))

        difference = run_model(model).logits - run_hg_model(hg_model).logits

        assert difference.abs().max() > 0.1

    def test_weights_of_embedding_that_is_too_small_are_left_to_comparison(
        self,
    ) -> None:
        config = NllbHuggingFaceFormat().from_hg_config(
            create_m2m100().config.to_dict()
        )

        weights = NllbHuggingFaceFormat().from_hg_state_dict(
            {"lm_head.weight": torch.ones(2, 16)}, config
        )

        assert weights["final_proj.weight"].shape == (2, 16)
