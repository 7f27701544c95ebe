# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a training step learns of other warmups than those that are drawn from P(c|x)."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from tests.common import (
    BOS_IDX,
    Model,
    assert_close,
    assert_equal,
    create_candidates,
    create_layout,
    create_source,
    create_tiny_model,
    device,
)
from tests.plain import score_plainly, score_targets_plainly
from tests.unit.criteria.cases import (
    SOURCES,
    TARGETS,
    SpiedSampler,
    create_batch,
    create_criterion,
    create_metric_bag,
    create_twins,
    differentiate,
    get_metric,
    measure_error,
    record_passes,
)
from tests.unit.sampling.cases import each_kind, to_lists
from warmup_plugin.criteria import Criterion
from warmup_plugin.criteria.base import WeighedWarmup
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.health import CollapseDetector
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.token_picks import TokenPick, write_warmups
from warmup_plugin.models.conditional import evaluation_mode
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.objectives import best_loss, elbo_loss, marginal_loss
from warmup_plugin.sampling import draw_candidates
from warmup_plugin.sampling.samplers import (
    IndependentConfig,
    StochasticBeamSampler,
    create_independent_sampler,
)


def step(
    model: Model, criterion: Criterion, step_nr: int, **kwargs: Any
) -> tuple[Tensor, dict[str, Any], dict[str, float]]:
    """Returns the gradient of a step, what its pass was given, and the metrics."""
    torch.manual_seed(0)

    bag = create_metric_bag(criterion)

    with record_passes(model) as passes:
        loss = criterion.compute_loss(create_batch(**kwargs), bag, step_nr=step_nr)

    [given] = passes

    metrics = {name: get_metric(bag, name) for name in bag.metrics}

    return differentiate(model, loss), given, metrics


def evaluate(
    model: Model, criterion: Criterion, step_nr: int, **kwargs: Any
) -> tuple[list[list[WeighedWarmup]], dict[str, float]]:
    bag = create_metric_bag(criterion)

    with torch.inference_mode(), evaluation_mode(model):
        warmups = criterion.evaluate(
            create_batch(**kwargs), bag, step_nr=step_nr, shown=[0, 1]
        )

    return warmups, {name: get_metric(bag, name) for name in bag.metrics}


@torch.no_grad()
def write_drafts(model: Model, max_warmup_len: int) -> list[list[int]]:
    """Writes the likeliest warmup of each source as generation does."""
    wrapper = create_conditional_model(model)

    source = wrapper.encode(*create_source(SOURCES))

    rows = torch.arange(len(SOURCES), device=device)

    decoder = wrapper.start(source, rows, 1 + max_warmup_len)

    logits = decoder.step(torch.full((len(SOURCES), 1), BOS_IDX, device=device))

    return write_warmups(
        decoder,
        logits,
        create_layout(),
        TokenPick(),
        max_warmup_len=max_warmup_len,
    ).seqs


@each_kind
class TestPlainPath:
    """P(y|x) without warmup is that of the empty one."""

    @pytest.mark.parametrize("plain_path", ["empty", "bare"])
    def test_sft_loss_and_gain_follow_it(self, kind: str, plain_path: str) -> None:
        model, twin = create_twins(kind)

        grads = []

        for sft_weight in (0.0, 0.4):
            criterion = create_criterion(
                model,
                max_warmup_len=2,
                sft_weight=sft_weight,
                label_smoothing=0.1,
                plain_path=plain_path,
                publish_every_n_steps=1,
            )

            sampler = SpiedSampler(draw_candidates)

            criterion._context.__dict__["sampler"] = sampler  # type: ignore[attr-defined]

            step_grads, given, metrics = step(model, criterion, 1)

            grads.append(step_grads)

        score = partial(
            score_targets_plainly,
            twin,
            SOURCES,
            TARGETS,
            with_separator=plain_path == "empty",
        )

        expected = differentiate(twin, -0.4 * score(label_smoothing=0.1).sum())

        assert measure_error(grads[1] - grads[0], expected) < 1e-4

        [candidates] = sampler.drawn

        with torch.no_grad():
            _, b = score_plainly(twin, SOURCES, TARGETS, candidates)

            gain = (b - score().unsqueeze(1)).mean()

        assert metrics["warmup_gain"] == pytest.approx(float(gain), abs=1e-4)


