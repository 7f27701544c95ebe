# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import ast

import pytest
import torch
from fairseq2.models.transformer import CausalAttentionBias
from fairseq2.models.transformer.sdpa.naive import NaiveSDPA
from torch import Tensor
from torch.nn import Module, ModuleList

from tests.common import create_tiny_lm, create_tiny_model, device
from tests.doors import ROOT
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.attention import RowAttention, adapt_attention
from warmup_plugin.models.traits import (
    BiasedDecoder,
    BiasedSDPA,
    find_float16_fault,
    find_position_bias,
)


class OwnSDPA(BiasedSDPA):
    """Somebody else's attention with a bias of its stack."""

    def __init__(self) -> None:
        super().__init__()

        self.bias = CausalAttentionBias()

    forward = NaiveSDPA.forward


class PlainDecoder(Module):
    """Somebody else's decoder."""

    float16_fault = "It overflows"

    def __init__(self) -> None:
        super().__init__()

        layer = create_tiny_lm().get_submodule("decoder.layers.0.self_attn")

        layer.register_module("sdpa", OwnSDPA())

        self.layers = ModuleList([layer])


class OwnDecoder(PlainDecoder, BiasedDecoder):
    """The same with a bias."""

    @staticmethod
    def position_bias(relative_positions: Tensor) -> Tensor:
        return relative_positions.unsqueeze(-3).float()


def test_declared_bias_is_found() -> None:
    decoder = OwnDecoder()

    adapt_attention(decoder)

    assert type(decoder.layers[0]) is RowAttention

    bias = find_position_bias(decoder)

    assert bias is not None

    assert bias(torch.zeros((2, 3), device=device)).shape == (1, 2, 3)


def test_attention_without_bias_of_its_stack_is_refused() -> None:
    with pytest.raises(WarmupError, match=r"`layers.0`.*\(OwnSDPA\)"):
        adapt_attention(PlainDecoder())

    assert find_position_bias(PlainDecoder()) is None


def test_declared_fault_of_float16_is_found() -> None:
    model = create_tiny_model()

    assert find_float16_fault(model) is None

    model.register_module("decoder", PlainDecoder())

    assert find_float16_fault(model) == "It overflows"


def test_generic_models_do_not_know_t5() -> None:
    for file in ROOT.joinpath("warmup_plugin/models").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert ".t5" not in str(node.module), f"{file.name}:{node.lineno}"
