# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The test sets that sacreBLEU knows, as splits: ``sacrebleu:wmt24``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.languages import shorten_code

TEST_SET_PREFIX: Final = "sacrebleu:"


def is_test_set(split: str) -> bool:
    """Tells whether a split is a test set of sacreBLEU."""
    return split.startswith(TEST_SET_PREFIX)


def make_file_name(split: str) -> str:
    """
    Returns what a split is called in names of files and in fairseq2's metrics.

    Of ``sacrebleu:wmt21/dev``, ``:`` is refused there, and ``/`` would be a folder.
    """
    return re.sub(r"[^-\w]", "-", split) if is_test_set(split) else split


def has_test_set(split: str, source_lang: str, target_lang: str) -> bool:
    """Tells whether sacreBLEU knows a test set of two languages, without a download."""
    import sacrebleu

    name = split.removeprefix(TEST_SET_PREFIX)

    return name in sacrebleu.get_available_testsets() and _name_pair(
        source_lang, target_lang
    ) in sacrebleu.get_langpairs_for_testset(name)


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

    pair = _name_pair(source_lang, target_lang)

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


def _name_pair(source_lang: str, target_lang: str) -> str:
    return f"{shorten_code(source_lang)}-{shorten_code(target_lang)}"
