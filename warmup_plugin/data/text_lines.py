# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Files of one text a line, read with the line named that is none."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, cast

from warmup_plugin.errors import WarmupError

MAX_LINE_BYTES: Final = 1 << 24
"""The length of the longest line that is read."""

_BOM: Final = b"\xef\xbb\xbf"


def read_lines(path: Path) -> list[str]:
    """
    Reads and checks a file of one sentence a line, gzipped if it ends in ``.gz``.

    :returns: The sentences, stripped of surrounding whitespace; empty lines are kept,
        so that the line numbers of input and output agree.
    """
    return list(iter_lines(path))


def iter_lines(path: Path) -> Iterator[str]:
    """Reads a file like :func:`read_lines` without holding it in memory."""
    for line in iter_raw_lines(path):
        yield line.strip()


def iter_raw_lines(path: Path) -> Iterator[str]:
    """
    Decodes the lines of a file.

    Only a line feed ends a line: ``str.splitlines`` and text files in universal
    newline mode also split at a form feed, U+0085 or U+2028, which shifts one side of
    the pairs against the other.
    """
    num_lines = 0

    opener = gzip.open if path.suffix == ".gz" else open

    try:
        with opener(path, "rb") as fp:
            for line in decode_lines(cast(BinaryIO, fp), path):
                num_lines += 1

                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as ex:
        raise WarmupError(
            f"`{path}` is not a complete gzip file ({ex}, after line {num_lines}): copy or compress it again."
        ) from None
    except FileNotFoundError:
        raise WarmupError(f"`{path}` does not exist: check the path.") from None
    except OSError as ex:
        raise WarmupError(
            f"`{path}` cannot be read ({ex.strerror or ex}): check that it is a file and its permissions."
        ) from None


def decode_lines(fp: BinaryIO, origin: object) -> Iterator[str]:
    """
    Decodes lines, without what ends them and without the mark that may begin a file.

    :param origin: What errors call the file.

    :raises WarmupError: If a line is not UTF-8, or so long that it is none.
    """
    # Iterating would wait for more than the next line, and take one of any length.
    lines = iter(lambda: fp.readline(MAX_LINE_BYTES + 1), b"")

    for line_nr, data in enumerate(lines, start=1):
        if len(data) > MAX_LINE_BYTES:
            raise WarmupError(
                f"Line {line_nr} of `{origin}` is longer than {MAX_LINE_BYTES:,} bytes, so the file seems to hold something else than lines of text: check what it is."
            )

        bom_size = 0

        if line_nr == 1 and data.startswith(_BOM):
            bom_size = len(_BOM)

            data = data[bom_size:]

        try:
            line = data.decode("utf-8")
        except UnicodeDecodeError as ex:
            column = bom_size + ex.start + 1

            raise _make_encoding_error(origin, line_nr, column, data) from None

        if line.endswith("\r\n"):
            yield line[:-2]
        elif line.endswith("\n"):
            yield line[:-1]
        else:
            yield line


def _make_encoding_error(
    origin: object, line_nr: int, column: int, data: bytes
) -> WarmupError:
    where = f"Line {line_nr} of `{origin}` is not valid UTF-8 at byte {column}"

    if line_nr == 1 and data.startswith(b"\x1f\x8b"):
        remedy = "the file is gzipped, so let its name end in `.gz`"
    elif line_nr == 1 and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        remedy = "convert the file, for example with `iconv -f utf-16 -t utf-8`"
    else:
        remedy = "correct the line or convert the file, for example with `iconv -f latin1 -t utf-8`"

    return WarmupError(f"{where}: {remedy}.")
