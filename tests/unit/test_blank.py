# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import pytest

from warmup_plugin.blank import is_blank


@pytest.mark.parametrize(
    "text",
    ["", "   ", "\u200b", "\ufeff\u200b", "\u200e", "\u3000", "\x01", "\u2060\xad"]
    + ["\u3164", "\u2800", "\ufe0f", "\u2028"],
)
def test_text_that_shows_nothing_is_blank(text: str) -> None:
    assert is_blank(text)


@pytest.mark.parametrize(
    "text", ["a", "\u200ba", "。", "\U0001f600", "\u0301", "\ufffd"]
)
def test_text_that_shows_something_is_not(text: str) -> None:
    assert not is_blank(text)
