# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from warmup_plugin.data.text_pairs import DOCUMENT_SUFFIX
from warmup_plugin.errors import WarmupError
from warmup_plugin.files import replaced_files

PART_SUFFIX: Final = ".part"
"""What the name of a download ends in until all of it is there."""


def hash_file(path: Path) -> str:
    """Returns the SHA-256 checksum of a file, as ``sha256sum`` prints it."""
    digest = hashlib.sha256()

    with path.open("rb") as fp:
        while block := fp.read(1 << 20):
            digest.update(block)

    return digest.hexdigest()


def hash_files(paths: Iterable[Path]) -> dict[str, str]:
    """Returns the checksum of each file by its path."""
    return {str(path): hash_file(path) for path in paths}


@contextmanager
def write_texts(paths: Sequence[Path]) -> Iterator[list[codecs.StreamWriter]]:
    """
    Opens text files that appear under their names only when all of them are complete.

    What interrupts the block leaves the files that were there before as they were.
    """
    with replaced_files(paths) as streams:
        # Line feeds stay line feeds, on every system.
        yield [codecs.getwriter("utf-8")(stream) for stream in streams]


def write_text(path: Path, text: str) -> None:
    """Writes a small file, all of it or none."""
    with write_texts([path]) as (file,):
        file.write(text)


def write_json_lines(path: Path, rows: Iterable[dict[str, object]]) -> None:
    """Writes one JSON object a line, all of them or none."""
    with write_texts([path]) as (file,):
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def count_lines(path: Path) -> int:
    """Counts the line feeds of a file."""
    num_lines = 0

    with path.open("rb") as fp:
        while block := fp.read(1 << 20):
            num_lines += block.count(b"\n")

    return num_lines


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, or says why not."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as ex:
        raise WarmupError(
            f"The folder `{path}` cannot be made ({ex.strerror or ex}): name another one."
        ) from None


def find_file(folder: Path, names: Sequence[str], split: str) -> Path:
    """
    Finds the file of a split in a folder that a user gave.

    :param names: What the file may be called.
    """
    for name in names:
        file = folder.joinpath(name)

        if file.is_file():
            return file

    looked_for = " or ".join(f"`{name}`" for name in names)

    raise WarmupError(
        f"`{folder}` has no {looked_for}: correct `--from`, or leave `{split}` out with `--splits`."
    )


def parse_langs(langs: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """
    Parses ``--langs``: languages such as ``de`` or, with what a release calls it,
    ``zh=zh_CN``. Each can be the ending of a file.

    :returns: The argument, the language, and what the release calls it if that is named.
    """
    known = set()

    for text in langs:
        lang, _, code = text.partition("=")

        if lang == DOCUMENT_SUFFIX[1:] or not re.fullmatch(r"[\w-]+", lang):
            raise WarmupError(
                f"`--langs {text}` names files `.{lang}`, which are no language's: write a code of letters, digits, `_` and `-`, such as `de`."
            )

        if lang in known:
            raise WarmupError(f"`--langs` names `{lang}` twice: leave one out.")

        known.add(lang)

        yield text, lang, code
