# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What each setting of a training step does, by formulas worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from fairseq2.datasets import Seq2SeqBatch
from torch import Tensor

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    EOS_IDX,
    Model,
    assert_close,
    assert_equal,
    create_candidates,
    create_tiny_model,
    device,
)
from tests.plain import score_plainly, score_targets_plainly
from tests.unit.criteria.cases import (
    SOURCES,
    TARGETS,
    WARMUPS,
    FixedSampler,
    compute_grads,
    create_batch,
    create_criterion,
    create_given_candidates,
    create_metric_bag,
    create_twins,
    differentiate,
    each_keep,
    get_metric,
    measure_error,
    record_passes,
)
from tests.unit.sampling.cases import each_kind
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.objectives import Objective, best_loss, elbo_loss, marginal_loss

NUM_TARGET_TOKENS: Final = torch.tensor([[4.0], [2.0]], device=device)


def compare_with_others(values: Tensor) -> Tensor:
    """Subtracts the mean of the other candidates, of four. *Shape:* :math:`(N,K)`."""
    return values - (values.sum(dim=1, keepdim=True) - values) / 3


@torch.no_grad()
def get_reference_log_probs(reference: Model) -> Tensor:
    """Computes log P(c|x) of the given candidates. *Shape:* :math:`(N,K)`."""
    return score_plainly(reference, SOURCES, TARGETS, create_given_candidates())[0]


