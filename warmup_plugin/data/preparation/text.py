# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
import sys
import unicodedata
from functools import cache
from pathlib import Path
from typing import Final, final

from warmup_plugin.data.preparation.hash_set import hash_text
from warmup_plugin.data.text_files import iter_all_texts

# Han characters and their punctuation, kana, fullwidth forms.
_CJK: Final = re.compile(
    "[\u2e80-\u30ff\u31c0-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)

_CJK_WEIGHT: Final = 0.5


def clean_line(text: str) -> str:
    """
    Joins the words of a text by single spaces, without anything around them.

    What may be taken for the end of a line (U+0085, U+2028, a form feed, …) is a space
    afterwards.
    """
    return " ".join(text.split())


def measure_len(text: str) -> float:
    """
    Returns the length of a text in words.

    A character of Chinese or Japanese counts as half a word: in FLORES-101 a Chinese
    sentence has 1.7 Han characters a word of its English translation.
    """
    if text.isascii():
        return float(len(text.split()))

    num_characters = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal num_characters

        num_characters += 1

        return " "

    rest = _CJK.sub(replace, text)

    return len(rest.split()) + _CJK_WEIGHT * num_characters


def make_overlap_key(text: str) -> str:
    """
    Returns what two copies of a sentence have in common.

    That is the text without case, punctuation, symbols and spaces, in one form of
    compatible characters (NFKC). It is empty for text that has nothing else.
    """
    key = unicodedata.normalize("NFKC", text).casefold()

    return key.translate(_get_ignored_characters())


@cache
def _get_ignored_characters() -> dict[int, None]:
    # Punctuation, symbols, separators, control and format characters. Marks stay:
    # in many scripts they are vowels.
    return {
        code: None
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code))[0] in "PSZ"
        or unicodedata.category(chr(code)) in ("Cc", "Cf")
    }


@final
class HeldOutText:
    """
    Knows the sentences of test and validation sets, in any language.

    A text is among them if it equals one in its letters and digits; case, punctuation
    and spaces do not count.
    """

    def __init__(self) -> None:
        self._keys: set[int] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, text: str) -> None:
        key = make_overlap_key(text)

        # A line of dashes is no leak.
        if key:
            self._keys.add(hash_text(key))

    def add_file(self, path: Path) -> None:
        """Adds a file of one sentence a line, or all texts of JSON lines or TSV."""
        for line in iter_all_texts(path):
            self.add(line)

    def __contains__(self, text: str) -> bool:
        # Keys cost time; where nothing is held out, none is made.
        return bool(self._keys) and hash_text(make_overlap_key(text)) in self._keys
