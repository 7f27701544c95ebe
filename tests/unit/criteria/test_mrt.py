# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Minimum risk training against the sum over all outputs that there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, Final, final

import pytest
import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.metrics import MetricBag
from torch import Tensor

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    EOS_IDX,
    SEPARATOR_IDX,
    UNK_IDX,
    VOCAB_SIZE,
    WORDS,
    Model,
    assert_close,
    device,
    forward_alone,
    pad_rows,
)
from tests.number_codec import NumberCodec
from tests.unit.criteria.cases import (
    SOURCES,
    TARGETS,
    compute_grads,
    create_batch,
    create_criterion,
    create_metric_bag,
    differentiate,
    get_metric,
    measure_error,
    record_passes,
)
from warmup_plugin.criteria import Criterion
from warmup_plugin.criteria.mrt import create_mrt_criterion
from warmup_plugin.criteria.mrt_config import MrtConfig
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import References
from warmup_plugin.models.conditional import evaluation_mode
from warmup_plugin.objectives import expected_risk_loss, score_function_loss

CODEC: Final = NumberCodec(reads_prompts=False)

# Of a warmup and an output.
MAX_LENS: Final = {False: (0, 2), True: (1, 1)}

each_path = pytest.mark.parametrize(
    "with_warmups", [False, True], ids=["plain", "warmups"]
)

each_kind = pytest.mark.parametrize("kind", ["transformer", "llama"])


def score_text(
    hypotheses: Sequence[str], references: References, sources: Sequence[str]
) -> list[float]:
    """Likes sixes, in the first place most, and outputs that end."""
    assert len(hypotheses) == len(references) == len(sources)

    return [
        sum(0.5**n * (w == "6") for n, w in enumerate(text.split())) - 0.1 * len(text)
        for text in hypotheses
    ]


def create_text_batch(
    sources: Sequence[Sequence[int]] = SOURCES,
    targets: Sequence[Sequence[int]] = TARGETS,
    indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> Seq2SeqBatch:
    """:param kwargs: What else its ``example`` holds."""
    return Seq2SeqBatch(
        *pad_rows(sources),
        *pad_rows(targets),
        example={
            "indices": list(indices or range(len(sources))),
            "sources": [CODEC.decode(source) for source in sources],
            "references": [[CODEC.decode(target[1:-1])] for target in targets],
            **kwargs,
        },
    )


def create_mrt(
    model: Model,
    *,
    metric: Callable[..., Sequence[float]] = score_text,
    warmup: dict[str, Any] | None = None,
    plain_directions: Sequence[str] = (),
    decode: Any = CODEC.decode,
    num_template_tokens: Mapping[str, int] | None = None,
    **kwargs: Any,
) -> Criterion:
    """
    :param warmup: Fields of ``WarmupSection``.
    :param num_template_tokens: That of each direction.
    :param kwargs: The fields of ``MrtConfig``.
    """
    max_warmup_len, max_len = MAX_LENS[kwargs.get("with_warmups", False)]

    config = MrtConfig(**{"max_len_a": 0.0, "max_len_b": max_len, **kwargs})

    assert not config.validate().errors

    return create_criterion(
        model,
        lambda context: create_mrt_criterion(
            replace(
                context, decode=decode, num_template_tokens=num_template_tokens or {}
            ),
            config,
            metric,
            seed=3,
        ),
        plain_directions=plain_directions,
        max_warmup_len=max_warmup_len or 8,
        num_warmups=2,
        **(warmup or {}),
    )


@final
@dataclass(frozen=True)
class Enumeration:
    """Holds all outputs of one source, with the warmups that they may have."""

    # (O)
    log_probs: Tensor
    risks: Tensor

    # The gradients of ``log_probs``: (O, W)
    grads: Tensor

    # The part of log P(c|x): (O, W)
    warmup_grads: Tensor

    @property
    def grad(self) -> Tensor:
        """The gradient of the expected risk. *Shape:* :math:`(W)`."""
        return (self.log_probs.exp() * self.risks) @ self.grads


@cache
def enumerate_outputs(kind: str, with_warmups: bool) -> Enumeration:
    """Uses nothing of the package: one forward of fairseq2's model for each output."""
    model = create_plain_model(kind)

    max_warmup_len, max_len = MAX_LENS[with_warmups]

    writable = [EOS_IDX, UNK_IDX, *WORDS]

    in_warmup = [SEPARATOR_IDX, *WORDS]

    def list_seqs(tokens: Sequence[int], longest: int) -> list[tuple[int, ...]]:
        return [s for n in range(longest + 1) for s in product(tokens, repeat=n)]

    def score(logits: Tensor, tokens: Sequence[int], allowed: list[int]) -> Tensor:
        log_probs = logits[:, allowed].log_softmax(dim=1)

        terms = [log_probs[i, allowed.index(t)] for i, t in enumerate(tokens)]

        return torch.stack(terms).sum() if terms else torch.zeros(())

    log_probs, risks, grads, warmup_grads = [], [], [], []

    for warmup in list_seqs(in_warmup[1:], max_warmup_len):
        for target in list_seqs(writable[1:], max_len):
            head = [*warmup, SEPARATOR_IDX] if with_warmups else []

            logits = forward_alone(model, SOURCES[0], [BOS_IDX, *head, *target])

            # What stands at the limit of either part is certain.
            a = score(logits, head[:max_warmup_len], in_warmup)

            b = score(logits[len(head) :], [*target, EOS_IDX][:max_len], writable)

            grads.append(differentiate_partly(model, a + b))

            warmup_grads.append(differentiate_partly(model, a))

            log_probs.append((a + b).detach())

            risks.append(1.0 - score_text([CODEC.decode(target)], [[]], [""])[0])

    return Enumeration(
        torch.stack(log_probs),
        torch.tensor(risks, device=device),
        torch.stack(grads),
        torch.stack(warmup_grads),
    )


def create_plain_model(kind: str) -> Model:
    return CREATE_MODEL[kind](num_layers=2)


def differentiate_partly(model: Model, value: Tensor) -> Tensor:
    """Returns the gradient, zero of what does not depend on the model."""
    if not value.requires_grad:
        return torch.zeros(sum(p.numel() for p in model.parameters()))

    grads = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)

    return torch.cat([grad.flatten() for grad in grads])