@each_kind
class TestTerms:
    def check(
        self,
        kind: str,
        compute_coefs: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
        *,
        reference: Model | None = None,
        objective: Objective = marginal_loss,
        **kwargs: Any,
    ) -> None:
        """
        :param compute_coefs: Computes the derivatives with respect to a and b, from a,
            b and q.
        """
        model, twin = create_twins(kind)

        def run(**kwargs: Any) -> tuple[Tensor, float]:
            criterion = create_criterion(
                model,
                sampler=FixedSampler(create_given_candidates()),
                objective=objective,
                max_warmup_len=3,
                **kwargs,
            )

            bag = create_metric_bag(criterion)

            grads = compute_grads(model, criterion, create_batch(), metric_bag=bag)

            return grads, get_metric(bag, "nll_loss")

        grads, loss = run(reference=reference, **kwargs)

        candidates = create_given_candidates()

        a, b = score_plainly(twin, SOURCES, TARGETS, candidates)

        u, v = compute_coefs(a.detach(), b.detach(), candidates.proposal_log_probs)

        expected = differentiate(twin, (u * a + v * b).sum())

        assert measure_error(grads, expected) < 1e-4

        plain_grads, plain_loss = run()

        # The setting matters, but what is logged is the objective itself.
        assert measure_error(grads, plain_grads) > 0.02

        assert loss == plain_loss

    @pytest.mark.parametrize(
        ("weight_temperature", "length_normalized", "temperatures"),
        [
            (2.5, False, torch.full((2, 1), 2.5, device=device)),
            (0.5, False, torch.full((2, 1), 0.5, device=device)),
            (1.0, True, NUM_TARGET_TOKENS),
            (2.5, True, 2.5 * NUM_TARGET_TOKENS),
        ],
    )
    def test_weights_are_tempered(
        self,
        kind: str,
        weight_temperature: float,
        length_normalized: bool,
        temperatures: Tensor,
    ) -> None:
        def compute_coefs(a: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
            baseline = (a - q).softmax(dim=1)

            weights = (a - q + b / temperatures).softmax(dim=1)

            return temperatures * (baseline - weights), -weights

        self.check(
            kind,
            compute_coefs,
            weight_temperature=weight_temperature,
            length_normalized=length_normalized,
        )

    def test_hard_selection_is_tempered(self, kind: str) -> None:
        def compute_coefs(a: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
            best = torch.zeros_like(b).scatter(1, b.argmax(dim=1, keepdim=True), 1.0)

            return -2.5 * best, -best

        self.check(kind, compute_coefs, objective=best_loss, weight_temperature=2.5)

    @pytest.mark.parametrize("objective", [marginal_loss, elbo_loss])
    def test_terms_are_added_to_objective(
        self, kind: str, objective: Objective
    ) -> None:
        reference = CREATE_MODEL[kind]()

        reference_a = get_reference_log_probs(reference)

        for entropy_weight, kl_weight in ((0.7, 0.0), (0.0, 0.5), (0.2, 0.3)):

            def compute_coefs(a: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
                ratios = (a - q).softmax(dim=1)

                # Against -H and KL, both a mean over P(c|x).
                values = entropy_weight * a + kl_weight * (a - reference_a)

                u = ratios * compare_with_others(values)

                if objective is elbo_loss:
                    return u - ratios * compare_with_others(b), -ratios

                weights = (a - q + b).softmax(dim=1)

                return u + ratios - weights, -weights

            self.check(
                kind,
                compute_coefs,
                objective=objective,
                entropy_weight=entropy_weight,
                kl_weight=kl_weight,
                reference=reference if kl_weight > 0.0 else None,
            )

        assert all(parameter.grad is None for parameter in reference.parameters())

    def test_terms_are_not_tempered(self, kind: str) -> None:
        def compute_coefs(a: Tensor, b: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
            ratios = (a - q).softmax(dim=1)

            weights = (a - q + b / 2.5).softmax(dim=1)

            u = 2.5 * (ratios - weights) + 0.4 * ratios * compare_with_others(a)

            return u, -weights

        self.check(kind, compute_coefs, weight_temperature=2.5, entropy_weight=0.4)

    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    def test_sft_loss_is_mixed_in(self, kind: str, label_smoothing: float) -> None:
        model, twin = create_twins(kind)

        grads, losses = [], []

        for sft_weight in (0.0, 0.3):
            criterion = create_criterion(
                model,
                sampler=FixedSampler(create_given_candidates()),
                # Once a source, however many of its candidates are kept.
                keep=KeepSection(name="top", num=2),
                max_warmup_len=3,
                sft_weight=sft_weight,
                label_smoothing=label_smoothing,
            )

            bag = create_metric_bag(criterion)

            grads.append(
                compute_grads(model, criterion, create_batch(), metric_bag=bag)
            )

            losses.append(get_metric(bag, "nll_loss"))

        log_probs = score_targets_plainly(
            twin, SOURCES, TARGETS, label_smoothing=label_smoothing
        )

        expected = differentiate(twin, -0.3 * log_probs.sum())

        assert measure_error(grads[1] - grads[0], expected) < 1e-4

        assert losses[0] == losses[1]


@each_kind
class TestKeep:
    @each_keep
    def test_kept_rows_are_those_of_section(self, kind: str, keep: KeepSection) -> None:
        model, twin = create_twins(kind)

        candidates = create_given_candidates()

        criterion = create_criterion(
            model, sampler=FixedSampler(candidates), keep=keep, max_warmup_len=3
        )

        with record_passes(model) as passes:
            grads = compute_grads(model, criterion, create_batch())

        [kwargs] = passes

        a, b = (x.detach() for x in score_plainly(twin, SOURCES, TARGETS, candidates))

        q = candidates.proposal_log_probs

        u = (a - q).softmax(dim=1) - (a - q + b).softmax(dim=1)
        v = -(a - q + b).softmax(dim=1)

        magnitudes = u.abs() + v.abs()

        order = magnitudes.argsort(dim=1, descending=True)

        weights = v.abs().gather(1, order)

        # Those before which 0.7 is not yet reached.
        needed = (weights.cumsum(dim=1) - weights < 0.7).sum(dim=1)

        num_kept = {"all": 8, "resample": 2, "top": 2, "mass": int(needed.sum())}

        coefs, rows = kwargs["coefs"], kwargs["rows"]

        assert len(rows.seq_lens) == num_kept[keep.name]

        if keep.name == "all":
            assert_close(coefs.warmup, u.flatten(), rtol=1e-4, atol=1e-6)
            assert_close(coefs.target, v.flatten(), rtol=1e-4, atol=1e-6)
        elif keep.name == "resample":
            # Each source's share of the gradient, whichever was drawn.
            kept = coefs.warmup.abs() + coefs.target.abs()

            assert_close(kept, magnitudes.sum(dim=1), rtol=1e-4, atol=1e-6)
        else:
            # y is learned with its whole weight.
            assert_close(coefs.target.sum(), v.sum())

            assert rows.source_idx.tolist() == sorted(rows.source_idx.tolist())

            # What teaches y most, or what matters most to the gradient.
            first = v.abs().argmax(dim=1) if keep.name == "top" else order[:, 0]

            for n in range(2):
                warmup = WARMUPS[n][int(first[n])]

                assert [BOS_IDX, *warmup] in [
                    seq[: 1 + len(warmup)]
                    for seq in rows.seqs[rows.source_idx == n].tolist()
                ]

        assert bool(grads.isfinite().all())

    @pytest.mark.parametrize("num", [4, 9])
    @pytest.mark.parametrize("name", ["resample", "top"])
    def test_all_are_kept_when_as_many_are_to_be_kept_as_drawn(
        self, kind: str, name: str, num: int
    ) -> None:
        model, _ = create_twins(kind)

        grads = []

        for keep in (KeepSection(name=name, num=num), KeepSection(name="all")):
            criterion = create_criterion(
                model,
                sampler=FixedSampler(create_given_candidates()),
                keep=keep,
                max_warmup_len=3,
            )

            grads.append(compute_grads(model, criterion, create_batch()))

        assert_equal(*grads)


class TestMaxNumTokens:
    # Four rows a source, at most 4 x (5 + 3 + 1) = 36 and 4 x (3 + 3 + 1) = 28 tokens.
    source_idx: Final = (0, 1, 1, 0, 1)

    def run(self, model: Model, **kwargs: Any) -> tuple[Tensor, list[float], list[int]]:
        """Returns the gradient, all metrics and the numbers of sources drawn for."""
        sampler = FixedSampler(create_given_candidates(self.source_idx))

        criterion = create_criterion(
            model, sampler=sampler, max_warmup_len=3, publish_every_n_steps=1, **kwargs
        )

        bag = create_metric_bag(criterion)

        batch = create_batch(
            [SOURCES[n] for n in self.source_idx], [TARGETS[n] for n in self.source_idx]
        )

        grads = compute_grads(model, criterion, batch, metric_bag=bag)

        names = [n for n in bag.metrics if n.startswith("warmup_") or n == "nll_loss"]

        assert len(names) > 5

        return grads, [get_metric(bag, name) for name in names], sampler.group_sizes

    @pytest.mark.parametrize(
        ("max_num_tokens", "group_sizes"),
        [
            (156, [5]),
            (155, [4, 1]),
            (64, [2, 2, 1]),
            (63, [1, 2, 1, 1]),
            # A source whose rows do not fit is read nevertheless.
            (30, [1, 1, 1, 1, 1]),
        ],
    )
    @each_kind
    def test_result_does_not_depend_on_it(
        self, kind: str, max_num_tokens: int, group_sizes: list[int]
    ) -> None:
        model, _ = create_twins(kind)

        kwargs: dict[str, Any] = {
            "reference": CREATE_MODEL[kind](),
            "kl_weight": 0.3,
            "sft_weight": 0.3,
            "label_smoothing": 0.1,
        }

        expected, expected_metrics, _ = self.run(model, **kwargs)

        grads, metrics, sizes = self.run(model, max_num_tokens=max_num_tokens, **kwargs)

        assert measure_error(grads, expected) < 1e-5

        assert metrics == pytest.approx(expected_metrics, rel=1e-4)

        assert sizes == group_sizes

    def create_uneven_batch(self) -> tuple[Seq2SeqBatch, FixedSampler]:
        """Creates ten sources with two rows each, of 32 and 30 or of 4 and 2 tokens."""
        long, short = [BOS_IDX, *[5, 6] * 14, EOS_IDX], [BOS_IDX, EOS_IDX]

        batch = create_batch(SOURCES[:1] * 10, [long, *[short] * 8, long])

        return batch, FixedSampler(
            create_candidates([[[5, 6], []]] * 10, max_warmup_len=3)
        )

    @pytest.mark.parametrize("max_num_tokens", [200, 100, 64, 40, 10])
    def test_no_pass_holds_more_tokens(self, max_num_tokens: int) -> None:
        model = create_tiny_model()

        batch, sampler = self.create_uneven_batch()

        criterion = create_criterion(
            model,
            sampler=sampler,
            num_warmups=2,
            max_warmup_len=3,
            max_num_tokens=max_num_tokens,
        )

        # Of each call of the decoder, whether it learns, and how many tokens it reads.
        calls: list[tuple[bool, int]] = []

        model.decoder.register_forward_pre_hook(
            lambda _, args: calls.append((torch.is_grad_enabled(), args[0].size(0)))
        )

        compute_grads(model, criterion, batch)

        assert {learns for learns, _ in calls} == {False, True}

        for learns, num_tokens in calls:
            # Not less than one source when candidates are weighed, one row when they
            # are learned from.
            assert num_tokens <= max(max_num_tokens, 32 if learns else 62)

    def test_rows_of_source_are_read_together(self) -> None:
        model = create_tiny_model()

        batch, sampler = self.create_uneven_batch()

        criterion = create_criterion(
            model,
            sampler=sampler,
            num_warmups=2,
            max_warmup_len=3,
            max_num_tokens=64,
            sft_weight=0.5,
        )

        with record_passes(model) as calls:
            compute_grads(model, criterion, batch)

        [kwargs] = calls

        # Two candidates and a row without warmup: they share keys and values.
        source_idx = torch.cat([kwargs["rows"].source_idx[i] for i in kwargs["passes"]])

        assert source_idx.tolist() == [n for n in range(10) for _ in range(3)]

    @pytest.mark.parametrize(
        ("max_num_tokens", "bounds"),
        [
            (None, (1, 1)),
            # Of 172 tokens.
            (172, (1, 1)),
            (100, (2, 3)),
            (64, (3, 4)),
            # As many passes as rows, not as tokens.
            (1, (20, 20)),
        ],
    )
    def test_number_of_passes(
        self, max_num_tokens: int | None, bounds: tuple[int, int]
    ) -> None:
        model = create_tiny_model()

        batch, sampler = self.create_uneven_batch()

        criterion = create_criterion(
            model,
            sampler=sampler,
            num_warmups=2,
            max_warmup_len=3,
            max_num_tokens=max_num_tokens,
        )

        num_calls = 0

        def count(module: object, args: object) -> None:
            nonlocal num_calls

            num_calls += int(torch.is_grad_enabled())

        model.decoder.register_forward_pre_hook(count)

        loss = criterion.compute_loss(batch, create_metric_bag(criterion), step_nr=1)

        least, most = bounds

        assert least <= num_calls <= most

        num_calls = 0

        loss.backward()

        # What was forgotten is computed again.
        if max_num_tokens is None or max_num_tokens >= 172:
            assert num_calls == 0
        else:
            assert least <= num_calls <= most
