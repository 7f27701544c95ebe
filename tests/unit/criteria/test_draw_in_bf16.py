# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.common import Model
from tests.unit.criteria.cases import (
    SpiedSampler,
    compute_grads,
    create_batch,
    create_criterion,
    create_metric_bag,
    create_twins,
    each_keep,
    measure_error,
    record_passes,
)
from warmup_plugin.criteria import Criterion
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.sampling import draw_candidates

_KINDS = ("transformer", "llama")


def record_precisions(model: Model) -> list[tuple[bool, bool]]:
    """Lists of each pass through a layer of the decoder whether it has a gradient, and
    whether it is in bf16."""
    seen: list[tuple[bool, bool]] = []

    def record(module: object, args: object, output: Tensor) -> None:
        is_bf16 = output.dtype == torch.bfloat16

        seen.append((torch.is_grad_enabled(), is_bf16))

    proj = model.get_submodule("decoder.layers.0.ffn.inner_proj")

    proj.register_forward_hook(record)

    return seen


def create_bf16_criterion(
    model: Model, sampler: SpiedSampler, **kwargs: Any
) -> Criterion:
    return create_criterion(
        model, sampler=sampler, max_warmup_len=3, draw_in_bf16=True, **kwargs
    )


@pytest.mark.parametrize("kind", _KINDS)
class TestDrawInBf16:
    def test_only_what_has_no_gradient_is_in_bf16(self, kind: str) -> None:
        model, _ = create_twins(kind)

        criterion = create_bf16_criterion(model, SpiedSampler(draw_candidates))

        seen = record_precisions(model)

        compute_grads(model, criterion, create_batch())

        assert set(seen) == {(False, True), (True, False)}

    def test_validation_is_in_full_precision(self, kind: str) -> None:
        model, _ = create_twins(kind)

        criterion = create_bf16_criterion(model, SpiedSampler(draw_candidates))

        seen = record_precisions(model)

        with torch.inference_mode():
            criterion.evaluate(
                create_batch(), create_metric_bag(criterion), step_nr=1, shown=[]
            )

        assert {is_bf16 for _, is_bf16 in seen} == {False}

    def test_proposal_is_what_was_drawn_from(self, kind: str) -> None:
        drawn = []

        for draw_in_bf16 in (False, True):
            model, _ = create_twins(kind)

            sampler = SpiedSampler(draw_candidates)

            criterion = create_criterion(
                model, sampler=sampler, max_warmup_len=3, draw_in_bf16=draw_in_bf16
            )

            compute_grads(model, criterion, create_batch())

            drawn.append(sampler.drawn[0])

        assert drawn[1].warmup_log_probs is not None

        # On policy a is q, in whichever precision.
        assert torch.equal(drawn[1].warmup_log_probs, drawn[1].proposal_log_probs)

        assert drawn[1].proposal_log_probs.dtype == torch.float32

        assert not torch.equal(drawn[0].proposal_log_probs, drawn[1].proposal_log_probs)

    @each_keep
    def test_gradient_is_that_of_rows_in_full_precision(
        self, kind: str, keep: KeepSection
    ) -> None:
        model, twin = create_twins(kind)

        criterion = create_bf16_criterion(
            model, SpiedSampler(draw_candidates), keep=keep
        )

        with record_passes(model) as passes:
            grads = compute_grads(model, criterion, create_batch())

        # The same rows and coefficients, with nothing computed in bf16 before.
        create_criterion(twin)

        loss = twin(*create_batch().as_source_input(), **passes[0])

        expected = torch.autograd.grad(loss, list(twin.parameters()))

        expected_grads = torch.cat([grad.flatten() for grad in expected])

        assert measure_error(grads, expected_grads) < 1e-5


def test_all_parameters_learn_where_training_is_in_bf16_too() -> None:
    model, _ = create_twins("transformer")

    criterion = create_bf16_criterion(model, SpiedSampler(draw_candidates))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = criterion.compute_loss(
            create_batch(), create_metric_bag(criterion), step_nr=1
        )

    loss.backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
