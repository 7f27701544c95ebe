# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from typing import Final

# Codes of three letters, and of Chinese languages that are written alike.
_ALIASES: Final = {
    "zho": "zh",
    "chi": "zh",
    "cmn": "zh",
    "yue": "zh",
    "jpn": "ja",
    "kor": "ko",
    "eng": "en",
    "tha": "th",
    "lao": "lo",
    "khm": "km",
    "mya": "my",
    "bur": "my",
    "bod": "bo",
    "tib": "bo",
    "dzo": "dz",
}


def get_language(code: str | None) -> str:
    """
    Returns the language of a code such as ``zh-CN``, ``zho_Hans`` or ``deu_Latn``.

    :returns: The part before the first hyphen or underscore, in lower case; of two
        letters where a choice here depends on it. Empty for ``None``.
    """
    lang = re.split("[-_]", (code or "").lower())[0]

    return _ALIASES.get(lang, lang)
