# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    EOS_IDX,
    Model,
    assert_close,
    assert_equal,
    create_candidates,
    create_layout,
    create_source,
    device,
    list_sentences,
    pad_rows,
)
from tests.plain import score_plainly
from tests.unit.sampling.cases import SOURCES, draw_with, each_kind, enumerate_log_probs
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.objectives import (
    Objective,
    best_loss,
    elbo_loss,
    joint_loss,
    marginal_loss,
)
from warmup_plugin.sampling import Candidates, WarmupSampler, draw_candidates
from warmup_plugin.sampling.stochastic_beam import draw_distinct_candidates
from warmup_plugin.scoring import (
    CandidateScores,
    KeptCandidates,
    differentiate_objective,
    keep_all,
    keep_mass,
    keep_resampled,
    keep_top,
    score_candidates,
    score_warmups,
)

Keep = Callable[[Tensor, Tensor], KeptCandidates]


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
            joint_loss,
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


# One candidate decides, one hardly counts, one has no derivative at all.
A_COEFS = torch.tensor(
    [[0.3, -0.25, -0.05, 0.0], [-1e-4, 0.0, 0.0, 2e-4]], device=device
)
B_COEFS = torch.tensor(
    [[-0.6, -0.3, -1e-5, 0.0], [-0.5, -0.5, 0.0, -1e-4]], device=device
)


class TestKeepAll:
    def test_call_works(self) -> None:
        kept = keep_all(A_COEFS, B_COEFS)

        assert_equal(kept.rows, list(range(8)))
        assert_equal(kept.warmup_coefs, A_COEFS.flatten())
        assert_equal(kept.target_coefs, B_COEFS.flatten())


