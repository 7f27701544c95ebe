# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any

import pytest
from fairseq2.utils.validation import StandardObjectValidator, ValidationError

from warmup_plugin.generation import (
    GenerationConfig,
    GenerationSection,
    create_generation_config,
)


class TestGenerationConfig:
    def test_defaults_are_valid(self) -> None:
        assert not GenerationConfig().validate().has_error()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"warmup": "two"},
                "`warmup` must be one of none, bare, empty, single, gr",
            ),
            ({"warmup": "sample", "rank_by": "x"}, "`rank_by` must be one of log_prob"),
            ({"rank_by": "mbr"}, "only `warmup=sample` has several warmups"),
            (
                {"plain_weight": 1.0},
                "`plain_weight` must be greater than or equal to 0",
            ),
            ({"plain_weight": -0.1}, "and less than 1"),
            ({"plain_weight": 0.3}, "only an output behind a warmup that is written"),
            (
                {"warmup": "empty", "plain_weight": 0.3},
                "set `warmup` to `beam_then_beam`",
            ),
            ({"max_warmup_len": 0}, "`max_warmup_len` must be greater than or equal"),
            ({"num_warmups": 0}, "`num_warmups` must be greater than or equal to 1"),
            ({"beam_size": 0}, "`beam_size` must be greater than or equal to 1"),
            ({"num_best": 0}, "`num_best` must be greater than or equal to 1"),
            ({"num_best": 6}, "`num_best` must be at most `beam_size` (5), but is 6"),
            (
                {"warmup": "sample", "num_warmups": 4, "num_best": 5},
                "`num_best` must be at most `num_warmups` (4), but is 5",
            ),
            ({"max_len_a": -1.0}, "`max_len_a` must be greater than or equal to 0"),
            ({"max_len_b": 0}, "`max_len_b` must be greater than or equal to 1"),
            ({"min_len_b": -1}, "`min_len_b` must be greater than or equal to 0"),
            ({"no_repeat_ngram_size": -1}, "`no_repeat_ngram_size` must be greater"),
            ({"temperature": 0.0}, "`temperature` must be greater than or equal to"),
            ({"temperature": 1e-40}, "`temperature` must be greater than or equal to"),
            ({"top_k": 0}, "`top_k` must be greater than or equal to 1"),
            ({"top_p": 1.5}, "`top_p` must be greater than 0 and less"),
            ({"length_penalty": float("nan")}, "`length_penalty` must be a finite"),
            ({"max_len_a": float("inf")}, "`max_len_a` must be a finite number"),
            ({"seed": -1}, "`seed` must be greater than or equal to 0"),
            ({"num_warmups": 4}, "`num_warmups` is 4, but only `warmup=sample` draws"),
            (
                {"sampling": True, "num_warmups": 4},
                "`num_warmups` is 4, but only `warmup=sample` draws",
            ),
            ({"temperature": 0.5}, "`temperature` is 0.5, but nothing is drawn; set"),
            ({"top_k": 3}, "`top_k` is 3, but nothing is drawn; set `sampling`, or"),
            (
                {"warmup": "greedy_then_beam", "top_p": 0.9},
                "`top_p` is 0.9, but nothing is drawn; set `sampling`",
            ),
        ],
    )
    def test_mistake_is_named(self, options: dict[str, object], message: str) -> None:
        config = GenerationConfig(**options)  # type: ignore[arg-type]

        with pytest.raises(ValidationError) as exc_info:
            StandardObjectValidator().validate(config)

        assert message in str(exc_info.value)

    @pytest.mark.parametrize(
        "options",
        [
            {"sampling": True},
            {"warmup": "none", "sampling": True},
            {"warmup": "empty", "sampling": True},
            {"warmup": "sample", "num_warmups": 4},
        ],
    )
    def test_draws_have_settings(self, options: dict[str, Any]) -> None:
        config = GenerationConfig(temperature=0.5, top_k=3, top_p=0.9, **options)

        assert not config.validate().has_error()

    def test_draws_may_be_more_than_beams(self) -> None:
        config = GenerationConfig(sampling=True, num_best=20)

        assert not config.validate().has_error()


class TestGenerationSection:
    def test_plain_weight_holds_in_validations_with_warmups(self) -> None:
        section = GenerationSection(plain_weight=0.3)

        assert not section.validate().has_error()

        def create(max_warmup_len: int | None) -> tuple[str, float]:
            config = create_generation_config(
                max_warmup_len, beam_size=1, section=section
            )

            assert not config.validate().has_error()

            return config.warmup, config.plain_weight

        assert create(6) == ("beam_then_beam", 0.3)
        assert create(0) == ("empty", 0.0)
        assert create(None) == ("none", 0.0)
