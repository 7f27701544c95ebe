# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import create_fake_gangs
from fairseq2.metrics import Mean, MetricBag
from fairseq2.metrics.common import add_seq2seq_batch_metrics
from fairseq2.models.transformer import TransformerModel
from torch import Tensor
from torch.optim import SGD

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    PAD_IDX,
    SEPARATOR_IDX,
    VOCAB_SIZE,
    WORDS,
    assert_close,
    assert_equal,
    create_candidates,
    create_layout,
    create_source,
    create_tiny_model,
    device,
    get_last_layer_norm,
    list_sentences,
    pad_rows,
)
from warmup_plugin.criteria import (
    Criterion,
    CriterionContext,
    CriterionSection,
    WarmupSection,
)
from warmup_plugin.criteria import warmup as warmup_module
from warmup_plugin.criteria.base import (
    CriterionTrainUnit,
    WeighedWarmup,
    num_target_tokens,
)
from warmup_plugin.criteria.sft import create_sft_criterion, update_loss
from warmup_plugin.criteria.warmup import create_warmup_criterion
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import plain_rows
from warmup_plugin.models.conditional import (
    create_conditional_model,
    evaluation_mode,
    make_scorable,
)
from warmup_plugin.objectives import Objective, best_loss, elbo_loss, marginal_loss
from warmup_plugin.sampling import Candidates, draw_candidates
from warmup_plugin.scoring import WeighedCandidates, weigh_candidates

SOURCES = [[5, 6, EOS_IDX], [7, 7, 5, 6, 5, EOS_IDX]]
TARGETS = [[BOS_IDX, 6, 5, 7, EOS_IDX], [BOS_IDX, 7, EOS_IDX]]


def create_sharp_model() -> TransformerModel:
    """
    Creates a model whose output depends on its warmup: the share of P(c|x) in the
    gradient of P(y|x) is 15 %, so that a tolerance of 3 % sees it.
    """
    model = create_tiny_model(num_layers=2, seed=1)

    with torch.no_grad():
        for parameter in get_last_layer_norm(model).parameters():
            parameter.mul_(2.0)

    return model


def create_batch(
    sources: Sequence[Sequence[int]] = SOURCES,
    targets: Sequence[Sequence[int]] = TARGETS,
) -> Seq2SeqBatch:
    return Seq2SeqBatch(*pad_rows(sources), *pad_rows(targets))


def create_criterion(
    model: TransformerModel,
    factory: Callable[[CriterionContext], Criterion] = create_warmup_criterion,
    *,
    objective: Objective = marginal_loss,
    label_smoothing: float = 0.0,
    publish_every_n_steps: int | None = None,
    **kwargs: Any,
) -> Criterion:
    """
    Creates a criterion and switches ``model`` to training.

    :param kwargs: The fields of ``WarmupSection``.
    """
    make_scorable(model)

    model.train()

    context = CriterionContext(
        model=create_conditional_model(model),
        dp_model=model,
        layout=create_layout(),
        gangs=create_fake_gangs(device),
        label_smoothing=label_smoothing,
        warmup=WarmupSection(**kwargs),
        objective=objective,
        publish_every_n_steps=publish_every_n_steps,
    )

    return factory(context)


def create_metric_bag(criterion: Criterion) -> MetricBag:
    metric_bag = MetricBag(device)

    add_seq2seq_batch_metrics(metric_bag)

    metric_bag.add("nll_loss", Mean())

    criterion.add_metrics(metric_bag)

    return metric_bag


def get_metric(metric_bag: MetricBag, name: str) -> float:
    return float(metric_bag.metrics[name].compute())