class TestKeepResampled:

    @pytest.mark.parametrize("num_kept", [1, 2, 3, 4])
    def test_call_is_unbiased(self, num_kept: int) -> None:
        torch.manual_seed(0)

        num_draws = 20_000

        kept = keep_resampled(
            A_COEFS.repeat(num_draws, 1),
            B_COEFS.repeat(num_draws, 1),
            num_kept,
        )

        for kept_coefs, coefs in (
            (kept.warmup_coefs, A_COEFS),
            (kept.target_coefs, B_COEFS),
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

        kept = keep_resampled(
            A_COEFS.repeat(num_draws, 1),
            B_COEFS.repeat(num_draws, 1),
            num_kept,
        )

        # (2, 4)
        magnitudes = A_COEFS.abs() + B_COEFS.abs()

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

        kept = keep_resampled(a_coefs.repeat(100, 1), b_coefs.repeat(100, 1), 1)

        assert kept.warmup_coefs.abs().max() <= 1.5
        assert set((kept.rows % 2).tolist()) == {0, 1}

    def test_call_works_when_objective_is_flat(self) -> None:
        zeros = torch.zeros((2, 3), device=device)

        kept = keep_resampled(zeros, zeros, 2)

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
            kept = keep_resampled(a_coefs, torch.zeros_like(a_coefs), num_kept)

            # As many points as asked for: each carries the same share.
            scattered = scatter(kept, kept.warmup_coefs, 450).view(50, 9)

            assert_close(scattered.sum(dim=1), a_coefs.sum(dim=1))

            assert bool((kept.rows % 9 < 7).all())

    def test_call_depends_on_source_alone(self) -> None:
        # The coefficients of one source may be a million times those of another.
        scale = torch.tensor([[1.0], [1e6]], device=device)

        torch.manual_seed(0)

        kept = keep_resampled(scale * A_COEFS, scale * B_COEFS, 2)

        torch.manual_seed(0)

        assert_equal(kept.rows, keep_resampled(A_COEFS, B_COEFS, 2).rows)


class TestKeepTop:
    @pytest.mark.parametrize(
        ("num_kept", "rows", "b_coefs"),
        [
            # |b| sums to 0.90001 and 1.0001, of which 0.6 and 0.5 are kept.
            (1, [0, 4], [-0.90001, -1.0001]),
            # 0.9 and 1.0 are kept.
            (
                2,
                [0, 1, 4, 5],
                [-0.6 * 0.90001 / 0.9, -0.3 * 0.90001 / 0.9, -0.50005, -0.50005],
            ),
            # 0.0003 is more than 0.
            (3, [0, 1, 2, 4, 5, 7], [-0.6, -0.3, -1e-5, -0.5, -0.5, -1e-4]),
        ],
    )
    def test_call_works(
        self, num_kept: int, rows: list[int], b_coefs: list[float]
    ) -> None:
        kept = keep_top(A_COEFS, B_COEFS, num_kept)

        assert_equal(kept.rows, rows)

        assert_close(kept.target_coefs, b_coefs)

        # What pushes a is not scaled.
        assert_equal(kept.warmup_coefs, A_COEFS.flatten()[rows])

    def test_call_works_when_none_teaches_the_target(self) -> None:
        kept = keep_top(
            torch.tensor([[5.0, 0.0]], device=device),
            torch.tensor([[0.0, 0.0]], device=device),
            num_kept=1,
        )

        assert_equal(kept.rows, [0])
        assert_equal(kept.warmup_coefs, [5.0])
        assert_equal(kept.target_coefs, [0.0])

    def test_candidate_that_teaches_y_is_always_kept(self) -> None:
        # As an entropy bonus does it: a large derivative of a, and nothing for y.
        a_coefs = torch.tensor([[0.0, 0.1, 9.0]], device=device)
        b_coefs = torch.tensor([[-0.6, -0.4, -1e-40]], device=device)

        kept = keep_top(a_coefs, b_coefs, 1)

        assert_equal(kept.rows, [0])
        assert_close(kept.target_coefs, [-1.0])

        kept = keep_top(a_coefs, b_coefs, 2)

        assert_equal(kept.rows, [0, 2])
        assert_close(kept.target_coefs.sum(), -1.0)

    def test_call_keeps_everything_when_asked_to(self) -> None:
        kept = keep_top(A_COEFS, B_COEFS, 4)

        assert_equal(kept.rows, list(range(8)))
        assert_equal(kept.target_coefs, B_COEFS.flatten())


class TestKeepMass:
    @pytest.mark.parametrize(
        ("mass", "rows", "b_scales"),
        [
            # |b| is 0.6, 0.3, 1e-5, 0 and 0.5, 0.5, 1e-4, 0 in the order of what
            # candidates matter; the sums are 0.90001 and 1.0001.
            (0.45, [0, 4], [0.90001 / 0.6, 1.0001 / 0.5]),
            (0.55, [0, 4, 5], [0.90001 / 0.6, 1.0001, 1.0001]),
            (0.9, [0, 1, 4, 5], [0.90001 / 0.9, 0.90001 / 0.9, 1.0001, 1.0001]),
            (0.999995, [0, 1, 2, 4, 5, 7], [1.0] * 6),
        ],
    )
    def test_call_works(
        self, mass: float, rows: list[int], b_scales: list[float]
    ) -> None:
        kept = keep_mass(A_COEFS, B_COEFS, mass)

        assert_equal(kept.rows, rows)

        b_coefs = B_COEFS.flatten()[rows] * torch.tensor(b_scales, device=device)

        assert_close(kept.target_coefs, b_coefs)

        # What pushes a is not scaled.
        assert_equal(kept.warmup_coefs, A_COEFS.flatten()[rows])

    def test_call_keeps_whole_gradient_when_mass_is_1(self) -> None:
        kept = keep_mass(A_COEFS, B_COEFS, 1.0)

        for coefs, kept_coefs in (
            (A_COEFS, kept.warmup_coefs),
            (B_COEFS, kept.target_coefs),
        ):
            assert_close(scatter(kept, kept_coefs, 8), coefs.flatten())

    def test_call_keeps_one_when_target_is_not_learned(self) -> None:
        a_coefs = torch.tensor([[1.0, -2.0, 0.5]], device=device)

        kept = keep_mass(a_coefs, torch.zeros_like(a_coefs), 0.9)

        assert_equal(kept.rows, [1])
        assert_equal(kept.warmup_coefs, [-2.0])
        assert_equal(kept.target_coefs, [0.0])


@pytest.mark.parametrize(
    ("keep", "num_kept"),
    [
        (partial(keep_top, num_kept=1), 1),
        (partial(keep_mass, mass=0.6), 1),
        (partial(keep_top, num_kept=2), 2),
        (partial(keep_mass, mass=0.8), 2),
        (partial(keep_top, num_kept=3), 3),
        (partial(keep_mass, mass=0.9), 3),
    ],
)
class TestKeepLargest:
    def test_call_prefers_what_teaches_target_when_all_matter_alike(
        self, keep: Keep, num_kept: int
    ) -> None:
        # `marginal`: all below the baseline 1/4 have |1/4 - w| + w = 1/4.
        weights = torch.tensor([[0.1, 0.7, 0.05, 0.15]], device=device)

        kept = keep(0.25 - weights, -weights)

        assert_equal(kept.rows, sorted([1, 3, 0][:num_kept]))

        assert_close(kept.target_coefs.sum(), -1.0)

    def test_call_keeps_chosen_one_when_selection_is_hard(
        self, keep: Keep, num_kept: int
    ) -> None:
        # As `best` has it.
        coefs = torch.tensor([[0.0, 0.0, -1.0], [0.0, -1.0, 0.0]], device=device)

        kept = keep(coefs, coefs)

        for kept_coefs in (kept.warmup_coefs, kept.target_coefs):
            assert_equal(scatter(kept, kept_coefs, 6), coefs.flatten())

    def test_call_works_when_objective_is_flat(self, keep: Keep, num_kept: int) -> None:
        zeros = torch.zeros((2, 3), device=device)

        kept = keep(zeros, zeros)

        # Rows for every source, so that no batch is empty.
        assert set((kept.rows // 3).tolist()) == {0, 1}

        assert_equal(kept.warmup_coefs, torch.zeros_like(kept.warmup_coefs))
        assert_equal(kept.target_coefs, torch.zeros_like(kept.target_coefs))


TARGETS = [[BOS_IDX, 6, 5, EOS_IDX], [BOS_IDX, 7, EOS_IDX]]


def score(model: Model, candidates: Candidates) -> CandidateScores:
    wrapper = create_conditional_model(model)

    with torch.no_grad():
        source = wrapper.encode(*create_source(SOURCES))

    target_seqs, target_seq_lens = pad_rows(TARGETS)

    return score_candidates(
        wrapper,
        source,
        create_layout(),
        candidates,
        target_seqs,
        torch.tensor(target_seq_lens, device=device),
    )


@each_kind
class TestScoreCandidates:
    # An empty one, a cut one, equal ones.
    warmups = [[[5, 6], [], [7, 7, 6]], [[6], [6], [5, 5, 5]]]

    def test_call_equals_plain_scores(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        candidates = create_candidates(self.warmups, max_warmup_len=3)

        scores = score(model, candidates)

        with torch.no_grad():
            a, b = score_plainly(model, SOURCES, TARGETS, candidates)

        assert_close(scores.warmup_log_probs, a)
        assert_close(scores.target_log_probs, b)

        assert not scores.target_log_probs.requires_grad

    def test_warmup_log_probs_sum_to_one(self, kind: str) -> None:
        candidates = create_candidates([list_sentences(2)] * 2, max_warmup_len=2)

        scores = score(CREATE_MODEL[kind](), candidates)

        assert scores.warmup_log_probs.shape == (2, 13)

        assert_close(scores.warmup_log_probs.exp().sum(dim=1), [1.0, 1.0])

    def test_candidates_do_not_touch_each_other(self, kind: str) -> None:
        model = CREATE_MODEL[kind]()

        together = score(model, create_candidates(self.warmups, max_warmup_len=3))

        for k in range(3):
            alone = score(
                model,
                create_candidates([[w[k]] for w in self.warmups], max_warmup_len=3),
            )

            for name in ("warmup_log_probs", "target_log_probs"):
                expected = getattr(alone, name)[:, 0]

                assert_close(getattr(together, name)[:, k], expected)

    def test_known_warmup_log_probs_are_taken_over(self, kind: str) -> None:
        model = CREATE_MODEL[kind]()

        candidates = create_candidates(self.warmups, max_warmup_len=3)

        expected = score(model, candidates)

        # Not scored again, whatever they are.
        known = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]], device=device)

        with record_num_items(model.final_proj) as num_items:
            scores = score(model, replace(candidates, warmup_log_probs=known))

        assert_equal(scores.warmup_log_probs, known)

        assert_close(scores.target_log_probs, expected.target_log_probs)

        # Their positions need no output projection: 3 and 2 target tokens a row. Two of
        # the second source are equal.
        assert num_items == [3 * 3 + 2 * 2]

    @pytest.mark.parametrize(
        "sampler",
        [
            draw_candidates,
            partial(draw_candidates, temperature=1.5),
            draw_distinct_candidates,
        ],
    )
    def test_call_goes_on_where_drawing_left_off(
        self, kind: str, sampler: WarmupSampler
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        # Empty ones and cut ones among them.
        candidates = draw_with(sampler, model, 24, 3)

        assert set(candidates.seq_lens.tolist()) == {0, 1, 2, 3}

        # From the first token on.
        expected = score(model, replace(candidates, past=None, warmup_log_probs=None))

        with record_num_items(model.decoder) as num_items:
            scores = score(model, candidates)

        assert_close(scores.warmup_log_probs, expected.warmup_log_probs)
        assert_close(scores.target_log_probs, expected.target_log_probs)

        distinct, _ = candidates.distinct()

        num_distinct = distinct.size(0)

        # Read once are the separator, the target without EOS, and the last token of a
        # warmup that was cut, after the prompts if the model has any.
        lens = torch.tensor([3, 2], device=device)[candidates.source_idx()[distinct]]

        num_read = int(lens.sum() + candidates.cut[distinct].sum())

        assert (num_distinct == 48) == (sampler is draw_distinct_candidates)

        assert num_items[-1] == num_read


@contextmanager
def record_num_items(module: Module) -> Iterator[list[int]]:
    """Lists the number of tokens of each call of ``module``."""
    num_items: list[int] = []

    handle = module.register_forward_pre_hook(
        lambda _, args: num_items.append(args[0].size(0))
    )

    try:
        yield num_items
    finally:
        handle.remove()


@each_kind
class TestScoreWarmups:
    def score(self, model: Model, candidates: Candidates) -> Tensor:
        wrapper = create_conditional_model(model)

        with torch.no_grad():
            source = wrapper.encode(*create_source(SOURCES))

        return score_warmups(
            wrapper,
            source,
            create_layout(),
            candidates,
            torch.full((2, 1), BOS_IDX, device=device),
        )

    def test_call_equals_plain_scores(self, kind: str) -> None:
        # Another model than the one that drew.
        candidates = draw_with(draw_candidates, CREATE_MODEL[kind](seed=1), 6, 3)

        model = CREATE_MODEL[kind](num_layers=2)

        log_probs = self.score(model, candidates)

        with torch.no_grad():
            expected, _ = score_plainly(model, SOURCES, TARGETS, candidates)

        assert_close(log_probs, expected)

        assert candidates.warmup_log_probs is not None

        assert (log_probs - candidates.warmup_log_probs).abs().max() > 0.1

    def test_call_works_when_all_warmups_are_empty(self, kind: str) -> None:
        candidates = create_candidates([[[]], [[]]], max_warmup_len=3)

        log_probs = self.score(CREATE_MODEL[kind](), candidates)

        _, expected = enumerate_log_probs(CREATE_MODEL[kind](), 3)

        assert_close(log_probs, expected[:, :1])

    def test_log_probs_sum_to_one(self, kind: str) -> None:
        candidates = create_candidates([list_sentences(2)] * 2, max_warmup_len=2)

        log_probs = self.score(CREATE_MODEL[kind](), candidates)

        assert_close(log_probs.exp().sum(dim=1), [1.0, 1.0])