class TestDraft:
    @each_kind
    def test_nothing_is_learned_of_warmup(self, kind: str) -> None:
        model, twin = create_twins(kind)

        # None of these has a say.
        criterion = create_criterion(
            model,
            draft_steps=3,
            max_warmup_len=3,
            entropy_weight=0.5,
            kl_weight=0.5,
            reference=create_twins(kind)[1],
            label_smoothing=0.1,
            with_empty=True,
            sampler=create_independent_sampler(IndependentConfig()),
            keep=KeepSection(name="resample", num=1),
        )

        drafts = write_drafts(twin, 3)

        grads, given, metrics = step(model, criterion, 3)

        assert_equal(given["coefs"].warmup, [0.0, 0.0])
        assert_equal(given["coefs"].target, [-1.0, -1.0])

        rows = given["rows"]

        assert [
            seq[1 : 1 + len(draft)] for seq, draft in zip(rows.seqs.tolist(), drafts)
        ] == drafts

        candidates = create_candidates([[draft] for draft in drafts], 3)

        _, b = score_plainly(twin, SOURCES, TARGETS, candidates, label_smoothing=0.1)

        assert measure_error(grads, differentiate(twin, -b.sum())) < 1e-4

        with torch.no_grad():
            _, b = score_plainly(twin, SOURCES, TARGETS, candidates)

        assert metrics["nll_loss"] == pytest.approx(-float(b.sum()) / 6, rel=1e-4)
        assert metrics["warmup_k"] == 1.0

    def test_drafts_end_and_validation_has_none(self) -> None:
        model = create_tiny_model()

        criterion = create_criterion(model, draft_steps=3, max_warmup_len=3)

        def count(step_nr: int) -> float:
            return step(model, criterion, step_nr)[2]["warmup_k"]

        assert [count(n) for n in (1, 3, 4)] == [1.0, 1.0, 4.0]

        warmups, metrics = evaluate(model, criterion, 2)

        assert metrics["warmup_k"] == 4.0 == len(warmups[0])

    def test_collapse_of_drafts_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[int] = []

        monkeypatch.setattr(
            CollapseDetector, "update", lambda _, step_nr, shares: seen.append(step_nr)
        )

        model = create_tiny_model()

        criterion = create_criterion(
            model, draft_steps=1, max_warmup_len=2, len_schedule=[[2, 2], [3, 0]]
        )

        for step_nr in (1, 2, 3):
            step(model, criterion, step_nr)

        assert seen == [2]