class TestEstimators:
    @each_path
    def test_probabilities_sum_to_one(self, with_warmups: bool) -> None:
        exact = enumerate_outputs("transformer", with_warmups)

        assert exact.log_probs.exp().sum() == pytest.approx(1.0, abs=1e-5)

    @each_path
    def test_score_function_is_unbiased(self, with_warmups: bool) -> None:
        """Over every pair of draws, equal ones included."""
        exact = enumerate_outputs("transformer", with_warmups)

        num = exact.log_probs.size(0)

        first, second = torch.cartesian_prod(torch.arange(num), torch.arange(num)).T

        is_equal = first == second

        # (O x O, 2)
        idx = torch.stack([first, second], dim=1)

        counts = torch.stack([1.0 + is_equal.float(), 1.0 - is_equal.float()], dim=1)

        probs = exact.log_probs[idx].sum(dim=1).exp()

        variances = []

        for baseline in (True, False):
            a = exact.log_probs[idx].clone().requires_grad_()

            losses = score_function_loss(a, exact.risks[idx], counts, baseline=baseline)

            [coefs] = torch.autograd.grad(losses.sum(), a)

            # (O x O, O)
            spread = torch.zeros(num * num, num).scatter_add_(1, idx, coefs)

            # (O x O, W)
            grads = spread @ exact.grads

            assert measure_error(probs @ grads, exact.grad) < 1e-4

            assert_close(probs @ losses.detach(), exact.log_probs.exp() @ exact.risks)

            variances.append(float(probs @ (grads - exact.grad).square().sum(dim=1)))

        assert variances[0] < 0.8 * variances[1]

    def test_risk_is_expectation_over_renormalised_samples(self) -> None:
        log_probs = torch.tensor([[0.5, 0.3, 0.1]], device=device).log()

        risks = torch.tensor([[0.2, 0.6, 9.0]], device=device)

        mask = torch.tensor([[True, True, False]], device=device)

        loss = expected_risk_loss(log_probs, risks, mask, alpha=2.0)

        expected = (0.25 * 0.2 + 0.09 * 0.6) / 0.34

        assert_close(loss, [expected / 2.0])


