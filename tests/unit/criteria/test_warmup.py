# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import logging
import math
import weakref
from functools import partial
from typing import Any

import pytest
import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.runtime.dependency import DependencyContainer
from torch import Tensor
from torch.nn import Module
from torch.optim import SGD

from tests.common import (
    CREATE_MODEL,
    Model,
    assert_close,
    assert_equal,
    create_candidates,
    create_tiny_model,
    get_last_layer_norm,
)
from tests.plain import score_plainly, score_targets_plainly
from tests.unit.criteria.cases import (
    SOURCES,
    TARGETS,
    FixedSampler,
    SpiedSampler,
    compute_grads,
    create_batch,
    create_criterion,
    create_given_candidates,
    create_metric_bag,
    create_sharp_model,
    create_twins,
    each_keep,
    get_metric,
    measure_error,
    record_passes,
)
from tests.unit.sampling.cases import each_kind
from warmup_plugin.criteria import look as look_module
from warmup_plugin.criteria.base import Criterion, WeighedWarmup
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.health import CollapseDetector, WarmupShares
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import plain_rows
from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.metrics.training import register_metric_descriptors
from warmup_plugin.models.conditional import evaluation_mode
from warmup_plugin.objectives import (
    Objective,
    TemperedObjective,
    elbo_loss,
    joint_loss,
    marginal_loss,
)
from warmup_plugin.sampling import Candidates, WarmupSampler, draw_candidates
from warmup_plugin.sampling.samplers import (
    IndependentConfig,
    StochasticBeamSampler,
    create_independent_sampler,
)


def evaluate(
    model: Model,
    criterion: Criterion,
    *shown: int,
    batch: Seq2SeqBatch | None = None,
    step_nr: int = 1,
    seed: int = 0,
) -> tuple[list[list[WeighedWarmup]], dict[str, float]]:
    """Does what a validation does. Returns what is shown, and the metrics."""
    torch.manual_seed(seed)

    bag = create_metric_bag(criterion)

    with torch.inference_mode(), evaluation_mode(model):
        warmups = criterion.evaluate(
            batch or create_batch(), bag, step_nr=step_nr, shown=shown
        )

    return warmups, {
        name: get_metric(bag, name)
        for name in bag.metrics
        if name.startswith("warmup_") or name == "nll_loss"
    }


class TestComputeLoss:
    @each_kind
    def test_dropout_does_not_enter_weights(self, kind: str) -> None:
        def run(dropout_p: float) -> tuple[Candidates, dict[str, Any], float, Tensor]:
            model = CREATE_MODEL[kind](num_layers=2, dropout_p=dropout_p)

            sampler = SpiedSampler(draw_candidates)

            criterion = create_criterion(model, sampler=sampler, max_warmup_len=6)

            bag = create_metric_bag(criterion)

            with record_passes(model) as passes:
                grads = compute_grads(model, criterion, create_batch(), metric_bag=bag)

            assert model.training

            return sampler.drawn[0], passes[0], get_metric(bag, "nll_loss"), grads

        candidates, kwargs, loss, grads = run(0.5)

        plain_candidates, plain_kwargs, plain_loss, plain_grads = run(0.0)

        # Without noise the same is drawn and weighed alike.
        assert_equal(candidates.seqs, plain_candidates.seqs)

        assert_close(kwargs["coefs"].warmup, plain_kwargs["coefs"].warmup)
        assert_close(kwargs["coefs"].target, plain_kwargs["coefs"].target)

        assert loss == pytest.approx(plain_loss)

        # But there is dropout in the pass that learns.
        assert measure_error(grads, plain_grads) > 0.1

    @each_kind
    def test_cache_is_gone_when_candidates_are_learned_from(self, kind: str) -> None:
        model, _ = create_twins(kind)

        decoders = []

        def draw(*args: Any, **kwargs: Any) -> Candidates:
            candidates = draw_candidates(*args, **kwargs)

            assert candidates.past is not None

            decoders.append(weakref.ref(candidates.past.decoder))

            return candidates

        criterion = create_criterion(model, sampler=draw)

        def look(module: Module, args: Any, kwargs: dict[str, Any]) -> None:
            # Its keys and values would add to the largest memory of a step.
            assert decoders[0]() is None

        model.register_forward_pre_hook(look, with_kwargs=True)

        compute_grads(model, criterion, create_batch())

        assert len(decoders) == 1

    @pytest.mark.parametrize("max_num_tokens", [None, 40])
    @each_kind
    def test_all_parameters_learn_under_autocast(
        self, kind: str, max_num_tokens: int | None
    ) -> None:
        model, _ = create_twins(kind)

        criterion = create_criterion(
            model,
            # Given ones, since draws may differ by rounding.
            sampler=FixedSampler(create_given_candidates()),
            max_warmup_len=3,
            max_num_tokens=max_num_tokens,
            kl_weight=0.1,
            reference=CREATE_MODEL[kind](),
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

    @pytest.mark.parametrize(
        "sampler", [draw_candidates, FixedSampler(create_given_candidates())]
    )
    def test_call_raises_error_when_training_has_diverged(
        self, sampler: WarmupSampler
    ) -> None:
        model = create_tiny_model()

        # With `mass` and `top` the weights alone decide what is kept.
        criterion = create_criterion(
            model, sampler=sampler, max_warmup_len=3, keep=KeepSection(name="mass")
        )

        with torch.no_grad():
            next(get_last_layer_norm(model).parameters()).fill_(math.nan)

        with pytest.raises(WarmupError, match="not a number|loss is nan"):
            compute_grads(model, criterion, create_batch())

        # The model may be saved after the error as if nothing had happened.
        assert model.training

    @each_keep
    @each_kind
    def test_steps_lower_loss(self, kind: str, keep: KeepSection) -> None:
        model = CREATE_MODEL[kind]()

        criterion = create_criterion(model, max_warmup_len=2, num_warmups=3, keep=keep)

        batch = create_batch(SOURCES * 4, TARGETS * 4)

        optimizer = SGD(model.parameters(), lr=0.03)

        losses = []

        torch.manual_seed(0)

        for step_nr in range(1, 16):
            bag = create_metric_bag(criterion)

            loss = criterion.compute_loss(batch, bag, step_nr=step_nr)

            optimizer.zero_grad()

            loss.backward()

            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)

            optimizer.step()

            losses.append(get_metric(bag, "nll_loss"))

        assert losses[-1] < losses[0] - 0.5