class TestLenSchedule:
    SCHEDULE: Final = [[10, 3], [20, 1], [30, 0]]

    @each_kind
    def test_draws_are_as_long_as_it_says(self, kind: str) -> None:
        model, _ = create_twins(kind)

        asked = []

        def draw(*args: Any, max_warmup_len: int, **kwargs: Any) -> Any:
            asked.append(max_warmup_len)

            return draw_candidates(*args, max_warmup_len=max_warmup_len, **kwargs)

        criterion = create_criterion(
            model, sampler=draw, max_warmup_len=3, len_schedule=self.SCHEDULE
        )

        for step_nr in (1, 10, 15, 20):
            step(model, criterion, step_nr)

        # Of which the validation of a step is not behind.
        evaluate(model, criterion, 15)

        assert asked == [3, 3, 2, 1, 2]

    @pytest.mark.parametrize("objective", [marginal_loss, elbo_loss, best_loss])
    @each_kind
    def test_all_warmups_are_empty_at_length_zero(
        self, kind: str, objective: Any
    ) -> None:
        model, twin = create_twins(kind)

        criterion = create_criterion(
            model,
            objective=objective,
            max_warmup_len=3,
            len_schedule=self.SCHEDULE,
            entropy_weight=0.3,
            label_smoothing=0.1,
            draft_steps=99,
        )

        grads, given, metrics = step(model, criterion, 30)

        assert len(given["rows"].seq_lens) == 2

        log_probs = score_targets_plainly(twin, SOURCES, TARGETS, label_smoothing=0.1)

        assert measure_error(grads, differentiate(twin, -log_probs.sum())) < 1e-4

        with torch.no_grad():
            log_probs = score_targets_plainly(twin, SOURCES, TARGETS)

        loss = -float(log_probs.sum()) / 6

        assert metrics["nll_loss"] == pytest.approx(loss, rel=1e-4)
        assert (metrics["warmup_len"], metrics["warmup_empty"]) == (0.0, 1.0)

        warmups, metrics = evaluate(model, criterion, 31)

        assert metrics["nll_loss"] == pytest.approx(loss, rel=1e-4)
        assert metrics["warmup_gain"] == pytest.approx(0.0, abs=1e-5)

        assert [[w.tokens for w in ws] for ws in warmups] == [[[]], [[]]]

    def test_decoding_follows_it(self) -> None:
        criterion = create_criterion(
            create_tiny_model(),
            max_warmup_len=3,
            len_schedule=self.SCHEDULE,
            plain_directions=["a-b"],
        )

        lens = [criterion.get_max_warmup_len(n, None) for n in (0, 15, 20, 30, 99)]

        assert lens == [3, 2, 1, 0, 0]

        assert criterion.get_max_warmup_len(15, "b-a") == 2
        assert criterion.get_max_warmup_len(15, "a-b") is None


class TestWithEmpty:
    @pytest.mark.parametrize("temperature", [1.0, 1.5])
    @pytest.mark.parametrize("num_warmups", [2, 4])
    @each_kind
    def test_gradient_equals_plain_one(
        self, kind: str, num_warmups: int, temperature: float
    ) -> None:
        model, twin = create_twins(kind)

        sampler = SpiedSampler(
            create_independent_sampler(IndependentConfig(temperature=temperature))
        )

        criterion = create_criterion(
            model,
            sampler=sampler,
            num_warmups=num_warmups,
            max_warmup_len=2,
            with_empty=True,
        )

        grads, _, metrics = step(model, criterion, 1)

        [candidates] = sampler.drawn

        # The first of each source, and no other.
        assert (
            candidates.seq_lens.view(2, -1).eq(0).tolist()
            == [[True] + [False] * (num_warmups - 1)] * 2
        )

        a, b = score_plainly(twin, SOURCES, TARGETS, candidates)

        losses = marginal_loss(a, b, candidates.proposal_log_probs)

        assert measure_error(grads, differentiate(twin, losses.sum())) < 1e-4

        # Not the share of candidates that are empty, but P(c|x) of it.
        assert metrics["warmup_empty"] == pytest.approx(
            float(a[:, 0].detach().exp().mean()), rel=1e-4
        )

    @each_kind
    def test_terms_know_that_it_is_enumerated(self, kind: str) -> None:
        model, twin = create_twins(kind)

        reference = create_twins(kind)[1]

        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.mul_(0.9)

        sampler = SpiedSampler(create_independent_sampler(IndependentConfig()))

        grads: list[Tensor] = []

        metrics: dict[str, float] = {}

        for weight in (0.0, 1.0):
            criterion = create_criterion(
                model,
                sampler=sampler,
                num_warmups=2,
                max_warmup_len=2,
                with_empty=True,
                entropy_weight=0.7 * weight,
                kl_weight=0.4 * weight,
                reference=reference if weight else None,
            )

            step_grads, _, metrics = step(model, criterion, 1)

            grads.append(step_grads)

        candidates = sampler.drawn[-1]

        a, _ = score_plainly(twin, SOURCES, TARGETS, candidates)

        with torch.no_grad():
            reference_a, _ = score_plainly(reference, SOURCES, TARGETS, candidates)

        values = 0.7 * a.detach() + 0.4 * (a.detach() - reference_a)

        # Compared with the empty one, the only other candidate that does not depend on
        # the draw; of itself it learns nothing.
        coefs = (1.0 - a[:, 0].detach().exp()) * (values[:, 1] - values[:, 0])

        expected = differentiate(twin, (coefs * a[:, 1]).sum())

        assert measure_error(grads[1] - grads[0], expected) < 1e-4

        probs = torch.stack([a[:, 0].exp(), 1.0 - a[:, 0].exp()], dim=1).detach()

        entropy = -(probs * a.detach()).sum(dim=1).mean()

        assert metrics["warmup_entropy"] == pytest.approx(float(entropy), rel=1e-4)

    @pytest.mark.parametrize("sampler", [StochasticBeamSampler(), draw_candidates])
    def test_sampler_must_know_it(self, sampler: Any) -> None:
        with pytest.raises(
            WarmupError, match="`warmup.with_empty` is set, but .* to `independent`"
        ):
            create_criterion(create_tiny_model(), sampler=sampler, with_empty=True)


