# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

import pytest
import torch
from fairseq2.models.transformer import TransformerModel
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn import BatchLayout, IncrementalStateBag
from torch import Tensor
from torch.nn import Linear, Module

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    EOS_IDX,
    PAD_IDX,
    SEPARATOR_IDX,
    VOCAB_SIZE,
    Model,
    assert_close,
    assert_equal,
    create_layout,
    create_source,
    create_tiny_lm,
    create_tiny_model,
    device,
    each_model,
    forward_alone,
    pad_rows,
)
from tests.unit.models.cases import (
    SEQS,
    SOURCE_IDX,
    SOURCES,
    TARGETS,
    assert_close_gradients,
    build_rows,
    count_tokens,
    create_coefs,
    differentiate,
    get_excluded,
    lower_precision,
    score_alone,
    spy,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import ExcludedTokens, plain_rows
from warmup_plugin.models import conditional, row_model, token_loss
from warmup_plugin.models.conditional import RowCoefs, RowScores, evaluation_mode
from warmup_plugin.models.scorable import (
    ScorableTransformer,
    ScorableTransformerLM,
    create_conditional_model,
    make_scorable,
)

NUM_COUNTED = sum(len(seq) - 1 for seq in SEQS) - 1
"""The predictions that count in a or b: all, but for the forced separator."""

PASSES: Final[dict[str, list[list[int]] | None]] = {
    "none": None,
    "one": [[0, 1, 2, 3, 4]],
    "two": [[3, 0, 4], [2, 1]],
    "rows": [[0], [1], [2], [3], [4]],
    # As a rank makes them that has fewer rows than others.
    "empty": [[1, 2, 0], [3, 4], [], []],
}
"""Rows that are read together."""


def score(model: Model) -> RowScores:
    wrapper = create_conditional_model(model)

    source = wrapper.encode(*create_source(SOURCES))

    return wrapper.score(source, build_rows(), get_excluded(model))


def create_passes(name: str) -> list[Tensor] | None:
    passes = PASSES[name]

    if passes is None:
        return None

    return [torch.tensor(rows, device=device, dtype=torch.long) for rows in passes]


def compute_loss(
    model: Model,
    coefs: tuple[Tensor, Tensor] | None = None,
    *,
    label_smoothing: float = 0.0,
    passes: str = "none",
) -> Tensor:
    return create_conditional_model(model).compute_loss(
        *create_source(SOURCES),
        build_rows(),
        RowCoefs(*(coefs or create_coefs())),
        get_excluded(model),
        label_smoothing=label_smoothing,
        passes=create_passes(passes),
    )


def combine(scores: tuple[Tensor, Tensor]) -> Tensor:
    """Computes what :func:`compute_loss` should."""
    u, v = create_coefs()

    return (u * scores[0] + v * scores[1]).sum()


class TestScore:
    @each_model
    def test_call_equals_scores_of_rows_alone(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        a, b = score_alone(model)

        scores = score(model)

        assert_close(scores.warmup_log_probs, a)
        assert_close(scores.target_log_probs, b)

        assert_close_gradients(
            differentiate(combine(scores), model), differentiate(combine((a, b)), model)
        )

        with torch.no_grad():
            scores = score(model)

        assert_close(scores.warmup_log_probs, a)
        assert_close(scores.target_log_probs, b)

    @each_model
    def test_call_works_when_every_source_has_one_row_as_long(self, kind: str) -> None:
        # Nothing to fold, to pad or to leave out.
        model = CREATE_MODEL[kind](num_layers=2)

        sources, targets = [[5, 6], [7, 7]], [[BOS_IDX, 6, 5], [BOS_IDX, 7, 6]]

        target_seqs, target_seq_lens = pad_rows(targets)

        rows = plain_rows(
            create_layout(),
            target_seqs,
            torch.tensor(target_seq_lens, device=device),
            with_separator=False,
        )

        expected = torch.stack(
            [
                forward_alone(model, source, target[:-1])
                .log_softmax(dim=1)[range(2), target[1:]]
                .sum()
                for source, target in zip(sources, targets)
            ]
        )

        wrapper = create_conditional_model(model)

        for grad_enabled in (True, False):
            with torch.set_grad_enabled(grad_enabled):
                source = wrapper.encode(*create_source(sources))

                scores = wrapper.score(source, rows, ExcludedTokens.none(device))

            assert_close(scores.target_log_probs, expected)

            assert_equal(scores.warmup_log_probs, [0.0, 0.0])

    @each_model
    def test_batch_may_be_wider_than_its_sources(self, kind: str) -> None:
        # All of them are padded then, or those that have rows are.
        model = CREATE_MODEL[kind](num_layers=2)

        a, b = score_alone(model)

        seqs, layout = create_source(SOURCES)

        wide_seqs = torch.nn.functional.pad(seqs, (0, 2), value=7)

        wide_layout = BatchLayout.of(wide_seqs, list(layout.seq_lens))

        wrapper = create_conditional_model(model)

        for grad_enabled in (True, False):
            with torch.set_grad_enabled(grad_enabled):
                scores = wrapper.score(
                    wrapper.encode(wide_seqs, wide_layout),
                    build_rows(),
                    get_excluded(model),
                )

            assert_close(scores.warmup_log_probs, a)
            assert_close(scores.target_log_probs, b)

    @each_model
    def test_longest_prompt_and_longest_row_may_differ(self, kind: str) -> None:
        # Together they would be longer than what the model reads: 9 tokens of source 1
        # and row 3, 9 of source 0 and row 2.
        model = CREATE_MODEL[kind](max_seq_len=11)

        rows = build_rows().select(torch.tensor([2, 3], device=device))

        a, b = (scores[2:4] for scores in score_alone(CREATE_MODEL[kind]()))

        wrapper = create_conditional_model(model)

        inputs = create_source(SOURCES[:2])

        for grad_enabled in (True, False):
            with torch.set_grad_enabled(grad_enabled):
                scores = wrapper.score(
                    wrapper.encode(*inputs), rows, get_excluded(model)
                )

            assert_close(scores.warmup_log_probs, a)
            assert_close(scores.target_log_probs, b)

    @each_model
    def test_each_part_has_its_excluded_tokens(self, kind: str) -> None:
        model = CREATE_MODEL[kind]()

        wrapper = create_conditional_model(model)

        rows = build_rows()

        source = wrapper.encode(*create_source(SOURCES))

        excluded, none = get_excluded(model), ExcludedTokens.none(device)

        both, neither, warmup, target = (
            wrapper.score(source, rows, ExcludedTokens(in_warmup, in_target))
            for in_warmup, in_target in [
                (excluded.in_warmup, excluded.in_target),
                (none.in_warmup, none.in_target),
                (excluded.in_warmup, none.in_target),
                (none.in_warmup, excluded.in_target),
            ]
        )

        for part, other in ((both, neither), (warmup, target)):
            assert bool((part.warmup_log_probs > other.warmup_log_probs).all())

        for part, other in ((both, neither), (target, warmup)):
            assert bool((part.target_log_probs > other.target_log_probs).all())

        assert_equal(warmup.warmup_log_probs, both.warmup_log_probs)
        assert_equal(target.target_log_probs, both.target_log_probs)

    @pytest.mark.parametrize("grad_enabled", [True, False])
    @each_model
    def test_target_distribution_leaves_separator_out(
        self, kind: str, grad_enabled: bool
    ) -> None:
        # One word and its probability for each token: they sum to 1 without it.
        model = CREATE_MODEL[kind]()

        wrapper = create_conditional_model(model)

        tokens = [token for token in range(VOCAB_SIZE) if token != SEPARATOR_IDX]

        target_seqs = torch.tensor([[BOS_IDX, t] for t in tokens], device=device)

        rows = plain_rows(
            create_layout(),
            target_seqs,
            torch.full((len(tokens),), 2, device=device),
            with_separator=True,
        )

        with torch.set_grad_enabled(grad_enabled):
            source = wrapper.encode(*create_source(SOURCES[:1] * len(tokens)))

            scores = wrapper.score(source, rows, get_excluded(model))

        assert_close(scores.target_log_probs.exp().sum(), 1.0)

        logits = forward_alone(model, SOURCES[0], [BOS_IDX, SEPARATOR_IDX])[-1]

        assert_close(scores.target_log_probs, logits[tokens].log_softmax(dim=0))

    @each_model
    def test_call_returns_zero_when_no_warmup_is_counted(self, kind: str) -> None:
        model = CREATE_MODEL[kind]()

        wrapper = create_conditional_model(model)

        target_seqs, target_seq_lens = pad_rows(TARGETS)

        rows = plain_rows(
            create_layout(),
            target_seqs,
            torch.tensor(target_seq_lens, device=device),
            with_separator=False,
        )

        source = wrapper.encode(*create_source(SOURCES))

        scores = wrapper.score(source, rows, ExcludedTokens.none(device))

        assert_equal(scores.warmup_log_probs, [0.0] * len(TARGETS))

        # What plain fine-tuning minimises.
        expected = [
            -torch.nn.functional.cross_entropy(
                forward_alone(model, source, target[:-1]),
                torch.tensor(target[1:], device=device),
                reduction="sum",
            )
            for source, target in zip(SOURCES, TARGETS)
        ]

        assert_close(scores.target_log_probs, torch.stack(expected))

    @each_model
    def test_padding_is_not_seen(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        wrapper = create_conditional_model(model)

        seqs, layout = create_source(SOURCES)

        other = seqs.clone()

        assert bool((other[0, 3:] == PAD_IDX).all())

        other[0, 3:] = 7

        for grad_enabled in (True, False):
            with torch.set_grad_enabled(grad_enabled):
                one, two = (
                    wrapper.score(
                        wrapper.encode(source_seqs, layout),
                        build_rows(),
                        get_excluded(model),
                    )
                    for source_seqs in (seqs, other)
                )

            for x, y in zip(one, two):
                assert_close(x, y)

    @each_model
    def test_log_probs_are_fp32_when_model_is_not(self, kind: str) -> None:
        model = CREATE_MODEL[kind]()

        expected = score(model)

        for log_probs, fp32_log_probs in zip(score(lower_precision(model)), expected):
            assert log_probs.dtype == torch.float32

            assert_close(log_probs, fp32_log_probs, rtol=0.02, atol=0.1)

    @each_model
    def test_only_counted_positions_are_projected(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        for run in (score, compute_loss):
            with spy(model.final_proj) as calls:
                run(model)

            assert sum(x.size(0) for x, _ in calls) == NUM_COUNTED

    @each_model
    def test_logits_are_made_in_chunks(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        expected = score(model)

        expected_gradients = differentiate(compute_loss(model), model)

        # Three positions and a bit.
        monkeypatch.setattr(token_loss, "MAX_NUM_LOGITS", 27)

        with spy(model.final_proj) as calls:
            scores = score(model)

            gradients = differentiate(compute_loss(model), model)

        assert max(logits.numel() for _, logits in calls) == 24

        for x, y in zip(scores, expected):
            assert_close(x, y)

        assert_close_gradients(gradients, expected_gradients)


def get_memory_projections(model: Model) -> list[Module]:
    """Lists what projects the keys of sources, one a layer."""
    attn = (
        "encoder_decoder_attn" if isinstance(model, TransformerModel) else "self_attn"
    )

    return [
        module
        for name, module in model.decoder.named_modules()
        if name.endswith(f".{attn}.k_proj")
    ]


class TestEncodedSource:
    @torch.no_grad()
    def test_source_is_encoded_and_projected_once(self) -> None:
        model = create_tiny_model(num_layers=2)

        wrapper = create_conditional_model(model)

        with ExitStack() as stack:
            encoder_calls = stack.enter_context(spy(model.encoder))

            projections = [
                stack.enter_context(spy(proj)) for proj in get_memory_projections(model)
            ]

            source = wrapper.encode(*create_source(SOURCES))

            self.use(model, wrapper, source)

        assert len(encoder_calls) == 1

        seqs, _ = create_source(SOURCES)

        assert len(projections) == 2

        for calls in projections:
            assert count_tokens(calls) == [seqs.numel()]

    def test_source_is_encoded_without_padding_on_a_cpu(self) -> None:
        if device.type != "cpu":
            pytest.skip("A GPU encodes all sources at once.")

        model = create_tiny_model(num_layers=2).eval()

        wrapper = create_conditional_model(model)

        # Not sorted, and so many that several parts are worth their start.
        sources = [[5 + n % 3] * (3 + 7 * n % 40) + [EOS_IDX] for n in range(120)]

        expected = wrapper.encode(*create_source(sources))

        with torch.no_grad(), spy(model.encoder) as calls:
            actual = wrapper.encode(*create_source(sources))

        num_tokens = sum(map(len, sources))

        # All at once it would be 1.8 times as many.
        assert num_tokens <= sum(count_tokens(calls)) < 1.2 * num_tokens

        assert actual.layout.seq_lens == expected.layout.seq_lens

        for n, source in enumerate(sources):
            assert_close(actual.seqs[n, : len(source)], expected.seqs[n, : len(source)])

            # What stands behind is finite, and hidden.
            assert actual.seqs[n, len(source) :].isfinite().all()

    def test_frontend_may_shorten_sources(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = create_tiny_model(num_layers=2).eval()

        read = model.encoder_frontend.forward

        def read_half(
            seqs: Tensor, layout: BatchLayout, **kwargs: Any
        ) -> tuple[Tensor, BatchLayout]:
            seqs, layout = read(seqs, layout, **kwargs)

            seqs = seqs[:, ::2]

            return seqs, BatchLayout.of(seqs, [(n + 1) // 2 for n in layout.seq_lens])

        monkeypatch.setattr(model.encoder_frontend, "forward", read_half)

        wrapper = create_conditional_model(model)

        sources = [[5 + n % 3] * (3 + 7 * n % 40) + [EOS_IDX] for n in range(60)]

        expected = wrapper.encode(*create_source(sources))

        with torch.no_grad():
            actual = wrapper.encode(*create_source(sources))

        assert actual.layout.seq_lens == expected.layout.seq_lens
        assert actual.memory.width == expected.memory.width

        for n, seq_len in enumerate(expected.layout.seq_lens):
            assert_close(actual.seqs[n, :seq_len], expected.seqs[n, :seq_len])

    @torch.no_grad()
    def test_prompt_is_read_once(self) -> None:
        model = create_tiny_lm(num_layers=2)

        wrapper = create_conditional_model(model)

        num_prompt_tokens = sum(len(source) for source in SOURCES)

        num_row_tokens = sum(len(seq) - 1 for seq in SEQS)

        with ExitStack() as stack:
            projections = [
                stack.enter_context(spy(proj)) for proj in get_memory_projections(model)
            ]

            source = wrapper.encode(*create_source(SOURCES))

            for calls in projections:
                assert count_tokens(calls) == [num_prompt_tokens]

            self.use(model, wrapper, source)

        assert len(projections) == 2

        for calls in projections:
            assert count_tokens(calls)[1:] == [num_row_tokens, 3, 3, num_row_tokens]

    def test_prompt_is_read_once_when_there_is_gradient(self) -> None:
        model = create_tiny_lm(num_layers=2)

        # Of the sources that have rows.
        num_prompt_tokens = sum(len(SOURCES[idx]) for idx in set(SOURCE_IDX))

        num_row_tokens = sum(len(seq) - 1 for seq in SEQS)

        for run in (score, compute_loss):
            with spy(get_memory_projections(model)[1]) as calls:
                run(model)

            assert count_tokens(calls) == [num_prompt_tokens + num_row_tokens]

    def use(
        self,
        model: Model,
        wrapper: conditional.ConditionalModel,
        source: conditional.EncodedSource,
    ) -> None:
        """Scores the rows, decodes two steps of three rows, scores the rows again."""
        rows = build_rows()

        wrapper.score(source, rows, get_excluded(model))

        decoder = wrapper.start(source, torch.tensor([1, 0, 0], device=device), 2)

        for token in (BOS_IDX, 5):
            decoder.step(torch.full((3, 1), token, device=device))

        wrapper.score(source, rows, get_excluded(model))


class TestComputeLoss:
    @pytest.mark.parametrize("passes", PASSES)
    @each_model
    def test_call_equals_weighted_scores(self, kind: str, passes: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        scores = score(model)

        loss = compute_loss(model, passes=passes)

        assert loss.shape == ()

        assert_close(loss, combine(scores))

        assert_close_gradients(
            differentiate(loss, model), differentiate(combine(scores), model)
        )

    def test_gradient_is_scaled_by_what_follows(self) -> None:
        # The trainer scales it, fp16 training does.
        model = create_tiny_model()

        gradients = differentiate(compute_loss(model), model)

        scaled = differentiate(-4.0 * compute_loss(model, passes="two"), model)

        assert_close_gradients(
            scaled, {name: -4.0 * gradient for name, gradient in gradients.items()}
        )

    @each_model
    def test_call_works_without_gradient(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        with torch.no_grad():
            expected = combine(score_alone(model))

            loss = compute_loss(model, passes="two")

        assert_close(loss, expected)

        assert not loss.requires_grad

    @pytest.mark.parametrize("passes", ["one", "two", "empty"])
    def test_passes_are_as_many_as_asked_for(self, passes: str) -> None:
        # All ranks make as many: each is a collective call under FSDP.
        model = create_tiny_model(num_layers=2)

        expected = []

        for rows in PASSES[passes] or []:
            # A pass without rows reads the first one.
            expected.append(sum(len(SEQS[row]) - 1 for row in rows or [0]))

        layer = model.get_submodule("decoder.layers.0")

        with spy(layer) as calls, spy(model.encoder) as encoder_calls:
            loss = compute_loss(model, passes=passes)

            assert count_tokens(calls) == expected

            loss.backward()

        # Each is computed again, but for the encoder.
        assert sorted(count_tokens(calls)) == sorted(2 * expected)

        assert len(encoder_calls) == 1

    def test_pass_reads_no_other_prompts(self) -> None:
        model = create_tiny_lm()

        with spy(model.decoder) as calls:
            compute_loss(model, passes="two")

        expected = [
            sum(len(SOURCES[idx]) for idx in sources)
            + sum(len(SEQS[row]) - 1 for row in rows)
            for sources, rows in (([1, 3], [3, 0, 4]), ([0], [2, 1]))
        ]

        assert count_tokens(calls) == expected

    @pytest.mark.parametrize("passes", ["none", "two"])
    @each_model
    def test_labels_of_targets_are_smoothed(self, kind: str, passes: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        loss = compute_loss(model, label_smoothing=0.3, passes=passes)

        expected = combine(score_alone(model, label_smoothing=0.3))

        assert_close(loss, expected)

        assert_close_gradients(
            differentiate(loss, model), differentiate(expected, model)
        )

        assert abs((loss - compute_loss(model)).item()) > 0.01

    def test_labels_of_warmups_are_not_smoothed(self) -> None:
        model = create_tiny_model()

        u, v = create_coefs()

        coefs = (u, torch.zeros_like(v))

        assert_equal(
            compute_loss(model, coefs, label_smoothing=0.2), compute_loss(model, coefs)
        )

    @each_model
    def test_gradient_is_close_when_model_is_bf16(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        expected = differentiate(compute_loss(model), model)

        lower_precision(model)

        for passes in ("none", "two"):
            loss = compute_loss(model, passes=passes)

            assert loss.dtype == torch.float32

            gradients = differentiate(loss, model)

            assert all(g.dtype == torch.bfloat16 for g in gradients.values())

            assert get_relative_error(gradients, expected) < 0.1

    @each_model
    def test_gradient_is_close_under_autocast(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        expected = differentiate(compute_loss(model), model)

        for passes in ("none", "two"):
            with torch.autocast(device.type, dtype=torch.bfloat16):
                loss = compute_loss(model, passes=passes)

            gradients = differentiate(loss, model)

            assert all(g.dtype == torch.float32 for g in gradients.values())

            assert get_relative_error(gradients, expected) < 0.1

    @each_model
    def test_autocast_lowers_precision(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # In the chunks as well, which have their own.
        model = CREATE_MODEL[kind](num_layers=2)

        monkeypatch.setattr(token_loss, "MAX_NUM_LOGITS", 27)

        with torch.autocast(device.type, dtype=torch.bfloat16):
            with spy(model.final_proj) as calls:
                loss = compute_loss(model)

        assert {logits.dtype for _, logits in calls} == {torch.bfloat16}

        assert loss.dtype == torch.float32

    @pytest.mark.parametrize("passes", ["none", "two", "empty"])
    @each_model
    def test_dropout_is_reproducible(self, kind: str, passes: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2, dropout_p=0.3)

        def run(seed: int) -> tuple[float, dict[str, Tensor]]:
            torch.manual_seed(seed)

            loss = compute_loss(model, passes=passes)

            return float(loss.detach()), differentiate(loss, model)

        expected, _ = run(0)

        model.train()

        (loss, gradients), (same_loss, same_gradients) = run(0), run(0)

        assert loss == same_loss

        for name, gradient in gradients.items():
            assert_equal(gradient, same_gradients[name])

        assert abs(loss - expected) > 0.01

        assert abs(loss - run(1)[0]) > 0.01

    @each_model
    def test_what_is_computed_again_has_the_same_dropout(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2, dropout_p=0.3).train()

        def run() -> tuple[Tensor, dict[str, Tensor]]:
            torch.manual_seed(0)

            loss = compute_loss(model, passes="two")

            # The state of the generator is another one in the backward pass.
            torch.manual_seed(1)

            return loss, differentiate(loss, model)

        loss, gradients = run()

        def keep_all(function: Callable[..., Tensor], *args: Any, **_: Any) -> Tensor:
            return function(*args)

        monkeypatch.setattr(row_model, "checkpoint", keep_all)

        expected_loss, expected = run()

        assert_equal(loss, expected_loss)

        assert_close_gradients(gradients, expected, atol=1e-6)

    def test_parameters_may_be_frozen(self) -> None:
        model = create_tiny_model()

        expected = differentiate(compute_loss(model), model)

        model.requires_grad_(False)

        weight = model.get_parameter("decoder.layers.0.ffn.inner_proj.weight")

        weight.requires_grad_()

        for passes in ("none", "two"):
            [gradient] = torch.autograd.grad(
                compute_loss(model, passes=passes), [weight]
            )

            assert_close(
                gradient,
                expected["decoder.layers.0.ffn.inner_proj.weight"],
                rtol=1e-4,
                atol=1e-5,
            )


def get_relative_error(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Compares gradients as one vector; not a number if one of them is not."""
    assert list(a) == list(b)

    error = sum(
        float((a[name].double() - b[name].double()).square().sum()) for name in a
    )

    norm = sum(float(gradient.double().square().sum()) for gradient in b.values())

    return float((error / norm) ** 0.5)


class TestEvaluationMode:
    @pytest.mark.parametrize("training", [True, False])
    def test_call_restores_mode(self, training: bool) -> None:
        model = create_tiny_model().train(training)

        with pytest.raises(KeyError), evaluation_mode(model):
            assert not any(module.training for module in model.modules())

            raise KeyError()

        assert all(module.training == training for module in model.modules())


class TestMakeScorable:
    @pytest.mark.parametrize("passes", ["none", "two"])
    @each_model
    def test_forward_computes_loss_of_rows(self, kind: str, passes: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        make_scorable(model)

        for label_smoothing in (0.0, 0.2):
            # Its type is another one now.
            forward: Callable[..., Tensor] = model

            loss = forward(
                *create_source(SOURCES),
                rows=build_rows(),
                coefs=RowCoefs(*create_coefs()),
                excluded=get_excluded(model),
                label_smoothing=label_smoothing,
                passes=create_passes(passes),
            )

            expected = combine(score_alone(model, label_smoothing))

            assert_close(loss, expected)

            assert_close_gradients(
                differentiate(loss, model), differentiate(expected, model)
            )

    @each_model
    def test_forward_does_what_it_did_when_there_are_no_rows(self, kind: str) -> None:
        plain, scorable = CREATE_MODEL[kind](), CREATE_MODEL[kind]()

        make_scorable(scorable)

        inputs: tuple[Any, ...] = create_source([target[:-1] for target in TARGETS])

        if isinstance(plain, TransformerModel):
            inputs = (*create_source(SOURCES), *inputs)

        assert_equal(scorable(*inputs), plain(*inputs))

        targets, _ = pad_rows([target[1:] for target in TARGETS])

        forwards: list[Callable[..., Tensor]] = [scorable, plain]

        for reduction in ("sum", "mean", "none"):
            kwargs: dict[str, Any] = {"label_smoothing": 0.1, "reduction": reduction}

            one, two = (forward(*inputs, targets, **kwargs) for forward in forwards)

            assert_equal(one, two)

        expected = differentiate(plain(*inputs).square().sum(), plain)

        gradients = differentiate(scorable(*inputs).square().sum(), scorable)

        for name, gradient in gradients.items():
            assert_equal(gradient, expected[name])

    @each_model
    @torch.no_grad()
    def test_model_still_decodes_with_state_bag(self, kind: str) -> None:
        # As fairseq2's own generators do.
        model = CREATE_MODEL[kind](num_layers=2)

        make_scorable(model)

        source, seq = SOURCES[1], SEQS[0]

        expected = forward_alone(CREATE_MODEL[kind](num_layers=2), source, seq)

        state_bag = IncrementalStateBag(max_num_steps=32)

        if isinstance(model, TransformerLM):
            model(*create_source([source]), state_bag=state_bag)

            state_bag.increment_step_nr(len(source))

        for step_nr, token in enumerate(seq):
            inputs: tuple[Any, ...] = create_source([[token]])

            if isinstance(model, TransformerModel):
                inputs = (*create_source([source]), *inputs)

            logits = model(*inputs, state_bag=state_bag)[0, -1]

            state_bag.increment_step_nr()

            assert_close(logits, expected[step_nr], rtol=0.0, atol=2e-5)

    @each_model
    def test_call_changes_no_name(self, kind: str) -> None:
        model, other = CREATE_MODEL[kind](), CREATE_MODEL[kind]()

        parameters = list(model.parameters())

        make_scorable(model)

        expected_kls = {
            "transformer": (ScorableTransformer, TransformerModel),
            "t5": (ScorableTransformer, TransformerModel),
            "llama": (ScorableTransformerLM, TransformerLM),
            "qwen": (ScorableTransformerLM, TransformerLM),
        }

        kls, base_kls = expected_kls[kind]

        assert type(model) is kls
        assert isinstance(model, base_kls)

        assert list(model.state_dict()) == list(other.state_dict())

        assert all(x is y for x, y in zip(model.parameters(), parameters))

        names = [name for name, _ in model.named_modules()]

        assert names == [name for name, _ in other.named_modules()]

        # A second time, as after a restart within a process.
        make_scorable(model)

        assert type(model) is kls

        model.load_state_dict(other.state_dict())

    def test_call_raises_error_when_model_is_not_supported(self) -> None:
        with pytest.raises(
            WarmupError, match="is a `Linear`.*use a family.*`nllb` or `llama`"
        ):
            make_scorable(Linear(2, 2))

        class Special(TransformerModel):  # type: ignore[misc]
            pass

        class SpecialLM(TransformerLM):  # type: ignore[misc]
            pass

        for model, kls in (
            (create_tiny_model(), Special),
            (create_tiny_lm(), SpecialLM),
        ):
            model.__class__ = kls

            with pytest.raises(WarmupError, match=f"subclass `{kls.__name__}`"):
                make_scorable(model)


class TestCreateConditionalModel:
    @each_model
    def test_call_works(self, kind: str) -> None:
        # The last two rows of the projection stand for no token.
        model = CREATE_MODEL[kind](vocab_size=10, max_seq_len=32)

        wrapper = create_conditional_model(model)

        assert wrapper.module is model
        assert wrapper.num_logits == 10

        # A prompt takes room.
        room = 27 if wrapper.reads_prompts else 32

        assert wrapper.get_max_target_len(5) == room

    def test_call_raises_error_when_model_is_not_supported(self) -> None:
        with pytest.raises(WarmupError, match="is a `Linear`"):
            create_conditional_model(Linear(2, 2))
