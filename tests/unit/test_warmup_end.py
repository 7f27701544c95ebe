# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Warmups that end like a text, by the probability of EOS.

They are those of a model whose separator has the output row of EOS, whatever the row of the
separator is.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    SEPARATOR_IDX,
    Model,
    assert_close,
    assert_equal,
    create_layout,
    create_source,
    device,
    pad_rows,
)
from tests.unit.models.test_separator import UNTIED
from warmup_plugin.generation import GenerationConfig, WarmupGenerator
from warmup_plugin.layout import DecoderLayout, join_rows
from warmup_plugin.models.conditional import RowCoefs
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.sampling import Candidates, WarmupSampler, draw_candidates
from warmup_plugin.sampling.samplers import StochasticBeamSampler

SOURCES = [[5, 6, EOS_IDX], [7, 7, 5, 6, 5, EOS_IDX]]

TARGETS = [[BOS_IDX, 6, 5, EOS_IDX], [BOS_IDX, 7, EOS_IDX]]

LIKE_TEXT = replace(create_layout(), ends_like_text=True)

each_model = pytest.mark.parametrize("create_model", UNTIED)

Cases = list[tuple[Model, DecoderLayout]]


def create_cases(create_model: Callable[[], Model]) -> Cases:
    """Creates a model whose separator is written like EOS, and one whose is not."""
    torch.manual_seed(1)

    first = create_model().eval()

    cases: Cases = []

    for layout in (create_layout(), LIKE_TEXT):
        model = deepcopy(first)

        proj = cast(Any, model).final_proj

        with torch.no_grad():
            # So that no token is nearly certain.
            proj.weight *= 0.3

            if layout.ends_like_text:
                proj.weight[SEPARATOR_IDX] = 10.0 * torch.randn_like(proj.weight[0])
            else:
                proj.weight[SEPARATOR_IDX] = proj.weight[EOS_IDX]

            if proj.bias is not None:
                proj.bias[SEPARATOR_IDX] = proj.bias[EOS_IDX]

        cases.append((model, layout))

    return cases


def draw(model: Model, layout: DecoderLayout, sampler: WarmupSampler) -> Candidates:
    torch.manual_seed(3)

    wrapper = create_conditional_model(model)

    with torch.no_grad():
        source = wrapper.encode(*create_source(SOURCES))

    return sampler(
        wrapper,
        source,
        layout,
        torch.tensor([[BOS_IDX]] * len(SOURCES), device=device),
        num_warmups=4,
        max_warmup_len=3,
    )


@each_model
@pytest.mark.parametrize(
    "sampler",
    [
        draw_candidates,
        partial(draw_candidates, temperature=0.7),
        partial(draw_candidates, with_empty=True),
        StochasticBeamSampler(),
    ],
)
def test_draws_are_those_of_a_separator_like_eos(
    create_model: Callable[[], Model], sampler: WarmupSampler
) -> None:
    expected, actual = (
        draw(model, layout, sampler) for model, layout in create_cases(create_model)
    )

    assert_equal(actual.seqs, expected.seqs)
    assert_equal(actual.cut, expected.cut)

    # Some end by themselves, some at the limit.
    assert actual.cut.any() and not actual.cut.all()

    assert_close(actual.proposal_log_probs, expected.proposal_log_probs)


@each_model
@pytest.mark.parametrize(
    "warmup", ["single", "greedy_then_beam", "beam_then_beam", "sample"]
)
def test_outputs_are_those_of_a_separator_like_eos(
    create_model: Callable[[], Model], warmup: str
) -> None:
    found = []

    for model, layout in create_cases(create_model):
        config = GenerationConfig(
            warmup=warmup,
            max_warmup_len=3,
            num_warmups=2,
            beam_size=3,
            num_best=2,
            max_len_a=0.0,
            max_len_b=4,
        )

        generator = WarmupGenerator(create_conditional_model(model), layout, config)

        seqs, lens = pad_rows(SOURCES)

        prefixes = torch.tensor([[BOS_IDX]] * len(SOURCES), device=device)

        found.append(generator(seqs, lens, prefixes, line_numbers=[1, 2]))

    for expected, actual in zip(*found):
        assert [(h.warmup, h.target) for h in actual] == [
            (h.warmup, h.target) for h in expected
        ]

        assert_close(
            torch.tensor([h.score for h in actual]),
            torch.tensor([h.score for h in expected]),
        )


def compute_loss(
    model: Model, layout: DecoderLayout
) -> tuple[Tensor, dict[str, Tensor]]:
    warmups, warmup_lens = pad_rows([[5, 6], [7], [], [6, 6]])

    seqs, lens = pad_rows(TARGETS)

    rows = join_rows(
        layout,
        seqs,
        torch.tensor(lens, device=device),
        warmups.long(),
        torch.tensor(warmup_lens, device=device),
        torch.tensor([False, False, False, True], device=device),
        torch.ones(4, dtype=torch.bool, device=device),
        torch.tensor([0, 0, 1, 1], device=device),
    )

    wrapper = create_conditional_model(model)

    coefs = torch.tensor([1.0, 0.5, 2.0, 1.5], device=device)

    loss = wrapper.compute_loss(
        *create_source(SOURCES),
        rows,
        RowCoefs(coefs, coefs),
        layout.excluded_tokens(wrapper.num_logits, device),
    )

    torch.autograd.backward(loss)

    grads = {
        name: param.grad
        for name, param in model.named_parameters()
        if param.grad is not None
    }

    return loss.detach(), grads


@each_model
def test_end_is_learned_by_the_row_of_eos(create_model: Callable[[], Model]) -> None:
    (expected, expected_grads), (actual, grads) = (
        compute_loss(model, layout) for model, layout in create_cases(create_model)
    )

    assert_close(actual, expected)

    assert grads.keys() == expected_grads.keys()

    for name, grad in grads.items():
        expected_grad = expected_grads[name]

        if name.startswith("final_proj."):
            # Together, as a row that two tokens share.
            expected_grad[EOS_IDX] += expected_grad[SEPARATOR_IDX]

            assert_equal(grad[SEPARATOR_IDX], torch.zeros_like(grad[SEPARATOR_IDX]))

            expected_grad[SEPARATOR_IDX] = 0.0

        assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)
