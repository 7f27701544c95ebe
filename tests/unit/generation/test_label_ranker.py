# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from fairseq2.models.transformer_lm import TransformerLM

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    SEPARATOR_IDX,
    WORDS,
    Model,
    create_tiny_lm,
    create_tiny_model,
    device,
    forward_alone,
)
from tests.number_codec import NumberCodec
from warmup_plugin.data.lines import Line, LineError
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.label_ranker import LabelRanker
from warmup_plugin.generation.pair_scorer import PairScorer
from warmup_plugin.models.scorable import create_conditional_model

# Of different lengths.
LABELS = [f"{WORDS[0]}", f"{WORDS[1]} {WORDS[2]}", f"{WORDS[2]}"]

LINES = [
    Line(0, f"{WORDS[0]} {WORDS[1]} {WORDS[2]}"),
    Line(3, f"{WORDS[2]} {WORDS[2]}"),
    Line(4, ""),
    Line(5, " ".join(str(word) for word in [*WORDS, *WORDS])),
]

MODELS = pytest.mark.parametrize("create_model", [create_tiny_model, create_tiny_lm])

PLAIN_PATHS = pytest.mark.parametrize(
    "has_empty_warmup,leaves_separator_out",
    [(True, False), (False, True), (False, False)],
    ids=["empty", "bare", "none"],
)


def create(kind: Any, model: Model, *args: object, **options: Any) -> Any:
    wrapper = create_conditional_model(model.eval())

    codec = NumberCodec(reads_prompts=wrapper.reads_prompts)

    options = {
        "max_num_tokens": 1000,
        "num_warmups": 3,
        "has_empty_warmup": True,
        **options,
    }

    return kind(wrapper, codec, device, *args, max_warmup_len=2, seed=7, **options)


def rank(
    model: Model,
    lines: Sequence[Line],
    labels: Sequence[str] = LABELS,
    **options: Any,
) -> list[list[dict[str, Any]]]:
    ranker = create(LabelRanker, model, labels, **options)

    return [answer.hypotheses for answer in ranker(lines)]


class TestLabelRanker:
    @MODELS
    @PLAIN_PATHS
    @pytest.mark.parametrize("num_warmups", [0, 3])
    def test_scores_are_those_of_pairs(
        self,
        create_model: Callable[[], Model],
        num_warmups: int,
        has_empty_warmup: bool,
        leaves_separator_out: bool,
    ) -> None:
        model = create_model()

        options: dict[str, Any] = {
            "num_warmups": num_warmups,
            "has_empty_warmup": has_empty_warmup,
            "leaves_separator_out": leaves_separator_out,
        }

        scorer = create(PairScorer, model, **options)

        hypotheses = rank(model, LINES, **options)

        for line, line_hypotheses in zip(LINES, hypotheses):
            if not line.source:
                assert line_hypotheses == []

                continue

            pairs = [Line(line.number, line.source, label) for label in LABELS]

            expected = {}

            for score in scorer(pairs):
                log_prob = score.marginal_log_prob if num_warmups else score.log_prob

                expected[score.target] = log_prob

            found = {h["output"]: h["score"] for h in line_hypotheses}

            assert found == pytest.approx(expected, abs=1e-4)

            # The likeliest first.
            assert list(found) == sorted(expected, key=lambda label: -expected[label])

            assert sum(h["weight"] for h in line_hypotheses) == pytest.approx(1.0)

    @MODELS
    @PLAIN_PATHS
    def test_scores_without_warmup_are_those_of_model(
        self,
        create_model: Callable[[], Model],
        has_empty_warmup: bool,
        leaves_separator_out: bool,
    ) -> None:
        model = create_model()

        [hypotheses] = rank(
            model,
            LINES[:1],
            num_warmups=0,
            has_empty_warmup=has_empty_warmup,
            leaves_separator_out=leaves_separator_out,
        )

        words = [int(word) for word in LINES[0].source.split()]

        # What the codec makes of a prompt, or of a source.
        if isinstance(model, TransformerLM):
            source, prefix = words[:-1], words[-1]
        else:
            source, prefix = [*words, EOS_IDX], BOS_IDX

        given = [prefix, SEPARATOR_IDX] if has_empty_warmup else [prefix]

        for hypothesis in hypotheses:
            target = [*map(int, hypothesis["output"].split()), EOS_IDX]

            with torch.no_grad():
                logits = forward_alone(model, source, [*given, *target[:-1]])

            logits = logits[len(given) - 1 :]

            if has_empty_warmup or leaves_separator_out:
                # y is learned without the separator.
                logits[:, SEPARATOR_IDX] = -torch.inf

            log_probs = logits.log_softmax(dim=1)[range(len(target)), target]

            assert hypothesis["score"] == pytest.approx(
                float(log_probs.sum()), abs=1e-4
            )

    @MODELS
    def test_batch_does_not_show(self, create_model: Callable[[], Model]) -> None:
        model = create_model()

        together, alone = rank(model, LINES), rank(model, LINES, max_num_tokens=1)

        for a, b in zip(together, alone):
            assert [h["output"] for h in a] == [h["output"] for h in b]

            assert [h["score"] for h in a] == pytest.approx([h["score"] for h in b])

    def test_warmup_is_one_that_was_drawn(self) -> None:
        model = create_tiny_model()

        [pair] = create(PairScorer, model)([Line(0, LINES[0].source, LABELS[0])])

        [hypotheses] = rank(model, LINES[:1])

        best = next(h for h in hypotheses if h["output"] == LABELS[0])

        # The one with most weight.
        assert best["warmup"] == pair.warmups[0].warmup

    def test_plain_model_has_no_warmup(self) -> None:
        [hypotheses] = rank(create_tiny_model(), LINES[:1], num_warmups=0)

        assert [h["warmup"] for h in hypotheses] == [None] * len(LABELS)

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([LABELS[0]], "at least two, but there are 1"),
            (["5 6", "5  6"], "`5 6` and `5  6` are the same tokens"),
        ],
    )
    def test_labels_must_differ(self, labels: list[str], message: str) -> None:
        with pytest.raises(WarmupError, match=message):
            rank(create_tiny_model(), LINES, labels)

    @pytest.mark.parametrize(
        ("size", "message"),
        [
            (20, "^Line 2 of the input has 21 tokens, but the model reads at most 16"),
        ],
    )
    def test_long_line_is_named(self, size: int, message: str) -> None:
        model = create_tiny_model(max_seq_len=16)

        long = Line(1, " ".join([str(WORDS[0])] * size))

        with pytest.raises(LineError, match=message):
            rank(model, [LINES[0], long])

    def test_prompt_without_room_is_named(self) -> None:
        model = create_tiny_lm(max_seq_len=16)

        # A warmup of two, the separator, a label of two and EOS, which is not read.
        fits, long = (Line(n, " ".join([str(WORDS[0])] * (11 + n))) for n in (0, 1))

        rank(model, [fits])

        with pytest.raises(LineError, match="^Line 2 of the input .* need"):
            rank(model, [fits, long])
