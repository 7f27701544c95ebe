# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import final

from warmup_plugin.data.preparation.files import write_texts
from warmup_plugin.data.text_files import is_json_lines, is_tsv, iter_plain
from warmup_plugin.data.text_lines import iter_raw_lines
from warmup_plugin.errors import WarmupError


@final
class Corpus:
    """
    Text pairs in files, read as a stream.

    They are in two files, a side each and one sentence a line, or in a TSV file.
    """

    def __init__(
        self, files: Sequence[Path], *, columns: Sequence[int] = (0, 1)
    ) -> None:
        """
        :param files: The file of the sources and that of the targets, or a TSV file; each
            may be gzipped and then ends in ``.gz``.
        :param columns: The columns of source and target in TSV, counted from 0.
        """
        if len(files) not in (1, 2):
            raise WarmupError(
                f"Text pairs are in two files, a side each, or in one TSV file, but {len(files)} files were given."
            )

        for file in files:
            if not file.is_file():
                raise WarmupError(f"`{file}` is not a file: check the path.")

        if len(files) == 1 and not files[0].name.endswith((".tsv", ".tsv.gz")):
            raise WarmupError(
                f"`{files[0]}` has no counterpart and does not end in `.tsv` or `.tsv.gz`: give the file of the targets as well, or rename the file."
            )

        if len(columns) != 2 or min(columns) < 0 or columns[0] == columns[1]:
            raise WarmupError(
                f"`--columns` must be two different numbers from 0, but is {' '.join(map(str, columns))} instead."
            )

        for file in files:
            if is_json_lines(file) or (len(files) == 2 and is_tsv(file)):
                raise WarmupError(
                    f"`{file}` is no file of one sentence a line: write its two sides as text, a file each, or as one TSV file."
                )

        self.files = list(files)
        self._columns = columns[0], columns[1]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        if len(self.files) == 2:
            return _iter_plain(self.files[0], self.files[1])

        return _iter_tsv(self.files[0], self._columns)


def _iter_plain(source_file: Path, target_file: Path) -> Iterator[tuple[str, str]]:
    pairs = zip_longest(iter_plain(source_file), iter_plain(target_file))

    for line_nr, (source, target) in enumerate(pairs, start=1):
        if source is None or target is None:
            shorter = source_file if source is None else target_file

            raise WarmupError(
                f"`{source_file}` and `{target_file}` differ in length, `{shorter.name}` ends after {line_nr - 1:,} lines: line n of one must translate line n of the other."
            )

        yield source, target


def _iter_tsv(file: Path, columns: tuple[int, int]) -> Iterator[tuple[str, str]]:
    # With the tabs around lines, which stand for empty columns.
    for line_nr, line in enumerate(iter_raw_lines(file), start=1):
        # An empty pair, as in training.
        if not line.strip():
            yield "", ""

            continue

        cells = line.split("\t")

        if len(cells) <= max(columns):
            raise WarmupError(
                f"Line {line_nr} of `{file}` has {len(cells)} columns, too few for the columns {columns[0]} and {columns[1]} (counted from 0): correct the line or give `--columns`."
            )

        yield cells[columns[0]], cells[columns[1]]


def write_pairs(
    pairs: Iterable[tuple[str, str]],
    source_file: Path,
    target_file: Path,
    *,
    max_pairs: int | None = None,
    seed: int = 1,
) -> int:
    """
    Writes pairs as two files of one sentence a line.

    :param max_pairs: If there are more, as many are drawn at random, in their order. Any
        pair is as likely to be drawn as any other.
    :param seed: Another one draws other pairs.

    :returns: The number of pairs written.
    """
    if max_pairs is None:
        return _write_all(pairs, source_file, target_file)

    # How many there are is known only once all were written.
    all_files = [
        file.with_name(f"{file.name}.all") for file in (source_file, target_file)
    ]

    with ExitStack() as stack:
        for file in all_files:
            stack.callback(file.unlink, missing_ok=True)

        num_pairs = _write_all(pairs, all_files[0], all_files[1])

        drawn = _draw(Corpus(all_files), num_pairs, max_pairs, random.Random(seed))

        return _write_all(drawn, source_file, target_file)


def _write_all(
    pairs: Iterable[tuple[str, str]], source_file: Path, target_file: Path
) -> int:
    num_pairs = 0

    with write_texts([source_file, target_file]) as (sources, targets):
        for source, target in pairs:
            sources.write(source + "\n")
            targets.write(target + "\n")

            num_pairs += 1

    return num_pairs


def _draw(
    pairs: Iterable[tuple[str, str]], num_pairs: int, max_pairs: int, rng: random.Random
) -> Iterator[tuple[str, str]]:
    """Draws without replacement: selection sampling, Knuth 3.4.2 algorithm S."""
    num_wanted = min(max_pairs, num_pairs)

    for idx, pair in enumerate(pairs):
        if rng.random() * (num_pairs - idx) < num_wanted:
            num_wanted -= 1

            yield pair
