# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typing_extensions import override

from tests.common import UNK_IDX
from tests.unit.data.words import WordCodec, make_pairs
from warmup_plugin.data.tokenizing import tokenize_pairs
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes import token_stats
from warmup_plugin.recipes.token_stats import TokenStats, measure_tokens
from warmup_plugin.tokenizers.codec import EncodedText, TextCodec


class LetterCodec(WordCodec):
    """Encodes each letter of the first half of the alphabet; knows no other."""

    @override
    def _encode(self, text: str) -> list[int]:
        return [10 if "a" <= c <= "m" else UNK_IDX for c in text if not c.isspace()]


class PromptedCodec(LetterCodec):
    """Puts two known letters and an unknown one around a source."""

    @override
    def encode_source(self, source: str) -> EncodedText:
        return super().encode_source(f"ab{source}z")


class BareCodec(LetterCodec):
    """Refuses an empty source, as a prompt without text of its own does."""

    @override
    def encode_source(self, source: str) -> EncodedText:
        if not source:
            raise WarmupError("The prompt has no token.")

        return EncodedText(self._encode(source), [2])


def measure(
    folder: Path,
    rows: Sequence[tuple[str, str]],
    codec: TextCodec,
    source_lang: str | None = None,
) -> tuple[TokenStats, TokenStats]:
    corpus = tokenize_pairs(
        make_pairs(folder, rows), codec, max_source_len=999, max_target_len=999
    )

    source, target = measure_tokens(
        corpus, codec, name="train", source_lang=source_lang, target_lang="de"
    )

    return source, target


class TestMeasureTokens:
    def test_call_counts_by_side(self, tmp_path: Path) -> None:
        rows = [("ab cd", "abc"), ("a b c d", "abc d")]

        source, target = measure(tmp_path, rows, LetterCodec())

        # Four letters and EOS each; BOS, letters and EOS.
        assert source.lens == (5, 5, 5, 5)
        assert target.lens == (6, 6, 6, 6)

        # Eight letters in six words, seven in three, without special tokens.
        assert source.tokens_per_unit == pytest.approx(8 / 6)
        assert target.tokens_per_unit == pytest.approx(7 / 3)

        assert source.unknown_share == target.unknown_share == 0.0

        assert source.describe() == (
            "train, sources: 1.33 tokens a word (in 2 pairs), 0.00% unknown; lengths in "
            "tokens: median 5, 90% 5, 99% 5, longest 5."
        )

        assert target.name == "train, targets (de)"
        assert source.find_warning() is target.find_warning() is None

    def test_lengths_are_percentiles(self, tmp_path: Path) -> None:
        rows = [("a" * n, "a") for n in range(1, 201)]

        source, _ = measure(tmp_path, rows, LetterCodec())

        # With EOS.
        assert source.lens == (102, 182, 200, 201)

    def test_unknown_is_warned_of_with_examples(self, tmp_path: Path) -> None:
        rows = [("abcd" * 25, "abz yb"), ("abcd" * 24 + "abcx", "zz\u200by")]

        source, target = measure(tmp_path, rows, LetterCodec())

        assert source.unknown_share == pytest.approx(1 / 200)
        assert source.find_warning() is None
        assert "0.50% unknown" in source.describe()

        assert target.unknown_share == pytest.approx(6 / 9)
        assert list(target.unknown_chars) == ["z", "y", "\u200b"]

        warning = target.find_warning()

        assert warning is not None
        assert warning.startswith(
            "66.7% of the tokens of train, targets (de) are unknown"
        )

        # A character that shows nothing is named.
        assert "such as 'z', 'y', '\\u200b': the model" in warning

    def test_few_unknown_are_not_none(self, tmp_path: Path) -> None:
        rows = [("a" * 900, "a")] * 30 + [("az", "a")]

        source, _ = measure(tmp_path, rows, LetterCodec())

        assert "<0.01% unknown" in source.describe()

    def test_prompt_does_not_count(self, tmp_path: Path) -> None:
        source, _ = measure(tmp_path, [("ab cd", "a")], PromptedCodec())

        assert source.lens == (8, 8, 8, 8)
        assert source.tokens_per_unit == 2.0
        assert source.unknown_share == 0.0

        source, _ = measure(tmp_path, [("ab cz", "a")], PromptedCodec())

        assert source.unknown_share == 0.25
        assert list(source.unknown_chars) == ["z"]

    def test_call_works_with_prompt_that_has_no_text(self, tmp_path: Path) -> None:
        source, _ = measure(tmp_path, [("ab cd", "a")], BareCodec())

        assert source.tokens_per_unit == 2.0

    @pytest.mark.parametrize(
        "lang,text", [("zh", "abc de"), (None, "abcdefghijklmabc")]
    )
    def test_characters_count_where_no_spaces_part_words(
        self, tmp_path: Path, lang: str | None, text: str
    ) -> None:
        source, _ = measure(tmp_path, [(text, "a")], LetterCodec(), source_lang=lang)

        assert source.tokens_per_unit == 1.0
        assert "1.00 tokens a character (in 1 pairs)" in source.describe()

    def test_text_of_a_sample_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(token_stats, "_MAX_SAMPLE_SIZE", 10)

        # The end of the corpus is like its beginning in nothing.
        rows = [("ab", "a")] * 50 + [("abcd", "z")] * 50

        source, target = measure(tmp_path, rows, LetterCodec())

        assert source.sample_size == 10
        assert source.tokens_per_unit == 3.0

        # Unknown tokens are counted in all pairs.
        assert target.unknown_share == 0.5

    def test_tokenizer_without_unknown_token_knows_all(self, tmp_path: Path) -> None:
        codec = LetterCodec()

        codec.layout = replace(codec.layout, unk_idx=None)

        _, target = measure(tmp_path, [("z", "z")], codec)

        assert target.unknown_share == 0.0
