# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tests.common import (
    WORDS,
    Model,
    create_tiny_lm,
    create_tiny_model,
    device,
)
from tests.number_codec import NumberCodec
from warmup_plugin.data.lines import Line, LineError
from warmup_plugin.generation import GenerationConfig, WarmupGenerator
from warmup_plugin.generation.translator import Ranker, Translation, Translator
from warmup_plugin.models.scorable import create_conditional_model

MAX_LEN = 16


def translate(
    model: Model,
    lines: Sequence[Line],
    *,
    warmup: str = "single",
    truncate: bool = False,
    rank: Ranker | None = None,
) -> list[Translation]:
    wrapper = create_conditional_model(model)

    codec = NumberCodec(reads_prompts=wrapper.reads_prompts)

    config = GenerationConfig(warmup=warmup, max_warmup_len=4, beam_size=2)

    translator = Translator(
        wrapper,
        WarmupGenerator(wrapper, codec.layout, config),
        codec,
        device,
        max_num_tokens=1000,
        truncate=truncate,
        rank=rank,
    )

    return translator(lines)


def repeat_word(size: int) -> str:
    return " ".join([str(WORDS[0])] * size)


class TestBeginning:
    @pytest.mark.parametrize("truncate", [False, True])
    @pytest.mark.parametrize(
        # Beside BOS, and warmup and separator.
        ("warmup", "max_len"),
        [("single", MAX_LEN - 6), ("none", MAX_LEN - 1), ("empty", MAX_LEN - 2)],
    )
    def test_line_of_longer_one_is_named(
        self, warmup: str, max_len: int, truncate: bool
    ) -> None:
        model = create_tiny_model(max_seq_len=MAX_LEN)

        source = repeat_word(3)

        fit = Line(0, source, repeat_word(max_len))

        [translation] = translate(model, [fit], warmup=warmup, truncate=truncate)

        assert translation.output == fit.target

        lines = [Line(0, source), Line(1, source, repeat_word(max_len + 1)), fit]

        with pytest.raises(LineError) as exc_info:
            translate(model, lines, warmup=warmup, truncate=truncate)

        assert exc_info.value.number == 1

        assert str(exc_info.value) == (
            f"Line 2 of the input has a translation that is to begin with {max_len + 1} tokens, but the model can write at most {max_len}; shorten the beginning."
        )

    def test_first_line_at_fault_is_named(self) -> None:
        model = create_tiny_model(max_seq_len=MAX_LEN)

        lines = [
            Line(0, repeat_word(1)),
            Line(1, repeat_word(1), repeat_word(20)),
            Line(2, repeat_word(20)),
        ]

        with pytest.raises(LineError, match="Line 2 of the input"):
            translate(model, lines)


class TestPrompt:
    @pytest.mark.parametrize(
        ("warmup", "max_len", "message"),
        [
            (
                "single",
                MAX_LEN - 6,
                "Line 2 of the input has a prompt of 11 tokens, which leaves 5 of those that the model reads, too few for a warmup of up to 4 tokens and an output; split it into sentences, or lower `--max-warmup-len`.",
            ),
            (
                "empty",
                MAX_LEN - 2,
                "Line 2 of the input has a prompt of 15 tokens, which leaves 1 of those that the model reads, too few for an output; split it into sentences.",
            ),
            (
                "none",
                MAX_LEN - 1,
                "Line 2 of the input has a prompt of 16 tokens, which leaves 0 of those that the model reads, too few for an output; split it into sentences.",
            ),
        ],
    )
    def test_line_without_room_is_named(
        self, warmup: str, max_len: int, message: str
    ) -> None:
        model = create_tiny_lm(max_seq_len=MAX_LEN)

        fit = Line(0, repeat_word(max_len))

        assert translate(model, [fit], warmup=warmup)[0].hypotheses

        with pytest.raises(LineError) as exc_info:
            translate(model, [fit, Line(1, repeat_word(max_len + 1))], warmup=warmup)

        assert exc_info.value.number == 1
        assert str(exc_info.value) == message


def test_nothing_is_ranked_when_all_lines_are_empty() -> None:
    def rank(*args: Any) -> Any:
        pytest.fail("There is nothing to score.")

    lines = [Line(0, ""), Line(1, "")]

    translations = translate(create_tiny_model(), lines, rank=rank)

    assert [translation.hypotheses for translation in translations] == [[], []]
