# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fairseq2.models.transformer import TransformerModel
from torch import Tensor

from tests.common import CREATE_MODEL, create_tiny_lm
from tests.unit.criteria.cases import (
    FixedSampler,
    compute_grads,
    create_batch,
    create_criterion,
    create_given_candidates,
    create_metric_bag,
    create_twins,
    measure_error,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.sampling import draw_candidates


@contextmanager
def record_encodings(model: TransformerModel) -> Iterator[list[Tensor]]:
    """Lists what the encoder writes."""
    written: list[Tensor] = []

    handle = model.encoder.register_forward_hook(
        lambda module, args, output: written.append(output)
    )

    try:
        yield written
    finally:
        handle.remove()


class TestShareEncoder:
    @pytest.mark.parametrize("max_num_tokens", [None, 40])
    @pytest.mark.parametrize("plain", [False, True])
    def test_gradient_is_the_same_without_dropout(
        self, max_num_tokens: int | None, plain: bool
    ) -> None:
        grads, nums_encoded = [], []

        batch = create_batch(directions=["a-b", "b-a"])

        for share_encoder in (False, True):
            model, _ = create_twins("transformer")

            assert isinstance(model, TransformerModel)

            criterion = create_criterion(
                model,
                max_warmup_len=3,
                max_num_tokens=max_num_tokens,
                share_encoder=share_encoder,
                # The second pair, which is shorter than the first one, has warmups.
                plain_directions=["a-b"] if plain else [],
                sft_weight=0.5,
            )

            with record_encodings(model) as written:
                grads.append(compute_grads(model, criterion, batch))

            nums_encoded.append(len(written))

        assert measure_error(grads[1], grads[0]) < 1e-5

        assert nums_encoded[1] == 1 < nums_encoded[0]

    def test_weights_have_the_dropout_of_the_pass_that_learns(self) -> None:
        model = CREATE_MODEL["transformer"](num_layers=2, dropout_p=0.5)

        seen: list[Tensor] = []

        def draw(model: Any, source: Any, *args: Any, **kwargs: Any) -> Any:
            assert not source.seqs.requires_grad

            # But the decoder is in evaluation mode.
            assert not model.module.training

            seen.append(source.seqs)

            return draw_candidates(model, source, *args, **kwargs)

        criterion = create_criterion(
            model, sampler=draw, max_warmup_len=3, share_encoder=True
        )

        assert isinstance(model, TransformerModel)

        with record_encodings(model) as written:
            compute_grads(model, criterion, create_batch())

        assert torch.equal(seen[0], written[0].detach())

        assert written[0].requires_grad

    def test_all_parameters_learn_under_autocast(self) -> None:
        model, _ = create_twins("transformer")

        criterion = create_criterion(
            model,
            sampler=FixedSampler(create_given_candidates()),
            max_warmup_len=3,
            share_encoder=True,
        )

        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion.compute_loss(
                create_batch(), create_metric_bag(criterion), step_nr=1
            )

        loss.backward()

        fp32_grads = compute_grads(model, criterion, create_batch()).split(
            [parameter.numel() for parameter in model.parameters()]
        )

        for (name, parameter), fp32_grad in zip(model.named_parameters(), fp32_grads):
            assert parameter.grad is not None, name

            # The bias of keys changes no attention: its gradient is rounding.
            if fp32_grad.norm() > 1e-4:
                assert measure_error(parameter.grad.flatten(), fp32_grad) < 0.3, name

    def test_call_raises_error_when_model_is_decoder_only(self) -> None:
        with pytest.raises(WarmupError, match="but the model is decoder-only"):
            create_criterion(create_tiny_lm(), share_encoder=True)
