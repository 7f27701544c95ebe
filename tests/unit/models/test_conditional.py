# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fairseq2.models.transformer import TransformerModel
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import Linear, Module

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    PAD_IDX,
    SEPARATOR_IDX,
    WORDS,
    assert_close,
    assert_equal,
    create_layout,
    create_source,
    create_tiny_model,
    device,
    pad_rows,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderRows, join_rows, plain_rows
from warmup_plugin.models.conditional import (
    RowScores,
    ScorableTransformer,
    TransformerConditional,
    create_conditional_model,
    evaluation_mode,
    make_scorable,
)

SOURCES = [[5, 6, EOS_IDX], [7, 7, 5, 6, 5, EOS_IDX]]
TARGETS = [[BOS_IDX, 6, 5, 7, EOS_IDX], [BOS_IDX, 7, EOS_IDX]]

# Of the two sources, in no order, with an empty one and a cut one.
WARMUPS = [[5, 6], [], [7, 7, 7], [6]]
SOURCE_IDX = [1, 0, 0, 1]
CUT = [False, False, True, False]


def build_rows() -> DecoderRows:
    target_seqs, target_seq_lens = pad_rows(TARGETS)

    warmups, warmup_lens = pad_rows(WARMUPS)

    return join_rows(
        create_layout(),
        target_seqs,
        torch.tensor(target_seq_lens, device=device),
        warmups,
        torch.tensor(warmup_lens, device=device),
        torch.tensor(CUT, device=device),
        torch.ones(4, device=device, dtype=torch.bool),
        torch.tensor(SOURCE_IDX, device=device),
    )


def smooth_nll(log_probs: Tensor, token: int, label_smoothing: float) -> Tensor:
    """fairseq's: the smoothed share is spread over the *other* tokens."""
    others = torch.cat([log_probs[:token], log_probs[token + 1 :]])

    return -(1 - label_smoothing) * log_probs[token] - label_smoothing * others.mean()


