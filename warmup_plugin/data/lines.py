# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Text that is read line by line, of any length."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, final

from warmup_plugin.data.text_files import (
    TextPlaces,
    iter_texts,
    refuse_json,
)
from warmup_plugin.data.text_lines import decode_lines, iter_raw_lines
from warmup_plugin.data.text_pairs import TextPairs
from warmup_plugin.errors import WarmupError


@final
@dataclass(frozen=True)
class Line:
    """Holds one line of input."""

    number: int
    """Its place among all lines of the input, counted from 0."""

    source: str

    target: str | None = None
    """Its reference, or what its translation is to begin with."""

    origin: str = "the input"
    """Where it stands, for messages."""


class LineError(WarmupError):
    """Says that a line cannot be processed; those before it can."""

    def __init__(self, line: Line, reason: str) -> None:
        """:param reason: What follows "Line 3 of the input"."""
        super().__init__(f"Line {line.number + 1} of {line.origin} {reason}")

        self.number = line.number


def iter_stream(
    stream: BinaryIO,
    name: str = "standard input",
    *,
    at_once: bool = False,
    as_text: bool = False,
) -> Iterator[Line]:
    """
    Reads lines of a stream, stripped of surrounding whitespace.

    :param at_once: If ``True``, each line is handed on before the next one is there, so
        that it is not known whether they are JSON lines.
    :param as_text: If ``True``, lines are read whole.

    :raises WarmupError: If a line is not UTF-8, or the stream holds JSON lines.
    """
    texts = decode_lines(stream, name)

    if not as_text:
        texts = (text.strip() for text in texts)

    if not at_once:
        texts = refuse_json(
            texts, name, "write it to a file whose name ends in `.jsonl`, and name that"
        )

    for number, text in enumerate(texts):
        yield Line(number, text, origin=name)


def iter_files(
    files: Sequence[Path], places: TextPlaces = TextPlaces(), *, as_text: bool = False
) -> Iterator[Line]:
    """
    Reads sources of files, one file after the other, gzipped if they end in ``.gz``.

    :param places: Where they are in JSON lines and TSV.
    :param as_text: If ``True``, lines are read whole, whatever a file is called.

    :raises WarmupError: If a file cannot be read or a line is not UTF-8.
    """
    number = 0

    for file in files:
        if as_text:
            texts = refuse_json(
                iter_raw_lines(file), f"`{file}`", "name a file of lines of text"
            )
        else:
            texts = iter_texts(file, "sources", places)

        for text in texts:
            # With several files the number is that of all lines together.
            origin = f"`{file}`" if len(files) == 1 else "the files together"

            yield Line(number, text, origin=origin)

            number += 1


def iter_pairs(pairs: TextPairs, *, with_target: bool = False) -> Iterator[Line]:
    """Reads the sources of pairs; their references too if asked for."""
    for idx in range(len(pairs)):
        yield Line(
            idx,
            # Of JSON lines it may hold line feeds, as in training.
            pairs.source(idx),
            pairs.target(idx) if with_target else None,
            f"{pairs.origin}",
        )


def iter_parallel_files(
    source_file: Path, target_file: Path, places: TextPlaces = TextPlaces()
) -> Iterator[Line]:
    """
    Reads a file of sources and one of their targets.

    :param places: Where they are in JSON lines and TSV.

    :raises WarmupError: If one has fewer lines than the other, behind its end.
    """
    end = object()

    lines = zip_longest(
        iter_texts(source_file, "sources", places),
        iter_texts(target_file, "targets", places),
        fillvalue=end,
    )

    for number, (source, target) in enumerate(lines):
        if isinstance(source, str) and isinstance(target, str):
            yield Line(number, source, target, f"`{source_file}` and `{target_file}`")

            continue

        shorter, longer = source_file, target_file

        if target is end:
            shorter, longer = longer, shorter

        raise WarmupError(
            f"`{shorter}` ends after line {number}, but `{longer}` goes on; give one target for each source."
        )


def count_lines(files: Sequence[Path]) -> int | None:
    """Counts the lines of files, for a progress bar; ``None`` if one is no plain
    file."""
    total = 0

    for file in files:
        if not file.is_file():
            return None

        size = 1 << 20

        last = b"\n"

        opener = gzip.open if file.suffix == ".gz" else open

        try:
            with opener(file, "rb") as fp:
                while block := fp.read(size):
                    total += block.count(b"\n")

                    last = block[-1:]
        # Reading the lines will say what is wrong.
        except (OSError, EOFError):
            return None

        total += last != b"\n"

    return total


def is_terminal() -> bool:
    """Tells whether standard input is a terminal."""
    return sys.stdin is not None and sys.stdin.isatty()


def open_stdin() -> BinaryIO:
    """
    Returns standard input as bytes, whatever the locale says of its encoding.

    :raises WarmupError: If it is closed.
    """
    # So it is when it was closed as Python began.
    if sys.stdin is None:
        raise WarmupError(
            "Standard input is closed; send text to it, or name a file to read."
        )

    return sys.stdin.buffer
