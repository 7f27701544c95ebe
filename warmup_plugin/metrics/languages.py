# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from typing import Final

# Codes of three letters, and of Chinese languages that are written alike.
_ALIASES: Final = {
    "zho": "zh",
    "chi": "zh",
    **dict.fromkeys(
        ("cmn", "yue", "wuu", "nan", "hak", "gan", "hsn", "cdo", "cjy", "lzh"), "zh"
    ),
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

# Of which the words, of metrics, need a tokenizer: the language that a script stands for.
_SCRIPTS: Final = {
    **dict.fromkeys(("hans", "hant", "hani", "bopo"), "zh"),
    **dict.fromkeys(("jpan", "hira", "kana", "hrkt"), "ja"),
    **dict.fromkeys(("kore", "hang"), "ko"),
    "thai": "th",
    "laoo": "lo",
    "khmr": "km",
    "mymr": "my",
    "tibt": "bo",
}

UNSPACED: Final = frozenset(("th", "lo", "km", "my", "bo", "dz"))
"""Their writing separates no words, and no tokenizer of theirs is at hand."""


# ISO 639-3, which NLLB writes with a script behind it, and what has two letters.
_TWO_LETTERS: Final = {
    **{"ara": "ar", "arb": "ar", "ben": "bn", "bul": "bg", "cat": "ca", "ces": "cs"},
    **{"dan": "da", "deu": "de", "ell": "el", "eng": "en", "est": "et", "eus": "eu"},
    **{"fas": "fa", "fin": "fi", "fra": "fr", "gle": "ga", "glg": "gl", "guj": "gu"},
    **{"hau": "ha", "heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu", "hye": "hy"},
    **{"ind": "id", "isl": "is", "ita": "it", "jpn": "ja", "kan": "kn", "kat": "ka"},
    **{"kaz": "kk", "khm": "km", "kir": "ky", "kor": "ko", "lao": "lo", "lat": "la"},
    **{"lav": "lv", "lvs": "lv", "lit": "lt", "ltz": "lb", "mal": "ml", "mar": "mr"},
    **{"mkd": "mk", "mlt": "mt", "mya": "my", "nld": "nl", "nno": "nn", "nob": "nb"},
    **{"npi": "ne", "pan": "pa", "pbt": "ps", "pes": "fa", "pol": "pl", "por": "pt"},
    **{"pus": "ps", "ron": "ro", "rus": "ru", "sin": "si", "slk": "sk", "slv": "sl"},
    **{"spa": "es", "srp": "sr", "swe": "sv", "swh": "sw", "tam": "ta", "tel": "te"},
    **{"tgl": "tl", "tha": "th", "tur": "tr", "ukr": "uk", "urd": "ur", "vie": "vi"},
    **{"xho": "xh", "zho": "zh", "zsm": "ms", "zul": "zu"},
}


def shorten_code(lang: str) -> str:
    """
    Returns the code of two letters of a language, such as ``de`` for ``deu_Latn`` and
    ``de-AT``; one that has none stays as it is, without script and region.
    """
    code = re.split("[-_]", lang.lower())[0]

    return _TWO_LETTERS.get(code, code)


def get_written_language(code: str | None) -> str:
    """
    Returns the language that a code is written like, which decides about tokenizers.

    The script goes before the language: ``wuu_Hans`` and ``lzh_Hani`` are written like
    Chinese, ``shn_Mymr`` like Burmese, and ``zho_Latn`` like neither.
    """
    lang = get_language(code)

    for part in re.split("[-_]", (code or "").lower())[1:]:
        if len(part) == 4 and part.isalpha():
            is_known = lang in _SCRIPTS.values()

            return _SCRIPTS.get(part, f"{lang}-{part}" if is_known else lang)

    return lang


def get_language(code: str | None) -> str:
    """
    Returns the language of a code such as ``zh-CN``, ``zho_Hans`` or ``deu_Latn``.

    :returns: The part before the first hyphen or underscore, in lower case; of two
        letters where a choice here depends on it. Empty for ``None``.
    """
    lang = re.split("[-_]", (code or "").lower())[0]

    return _ALIASES.get(lang, lang)
