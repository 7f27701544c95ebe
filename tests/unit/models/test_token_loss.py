# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math

import pytest
import torch
from fairseq2.nn import Linear, Projection, TiedProjection
from fairseq2.nn.functional import cross_entropy
from torch import Tensor
from torch.nn import Parameter

from tests.common import assert_close, assert_equal, device
from tests.unit.models.cases import spy
from warmup_plugin.layout import ExcludedTokens
from warmup_plugin.models import token_loss
from warmup_plugin.models.token_loss import compute_log_probs, compute_token_loss

NUM_POSITIONS = 7
VOCAB_SIZE = 11
MODEL_DIM = 5

IN_WARMUP = [0, 3, 10]

IN_TARGET = [7]


class Case:
    """Seven positions; the first ones are those of warmups."""

    def __init__(self, *, tied: bool = False) -> None:
        generator = torch.Generator(device).manual_seed(0)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        self.proj: Projection

        if tied:
            self.proj = TiedProjection(Parameter(randn(VOCAB_SIZE, MODEL_DIM)), None)
        else:
            self.proj = Linear(MODEL_DIM, VOCAB_SIZE, bias=True, device=device)

            with torch.no_grad():
                for parameter in self.proj.parameters():
                    parameter.copy_(randn(*parameter.shape))

        self.hidden = randn(NUM_POSITIONS, MODEL_DIM).requires_grad_()

        # None of them excluded.
        self.targets = torch.tensor([1, 4, 9, 2, 5, 1, 8], device=device)

        self.coefs = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0, -0.1, 1.0], device=device)

        self.excluded = ExcludedTokens(
            torch.tensor(IN_WARMUP, device=device),
            torch.tensor(IN_TARGET, device=device),
        )

    def log_probs(self, num_warmup: int) -> Tensor:
        return compute_log_probs(
            self.proj,
            self.hidden,
            self.targets,
            num_warmup=num_warmup,
            excluded=self.excluded,
        )

    def loss(self, num_warmup: int, label_smoothing: float = 0.0) -> Tensor:
        return compute_token_loss(
            self.proj,
            self.hidden,
            self.targets,
            self.coefs,
            num_warmup=num_warmup,
            excluded=self.excluded,
            label_smoothing=label_smoothing,
        )

    def expected_losses(self, num_warmup: int, label_smoothing: float = 0.0) -> Tensor:
        """Computes the loss of each position. *Shape:* :math:`(P)`."""
        logits = self.proj(self.hidden)

        def compute(excluded: list[int], label_smoothing: float) -> Tensor:
            allowed = [i for i in range(VOCAB_SIZE) if i not in excluded]

            return cross_entropy(
                logits[:, allowed],
                torch.tensor(
                    [allowed.index(i) for i in self.targets.tolist()], device=device
                ),
                pad_idx=None,
                label_smoothing=label_smoothing,
                reduction="none",
            )

        return torch.cat(
            [
                compute(IN_WARMUP, 0.0)[:num_warmup],
                compute(IN_TARGET, label_smoothing)[num_warmup:],
            ]
        )

    def differentiate(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, [self.hidden, *self.proj.parameters()])


# Nothing of one kind, or of both.
each_num_warmup = pytest.mark.parametrize("num_warmup", [0, 3, NUM_POSITIONS])

# One position a chunk, also if a position has more logits than that; two; all.
each_max_num_logits = pytest.mark.parametrize("max_num_logits", [1, 11, 32, 1 << 24])