def score_by_hand(
    model: TransformerModel, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Scores each row alone, from the logits of a plain forward."""
    a, b = [], []

    allowed = [SEPARATOR_IDX, *WORDS]

    for warmup, idx, cut in zip(WARMUPS, SOURCE_IDX, CUT):
        source, target = SOURCES[idx], TARGETS[idx]

        seq = [BOS_IDX, *warmup, SEPARATOR_IDX, *target[1:]]

        # (S, V)
        logits = model(*create_source([source]), *create_source([seq[:-1]]))[0]

        # The sum of nothing is a tensor too.
        a_sum = b_sum = logits.new_zeros(())

        for step_nr in range(len(warmup) + (not cut)):
            log_probs = logits[step_nr, allowed].log_softmax(dim=0)

            a_sum = a_sum + log_probs[allowed.index(seq[step_nr + 1])]

        for step_nr in range(len(warmup) + 1, len(seq) - 1):
            log_probs = logits[step_nr].log_softmax(dim=0)

            b_sum = b_sum - smooth_nll(log_probs, seq[step_nr + 1], label_smoothing)

        a.append(a_sum)
        b.append(b_sum)

    return torch.stack(a), torch.stack(b)


def get_ban_mask(model: TransformerModel) -> Tensor:
    return create_layout().warmup_ban_mask(model.final_proj.output_dim, device)


class TestScore:
    @pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
    def test_call_equals_scores_by_hand(self, label_smoothing: float) -> None:
        model = create_tiny_model(num_layers=2)

        wrapper = TransformerConditional(model)

        source = wrapper.encode(*create_source(SOURCES))

        scores = wrapper.score(
            source, build_rows(), get_ban_mask(model), label_smoothing=label_smoothing
        )

        a, b = score_by_hand(model, label_smoothing)

        assert_close(scores.warmup_log_probs, a)
        assert_close(scores.target_log_probs, b)

        # The gradients as well, of each parameter.
        weights = torch.tensor([1.0, -2.0, 3.0, 0.5], device=device)

        def differentiate(a: Tensor, b: Tensor) -> list[Tensor]:
            loss = (weights * (a - 0.5 * b)).sum()

            return list(torch.autograd.grad(loss, list(model.parameters())))

        for actual, expected in zip(differentiate(*scores), differentiate(a, b)):
            assert_close(actual, expected, rtol=1e-4, atol=1e-5)

    def test_separator_and_control_symbols_count_in_target_distribution(self) -> None:
        # The distribution over y is the model's own; only c is restricted.
        model = create_tiny_model()

        wrapper = TransformerConditional(model)

        rows = build_rows()

        source = wrapper.encode(*create_source(SOURCES))

        none = torch.zeros_like(get_ban_mask(model))

        restricted = wrapper.score(source, rows, get_ban_mask(model))
        free = wrapper.score(source, rows, none)

        assert_equal(restricted.target_log_probs, free.target_log_probs)

        assert bool((restricted.warmup_log_probs > free.warmup_log_probs).all())

    def test_call_returns_zero_when_no_warmup_is_counted(self) -> None:
        model = create_tiny_model()

        wrapper = TransformerConditional(model)

        target_seqs, target_seq_lens = pad_rows(TARGETS)

        rows = plain_rows(
            create_layout(), target_seqs, torch.tensor(target_seq_lens, device=device)
        )

        source = wrapper.encode(*create_source(SOURCES))

        scores = wrapper.score(source, rows, get_ban_mask(model))

        assert_equal(scores.warmup_log_probs, [0.0, 0.0])

        # What plain fine-tuning minimises.
        nll = model(
            *create_source(SOURCES),
            *create_source([target[:-1] for target in TARGETS]),
            targets=pad_rows([target[1:] for target in TARGETS])[0],
            reduction="none",  # type: ignore[call-overload]
        )

        assert_close(scores.target_log_probs, -nll.sum(dim=1))

    def test_log_probs_are_fp32_when_model_is_not(self) -> None:
        model = create_tiny_model().bfloat16()

        wrapper = TransformerConditional(model)

        source = wrapper.encode(*create_source(SOURCES))

        for log_probs in wrapper.score(source, build_rows(), get_ban_mask(model)):
            assert log_probs.dtype == torch.float32

            assert bool(log_probs.isfinite().all())


class TestRowDecoder:
    def decode(
        self, model: TransformerModel, steps: Sequence[Sequence[Sequence[int]]]
    ) -> Tensor:
        """Feeds the steps to rows of the sources 1, 0, 0. Returns the last logits."""
        wrapper = TransformerConditional(model)

        source = wrapper.encode(*create_source(SOURCES))

        source_idx = torch.tensor([1, 0, 0], device=device)

        max_len = sum(len(step[0]) for step in steps)

        decoder = wrapper.start(source, source_idx, max_len)

        for step in steps:
            logits = decoder.step(torch.tensor(step, device=device))

        return logits

    @torch.no_grad()
    def test_step_equals_uncached_forward(self) -> None:
        model = create_tiny_model(num_layers=2)

        rows = [[BOS_IDX, 5, 6, 7], [BOS_IDX, 7, 7, 5], [BOS_IDX, SEPARATOR_IDX, 5, 5]]

        expected = torch.stack(
            [
                model(*create_source([SOURCES[idx]]), *create_source([row]))[0, -1]
                for idx, row in zip([1, 0, 0], rows)
            ]
        )

        # A token at a time, and a prefix of two tokens.
        for bounds in ([0, 1, 2, 3, 4], [0, 2, 3, 4], [0, 4]):
            steps = [
                [row[begin:end] for row in rows]
                for begin, end in zip(bounds, bounds[1:])
            ]

            assert_close(self.decode(model, steps), expected, rtol=0.0, atol=2e-5)

    @torch.no_grad()
    def test_select_drops_repeats_and_reorders_rows(self) -> None:
        model = create_tiny_model(num_layers=2)

        wrapper = TransformerConditional(model)

        source = wrapper.encode(*create_source(SOURCES))

        decoder = wrapper.start(source, torch.tensor([1, 0, 0], device=device), 4)

        decoder.step(torch.tensor([[BOS_IDX]] * 3, device=device))
        decoder.step(torch.tensor([[5], [6], [7]], device=device))

        decoder.select(torch.tensor([2, 0, 0, 2], device=device))

        decoder.step(torch.tensor([[5], [6], [7], [6]], device=device))

        decoder.select(torch.tensor([1, 3], device=device))

        logits = decoder.step(torch.tensor([[7], [5]], device=device))

        rows = [(1, [BOS_IDX, 5, 6, 7]), (0, [BOS_IDX, 7, 6, 5])]

        expected = torch.stack(
            [
                model(*create_source([SOURCES[idx]]), *create_source([row]))[0, -1]
                for idx, row in rows
            ]
        )

        assert_close(logits, expected, rtol=0.0, atol=2e-5)


class TestEvaluationMode:
    @pytest.mark.parametrize("training", [True, False])
    def test_call_restores_mode(self, training: bool) -> None:
        model = create_tiny_model().train(training)

        with pytest.raises(KeyError), evaluation_mode(model):
            assert not any(module.training for module in model.modules())

            raise KeyError()

        assert all(module.training == training for module in model.modules())


class TestScorableTransformer:
    def call(self, model: Module, *, label_smoothing: float = 0.0) -> RowScores:
        scores = model(
            *create_source(SOURCES),
            *create_source(TARGETS),
            rows=build_rows(),
            warmup_ban_mask=create_layout().warmup_ban_mask(8, device),
            label_smoothing=label_smoothing,
        )

        assert isinstance(scores, RowScores)

        return scores

    def test_forward_scores_rows(self) -> None:
        model = create_tiny_model()

        make_scorable(model)

        for label_smoothing in (0.0, 0.2):
            scores = self.call(model, label_smoothing=label_smoothing)

            a, b = score_by_hand(model, label_smoothing)

            assert_close(scores.warmup_log_probs, a)
            assert_close(scores.target_log_probs, b)

    def test_forward_does_what_it_did_when_there_are_no_rows(self) -> None:
        plain, scorable = create_tiny_model(), create_tiny_model()

        make_scorable(scorable)

        inputs = (
            *create_source(SOURCES),
            *create_source([target[:-1] for target in TARGETS]),
        )

        assert_equal(scorable(*inputs), plain(*inputs))

        targets, _ = pad_rows([target[1:] for target in TARGETS])

        for reduction in ("sum", "mean", "none"):
            kwargs: dict[str, Any] = {"label_smoothing": 0.1, "reduction": reduction}

            assert_equal(
                scorable(*inputs, targets, **kwargs),
                plain(*inputs, targets, **kwargs),
            )

    def test_make_scorable_changes_no_name(self) -> None:
        model, other = create_tiny_model(), create_tiny_model()

        parameters = list(model.parameters())

        make_scorable(model)

        assert isinstance(model, ScorableTransformer)
        assert isinstance(model, TransformerModel)

        assert list(model.state_dict()) == list(other.state_dict())

        assert all(x is y for x, y in zip(model.parameters(), parameters))

        # A second time, as after a restart within a process.
        make_scorable(model)

        assert type(model) is ScorableTransformer

    def test_make_scorable_raises_error_when_model_is_not_supported(self) -> None:
        with pytest.raises(WarmupError, match="is a `Linear`.*use an encoder-decoder"):
            make_scorable(Linear(2, 2))

        class Special(TransformerModel):  # type: ignore[misc]
            pass

        model = create_tiny_model()

        model.__class__ = Special

        with pytest.raises(WarmupError, match="subclass `Special`"):
            make_scorable(model)


class TestCreateConditionalModel:
    def test_call_works(self) -> None:
        model = create_tiny_model(max_seq_len=32)

        conditional = create_conditional_model(model)

        assert conditional.module is model
        assert conditional.num_logits == 8
        assert conditional.max_target_len == 32

    def test_call_raises_error_when_model_is_not_supported(self) -> None:
        with pytest.raises(WarmupError, match="is a `Linear`"):
            create_conditional_model(Linear(2, 2))


class TestEncodedSource:
    @torch.no_grad()
    def test_expand_gives_rows_their_lengths(self) -> None:
        wrapper = TransformerConditional(create_tiny_model())

        source = wrapper.encode(*create_source(SOURCES))

        seqs, layout = source.expand(torch.tensor([1, 0, 1], device=device))

        assert isinstance(layout, BatchLayout)
        assert list(layout.seq_lens) == [6, 3, 6]
        assert_equal(seqs, source.seqs[[1, 0, 1]])

    @torch.no_grad()
    def test_padding_is_not_seen(self) -> None:
        model = create_tiny_model()

        wrapper = TransformerConditional(model)

        seqs, layout = create_source(SOURCES)

        other = seqs.clone()

        assert bool((other[0, 3:] == PAD_IDX).all())

        other[0, 3:] = 7

        scores = [
            wrapper.score(
                wrapper.encode(source_seqs, layout), build_rows(), get_ban_mask(model)
            )
            for source_seqs in (seqs, other)
        ]

        for x, y in zip(*scores):
            assert_close(x, y)
