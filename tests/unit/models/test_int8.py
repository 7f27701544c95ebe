# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fairseq2.nn import Projection

from tests.common import (
    Model,
    create_tiny_lm,
    create_tiny_model,
    create_tiny_qwen,
    create_tiny_t5,
)
from tests.unit.models.cases import score_alone
from warmup_plugin.errors import WarmupError
from warmup_plugin.models import int8
from warmup_plugin.models.int8 import Int8Projection, quantize_projections


@pytest.fixture
def small_projections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets those of tiny models count as large."""
    monkeypatch.setattr(int8, "_LEAST_SIZE", 1)


def make_rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


class TestInt8Projection:
    @pytest.mark.parametrize("has_bias", [False, True])
    def test_call_is_close_to_float(self, has_bias: bool) -> None:
        weight = make_rows(40, 24) * torch.logspace(-3, 1, 40).unsqueeze(-1)

        bias = make_rows(40) if has_bias else None

        # Rows of very different size do not spoil each other.
        x = make_rows(3, 5, 24) * torch.logspace(-2, 3, 5).unsqueeze(-1)

        y = Int8Projection(weight, bias)(x)

        expected = torch.nn.functional.linear(x, weight, bias)

        assert y.shape == expected.shape and y.dtype == torch.float32

        # Of each entry, by its own row and output.
        size = x.norm(dim=-1, keepdim=True) * weight.norm(dim=-1)

        assert ((y - expected).abs() <= 0.02 * size).all()

        # 8 bits are not exact.
        assert not torch.equal(y, expected)

    def test_row_does_not_depend_on_batch(self) -> None:
        proj = Int8Projection(make_rows(64, 48), make_rows(64))

        x = make_rows(33, 48)

        y = proj(x)

        for n in (1, 2, 17):
            assert torch.equal(proj(x[:n]), y[:n])

    def test_call_takes_what_is_special(self) -> None:
        proj = Int8Projection(torch.zeros(8, 16), make_rows(8))

        # No activation and no weight to scale by.
        assert proj.bias is not None
        assert torch.equal(proj(torch.zeros(2, 16))[1], proj.bias)

        assert proj(torch.zeros(0, 16)).shape == (0, 8)

        assert proj(make_rows(2, 16).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "create", [create_tiny_model, create_tiny_t5, create_tiny_lm, create_tiny_qwen]
)
def test_models_score_nearly_the_same(
    create: Callable[[], Model], small_projections: None
) -> None:
    with torch.inference_mode():
        expected = score_alone(create())

        model = create()

        num_projections = sum(isinstance(m, Projection) for m in model.modules())

        assert quantize_projections(model) == num_projections > 5

        scores = score_alone(model)

    for score, other in zip(scores, expected):
        torch.testing.assert_close(score, other, rtol=0.05, atol=0.2)

        assert not torch.equal(score, other)


def test_small_projections_stay() -> None:
    model = create_tiny_model()

    assert quantize_projections(model) == 0
    assert not any(isinstance(m, Int8Projection) for m in model.modules())


def test_other_devices_are_refused() -> None:
    model = create_tiny_model().to("meta")

    with pytest.raises(WarmupError, match=r"`--int8` is for models on the CPU"):
        quantize_projections(model)
