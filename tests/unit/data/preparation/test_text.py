# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

import pytest

from warmup_plugin.data.preparation.text import (
    HeldOutText,
    clean_line,
    make_overlap_key,
    measure_len,
)


class TestCleanLine:
    def test_call_leaves_single_spaces(self) -> None:
        assert clean_line(" a\u00a0 b\u2028c\x85d\t\ne ") == "a b c d e"


class TestMeasureLen:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", 0.0),
            ("one two  three", 3.0),
            ("зелёный дом", 2.0),
            # Four characters, then a full stop that is one as well.
            ("我有一猫。", 2.5),
            # Two characters, a word in between.
            ("我 T5 有", 2.0),
            ("我T5有", 2.0),
            ("ねこ", 1.0),
        ],
    )
    def test_call_counts_words(self, text: str, expected: float) -> None:
        assert measure_len(text) == expected

    def test_call_makes_chinese_about_as_long_as_english(self, real_data: Path) -> None:
        lens = {}

        for lang in ("en", "zh"):
            text = real_data.joinpath("flores101", f"devtest.{lang}").read_text("utf-8")

            lens[lang] = sum(map(measure_len, text.split("\n")))

        assert 0.8 < lens["zh"] / lens["en"] < 1.25


class TestMakeOverlapKey:
    def test_call_ignores_case_punctuation_and_spaces(self) -> None:
        keys = {
            make_overlap_key(text)
            for text in ("„Straße Nr. 5“!", "STRASSE  NR 5", "strasse-nr.５")
        }

        assert keys == {"strassenr5"}

    def test_call_keeps_vowels_of_other_scripts(self) -> None:
        # They are marks, not letters, to Unicode.
        assert make_overlap_key("कि") != make_overlap_key("की")


class TestHeldOutText:
    def test_contains_finds_other_spelling(self) -> None:
        held_out = HeldOutText()

        assert "Hello" not in held_out

        held_out.add("Hello, world!")

        assert "hello world" in held_out
        assert "hello" not in held_out
        assert len(held_out) == 1

    def test_add_ignores_what_has_no_letters(self) -> None:
        held_out = HeldOutText()

        held_out.add("---")
        held_out.add("")

        assert len(held_out) == 0
        assert "..." not in held_out

    def test_add_file_reads_lines(self, tmp_path: Path) -> None:
        file = tmp_path / "test.en"

        file.write_text("One.\nTwo.\n")

        held_out = HeldOutText()

        held_out.add_file(file)

        assert "two" in held_out