class TestMetrics:
    def test_metrics_describe_candidates(self) -> None:
        model = create_tiny_model()

        candidates = create_candidates(
            [[[], [5], [5], [5, 6]], [[6, 6], [7, 7], [], []]], max_warmup_len=2
        )

        criterion = create_criterion(
            model,
            sampler=FixedSampler(candidates),
            max_warmup_len=2,
            num_warmups=4,
            publish_every_n_steps=10,
        )

        bag = create_metric_bag(criterion)

        criterion.compute_loss(create_batch(), bag, step_nr=10)

        def get(name: str) -> float:
            return get_metric(bag, f"warmup_{name}")

        assert get("k") == 4.0

        # Eight warmups of 0 + 1 + 1 + 2 + 2 + 2 + 0 + 0 tokens.
        assert get("len") == pytest.approx(8 / 8)
        assert get("empty") == pytest.approx(3 / 8)
        assert get("cut") == pytest.approx(3 / 8)
        assert get("duplicate") == pytest.approx(2 / 8)

        # Half of two of them.
        assert get("repetition") == pytest.approx(1 / 8)

        twin = create_tiny_model()

        with torch.no_grad():
            a, b = score_plainly(twin, SOURCES, TARGETS, candidates)

            plain_log_probs = score_targets_plainly(twin, SOURCES, TARGETS)

        # q is 0 here, so that P(c|x) counts in the weights.
        weights = (a + b).softmax(dim=1)

        expected = (1.0 / weights.square().sum(dim=1)).mean()

        assert get("ess") == pytest.approx(float(expected), rel=1e-5)

        # E[-log P(c|x)] by the same weights without y.
        expected = -(a.softmax(dim=1) * a).sum(dim=1).mean()

        assert get("entropy") == pytest.approx(float(expected), rel=1e-5)

        gains = b - plain_log_probs.unsqueeze(1)

        assert get("gain") == pytest.approx(float(gains.mean()), abs=1e-5)

        losses = math.log(4) - (a + b).logsumexp(dim=1)

        assert get_metric(bag, "nll_loss") == pytest.approx(
            float(losses.sum()) / 6, rel=1e-5
        )

    def test_metrics_are_averages_over_batches(self) -> None:
        draws = [
            create_candidates([[[], []]], max_warmup_len=2),
            create_candidates([[[5], [5, 6]]] * 3, max_warmup_len=2),
        ]

        criterion = create_criterion(
            create_tiny_model(), sampler=lambda *_, **__: draws.pop(0), num_warmups=2
        )

        bag = create_metric_bag(criterion)

        for n in (1, 3):
            batch = create_batch(SOURCES[:1] * n, TARGETS[:1] * n)

            criterion.compute_loss(batch, bag, step_nr=1)

        # Two of eight, three of eight, one of eight, and not the mean of two batches.
        assert get_metric(bag, "warmup_empty") == pytest.approx(2 / 8)
        assert get_metric(bag, "warmup_cut") == pytest.approx(3 / 8)
        assert get_metric(bag, "warmup_duplicate") == pytest.approx(1 / 8)
        assert get_metric(bag, "warmup_len") == pytest.approx(9 / 8)

    def test_metrics_do_not_depend_on_what_is_kept(self) -> None:
        seen = []

        for keep in (KeepSection(name="all"), KeepSection(name="resample", num=1)):
            model = create_tiny_model()

            criterion = create_criterion(model, keep=keep)

            bag = create_metric_bag(criterion)

            compute_grads(model, criterion, create_batch(), metric_bag=bag)

            seen.append([get_metric(bag, n) for n in ("nll_loss", "warmup_ess")])

        assert seen[0] == seen[1]

    def test_gain_is_measured_on_published_steps_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def record(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)

            return plain_rows(*args, **kwargs)

        monkeypatch.setattr(look_module, "plain_rows", record)

        criterion = create_criterion(create_tiny_model(), publish_every_n_steps=4)

        bag = create_metric_bag(criterion)

        for step_nr in range(1, 9):
            criterion.compute_loss(create_batch(), bag, step_nr=step_nr)

        assert len(calls) == 2

    def test_every_metric_has_a_name_for_people(self) -> None:
        criterion = create_criterion(create_tiny_model(), plain_directions=["a-b"])

        bag = create_metric_bag(criterion)

        container = DependencyContainer()

        register_metric_descriptors(container)

        known = {d.name for d in container.collection.resolve(MetricDescriptor)}

        added = {name for name in bag.metrics if name.startswith("warmup_")}

        # What the training unit adds itself, what a validation may score by, and the
        # samples of `mrt`.
        validated = {name for entry in METRICS.values() for name in entry.names}

        others = {name for name in known if name.startswith("sample_")}

        assert known - validated - others == added | {
            *("draw_share", "smoothed_loss", "time_left"),
            # Which the criterion adds as well, and renames.
            *("plain_loss", "smoothed_plain_loss"),
        }


