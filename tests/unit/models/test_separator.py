# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from fairseq2.models.llama import LLaMAConfig
from fairseq2.models.llama.factory import create_llama_model
from fairseq2.nn import Linear
from torch import Tensor

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    PAD_IDX,
    SEPARATOR_IDX,
    VOCAB_SIZE,
    Model,
    assert_close,
    assert_equal,
    create_tiny_lm,
    create_tiny_model,
    create_tiny_qwen,
    create_tiny_t5,
    device,
)
from warmup_plugin.models.separator import prepare_separator
from warmup_plugin.models.t5 import T5Config, create_t5_model

LANG_IDX: Final = 5


def create_untied_t5() -> Model:
    config = T5Config(
        model_dim=16,
        max_seq_len=64,
        vocab_size=VOCAB_SIZE,
        pad_idx=PAD_IDX,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_attn_heads=4,
        head_dim=6,
        ffn_inner_dim=32,
        tied_embeddings=False,
    )

    with device:
        return create_t5_model(config)


def create_tied_llama() -> Model:
    config = LLaMAConfig(
        model_dim=16,
        max_seq_len=64,
        vocab_size=VOCAB_SIZE,
        pad_idx=PAD_IDX,
        tied_embeddings=True,
        num_layers=1,
        num_attn_heads=4,
        num_key_value_heads=2,
        ffn_inner_dim=32,
        ffn_inner_dim_multiple_of=32,
        # Tied embeddings demand it.
        shard_embed_dim=False,
    )

    with device:
        return create_llama_model(config)


def create_biased_lm() -> Model:
    model = create_tiny_lm()

    model.final_proj = Linear(16, VOCAB_SIZE, bias=True, device=device)

    with torch.no_grad():
        for parameter in model.final_proj.parameters():
            parameter.normal_()

    return model


TIED: Final = [create_tiny_model, create_tiny_t5, create_tied_llama, create_tiny_qwen]

UNTIED: Final = [create_untied_t5, create_tiny_lm, create_biased_lm]

OTHERS: Final = [token for token in range(VOCAB_SIZE) if token != SEPARATOR_IDX]


def prepare(model: Model, *begin_indices: int) -> dict[str, Tensor]:
    """Prepares a model. Returns its parameters as they were."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    prepare_separator(model, SEPARATOR_IDX, EOS_IDX, begin_indices or (BOS_IDX,))

    return before


def get_weights(model: Any) -> tuple[Tensor, Tensor]:
    """Returns the input embedding of the decoder and the output projection."""
    return model.decoder_frontend.embed.weight, model.final_proj.weight


class TestPrepareSeparator:
    @pytest.mark.parametrize("create_model", [*TIED, *UNTIED])
    def test_warmup_ends_where_sentence_would(
        self, create_model: Callable[[], Model]
    ) -> None:
        model = create_model()

        prepare(model)

        logits = model.final_proj(torch.randn((3, 16), device=device))

        assert_equal(logits[:, SEPARATOR_IDX], logits[:, EOS_IDX])

        # Not because all are alike.
        assert bool((logits[:, BOS_IDX] != logits[:, EOS_IDX]).all())

    @pytest.mark.parametrize("create_model", TIED)
    def test_tied_matrix_is_that_of_output(
        self, create_model: Callable[[], Model]
    ) -> None:
        model = create_model()

        embed_weight, proj_weight = get_weights(model)

        assert embed_weight is proj_weight

        prepare(model)

        assert_equal(embed_weight[SEPARATOR_IDX], embed_weight[EOS_IDX])

    @pytest.mark.parametrize("create_model", [*TIED, *UNTIED])
    def test_separator_that_is_only_read_has_no_row_of_eos(
        self, create_model: Callable[[], Model]
    ) -> None:
        model = create_model()

        embed_weight, proj_weight = get_weights(model)

        before = proj_weight.detach().clone()

        rows = prepare_separator(
            model, SEPARATOR_IDX, EOS_IDX, [BOS_IDX], ends_like_text=True
        )

        assert len(rows) == 1

        assert_equal(embed_weight[SEPARATOR_IDX], embed_weight[BOS_IDX])

        if proj_weight is not embed_weight:
            assert_equal(proj_weight, before)

    @pytest.mark.parametrize("create_model", UNTIED)
    def test_output_begins_as_it_would_without_warmup(
        self, create_model: Callable[[], Model]
    ) -> None:
        model = create_model()

        embed_weight, _ = get_weights(model)

        prepare(model)

        assert_equal(embed_weight[SEPARATOR_IDX], embed_weight[BOS_IDX])

        # Of several languages.
        prepare(model, BOS_IDX, LANG_IDX, LANG_IDX)

        assert_close(
            embed_weight[SEPARATOR_IDX],
            (embed_weight[BOS_IDX] + embed_weight[LANG_IDX]) / 2,
        )

    def test_bias_is_that_of_eos(self) -> None:
        model = create_biased_lm()

        before = prepare(model)

        bias = model.get_parameter("final_proj.bias")

        assert bias[SEPARATOR_IDX] == bias[EOS_IDX]

        assert bias[SEPARATOR_IDX] != before["final_proj.bias"][SEPARATOR_IDX]

    @pytest.mark.parametrize("create_model", [*TIED, *UNTIED])
    def test_nothing_else_changes(self, create_model: Callable[[], Model]) -> None:
        model = create_model()

        before = prepare(model)

        changed = []

        for name, parameter in model.named_parameters():
            assert parameter.requires_grad

            if torch.equal(parameter, before[name]):
                continue

            changed.append(name)

            assert_equal(parameter[OTHERS], before[name][OTHERS])

        assert len(changed) == len({id(w) for w in get_weights(model)}) + (
            create_model is create_biased_lm
        )

    @pytest.mark.parametrize("create_model", [create_tiny_model, create_tiny_lm])
    def test_parameters_on_meta_device_are_left_alone(
        self, create_model: Callable[[], Model]
    ) -> None:
        # Of ranks that get them from the first one.
        model = create_model().to("meta")

        prepare(model)

        assert all(parameter.is_meta for parameter in model.parameters())

    @pytest.mark.parametrize("create_model", [create_tiny_model, create_tiny_lm])
    def test_precision_is_kept(self, create_model: Callable[[], Model]) -> None:
        model = create_model().bfloat16()

        prepare(model, BOS_IDX, LANG_IDX)

        embed_weight, proj_weight = get_weights(model)

        assert embed_weight.dtype == proj_weight.dtype == torch.bfloat16

        assert_equal(proj_weight[SEPARATOR_IDX], proj_weight[EOS_IDX])