class TestComputeLogProbs:
    @each_max_num_logits
    @each_num_warmup
    def test_call_equals_cross_entropy(
        self, num_warmup: int, max_num_logits: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(token_loss, "MAX_NUM_LOGITS", max_num_logits)

        case = Case()

        log_probs = case.log_probs(num_warmup)

        expected = -case.expected_losses(num_warmup)

        assert_close(log_probs, expected)

        gradients = [
            case.differentiate((case.coefs * y).sum()) for y in (log_probs, expected)
        ]

        for x, y in zip(*gradients):
            assert_close(x, y)

    def test_log_probs_are_fp32(self) -> None:
        case = Case()

        expected = case.log_probs(3)

        case.proj.bfloat16()

        case.hidden = case.hidden.bfloat16()

        log_probs = case.log_probs(3)

        assert log_probs.dtype == torch.float32

        assert_close(log_probs, expected, rtol=0.02, atol=0.05)

    def test_call_works_when_there_is_no_position(self) -> None:
        case = Case()

        hidden = case.hidden[:0]

        log_probs = compute_log_probs(
            case.proj, hidden, case.targets[:0], num_warmup=0, excluded=case.excluded
        )

        assert log_probs.shape == (0,)
        assert log_probs.dtype == torch.float32

        # A backward through nothing.
        [gradient] = torch.autograd.grad(log_probs.sum(), [case.hidden])

        assert_equal(gradient, torch.zeros_like(case.hidden))


class TestComputeTokenLoss:
    def test_coefficients_may_be_more_precise(self) -> None:
        case = Case()

        expected = case.loss(3)

        case.coefs = case.coefs.double()

        assert_close(case.loss(3), expected)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    @each_max_num_logits
    @each_num_warmup
    @pytest.mark.parametrize("tied", [False, True])
    def test_call_equals_cross_entropy(
        self,
        tied: bool,
        num_warmup: int,
        max_num_logits: int,
        label_smoothing: float,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(token_loss, "MAX_NUM_LOGITS", max_num_logits)

        case = Case(tied=tied)

        loss = case.loss(num_warmup, label_smoothing)

        losses = case.expected_losses(num_warmup, label_smoothing)

        expected = (case.coefs * losses).sum()

        assert_close(loss, expected)

        for x, y in zip(case.differentiate(loss), case.differentiate(expected)):
            assert_close(x, y, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("excluded", [[], [7], [3, 7, 10]])
    def test_labels_are_smoothed_over_tokens_that_are_not_excluded(
        self, excluded: list[int]
    ) -> None:
        case = Case()

        case.excluded = ExcludedTokens(
            case.excluded.in_warmup,
            torch.tensor(excluded, device=device, dtype=torch.long),
        )

        loss = case.loss(0, 0.3)

        # By hand: of V tokens the others get 0.3 / (V - 1) each.
        allowed = [i for i in range(VOCAB_SIZE) if i not in excluded]

        log_probs = case.proj(case.hidden)[:, allowed].log_softmax(dim=1)

        labels = torch.full_like(log_probs, 0.3 / (len(allowed) - 1))

        for position, token in enumerate(case.targets.tolist()):
            labels[position, allowed.index(token)] = 1.0 - 0.3

        expected = -(case.coefs.unsqueeze(1) * labels * log_probs).sum()

        assert_close(loss, expected)

        grads = case.differentiate(loss)

        for x, y in zip(grads, case.differentiate(expected)):
            assert_close(x, y, rtol=1e-5, atol=1e-5)

        # An excluded token is not pushed, neither up nor down.
        for grad in grads[1:]:
            assert not bool(grad[excluded].any())

    def test_gradient_is_scaled_by_what_follows(self) -> None:
        case = Case()

        expected = case.differentiate(case.loss(3, 0.2))

        for x, y in zip(case.differentiate(-8.0 * case.loss(3, 0.2)), expected):
            assert_close(x, -8.0 * y)

    @pytest.mark.parametrize("run", [Case.loss, Case.log_probs])
    def test_chunks_are_no_larger_than_allowed(
        self, run: object, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert callable(run)

        case = Case()

        # Two positions and a bit.
        monkeypatch.setattr(token_loss, "MAX_NUM_LOGITS", 32)

        with spy(case.proj) as calls:
            run(case, 3)

        # Three positions of warmups, four of targets.
        assert [x.size(0) for x, _ in calls] == [2, 1, 2, 2]

    def test_only_gradients_are_kept_for_backward(self) -> None:
        case = Case()

        loss = case.loss(3)

        kept = getattr(loss.grad_fn, "saved_tensors")

        inputs = [case.hidden, *case.proj.parameters()]

        assert [x.shape for x in kept] == [x.shape for x in inputs]

    def test_gradients_of_chunks_are_summed_in_fp32(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # 256 + 1 is 256 in bf16, so that a long sum would stand still.
        monkeypatch.setattr(token_loss, "MAX_NUM_LOGITS", 1)

        proj = TiedProjection(
            Parameter(torch.zeros((2, 1), device=device, dtype=torch.bfloat16)), None
        )

        num_positions = 2000

        hidden = torch.ones((num_positions, 1), device=device, dtype=torch.bfloat16)

        loss = compute_token_loss(
            proj,
            hidden.requires_grad_(),
            torch.zeros(num_positions, dtype=torch.long, device=device),
            torch.ones(num_positions, device=device),
            num_warmup=0,
            excluded=ExcludedTokens.none(device),
            label_smoothing=0.0,
        )

        hidden_grad, weight_grad = torch.autograd.grad(loss, [hidden, proj.weight])

        assert weight_grad.dtype == hidden_grad.dtype == torch.bfloat16

        # Each position adds P - 1 to the target and P to the other, P = 1/2.
        assert_equal(weight_grad, [[-1000.0], [1000.0]])

        assert_close(loss, 2000 * math.log(2.0), rtol=1e-5, atol=0.0)

    @pytest.mark.parametrize("frozen", ["projection", "hidden"])
    def test_call_works_when_one_of_both_is_frozen(self, frozen: str) -> None:
        case = Case()

        hidden_grad, *param_grads = case.differentiate(case.loss(3))

        if frozen == "projection":
            case.proj.requires_grad_(False)

            [gradient] = torch.autograd.grad(case.loss(3), [case.hidden])

            assert_close(gradient, hidden_grad)
        else:
            case.hidden.requires_grad_(False)

            gradients = torch.autograd.grad(case.loss(3), list(case.proj.parameters()))

            for x, y in zip(gradients, param_grads):
                assert_close(x, y)

    def test_call_works_when_there_is_no_position(self) -> None:
        case = Case()

        loss = compute_token_loss(
            case.proj,
            case.hidden[:0],
            case.targets[:0],
            case.coefs[:0],
            num_warmup=0,
            excluded=case.excluded,
            label_smoothing=0.1,
        )

        assert_equal(loss, 0.0)

        for gradient in case.differentiate(loss):
            assert not bool(gradient.any())

    def test_call_works_without_gradient(self) -> None:
        case = Case()

        expected = case.loss(3)

        with torch.no_grad():
            loss = case.loss(3)

        assert_equal(loss, expected)

        assert not loss.requires_grad

    def test_large_logits_stay_finite(self) -> None:
        case = Case()

        with torch.no_grad():
            case.hidden *= 1e4

        loss = case.loss(3, 0.1)

        assert bool(loss.isfinite())

        for gradient in case.differentiate(loss):
            assert bool(gradient.isfinite().all())

    def test_gradient_is_right_when_autocast_remembers_casts(self) -> None:
        # Those of a pass without gradient have none.
        case = Case()

        expected = case.differentiate(case.loss(3))

        with torch.autocast(device.type, dtype=torch.bfloat16):
            with torch.no_grad():
                case.log_probs(3)

            loss = case.loss(3)

        assert loss.dtype == torch.float32

        for x, y in zip(case.differentiate(loss), expected):
            assert x.dtype == torch.float32

            assert_close(x, y, rtol=0.05, atol=0.05)

    def test_call_leaves_no_casts_to_autocast(self) -> None:
        # Their graph is gone.
        case = Case()

        with torch.autocast(device.type, dtype=torch.bfloat16):
            case.loss(3)

            other_loss = case.log_probs(3).sum()

        for gradient in case.differentiate(other_loss):
            assert bool(gradient.any())
