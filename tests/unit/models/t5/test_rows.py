# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Rows of a T5 model, beyond what ``tests/unit/models`` asks of every kind."""

from __future__ import annotations

import pytest
import torch
from fairseq2.models.transformer import (
    CausalAttentionBias,
    StandardMultiheadAttention,
    TransformerModel,
    apply_ac_to_transformer,
)
from torch import Tensor

from tests.common import (
    assert_close,
    create_source,
    create_tiny_lm,
    create_tiny_t5,
    device,
)
from tests.unit.models.cases import (
    SOURCES,
    assert_close_gradients,
    build_rows,
    create_coefs,
    differentiate,
    get_excluded,
    spy,
)
from tests.unit.models.t5.cases import CONFIGS, create_inputs, create_random_model
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.attention import (
    RowAttention,
    SteppedRows,
    adapt_attention,
)
from warmup_plugin.models.conditional import RowCoefs
from warmup_plugin.models.rows import RowCache
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.models.t5 import T5SDPA, T5PositionBias


def compute_loss(model: TransformerModel, passes: list[Tensor] | None) -> Tensor:
    return create_conditional_model(model).compute_loss(
        *create_source(SOURCES),
        build_rows(),
        RowCoefs(*create_coefs()),
        get_excluded(model),
        passes=passes,
    )


class TestComputeLoss:
    @pytest.mark.parametrize("has_passes", [True, False])
    def test_checkpointed_layers_have_same_gradients(self, has_passes: bool) -> None:
        model = create_tiny_t5(num_layers=2)

        passes = None

        if has_passes:
            passes = [torch.tensor(rows, device=device) for rows in ([3, 0, 4], [2, 1])]

        expected = differentiate(compute_loss(model, passes=None), model)

        apply_ac_to_transformer(model, every_nth_layer=1)

        loss = compute_loss(model, passes)

        gradients = {
            name.replace("_checkpoint_wrapped_module.", ""): gradient
            for name, gradient in differentiate(loss, model).items()
        }

        assert_close_gradients(gradients, expected, atol=2e-5)

    def test_bias_is_computed_once_a_pass(self) -> None:
        model = create_tiny_t5(num_layers=3)

        with spy(model.get_submodule("decoder.position_bias")) as calls:
            compute_loss(model, passes=None).backward()

        assert len(calls) == 1

        wrapper = create_conditional_model(model)

        with torch.no_grad():
            source = wrapper.encode(*create_source(SOURCES))

            decoder = wrapper.start(source, torch.tensor([1, 0], device=device), 4)

            with spy(model.get_submodule("decoder.position_bias")) as calls:
                for _ in range(3):
                    decoder.step(torch.tensor([[5], [6]], device=device))

        assert len(calls) == 3


class TestRowDecoder:
    @torch.no_grad()
    def test_steps_equal_forward_beyond_largest_distance(self) -> None:
        # With sources and rows longer than any of the other tests.
        model = create_random_model(CONFIGS["v1_1"])

        source_seqs, source_layout, target_seqs, target_layout = create_inputs()

        expected = model(source_seqs, source_layout, target_seqs, target_layout)

        wrapper = create_conditional_model(model)

        source = wrapper.encode(source_seqs, source_layout)

        decoder = wrapper.start(source, torch.arange(3, device=device), 18)

        rows = torch.tensor([1], device=device)

        bounds = [0, 5, 6, 7, 8, 18]

        for begin, end in zip(bounds, bounds[1:]):
            logits = decoder.step(target_seqs[1:2, begin:end], rows)

            assert_close(logits, expected[1:2, end - 1], rtol=0.0, atol=3e-5)


class TestSteppedRows:
    def test_rows_may_stand_at_different_positions(self) -> None:
        torch.manual_seed(0)

        with device:
            sdpa = T5SDPA(CausalAttentionBias())

            attn = StandardMultiheadAttention(12, 2, sdpa, bias=False).eval()

            position_bias = T5PositionBias(2, 8, 8, bidirectional=False, init_std=1.0)

            q, past_k, past_v, k, v = torch.randn(5, 2, 9, 2, 6)

        attn.__class__ = RowAttention

        assert isinstance(attn, RowAttention)

        cache = RowCache(2, 9)

        cache.begin(attn, past_k, past_v)

        positions = torch.tensor([7, 2], device=device)

        stepped = SteppedRows(
            cache, None, positions, 1, 8, None, position_bias=position_bias
        )

        output = stepped(attn, q[:, 0], k[:, 0], v[:, 0])

        for row, position in enumerate([7, 2]):
            keys = torch.cat([past_k[row, :position], k[row, :1]])
            values = torch.cat([past_v[row, :position], v[row, :1]])

            at = torch.arange(position + 1, device=device)

            # (H, L)
            bias = position_bias((at - position).unsqueeze(0))[:, 0]

            logits = torch.einsum("hd,lhd->hl", q[row, 0], keys) + bias

            expected = torch.einsum("hl,lhd->hd", logits.softmax(dim=1), values)

            assert_close(output[row], expected)


class TestAdaptAttention:
    def test_call_accepts_t5_alone(self) -> None:
        adapt_attention(create_tiny_t5().decoder)

        # Nobody would tell it the positions.
        model = create_tiny_lm()

        attn = model.get_submodule("decoder.layers.0.self_attn")

        attn.register_module("sdpa", T5SDPA(CausalAttentionBias()))

        with pytest.raises(WarmupError, match=r"`layers.0.self_attn`.*\(T5SDPA\)"):
            adapt_attention(model.decoder)
