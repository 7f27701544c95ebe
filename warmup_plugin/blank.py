# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import unicodedata
from typing import Final

# Letters and a symbol that show nothing, and what only changes the character before.
_INVISIBLE: Final = frozenset(
    "\u034f\u115f\u1160\u2800\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10)))
)


def is_blank(text: str) -> bool:
    """
    Tells whether a text shows nothing: no character, or spaces, control and format
    characters alone, such as a zero-width space or a mark of direction.
    """
    # Of nearly all text the first character tells.
    return not any(
        unicodedata.category(char) not in ("Cc", "Cf", "Zs", "Zl", "Zp")
        and char not in _INVISIBLE
        for char in text
    )