class TestMrtCriterion:
    @each_path
    @each_kind
    def test_risk_of_all_outputs_is_exact(self, kind: str, with_warmups: bool) -> None:
        exact = enumerate_outputs(kind, with_warmups)

        model = create_plain_model(kind)

        criterion = create_mrt(
            model,
            num_samples=400,
            # All are found.
            temperature=3.0,
            alpha=1.0,
            with_warmups=with_warmups,
        )

        batch = create_text_batch(SOURCES[:1], TARGETS[:1])

        bag = create_metric_bag(criterion)

        with record_passes(model) as passes:
            grads = compute_grads(model, criterion, batch, metric_bag=bag)

        num_outputs = exact.log_probs.size(0)

        assert passes[0]["rows"].seqs.size(0) == num_outputs

        assert get_metric(bag, "sample_distinct") == pytest.approx(num_outputs / 400)

        assert get_metric(bag, "sample_best") == pytest.approx(
            1.0 - float(exact.risks.min())
        )

        assert measure_error(grads, exact.grad) < 1e-4

        if with_warmups:
            # What P(c|x) learns is so much of it that this would see it missing.
            part = (exact.log_probs.exp() * exact.risks) @ exact.warmup_grads

            assert part.norm() > 0.01 * exact.grad.norm()

    @each_path
    def test_reinforce_approaches_exact_gradient(self, with_warmups: bool) -> None:
        exact = enumerate_outputs("transformer", with_warmups)

        model = create_plain_model("transformer")

        criterion = create_mrt(
            model, estimator="reinforce", num_samples=16, with_warmups=with_warmups
        )

        num = 200

        batch = create_text_batch(SOURCES[:1] * num, TARGETS[:1] * num)

        grads = compute_grads(model, criterion, batch) / num

        assert measure_error(grads, exact.grad) < 0.15

    def test_draws_depend_on_pair_and_step_alone(self) -> None:
        model = create_plain_model("transformer")

        def draw(indices: Sequence[int], step_nr: int, **kwargs: Any) -> list[Tensor]:
            criterion = create_mrt(
                model, num_samples=4, estimator="reinforce", max_len_b=6, **kwargs
            )

            batch = create_text_batch(
                [SOURCES[n % 2] for n in indices],
                [TARGETS[n % 2] for n in indices],
                indices,
            )

            with record_passes(model) as passes:
                criterion.compute_loss(
                    batch, create_metric_bag(criterion), step_nr=step_nr
                )

            rows = passes[0]["rows"]

            return [rows.seqs[rows.source_idx == n][:, :4] for n in range(len(indices))]

        first, second = draw([8, 5], 7)

        [again] = draw([5], 7)

        assert torch.equal(second, again)

        # Nor on how many are drawn at once.
        assert torch.equal(draw([8, 5], 7, warmup={"max_num_tokens": 8})[1], second)

        for other in (draw([7], 7), draw([5], 8)):
            assert not torch.equal(other[0], second)

    @pytest.mark.parametrize(
        "num_template_tokens,directions,limits",
        [
            ({}, None, [4, 4]),
            ({"a-b": 1}, None, [3, 3]),
            ({"a-b": 1, "b-a": 3}, ["b-a", "a-b"], [1, 3]),
            ({"": 1}, ["b-a", "a-b"], [3, 3]),
        ],
    )
    def test_prompt_of_each_direction_counts_in_its_length(
        self,
        num_template_tokens: dict[str, int],
        directions: list[str] | None,
        limits: list[int],
    ) -> None:
        model = create_plain_model("transformer")

        criterion = create_mrt(
            model,
            num_template_tokens=num_template_tokens,
            num_samples=32,
            max_len_a=1.0,
            max_len_b=1,
        )

        kwargs: dict[str, Any] = (
            {} if directions is None else {"directions": directions}
        )

        # Three words each, and one more token.
        batch = create_text_batch(
            [[5, 6, 7, EOS_IDX], [6, 6, 7, EOS_IDX]],
            **kwargs,
        )

        with record_passes(model) as passes:
            compute_grads(model, criterion, batch)

        rows = passes[0]["rows"]

        longest = [0, 0]

        for source, seq_len in zip(rows.source_idx.tolist(), rows.seq_lens):
            # BOS and EOS are not counted.
            longest[source] = max(longest[source], seq_len - 2)

        assert longest == limits

    def test_dropout_does_not_enter_draws(self) -> None:
        texts: list[list[str]] = []

        def spy(hypotheses: Sequence[str], *args: Any) -> list[float]:
            texts.append([*hypotheses])

            return score_text(hypotheses, *args)

        for dropout_p in (0.0, 0.5):
            model = CREATE_MODEL["transformer"](num_layers=2, dropout_p=dropout_p)

            compute_grads(model, create_mrt(model, metric=spy), create_text_batch())

            assert model.training

        assert texts[0] == texts[1]

    @pytest.mark.parametrize("plain_path", ["empty", "bare"])
    @each_path
    def test_sft_weight_adds_likelihood(
        self, with_warmups: bool, plain_path: str
    ) -> None:
        def run(**kwargs: Any) -> Tensor:
            model = create_plain_model("transformer")

            criterion = create_mrt(
                model,
                with_warmups=with_warmups,
                warmup={"plain_path": plain_path},
                **kwargs,
            )

            return compute_grads(model, criterion, create_text_batch())

        model = create_plain_model("transformer")

        has_separator = with_warmups and plain_path == "empty"

        banned = {0, BOS_IDX, SEPARATOR_IDX}

        allowed = [t for t in range(VOCAB_SIZE) if t not in banned]

        nll = torch.zeros(())

        for source, target in zip(SOURCES, TARGETS):
            seq = [BOS_IDX, *([SEPARATOR_IDX] if has_separator else []), *target[1:]]

            logits = forward_alone(model, source, seq[:-1])[1 - len(target) :]

            log_probs = logits[:, allowed].log_softmax(dim=1)

            for n, token in enumerate(target[1:]):
                nll = nll - log_probs[n, allowed.index(token)]

        expected = 0.3 * differentiate(model, nll)

        assert measure_error(run(sft_weight=0.3) - run(), expected) < 1e-3

    @each_path
    def test_reference_is_one_of_samples(self, with_warmups: bool) -> None:
        scored: list[str] = []

        def spy(hypotheses: Sequence[str], *args: Any) -> list[float]:
            scored.extend(hypotheses)

            return score_text(hypotheses, *args)

        model = create_plain_model("transformer")

        criterion = create_mrt(
            model,
            metric=spy,
            num_samples=2,
            with_reference=True,
            with_warmups=with_warmups,
        )

        bag = create_metric_bag(criterion)

        with record_passes(model) as passes:
            compute_grads(model, criterion, create_text_batch(), metric_bag=bag)

        rows, coefs = passes[0]["rows"], passes[0]["coefs"].target

        reference = CODEC.decode(TARGETS[0][1:-1])

        # Longer than any draw.
        at = scored.index(reference)

        assert scored.count(reference) == 1

        # All tokens of the reference and EOS count.
        assert int(rows.target_mask[at].sum()) == len(TARGETS[0]) - 1

        assert coefs[at] != 0.0

        if with_warmups:
            # It stands behind a warmup that was drawn.
            assert SEPARATOR_IDX in rows.seqs[at].tolist()

        # But it is not counted as a draw.
        drawn = [t for t in scored if t not in (reference, CODEC.decode([7]))]

        assert len(drawn) <= 4

        assert get_metric(bag, "sample_best") <= max(score_text(drawn, drawn, drawn))

    def test_passes_in_little_memory_are_same(self) -> None:
        def run(max_num_tokens: int | None) -> Tensor:
            model = create_plain_model("llama")

            criterion = create_mrt(
                model, sft_weight=0.1, warmup={"max_num_tokens": max_num_tokens}
            )

            return compute_grads(model, criterion, create_text_batch())

        assert measure_error(run(6), run(None)) < 1e-4

    @each_path
    def test_validation_measures_references_and_draws(self, with_warmups: bool) -> None:
        model = create_plain_model("transformer")

        criterion = create_mrt(model, with_warmups=with_warmups)

        def evaluate(step_nr: int) -> tuple[int, MetricBag]:
            bag = create_metric_bag(criterion)

            torch.manual_seed(0)

            with torch.inference_mode(), evaluation_mode(model):
                shown = criterion.evaluate(
                    create_text_batch(), bag, step_nr=step_nr, shown=[0]
                )

            return len(shown), bag

        num_shown, bag = evaluate(3)

        assert num_shown == int(with_warmups)

        assert get_metric(bag, "nll_loss") > 0.5

        # Validations draw by the same numbers.
        score = get_metric(bag, "sample_score")

        assert score != 0.0 and get_metric(evaluate(9)[1], "sample_score") == score

        assert criterion.max_warmup_len == (1 if with_warmups else None)

    def test_training_shows_what_it_measures(self) -> None:
        model = create_plain_model("transformer")

        criterion = create_mrt(model, with_warmups=True)

        bag = create_metric_bag(criterion)

        compute_grads(model, criterion, create_text_batch(), metric_bag=bag)

        values: dict[str, object] = {
            name: get_metric(bag, name) for name in bag.metrics
        }

        criterion.process_metric_values(values, step_time=1.0)

        assert {n for n in values if n.startswith(("sample_", "warmup_"))} == {
            *("sample_score", "sample_best", "sample_distinct"),
            *("warmup_len", "warmup_empty", "warmup_cut"),
        }

        # Nothing of the kind is minimised.
        assert "nll_loss" not in values

        share = values["draw_share"]

        assert isinstance(share, float) and 0.0 < share < 1.0


