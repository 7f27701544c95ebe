# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq2.metrics import Mean, MetricBag
from torch import Tensor

from tests.common import (
    CREATE_MODEL,
    PAD_IDX,
    VOCAB_SIZE,
    Model,
    assert_close,
    create_source,
    create_tiny_model,
    device,
    forward_alone,
    get_last_layer_norm,
    pad_rows,
)
from tests.unit.criteria.cases import (
    SOURCES,
    TARGETS,
    create_batch,
    create_criterion,
    create_metric_bag,
    differentiate,
    get_metric,
)
from warmup_plugin.criteria.base import num_target_tokens, update_loss
from warmup_plugin.criteria.sft import create_sft_criterion
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.conditional import evaluation_mode


class TestSftCriterion:
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("kind", ["transformer", "t5"])
    def test_compute_loss_equals_cross_entropy(
        self, kind: str, label_smoothing: float
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        # As fairseq2 made it.
        twin: Any = CREATE_MODEL[kind](num_layers=2)

        criterion = create_criterion(
            model, create_sft_criterion, label_smoothing=label_smoothing
        )

        metric_bag = create_metric_bag(criterion)

        loss = criterion.compute_loss(create_batch(), metric_bag, step_nr=1)

        logits = twin(
            *create_source(SOURCES),
            *create_source([target[:-1] for target in TARGETS]),
        )

        assert isinstance(logits, Tensor)

        targets, _ = pad_rows([target[1:] for target in TARGETS])

        expected = F.cross_entropy(
            logits.flatten(0, 1),
            targets.flatten(),
            ignore_index=PAD_IDX,
            reduction="sum",
            # fairseq spreads the share over the other tokens, PyTorch over all.
            label_smoothing=label_smoothing * VOCAB_SIZE / (VOCAB_SIZE - 1),
        )

        assert_close(loss, expected)

        assert_close(
            differentiate(model, loss),
            differentiate(twin, expected),
            rtol=1e-4,
            atol=1e-5,
        )

        # Six tokens: three words, one word, two EOS.
        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            float(expected.detach()) / 6
        )

        assert criterion.max_warmup_len is None

    @pytest.mark.parametrize("kind", CREATE_MODEL)
    def test_beginning_of_target_may_be_given(self, kind: str) -> None:
        model, twin = CREATE_MODEL[kind](), CREATE_MODEL[kind]()

        criterion = create_criterion(model, create_sft_criterion)

        metric_bag = create_metric_bag(criterion)

        batch = create_batch(given_lens=[2, 0])

        loss = criterion.compute_loss(batch, metric_bag, step_nr=1)

        expected = torch.zeros((), device=device)

        for source, target, num_given in zip(SOURCES, TARGETS, (2, 0)):
            log_probs = forward_alone(twin, source, target[:-1]).log_softmax(dim=-1)

            for at in range(1 + num_given, len(target)):
                expected = expected - log_probs[at - 1, target[at]]

        assert_close(loss, expected)

        assert_close(
            differentiate(model, loss),
            differentiate(twin, expected),
            rtol=1e-4,
            atol=1e-5,
        )

        # Two of the first target's tokens, and both of the second one's.
        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            float(expected.detach()) / 4
        )

        assert num_target_tokens(batch) == 4

    def test_evaluate_does_not_smooth(self) -> None:
        model = create_tiny_model()

        criterion, smooth_criterion = (
            create_criterion(model, create_sft_criterion, label_smoothing=share)
            for share in (0.0, 0.3)
        )

        metric_bag = create_metric_bag(smooth_criterion)

        with torch.inference_mode(), evaluation_mode(model):
            shown = smooth_criterion.evaluate(
                create_batch(), metric_bag, step_nr=1, shown=[0, 1]
            )

        assert shown == []

        loss = criterion.compute_loss(
            create_batch(), create_metric_bag(criterion), step_nr=1
        )

        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            float(loss.detach()) / 6
        )

    def test_compute_loss_raises_error_when_training_has_diverged(self) -> None:
        model = create_tiny_model()

        criterion = create_criterion(model, create_sft_criterion)

        with torch.no_grad():
            next(get_last_layer_norm(model).parameters()).fill_(math.nan)

        with pytest.raises(WarmupError, match="loss is nan.*lower `optimizer"):
            criterion.compute_loss(
                create_batch(), create_metric_bag(criterion), step_nr=1
            )


class TestDecoderOnly:
    """Only the target behind a prompt counts, whatever the other prompts' lengths."""

    # Of different lengths, as the prompts of ``SOURCES`` are not all.
    PROMPTS = [[5, 6, 7, 7], [6]]

    @staticmethod
    def sum_losses(model: Model, label_smoothing: float) -> Tensor:
        """Sums what fairseq2's forward says of each pair alone."""
        losses = []

        for prompt, target in zip(TestDecoderOnly.PROMPTS, TARGETS):
            logits = forward_alone(model, prompt, target[:-1])

            loss = F.cross_entropy(
                logits,
                torch.tensor(target[1:], device=device),
                reduction="sum",
                label_smoothing=label_smoothing * VOCAB_SIZE / (VOCAB_SIZE - 1),
            )

            losses.append(loss)

        return torch.stack(losses).sum()

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("kind", ["llama", "qwen"])
    def test_compute_loss_equals_cross_entropy_of_targets(
        self, kind: str, label_smoothing: float
    ) -> None:
        model = CREATE_MODEL[kind]()

        expected = self.sum_losses(model, label_smoothing)

        expected_grads = differentiate(model, expected)

        criterion = create_criterion(
            model, create_sft_criterion, label_smoothing=label_smoothing
        )

        metric_bag = create_metric_bag(criterion)

        loss = criterion.compute_loss(create_batch(self.PROMPTS), metric_bag, step_nr=1)

        assert_close(loss, expected)

        assert_close(differentiate(model, loss), expected_grads, rtol=1e-4, atol=1e-5)

        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            float(expected.detach()) / 6
        )

    def test_evaluate_does_not_smooth(self) -> None:
        model = CREATE_MODEL["llama"]()

        expected = float(self.sum_losses(model, 0.0).detach())

        criterion = create_criterion(model, create_sft_criterion, label_smoothing=0.3)

        metric_bag = create_metric_bag(criterion)

        with torch.inference_mode(), evaluation_mode(model):
            shown = criterion.evaluate(
                create_batch(self.PROMPTS), metric_bag, step_nr=1, shown=[0]
            )

        assert shown == []

        assert get_metric(metric_bag, "nll_loss") == pytest.approx(expected / 6)


class TestUpdateLoss:
    def test_call_averages_over_tokens_of_all_batches(self) -> None:
        metric_bag = MetricBag(device)

        metric_bag.add("nll_loss", Mean())

        for loss, num_targets in ((8.0, 4), (1.0, 2)):
            update_loss(torch.tensor(loss, device=device), num_targets, metric_bag)

        assert get_metric(metric_bag, "nll_loss") == pytest.approx(9.0 / 6)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_call_raises_error_when_loss_is_not_finite(self, value: float) -> None:
        metric_bag = MetricBag(device)

        metric_bag.add("nll_loss", Mean())

        with pytest.raises(WarmupError, match="diverged"):
            update_loss(torch.tensor(value, device=device), 6, metric_bag)
