# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    assert_close,
    assert_equal,
    create_candidates,
    create_layout,
    create_source,
    create_tiny_model,
    device,
    list_sentences,
    pad_rows,
)
from warmup_plugin.models.conditional import TransformerConditional
from warmup_plugin.objectives import Objective, best_loss, elbo_loss, marginal_loss
from warmup_plugin.sampling import Candidates
from warmup_plugin.scoring import (
    KeptCandidates,
    WeighedCandidates,
    differentiate_objective,
    keep_candidates,
    weigh_candidates,
)


class TestDifferentiateObjective:
    def test_call_works(self) -> None:
        a = torch.tensor([[0.5, 0.25]], device=device).log()
        b = torch.tensor([[0.2, 0.4]], device=device).log()

        losses, a_coefs, b_coefs = differentiate_objective(marginal_loss, a, b, a)

        assert_close(losses, -torch.tensor([0.3], device=device).log())
        assert_close(a_coefs, [[1 / 6, -1 / 6]])
        assert_close(b_coefs, [[-1 / 3, -2 / 3]])

    @pytest.mark.parametrize("num_warmups", [1, 3])
    @pytest.mark.parametrize(
        "objective",
        [
            marginal_loss,
            partial(marginal_loss, control_variate=False),
            elbo_loss,
            best_loss,
        ],
    )
    def test_call_works_when_gradients_are_off(
        self, objective: Objective, num_warmups: int
    ) -> None:
        torch.manual_seed(0)

        log_probs = -torch.rand((3, 2, num_warmups), device=device)

        expected = differentiate_objective(objective, *log_probs.unbind())

        with torch.no_grad():
            actual = differentiate_objective(objective, *log_probs.unbind())

        for x, y in zip(actual, expected):
            assert_equal(x, y)

        # The validator runs in inference mode.
        with torch.inference_mode():
            actual = differentiate_objective(objective, *log_probs.clone().unbind())

        for x, y in zip(actual, expected):
            assert not x.is_inference() and not x.requires_grad

            assert_equal(x, y)

    def test_call_leaves_its_inputs_alone(self) -> None:
        a = torch.zeros((1, 2), device=device)

        differentiate_objective(marginal_loss, a, a, a)

        assert not a.requires_grad


def scatter(kept: KeptCandidates, coefs: Tensor, num_candidates: int) -> Tensor:
    """Puts the coefficients of kept rows back among all. *Shape:* :math:`(B)`."""
    return torch.zeros(num_candidates, device=device).index_add(0, kept.rows, coefs)


class TestKeepCandidates:
    # One candidate decides, one hardly counts, one has no derivative at all.
    a_coefs = torch.tensor(
        [[0.3, -0.25, -0.05, 0.0], [-1e-4, 0.0, 0.0, 2e-4]], device=device
    )
    b_coefs = torch.tensor(
        [[-0.6, -0.3, -1e-5, 0.0], [-0.5, -0.5, 0.0, -1e-4]], device=device
    )

    def test_call_keeps_all_when_number_is_none(self) -> None:
        kept = keep_candidates(self.a_coefs, self.b_coefs, None)

        assert_equal(kept.rows, list(range(8)))
        assert_equal(kept.warmup_coefs, self.a_coefs.flatten())
        assert_equal(kept.target_coefs, self.b_coefs.flatten())

    @pytest.mark.parametrize("num_kept", [1, 2, 3, 4])
    def test_call_is_unbiased(self, num_kept: int) -> None:
        torch.manual_seed(0)

        num_draws = 20_000

        kept = keep_candidates(
            self.a_coefs.repeat(num_draws, 1),
            self.b_coefs.repeat(num_draws, 1),
            num_kept,
        )

        for kept_coefs, coefs in (
            (kept.warmup_coefs, self.a_coefs),
            (kept.target_coefs, self.b_coefs),
        ):
            # (D, N, K), D draws
            scattered = scatter(kept, kept_coefs, num_draws * 8).view(num_draws, 2, 4)

            errors = scattered.std(dim=0) / num_draws**0.5

            difference = (scattered.mean(dim=0) - coefs).abs()

            # Rounding alone where a candidate is kept always as often.
            assert bool((difference <= 4 * errors + 1e-6).all())

    @pytest.mark.parametrize("num_kept", [1, 2, 3, 7])
    def test_call_keeps_each_as_often_as_its_share_says(self, num_kept: int) -> None:
        torch.manual_seed(0)

        num_draws = 2_000

        kept = keep_candidates(
            self.a_coefs.repeat(num_draws, 1),
            self.b_coefs.repeat(num_draws, 1),
            num_kept,
        )

        # (2, 4)
        magnitudes = self.a_coefs.abs() + self.b_coefs.abs()

        totals = magnitudes.sum(dim=1, keepdim=True)

        expected = num_kept * magnitudes / totals

        # Every point of the systematic draw carries the same magnitude.
        kept_magnitudes = kept.warmup_coefs.abs() + kept.target_coefs.abs()

        counts = scatter(kept, kept_magnitudes, num_draws * 8).view(-1, 2, 4)

        counts = counts / totals * num_kept

        assert_close(counts, counts.round(), rtol=0.0, atol=1e-4)

        counts = counts.round()

        assert bool((counts >= (expected - 1e-4).floor()).all())
        assert bool((counts <= (expected + 1e-4).ceil()).all())

        # All sources keep the same number, duplicates merged into one row.
        assert_equal(counts.sum(dim=2), torch.full_like(counts[:, :, 0], num_kept))

        assert bool((kept.rows.diff() > 0).all())

        # What has no derivative costs nothing.
        assert not bool((kept.rows % 8 == 3).any())
        assert not bool((kept.rows % 8 == 6).any())

    def test_call_bounds_coefficients_of_unlikely_candidates(self) -> None:
        # If candidates were kept by their weight w alone, the second would come up
        # once in a million draws and count 0.25 x 1e6 then.
        a_coefs = torch.tensor([[0.25, -0.25]], device=device)
        b_coefs = torch.tensor([[-1.0, -1e-6]], device=device)

        kept = keep_candidates(a_coefs.repeat(100, 1), b_coefs.repeat(100, 1), 1)

        assert kept.warmup_coefs.abs().max() <= 1.5
        assert set((kept.rows % 2).tolist()) == {0, 1}

    def test_call_works_when_objective_is_flat(self) -> None:
        zeros = torch.zeros((2, 3), device=device)

        kept = keep_candidates(zeros, zeros, 2)

        # Rows for every source, so that no batch is empty.
        assert set((kept.rows // 3).tolist()) == {0, 1}

        assert_equal(kept.warmup_coefs, torch.zeros_like(kept.warmup_coefs))
        assert_equal(kept.target_coefs, torch.zeros_like(kept.target_coefs))

    @pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-46])
    def test_call_works_at_ends_of_random_numbers(
        self, monkeypatch: pytest.MonkeyPatch, u: float
    ) -> None:
        def rand(size: Any, **kwargs: Any) -> Tensor:
            return torch.full(size, u, **kwargs)

        # Shares whose sum is 1 but for rounding, the last of them zero.
        generator = torch.Generator(device).manual_seed(0)

        a_coefs = torch.rand((50, 9), device=device, generator=generator)

        a_coefs[:, -2:] = 0.0

        monkeypatch.setattr(torch, "rand", rand)

        for num_kept in range(1, 9):
            kept = keep_candidates(a_coefs, torch.zeros_like(a_coefs), num_kept)

            # As many points as asked for: each carries the same share.
            scattered = scatter(kept, kept.warmup_coefs, 450).view(50, 9)

            assert_close(scattered.sum(dim=1), a_coefs.sum(dim=1))

            assert bool((kept.rows % 9 < 7).all())

    def test_call_depends_on_source_alone(self) -> None:
        # The coefficients of one source may be a million times those of another.
        scale = torch.tensor([[1.0], [1e6]], device=device)

        torch.manual_seed(0)

        kept = keep_candidates(scale * self.a_coefs, scale * self.b_coefs, 2)

        torch.manual_seed(0)

        assert_equal(kept.rows, keep_candidates(self.a_coefs, self.b_coefs, 2).rows)