class TestErrors:
    def test_score_that_is_no_number(self) -> None:
        model = create_plain_model("transformer")

        criterion = create_mrt(model, metric=lambda h, *_: [math.nan] * len(h))

        with pytest.raises(WarmupError, match="the score nan, which is no finite"):
            compute_grads(model, criterion, create_text_batch())

    def test_batch_without_texts(self) -> None:
        model = create_plain_model("transformer")

        with pytest.raises(WarmupError, match="put the lists `indices`, `sources`"):
            compute_grads(model, create_mrt(model), create_batch())

    def test_output_that_is_given(self) -> None:
        model = create_plain_model("transformer")

        batch = create_text_batch(given_lens=[1, 0])

        with pytest.raises(WarmupError, match="leave `behind` out"):
            compute_grads(model, create_mrt(model), batch)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"decode": None}, "has no tokenizer to decode with"),
            ({"plain_directions": ["a-b"]}, r"leave out `dataset\.directions"),
            ({"warmup": {"kl_weight": 0.1}}, r"`warmup\.kl_weight` is 0\.1, which has"),
        ],
    )
    def test_setting_without_effect(self, kwargs: Any, message: str) -> None:
        with pytest.raises(WarmupError, match=message):
            create_mrt(create_plain_model("transformer"), **kwargs)

    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            ({"estimator": "nope"}, "`estimator` must be `risk` or"),
            ({"num_samples": 0}, "`num_samples` must be greater"),
            ({"num_samples": 1}, "`num_samples` must be at least 2 with the estimator"),
            (
                {"num_samples": 1, "estimator": "reinforce"},
                "`num_samples` must be at least 2 with `baseline`",
            ),
            ({"alpha": 0.0}, "`alpha` must be greater"),
            ({"temperature": 0.0}, "`temperature` must be greater"),
            (
                {"temperature": 2.0, "estimator": "reinforce"},
                "`temperature` must be 1.0 with",
            ),
            (
                {"with_reference": True, "estimator": "reinforce"},
                "`with_reference` is for the estimator",
            ),
            ({"sft_weight": math.nan}, "`sft_weight` must be"),
            ({"max_len_a": -1.0}, "`max_len_a` must be"),
            ({"max_len_b": 0}, "`max_len_b` must be"),
        ],
    )
    def test_bad_config(self, kwargs: Any, message: str) -> None:
        [error] = MrtConfig(**kwargs).validate().errors

        assert error.startswith(message)