def differentiate(model: TransformerModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def compute_grads(
    model: TransformerModel,
    criterion: Criterion,
    batch: Seq2SeqBatch,
    *,
    seed: int = 0,
) -> list[Tensor]:
    torch.manual_seed(seed)

    loss = criterion.compute_loss(batch, create_metric_bag(criterion), step_nr=1)

    return differentiate(model, loss)


def assert_grads_close(
    actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float
) -> None:
    """Asserts that the relative error of all gradients as one vector is small."""
    assert measure_error(actual, expected) < tolerance


def measure_error(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    def flatten(grads: Sequence[Tensor]) -> Tensor:
        return torch.cat([grad.flatten() for grad in grads])

    error = (flatten(actual) - flatten(expected)).norm() / flatten(expected).norm()

    return float(error)


def draw_again(
    model: TransformerModel,
    batch: Seq2SeqBatch,
    *,
    num_warmups: int,
    max_warmup_len: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Candidates:
    """Draws what a criterion draws that begins with the same seed."""
    torch.manual_seed(seed)

    conditional = create_conditional_model(model)

    with torch.no_grad(), evaluation_mode(model):
        return draw_candidates(
            conditional,
            conditional.encode(*batch.as_source_input()),
            create_layout(),
            batch.target_seqs[:, :1],
            num_warmups=num_warmups,
            max_warmup_len=max_warmup_len,
            temperature=temperature,
        )


def compute_reference_grads(
    model: TransformerModel,
    candidates: Candidates,
    objective: Objective,
    *,
    label_smoothing: float = 0.0,
    sft_weight: float = 0.0,
) -> tuple[float, list[Tensor]]:
    """
    Does what the criterion does as one would first write it: each source repeated K
    times, one forward of the plain model, autograd through the objective.
    """
    num_warmups = candidates.num_warmups

    # Of every row its source, its sequence and the number of its warmup's tokens that
    # count.
    sources, seqs, num_counted = [], [], []

    for row, (seq, seq_len, cut) in enumerate(
        zip(
            candidates.seqs.tolist(),
            candidates.seq_lens.tolist(),
            candidates.cut.tolist(),
        )
    ):
        warmup, target = seq[:seq_len], TARGETS[row // num_warmups]

        sources.append(SOURCES[row // num_warmups])

        seqs.append([BOS_IDX, *warmup, SEPARATOR_IDX, *target[1:]])

        num_counted.append(seq_len + (not cut))

    inputs = (*create_source(sources), *create_source([seq[:-1] for seq in seqs]))

    targets, target_lens = pad_rows([seq[1:] for seq in seqs])

    # (B, S)
    at = torch.arange(targets.size(1), device=device).expand_as(targets)

    in_warmup = at < torch.tensor(num_counted, device=device).unsqueeze(1)

    begins = candidates.seq_lens.unsqueeze(1) + 1

    in_target = (at >= begins) & (at < torch.tensor(target_lens).unsqueeze(1))

    # (B, S, V)
    logits = TransformerModel.forward(model, *inputs)

    assert isinstance(logits, Tensor)

    banned = torch.ones(VOCAB_SIZE, dtype=torch.bool, device=device)

    banned[[SEPARATOR_IDX, *WORDS]] = False

    warmup_log_probs = logits.masked_fill(banned, -1e9).log_softmax(dim=-1)

    # (B, S) -> (N, K)
    a = warmup_log_probs.gather(2, targets.unsqueeze(2)).squeeze(2)

    a = a.masked_fill(~in_warmup, 0.0).sum(dim=1).view(-1, num_warmups)

    def compute_target_log_probs(label_smoothing: float) -> Tensor:
        nll = TransformerModel.forward(
            model,
            *inputs,
            targets,
            label_smoothing=label_smoothing,
            reduction="none",  # type: ignore[call-overload]
        )

        nll = nll.view_as(targets).masked_fill(~in_target, 0.0)

        return -nll.sum(dim=1).view(-1, num_warmups)  # type: ignore[no-any-return]

    b = compute_target_log_probs(0.0)

    losses = objective(a, b, candidates.proposal_log_probs)

    if label_smoothing == 0.0:
        loss = losses.sum()
    else:
        # The weights know nothing of smoothing; only what is weighed is smoothed.
        a_coefs, b_coefs = torch.autograd.grad(losses.sum(), [a, b], retain_graph=True)

        loss = (a_coefs * a).sum()

        loss = loss + (b_coefs * compute_target_log_probs(label_smoothing)).sum()

    if sft_weight > 0.0:
        plain_loss = TransformerModel.forward(
            model,
            *create_source(SOURCES),
            *create_source([target[:-1] for target in TARGETS]),
            pad_rows([target[1:] for target in TARGETS])[0],
            label_smoothing=label_smoothing,
        )

        loss = loss + sft_weight * plain_loss

    return float(losses.detach().sum()), differentiate(model, loss)


class TestSftCriterion:
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
    def test_compute_loss_equals_cross_entropy(self, label_smoothing: float) -> None:
        model = create_tiny_model()

        criterion = create_criterion(
            model, create_sft_criterion, label_smoothing=label_smoothing
        )

        metric_bag = create_metric_bag(criterion)

        loss = criterion.compute_loss(create_batch(), metric_bag, step_nr=1)

        logits = TransformerModel.forward(
            model,
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

        for x, y in zip(differentiate(model, loss), differentiate(model, expected)):
            assert_close(x, y, rtol=1e-4, atol=1e-5)

        # Six tokens: three words, one word, two EOS.
        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            float(expected.detach()) / 6
        )

        assert criterion.max_warmup_len is None

    def test_evaluate_does_not_smooth(self) -> None:
        model = create_tiny_model()

        criterion, smooth_criterion = (
            create_criterion(model, create_sft_criterion, label_smoothing=share)
            for share in (0.0, 0.3)
        )

        metric_bag = create_metric_bag(smooth_criterion)

        with torch.inference_mode(), evaluation_mode(model):
            shown = smooth_criterion.evaluate(create_batch(), metric_bag, shown=[0, 1])

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


class TestUpdateLoss:
    def test_call_averages_over_tokens_of_all_batches(self) -> None:
        metric_bag = MetricBag(device)

        metric_bag.add("nll_loss", Mean())

        # Four tokens to predict and two.
        for loss, target in zip((8.0, 1.0), TARGETS):
            batch = create_batch(SOURCES[:1], [target])

            update_loss(torch.tensor(loss, device=device), batch, metric_bag)

        assert get_metric(metric_bag, "nll_loss") == pytest.approx(9.0 / 6)

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_call_raises_error_when_loss_is_not_finite(self, value: float) -> None:
        metric_bag = MetricBag(device)

        metric_bag.add("nll_loss", Mean())

        with pytest.raises(WarmupError, match="diverged"):
            update_loss(torch.tensor(value, device=device), create_batch(), metric_bag)


class TestWarmupCriterion:
    @pytest.mark.parametrize(
        ("objective", "kwargs"),
        [
            (marginal_loss, {}),
            (marginal_loss, {"temperature": 0.6}),
            (marginal_loss, {"label_smoothing": 0.2}),
            (marginal_loss, {"sft_weight": 0.5}),
            (marginal_loss, {"sft_weight": 0.5, "label_smoothing": 0.2}),
            (partial(marginal_loss, control_variate=False), {"temperature": 1.5}),
            (elbo_loss, {}),
            (best_loss, {}),
        ],
    )
    def test_gradient_equals_plain_reference(
        self, objective: Objective, kwargs: dict[str, Any]
    ) -> None:
        model = create_tiny_model(num_layers=2)

        criterion = create_criterion(
            model, objective=objective, num_warmups=5, max_warmup_len=3, **kwargs
        )

        batch = create_batch()

        torch.manual_seed(0)

        metric_bag = create_metric_bag(criterion)

        loss = criterion.compute_loss(batch, metric_bag, step_nr=1)

        grads = differentiate(model, loss)

        candidates = draw_again(
            model,
            batch,
            num_warmups=5,
            max_warmup_len=3,
            temperature=kwargs.get("temperature", 1.0),
        )

        expected_loss, expected_grads = compute_reference_grads(
            model,
            candidates,
            objective,
            label_smoothing=kwargs.get("label_smoothing", 0.0),
            sft_weight=kwargs.get("sft_weight", 0.0),
        )

        assert_grads_close(grads, expected_grads, 1e-4)

        # The value of the objective is logged, not that of the surrogate.
        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            expected_loss / 6, rel=1e-4
        )

        # All kinds of warmups were among them.
        assert bool(candidates.cut.any()) and not bool(candidates.cut.all())

    def test_label_smoothing_does_not_enter_weights(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = spy_on_weights(monkeypatch)

        for label_smoothing in (0.0, 0.5):
            model = create_tiny_model()

            criterion = create_criterion(model, label_smoothing=label_smoothing)

            compute_grads(model, criterion, create_batch())

        (_, plain), (_, smooth) = seen

        assert_equal(plain.target_log_probs, smooth.target_log_probs)
        assert_equal(plain.target_coefs, smooth.target_coefs)
        assert_equal(plain.warmup_coefs, smooth.warmup_coefs)
        assert_equal(plain.losses, smooth.losses)

    def test_dropout_does_not_enter_weights(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = spy_on_weights(monkeypatch)

        model = create_tiny_model(num_layers=2, dropout_p=0.5)

        criterion = create_criterion(model, max_warmup_len=6)

        grads = compute_grads(model, criterion, create_batch())

        assert model.training

        plain_model = create_tiny_model(num_layers=2)

        plain_grads = compute_grads(
            plain_model,
            create_criterion(plain_model, max_warmup_len=6),
            create_batch(),
        )

        (candidates, weighed), (plain_candidates, plain_weighed) = seen

        # Without noise the same is drawn and weighed alike.
        assert_equal(candidates.seqs, plain_candidates.seqs)
        assert_close(weighed.warmup_log_probs, plain_weighed.warmup_log_probs)
        assert_close(weighed.target_log_probs, plain_weighed.target_log_probs)

        # But there is dropout in the pass that learns.
        assert measure_error(grads, plain_grads) > 0.1

    def test_gradient_is_unbiased_when_few_are_kept(self) -> None:
        # One source many times is many draws in one pass.
        num_draws = 600

        model = create_sharp_model()

        batch = create_batch(SOURCES[:1] * num_draws, TARGETS[:1] * num_draws)

        # The same seed, hence the same candidates; what is kept differs.
        all_grads, one_grads, two_grads = (
            compute_grads(
                model,
                create_criterion(
                    model, num_warmups=4, max_warmup_len=2, num_kept=num_kept
                ),
                batch,
            )
            for num_kept in (None, 1, 2)
        )

        assert 0.0 < measure_error(one_grads, all_grads) < 0.06
        assert 0.0 < measure_error(two_grads, all_grads) < 0.03

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_gradient_approaches_that_of_enumeration(self, temperature: float) -> None:
        model = create_sharp_model()

        source, target = SOURCES[0], TARGETS[0]

        # The exact sum over all thirteen warmups of at most two words.
        candidates = create_candidates([list_sentences(2)], max_warmup_len=2)

        def sum_exactly(
            warmup_log_probs: Tensor,
            target_log_probs: Tensor,
            proposal_log_probs: Tensor,
        ) -> Tensor:
            # It misses none, or P(c|x) would not sum to 1.
            assert_close(warmup_log_probs.exp().sum(dim=1), [1.0])

            return -torch.logsumexp(warmup_log_probs + target_log_probs, dim=1)

        exact_loss, exact_grads = compute_reference_grads(
            model, candidates, sum_exactly
        )

        num_draws = 250

        batch = create_batch([source] * num_draws, [target] * num_draws)

        criterion = create_criterion(
            model, num_warmups=16, max_warmup_len=2, temperature=temperature
        )

        torch.manual_seed(0)

        metric_bag = create_metric_bag(criterion)

        loss = criterion.compute_loss(batch, metric_bag, step_nr=1)

        grads = [grad / num_draws for grad in differentiate(model, loss)]

        assert_grads_close(grads, exact_grads, 0.03)

        # Four tokens to predict.
        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            exact_loss / 4, rel=0.005
        )

    def test_all_parameters_learn_under_autocast(self) -> None:
        model = create_tiny_model(num_layers=2)

        criterion = create_criterion(model, max_warmup_len=3)

        torch.manual_seed(0)

        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = criterion.compute_loss(
                create_batch(), create_metric_bag(criterion), step_nr=1
            )

        loss.backward()  # type: ignore[no-untyped-call]

        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name

        fp32_grads = compute_grads(model, criterion, create_batch())

        grads = [parameter.grad for parameter in model.parameters()]

        # The draws may differ by rounding, so that only the size is compared.
        for (name, _), grad, fp32_grad in zip(
            model.named_parameters(), grads, fp32_grads
        ):
            assert grad is not None

            if fp32_grad.norm() > 1e-4:
                assert grad.norm() > 0.0, name

    def test_compute_loss_raises_error_when_training_has_diverged(self) -> None:
        model = create_tiny_model()

        criterion = create_criterion(model)

        with torch.no_grad():
            next(get_last_layer_norm(model).parameters()).fill_(math.nan)

        with pytest.raises(WarmupError, match="not a number"):
            compute_grads(model, criterion, create_batch())

        # The model may be saved after the error as if nothing had happened.
        assert model.training

    def test_metrics_describe_candidates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        candidates = create_candidates(
            [[[], [5], [5], [5, 6]], [[6, 6], [7, 7], [], []]], max_warmup_len=2
        )

        monkeypatch.setattr(
            warmup_module, "draw_candidates", lambda *_, **__: candidates
        )

        seen = spy_on_weights(monkeypatch)

        model = create_tiny_model()

        criterion = create_criterion(
            model, max_warmup_len=2, num_warmups=4, publish_every_n_steps=10
        )

        metric_bag = create_metric_bag(criterion)

        criterion.compute_loss(create_batch(), metric_bag, step_nr=10)

        def get(name: str) -> float:
            return get_metric(metric_bag, f"warmup_{name}")

        assert get("k") == 4.0

        # Eight warmups of 0 + 1 + 1 + 2 + 2 + 2 + 0 + 0 tokens.
        assert get("len") == pytest.approx(8 / 8)
        assert get("empty") == pytest.approx(3 / 8)
        assert get("cut") == pytest.approx(3 / 8)
        assert get("duplicate") == pytest.approx(2 / 8)

        [(_, weighed)] = seen

        # q is 0 here, so that P(c|x) counts in the weights.
        weights = (weighed.warmup_log_probs + weighed.target_log_probs).softmax(dim=1)

        expected = (1.0 / weights.square().sum(dim=1)).mean()

        assert get("ess") == pytest.approx(float(expected), rel=1e-5)

        plain_log_probs = -self._get_plain_nll(model)

        gains = weighed.target_log_probs - plain_log_probs.unsqueeze(1)

        assert get("gain") == pytest.approx(float(gains.mean()), abs=1e-5)

        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            float(weighed.losses.sum()) / 6, rel=1e-5
        )

    @staticmethod
    @torch.no_grad()
    def _get_plain_nll(model: TransformerModel) -> Tensor:
        nll: Tensor = TransformerModel.forward(
            model,
            *create_source(SOURCES),
            *create_source([target[:-1] for target in TARGETS]),
            pad_rows([target[1:] for target in TARGETS])[0],
            reduction="none",  # type: ignore[call-overload]
        )

        return nll.sum(dim=1)

    def test_metrics_are_averages_over_batches(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        draws = iter(
            [
                create_candidates([[[], []]], max_warmup_len=2),
                create_candidates([[[5], [5, 6]]] * 3, max_warmup_len=2),
            ]
        )

        monkeypatch.setattr(
            warmup_module, "draw_candidates", lambda *_, **__: next(draws)
        )

        criterion = create_criterion(create_tiny_model(), num_warmups=2)

        metric_bag = create_metric_bag(criterion)

        for n in (1, 3):
            batch = create_batch(SOURCES[:1] * n, TARGETS[:1] * n)

            criterion.compute_loss(batch, metric_bag, step_nr=1)

        # Two of eight, three of eight, one of eight, and not the mean of two batches.
        assert get_metric(metric_bag, "warmup_empty") == pytest.approx(2 / 8)
        assert get_metric(metric_bag, "warmup_cut") == pytest.approx(3 / 8)
        assert get_metric(metric_bag, "warmup_duplicate") == pytest.approx(1 / 8)
        assert get_metric(metric_bag, "warmup_len") == pytest.approx(9 / 8)

    def test_gain_is_measured_on_published_steps_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls = []

        def record(*args: Any) -> Any:
            calls.append(1)

            return plain_rows(*args)

        monkeypatch.setattr(warmup_module, "plain_rows", record)

        criterion = create_criterion(create_tiny_model(), publish_every_n_steps=4)

        metric_bag = create_metric_bag(criterion)

        for step_nr in range(1, 9):
            criterion.compute_loss(create_batch(), metric_bag, step_nr=step_nr)

        assert len(calls) == 2

    def test_evaluate_works_in_inference_mode(self) -> None:
        model = create_tiny_model()

        criterion = create_criterion(model, num_warmups=3, label_smoothing=0.3)

        metric_bag = create_metric_bag(criterion)

        torch.manual_seed(0)

        with torch.inference_mode(), evaluation_mode(model):
            shown = criterion.evaluate(create_batch(), metric_bag, shown=[0])

        # One source, its three warmups.
        assert [len(warmups) for warmups in shown] == [3]

        candidates = draw_again(model, create_batch(), num_warmups=3, max_warmup_len=8)

        for k, warmup in enumerate(shown[0]):
            seq_len = int(candidates.seq_lens[k])

            assert warmup.tokens == candidates.seqs[k, :seq_len].tolist()

            assert warmup.warmup_log_prob == pytest.approx(
                float(candidates.proposal_log_probs[0, k]), abs=1e-4
            )

        # Shares of the likelihood.
        total = sum(math.exp(warmup.target_log_prob) for warmup in shown[0])

        for warmup in shown[0]:
            share = math.exp(warmup.target_log_prob) / total

            assert warmup.weight == pytest.approx(share, rel=1e-3)

        expected, _ = compute_reference_grads(model, candidates, marginal_loss)

        assert get_metric(metric_bag, "nll_loss") == pytest.approx(
            expected / 6, rel=1e-4
        )

        # Measured at every validation.
        assert get_metric(metric_bag, "warmup_gain") != 0.0

        assert criterion.draw_time.get_elapsed_time() == 0.0

    def test_evaluate_shows_what_is_asked_for(self) -> None:
        model = create_tiny_model()

        criterion = create_criterion(model)

        def evaluate(*shown: int) -> list[list[WeighedWarmup]]:
            torch.manual_seed(0)

            with torch.inference_mode(), evaluation_mode(model):
                return criterion.evaluate(
                    create_batch(), create_metric_bag(criterion), shown=shown
                )

        first, second = evaluate(0, 1)

        assert evaluate() == []
        assert evaluate(1) == [second]
        assert first != second

    def test_factory_raises_error_when_more_are_kept_than_drawn(self) -> None:
        with pytest.raises(WarmupError, match="`warmup.num_kept` is 5"):
            create_criterion(create_tiny_model(), num_warmups=4, num_kept=5)

        criterion = create_criterion(create_tiny_model(), num_warmups=4, num_kept=4)

        assert criterion.max_warmup_len == 8

    @pytest.mark.parametrize("num_kept", [None, 1])
    def test_steps_lower_loss(self, num_kept: int | None) -> None:
        model = create_tiny_model()

        criterion = create_criterion(model, max_warmup_len=2, num_kept=num_kept)

        batch = create_batch(SOURCES * 4, TARGETS * 4)

        optimizer = SGD(model.parameters(), lr=0.02)

        losses = []

        torch.manual_seed(0)

        for step_nr in range(1, 25):
            metric_bag = create_metric_bag(criterion)

            loss = criterion.compute_loss(batch, metric_bag, step_nr=step_nr)

            optimizer.zero_grad()

            loss.backward()  # type: ignore[no-untyped-call]

            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)

            optimizer.step()

            losses.append(get_metric(metric_bag, "nll_loss"))

        assert losses[-1] < losses[0] - 0.5


def spy_on_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[Candidates, WeighedCandidates]]:
    """Records what a criterion draws and how it weighs it."""
    seen = []

    def record(*args: Any) -> WeighedCandidates:
        weighed = weigh_candidates(*args)

        seen.append((args[3], weighed))

        return weighed

    monkeypatch.setattr(warmup_module, "weigh_candidates", record)

    return seen


class TestCriterionTrainUnit:
    @pytest.mark.parametrize("factory", [create_sft_criterion, create_warmup_criterion])
    def test_process_batch_returns_sum_and_target_tokens(
        self, factory: Callable[[CriterionContext], Criterion]
    ) -> None:
        model = create_tiny_model()

        criterion = create_criterion(model, factory)

        steps: list[int] = []

        optimizer = SGD(model.parameters(), lr=0.1)

        unit = CriterionTrainUnit(
            criterion, optimizer, create_fake_gangs(device), on_step=steps.append
        )

        metric_bag = MetricBag(device)

        unit.prepare_metric_bag(metric_bag)

        unit.set_step_nr(3)

        assert steps == [3]

        torch.manual_seed(0)

        loss, num_targets = unit.process_batch(create_batch(), metric_bag)

        torch.manual_seed(0)

        expected = criterion.compute_loss(
            create_batch(), create_metric_bag(criterion), step_nr=3
        )

        assert_close(loss, expected)

        # Three words and EOS, one word and EOS; fairseq2 itself would say 17.
        assert num_targets == num_target_tokens(create_batch()) == 6

        # Nine source tokens.
        assert get_metric(metric_bag, "num_examples") == 2
        assert get_metric(metric_bag, "num_source_elements") == 9
        assert get_metric(metric_bag, "num_target_elements") == 6
        assert get_metric(metric_bag, "num_elements") == 15

    def test_draw_share_is_share_of_step(self) -> None:
        model = create_tiny_model()

        optimizer = SGD(model.parameters(), lr=0.1)

        criterion = create_criterion(model)

        unit = CriterionTrainUnit(
            criterion, optimizer, create_fake_gangs(device), on_step=lambda _: None
        )

        metric_bag = MetricBag(device)

        unit.prepare_metric_bag(metric_bag)

        unit.set_step_nr(1)

        loss, _ = unit.process_batch(create_batch(), metric_bag)

        assert isinstance(loss, Tensor)

        loss.backward()  # type: ignore[no-untyped-call]

        optimizer.step()

        values: dict[str, object] = {}

        unit.process_metric_values(values)

        share = values["draw_share"]

        assert isinstance(share, float)

        assert 0.0 < share < 1.0

        # Both clocks begin anew.
        assert criterion.draw_time.get_elapsed_time() == 0.0

        values = {}

        unit.process_metric_values(values)

        assert "draw_share" not in values


class TestSections:
    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("num_warmups", 0),
            ("max_warmup_len", 0),
            ("temperature", 0.0),
            ("num_kept", 0),
            ("sft_weight", -0.1),
        ],
    )
    def test_warmup_section_names_invalid_field(
        self, field: str, value: object
    ) -> None:
        section = WarmupSection(**{field: value})  # type: ignore[arg-type]

        [message] = section.validate().errors

        assert f"`{field}`" in message

    def test_defaults_are_valid(self) -> None:
        assert len(WarmupSection().validate().errors) == 0
        assert len(CriterionSection().validate().errors) == 0

    @pytest.mark.parametrize("label_smoothing", [-0.1, 1.0])
    def test_criterion_section_names_invalid_field(
        self, label_smoothing: float
    ) -> None:
        section = CriterionSection(label_smoothing=label_smoothing)

        [message] = section.validate().errors

        assert "`label_smoothing`" in message