class TestWeighCandidates:
    sources = [[5, 6, EOS_IDX], [7, 7, 5, 6, 5, EOS_IDX]]
    targets = [[BOS_IDX, 6, 5, EOS_IDX], [BOS_IDX, 7, EOS_IDX]]

    def weigh(self, warmups: list[list[list[int]]], max_len: int) -> WeighedCandidates:
        return self.weigh_candidates(create_candidates(warmups, max_len))

    def weigh_candidates(self, candidates: Candidates) -> WeighedCandidates:
        model = TransformerConditional(create_tiny_model())

        with torch.no_grad():
            source = model.encode(*create_source(self.sources))

        target_seqs, target_seq_lens = pad_rows(self.targets)

        return weigh_candidates(
            model,
            source,
            create_layout(),
            candidates,
            target_seqs,
            torch.tensor(target_seq_lens, device=device),
            marginal_loss,
        )

    def test_warmup_log_probs_sum_to_one(self) -> None:
        weighed = self.weigh([list_sentences(2)] * 2, max_len=2)

        assert weighed.warmup_log_probs.shape == (2, 13)

        assert_close(weighed.warmup_log_probs.exp().sum(dim=1), [1.0, 1.0])

    def test_candidates_do_not_touch_each_other(self) -> None:
        one: list[list[int]] = [[5, 6], [], [7]]
        two: list[list[int]] = [[6], [5, 5], []]

        together = self.weigh([one, two], max_len=2)

        for k in range(3):
            alone = self.weigh([[one[k]], [two[k]]], max_len=2)

            for name in ("warmup_log_probs", "target_log_probs"):
                expected = getattr(alone, name)[:, 0]

                assert_close(getattr(together, name)[:, k], expected)

    def test_drawn_probabilities_are_taken_over_when_on_policy(self) -> None:
        candidates = create_candidates([[[5, 6], []], [[6], []]], max_warmup_len=2)

        scored = self.weigh_candidates(candidates)

        # Not scored again, whatever they are.
        drawn = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]], device=device)

        weighed = self.weigh_candidates(
            replace(candidates, proposal_log_probs=drawn, on_policy=True)
        )

        assert_equal(weighed.warmup_log_probs, drawn)

        assert_close(weighed.target_log_probs, scored.target_log_probs)

        # w = softmax(b)
        assert_close(weighed.target_coefs, -scored.target_log_probs.softmax(dim=1))

    def test_losses_and_coefs_are_those_of_objective(self) -> None:
        candidates: list[list[list[int]]] = [[[5, 6], [], [7]], [[6], [5, 5], []]]

        weighed = self.weigh(candidates, max_len=2)

        expected = differentiate_objective(
            marginal_loss,
            weighed.warmup_log_probs,
            weighed.target_log_probs,
            torch.zeros((2, 3), device=device),
        )

        for x, y in zip(
            (weighed.losses, weighed.warmup_coefs, weighed.target_coefs), expected
        ):
            assert not x.requires_grad

            assert_equal(x, y)
