# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.common import create_layout, create_tiny_model, device
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import GenerationConfig, WarmupGenerator
from warmup_plugin.generation.ctranslate2_generator import (
    TOKENS_FILE,
    CTranslate2Generator,
    check_options,
    import_ctranslate2,
)
from warmup_plugin.models.scorable import create_conditional_model


class TestCheckOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"warmup": "none"},
            {"warmup": "empty", "beam_size": 3, "num_best": 2},
            {"warmup": "greedy_then_beam", "length_penalty": 0.6},
            {"warmup": "single", "beam_size": 1, "max_len_a": 2.0, "min_len_b": 1},
        ],
    )
    def test_search_is_known(self, options: dict[str, Any]) -> None:
        check_options(GenerationConfig(**options))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "take `--warmup greedy-then-beam`, or `--beam-size 1`"),
            ({"warmup": "beam_then_beam"}, "take `--warmup greedy-then-beam`, or"),
            ({"warmup": "sample"}, "`--warmup sample` is not for"),
            ({"warmup": "none", "sampling": True}, "`--sampling` is not for"),
            (
                {"warmup": "greedy_then_beam", "plain_weight": 0.3},
                "leave one of them out, or say `--plain-weight 0.0` if the run sets it.",
            ),
            (
                {"warmup": "none", "no_repeat_ngram_size": 3},
                "`--no-repeat-ngram-size` is not for",
            ),
        ],
    )
    def test_what_is_not_known_is_named(
        self, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            check_options(GenerationConfig(**options))


class TestCTranslate2Generator:
    def test_init_names_folder_that_is_no_model(self, tmp_path: Path) -> None:
        tmp_path.joinpath(TOKENS_FILE).write_text("[]")

        generator = WarmupGenerator(
            create_conditional_model(create_tiny_model()),
            create_layout(),
            GenerationConfig(warmup="none"),
        )

        with pytest.raises(WarmupError, match=f"`{tmp_path}`.*; delete that folder"):
            CTranslate2Generator(
                tmp_path, generator, device=device, compute_type="float32"
            )


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    # How Python marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "ctranslate2", None)

    with pytest.raises(WarmupError, match="pip install 'ctranslate2>=4.6'"):
        import_ctranslate2()


class TestWrite:
    """What the library is asked for, where outputs have their fewest tokens."""

    @pytest.mark.parametrize(
        ("is_decoder_only", "beam_size", "expected"),
        [
            # All first, then what is too short, of equal beginnings together.
            (False, 1, [("abcd", 0), ("ac", 2), ("b", 2)]),
            (True, 1, [("abcd", 0), ("abc", 2)]),
            # Beams that end too early are in the way of others from the first step on.
            (False, 2, [("d", 0), ("ac", 2), ("b", 2)]),
        ],
    )
    def test_minimum_is_asked_for_where_it_matters(
        self, is_decoder_only: bool, beam_size: int, expected: list[tuple[str, int]]
    ) -> None:
        generator = CTranslate2Generator.__new__(CTranslate2Generator)

        calls: list[tuple[str, int]] = []

        def call_engine(
            sources: list[list[str]],
            begun: list[list[str]],
            limit: int,
            min_len: int,
            **options: Any,
        ) -> list[list[list[str]]]:
            calls.append(("".join(source[0] for source in sources), min_len))

            return [[["x"] * max(min_len, 1)] for _ in sources]

        generator.__dict__.update(
            _is_decoder_only=is_decoder_only,
            _names=["x", "EOS"],
            _indices={"x": 0, "EOS": 1},
            _call_engine=call_engine,
            _layout=SimpleNamespace(unk_idx=None),
        )

        found = generator._write(
            [["a"], ["b"], ["c"], ["d"], ["e"]],
            [["w"], ["w", "w"], ["w"], ["w"], ["w"]],
            # The last one has no room.
            [3, 3, 3, 3, 0],
            end_idx=1,
            banned=[],
            min_lens=[2, 2, 2, 0, 0],
            beam_size=beam_size,
        )

        assert calls == expected

        assert [len(group[0]) for group in found] == [2, 2, 2, 1, 0]
