# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The test sets that sacreBLEU knows, as splits: ``sacrebleu:wmt24``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from warmup_plugin.errors import WarmupError

TEST_SET_PREFIX: Final = "sacrebleu:"

# sacreBLEU has codes of two letters; those of three are NLLB's, and ISO 639-3.
_CODES: Final = {
    **{"ara": "ar", "arb": "ar", "ben": "bn", "ces": "cs", "dan": "da", "deu": "de"},
    **{"eng": "en", "spa": "es", "est": "et", "fin": "fi", "fra": "fr", "guj": "gu"},
    **{"hau": "ha", "hin": "hi", "hrv": "hr", "hun": "hu", "isl": "is", "ita": "it"},
    **{"jpn": "ja", "kaz": "kk", "khm": "km", "kor": "ko", "lit": "lt", "lav": "lv"},
    **{"lvs": "lv", "nld": "nl", "pol": "pl", "por": "pt", "pus": "ps", "pbt": "ps"},
    **{"ron": "ro", "rus": "ru", "swe": "sv", "tur": "tr", "ukr": "uk", "vie": "vi"},
    **{"xho": "xh", "zho": "zh", "zul": "zu"},
}


def is_test_set(split: str) -> bool:
    """Tells whether a split is a test set of sacreBLEU."""
    return split.startswith(TEST_SET_PREFIX)


def find_test_set(
    split: str, source_lang: str, target_lang: str
) -> tuple[Path, list[Path]]:
    """
    Finds the files of a test set, which sacreBLEU downloads where they are not there.

    :param split: The name of the set behind ``sacrebleu:``.

    :returns: The sources and, in one file or several, the references, one a line.

    :raises WarmupError: If there is no such set of these languages, or it cannot be had.
    """
    # Takes a tenth of a second.
    import sacrebleu

    name = split.removeprefix(TEST_SET_PREFIX)

    known = sacrebleu.get_available_testsets()

    if name not in known:
        raise WarmupError(
            f"`{split}` is no test set of sacreBLEU {sacrebleu.__version__}, which knows {', '.join(f'`{n}`' for n in known)}; correct it."
        )

    pair = f"{_to_code(source_lang)}-{_to_code(target_lang)}"

    pairs = sacrebleu.get_langpairs_for_testset(name)

    if pair not in pairs:
        raise WarmupError(
            f"The test set `{split}` has no `{pair}`; it has {', '.join(f'`{p}`' for p in sorted(pairs))}."
        )

    try:
        source_file = sacrebleu.get_source_file(name, pair)

        reference_files = sacrebleu.get_reference_files(name, pair)
    # A download may fail in many ways, and ends the process in one of them.
    except (Exception, SystemExit) as ex:
        reason = " ".join(str(ex).split()) or type(ex).__name__

        raise WarmupError(
            f"The test set `{split}` of `{pair}` cannot be downloaded ({reason}); where there is a network, run `sacrebleu --test-set {name} --language-pair {pair} --echo src`, and copy `{Path(sacrebleu.SACREBLEU_DIR, name)}` from there."
        ) from None

    return Path(source_file), [Path(file) for file in reference_files]


def _to_code(lang: str) -> str:
    code = re.split("[-_]", lang)[0].lower()

    return _CODES.get(code, code)