class TestCollapse:
    def test_detector_sees_shares_of_training_batches(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []

        def record(self: CollapseDetector, step_nr: int, shares: WarmupShares) -> None:
            seen.append((step_nr, shares))

        monkeypatch.setattr(CollapseDetector, "update", record)

        model = create_tiny_model()

        criterion = create_criterion(
            model,
            sampler=FixedSampler(
                create_candidates(
                    [[[], [5], [5], [5, 6]], [[6, 6], [7, 7], [], []]], max_warmup_len=2
                )
            ),
            max_warmup_len=2,
        )

        criterion.compute_loss(create_batch(), create_metric_bag(criterion), step_nr=7)

        assert seen == [
            (
                7,
                WarmupShares(empty=3 / 8, cut=3 / 8, duplicate=2 / 8, repetition=1 / 8),
            )
        ]

        # A validation says nothing about training.
        evaluate(model, criterion)

        assert len(seen) == 1

    def test_run_warns_once_when_warmups_collapse(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        criterion = create_criterion(
            create_tiny_model(),
            sampler=FixedSampler(
                create_candidates([[[5, 6, 5, 6], [6, 5, 6, 5]]], max_warmup_len=4)
            ),
            num_warmups=2,
            max_warmup_len=4,
        )

        batch = create_batch(SOURCES[:1], TARGETS[:1])

        bag = create_metric_bag(criterion)

        with caplog.at_level(logging.WARNING, logger="fairseq2"):
            for step_nr in range(1, 100):
                criterion.compute_loss(batch, bag, step_nr=step_nr)

            assert caplog.messages == []

            for step_nr in range(100, 103):
                criterion.compute_loss(batch, bag, step_nr=step_nr)

        [message] = caplog.messages

        assert "50 % of their tokens are repetitions" in message
        assert "100 % are cut at 4 tokens" in message
        assert "up to step 100" in message


class TestEvaluate:
    @each_kind
    def test_call_works_in_inference_mode(self, kind: str) -> None:
        model, twin = create_twins(kind)

        sampler = SpiedSampler(draw_candidates)

        criterion = create_criterion(
            model, sampler=sampler, num_warmups=3, label_smoothing=0.3
        )

        shown, metrics = evaluate(model, criterion, 0)

        [candidates] = sampler.drawn

        # One source, its three warmups.
        assert [len(warmups) for warmups in shown] == [3]

        with torch.no_grad():
            a, b = score_plainly(twin, SOURCES, TARGETS, candidates)

            plain_log_probs = score_targets_plainly(twin, SOURCES, TARGETS)

        # Shares of the likelihood.
        weights = b.softmax(dim=1)

        for k, warmup in enumerate(shown[0]):
            seq_len = int(candidates.seq_lens[k])

            assert warmup.tokens == candidates.seqs[k, :seq_len].tolist()

            for actual, expected in (
                (warmup.warmup_log_prob, a),
                (warmup.target_log_prob, b),
                (warmup.weight, weights),
            ):
                assert actual == pytest.approx(float(expected[0, k]), abs=1e-4)

        losses = math.log(3) - b.logsumexp(dim=1)

        assert metrics["nll_loss"] == pytest.approx(float(losses.sum()) / 6, rel=1e-4)

        # Measured at every validation.
        gain = (b - plain_log_probs.unsqueeze(1)).mean()

        assert metrics["warmup_gain"] == pytest.approx(float(gain), abs=1e-4)

        # Only the draws of training are timed.
        values: dict[str, object] = {}

        criterion.process_metric_values(values, 1.0)

        assert values == {"draw_share": 0.0}

    def test_weights_are_corrected_by_proposal(self) -> None:
        model = create_sharp_model("transformer")

        candidates = create_given_candidates()

        criterion = create_criterion(
            model,
            sampler=FixedSampler(candidates),
            max_warmup_len=3,
            # Neither tempers what is shown or logged.
            weight_temperature=3.0,
            entropy_weight=1.0,
        )

        shown, metrics = evaluate(model, criterion, 0, 1)

        with torch.no_grad():
            a, b = score_plainly(
                create_sharp_model("transformer"), SOURCES, TARGETS, candidates
            )

        scores = a + b - candidates.proposal_log_probs

        weights = [[warmup.weight for warmup in warmups] for warmups in shown]

        assert_close(scores.softmax(dim=1), weights, rtol=1e-4, atol=1e-5)

        losses = math.log(4) - scores.logsumexp(dim=1)

        assert metrics["nll_loss"] == pytest.approx(float(losses.sum()) / 6, rel=1e-4)

    @each_kind
    def test_result_does_not_depend_on_budget(self, kind: str) -> None:
        model = create_sharp_model(kind)

        seen = [
            evaluate(
                model,
                create_criterion(
                    model,
                    sampler=FixedSampler(create_given_candidates()),
                    max_warmup_len=3,
                    max_num_tokens=max_num_tokens,
                    kl_weight=0.5,
                    reference=CREATE_MODEL[kind](),
                ),
                1,
            )
            for max_num_tokens in (None, 1)
        ]

        assert seen[0][1] == pytest.approx(seen[1][1], rel=1e-4)

        for one, other in zip(seen[0][0][0], seen[1][0][0]):
            assert one.tokens == other.tokens

            assert one.weight == pytest.approx(other.weight, abs=1e-5)

    @each_kind
    def test_training_goes_on_after_validation(self, kind: str) -> None:
        model, twin = create_twins(kind)

        criterion = create_criterion(model)

        evaluate(model, criterion)

        expected = compute_grads(twin, create_criterion(twin), create_batch())

        # No tensor of inference mode is left behind.
        grads = compute_grads(model, criterion, create_batch())

        assert_equal(grads, expected)

    def test_call_shows_what_is_asked_for(self) -> None:
        model = create_tiny_model()

        criterion = create_criterion(model)

        (first, second), _ = evaluate(model, criterion, 0, 1)

        assert evaluate(model, criterion)[0] == []
        assert evaluate(model, criterion, 1)[0] == [second]

        assert first != second


class TestCreateWarmupCriterion:
    @pytest.mark.parametrize(
        "sampler",
        [draw_candidates, create_independent_sampler(IndependentConfig(top_k=3))],
    )
    @pytest.mark.parametrize(
        "objective", [joint_loss, TemperedObjective(joint_loss, 2.0)]
    )
    def test_call_raises_error_when_warmups_may_be_equal(
        self, objective: Objective, sampler: WarmupSampler
    ) -> None:
        with pytest.raises(
            WarmupError,
            match="needs warmups that all differ; set `warmup.sampler.name` to `stoch",
        ):
            create_criterion(create_tiny_model(), objective=objective, sampler=sampler)

    @pytest.mark.parametrize(
        ("objective", "sampler"),
        [
            (joint_loss, StochasticBeamSampler()),
            (marginal_loss, StochasticBeamSampler()),
            (elbo_loss, draw_candidates),
            (partial(marginal_loss, control_variate=False), draw_candidates),
        ],
    )
    def test_call_accepts_all_others(
        self, objective: Objective, sampler: WarmupSampler
    ) -> None:
        criterion = create_criterion(
            create_tiny_model(), objective=objective, sampler=sampler, max_warmup_len=5
        )

        assert criterion.max_warmup_len == 5

    def test_call_raises_error_when_one_warmup_is_to_differ(self) -> None:
        sampler = StochasticBeamSampler()

        with pytest.raises(
            WarmupError, match="`warmup.num_warmups` is 1; raise it, or set"
        ):
            create_criterion(create_tiny_model(), sampler=sampler, num_warmups=1)

        create_criterion(create_tiny_model(), sampler=sampler, num_warmups=2)