class TestPlainDirections:
    @pytest.mark.parametrize("max_num_tokens", [None, 4])
    @each_kind
    def test_each_pair_is_learned_as_its_direction_is(
        self, kind: str, max_num_tokens: int | None
    ) -> None:
        model, twin = create_twins(kind)

        sampler = SpiedSampler(draw_candidates)

        criterion = create_criterion(
            model,
            sampler=sampler,
            max_warmup_len=2,
            label_smoothing=0.1,
            sft_weight=0.3,
            max_num_tokens=max_num_tokens,
            plain_directions=["a-b"],
        )

        # The second one is plain: no candidate, no separator.
        grads, given, metrics = step(model, criterion, 1, directions=["b-a", "a-b"])

        [candidates] = sampler.drawn

        assert candidates.proposal_log_probs.shape == (1, 4)

        warmed = (SOURCES[:1], TARGETS[:1])

        a, b = score_plainly(twin, *warmed, candidates)

        loss = marginal_loss(a, b, candidates.proposal_log_probs).sum()

        u, v = torch.autograd.grad(loss, [a, b], retain_graph=True)

        _, smooth_b = score_plainly(twin, *warmed, candidates, label_smoothing=0.1)

        sft = score_targets_plainly(twin, *warmed, label_smoothing=0.1)

        plain = score_targets_plainly(
            twin, SOURCES[1:], TARGETS[1:], with_separator=False, label_smoothing=0.1
        )

        expected = (u * a + v * smooth_b).sum() - 0.3 * sft.sum() - plain.sum()

        assert measure_error(grads, differentiate(twin, expected)) < 1e-4

        # Each by itself, of four tokens and two, and both.
        losses = (float(loss.detach()), -float(plain.detach().sum()))

        assert metrics["warmup_loss"] == pytest.approx(losses[0] / 4, rel=1e-4)
        assert metrics["plain_loss"] == pytest.approx(losses[1] / 2, rel=1e-4)

        assert metrics["nll_loss"] == pytest.approx(sum(losses) / 6, rel=1e-4)

    def test_log_tells_what_the_losses_are(self) -> None:
        def name_values(label_smoothing: float, **values: object) -> set[str]:
            criterion = create_criterion(
                create_tiny_model(),
                label_smoothing=label_smoothing,
                plain_directions=["a-b"],
            )

            criterion.process_metric_values(values, 0.0)

            return set(values)

        both = {"warmup_loss": 1.0, "plain_loss": 2.0}

        assert name_values(0.0, **both) == {"warmup_loss", "plain_loss"}
        assert name_values(0.1, **both) == {"warmup_loss", "smoothed_plain_loss"}

        # The mean of nothing.
        assert name_values(0.1, warmup_loss=1.0, plain_loss=0.0) == {"warmup_loss"}

    def test_run_without_them_has_one_loss(self) -> None:
        bag = create_metric_bag(create_criterion(create_tiny_model()))

        assert [name for name in bag.metrics if name.endswith("_loss")] == ["nll_loss"]

    @each_kind
    def test_batch_may_be_plain(self, kind: str) -> None:
        model, twin = create_twins(kind)

        sampler = SpiedSampler(draw_candidates)

        criterion = create_criterion(
            model, sampler=sampler, sft_weight=0.3, plain_directions=["a-b", "c-b"]
        )

        grads, given, metrics = step(model, criterion, 1, directions=["c-b", "a-b"])

        assert sampler.drawn == []

        log_probs = score_targets_plainly(twin, SOURCES, TARGETS, with_separator=False)

        assert measure_error(grads, differentiate(twin, -log_probs.sum())) < 1e-4

        loss = -float(log_probs.detach().sum()) / 6

        assert metrics["nll_loss"] == pytest.approx(loss, rel=1e-4)

    @each_kind
    def test_beginning_of_plain_target_may_be_given(self, kind: str) -> None:
        model, twin = create_twins(kind)

        criterion = create_criterion(model, plain_directions=["a-b", "c-b"])

        grads, _, metrics = step(
            model, criterion, 1, directions=["c-b", "a-b"], given_lens=[2, 0]
        )

        log_probs = score_targets_plainly(twin, SOURCES, TARGETS, with_separator=False)

        given_log_probs = score_targets_plainly(
            twin, SOURCES[:1], [TARGETS[0][:3]], with_separator=False
        )

        expected = given_log_probs.sum() - log_probs.sum()

        assert measure_error(grads, differentiate(twin, expected)) < 1e-4

        loss = float(expected.detach()) / 4

        assert metrics["nll_loss"] == pytest.approx(loss, rel=1e-4)

    def test_direction_with_warmups_is_not_touched(self) -> None:
        grads = []

        for plain_directions in ((), ("b-a",)):
            model = create_tiny_model()

            criterion = create_criterion(model, plain_directions=plain_directions)

            grads.append(step(model, criterion, 1, directions=["a-b", "a-b"])[0])

        assert_close(grads[0], grads[1])

    @each_kind
    def test_evaluate_scores_both(self, kind: str) -> None:
        model, twin = create_twins(kind)

        sampler = SpiedSampler(draw_candidates)

        criterion = create_criterion(
            model, sampler=sampler, max_warmup_len=2, plain_directions=["a-b"]
        )

        warmups, metrics = evaluate(model, criterion, 1, directions=["a-b", "b-a"])

        [candidates] = sampler.drawn

        with torch.no_grad():
            a, b = score_plainly(twin, SOURCES[1:], TARGETS[1:], candidates)

            plain = score_targets_plainly(
                twin, SOURCES[:1], TARGETS[:1], with_separator=False
            )

        loss = marginal_loss(a, b, candidates.proposal_log_probs)

        assert metrics["warmup_loss"] == pytest.approx(float(loss) / 2, rel=1e-4)
        assert metrics["plain_loss"] == pytest.approx(-float(plain) / 4, rel=1e-4)

        assert metrics["nll_loss"] == pytest.approx(float(loss - plain) / 6, rel=1e-4)

        # Those of the second source, of which the first has none.
        assert warmups[0] == []

        assert [tuple(w.tokens) for w in warmups[1]] == to_lists(candidates)

    def test_divergence_of_plain_batch_is_seen(self) -> None:
        model = create_tiny_model()

        criterion = create_criterion(model, plain_directions=["a-b"])

        with torch.no_grad():
            next(model.parameters()).fill_(torch.nan)

        with pytest.raises(WarmupError, match="loss is nan"):
            step(model, criterion, 1, directions=["a-b", "a-b"])
