# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
What a terminal is told: text that cannot steer it, and one sentence for what a user can
cause.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from errno import EDQUOT, EFBIG, ENOSPC
from typing import Final, TextIO

from warmup_plugin.cores import watch_cores
from warmup_plugin.errors import WarmupError

# All but tab and line feed: control characters, marks and overrides of direction,
# separators of lines, and halves of surrogate pairs, which cannot be written at all.
_CONTROL: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)

_FULL: Final = (ENOSPC, EDQUOT, EFBIG)

# What libraries make of it that are not written in Python.
_FULL_TEXT: Final = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|os error (28|122|27)\b"
)


def escape_controls(text: str) -> str:
    r"""Writes what could steer a terminal or forge a line of a log as ``\x1b``."""
    return _CONTROL.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])

    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def get_arguments(argv: Sequence[str] | None) -> list[str]:
    """Returns the arguments of a command, by default those of the process."""
    return list(sys.argv[1:] if argv is None else argv)


def show(text: object = "", *, file: TextIO | None = None) -> None:
    """
    Prints what may hold text of the data, or the name of a file.

    :raises WarmupError: If there is no more room for it.
    """
    text = escape_controls(str(text))

    if file is not None:
        print(text, file=file, flush=True)

        return

    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as ex:
        raise _make_stdout_error(ex) from None


def show_error(text: object) -> None:
    """Prints what went wrong to standard error."""
    show(f"error: {text}", file=sys.stderr)


def guard(command: Callable[[], int], argv: Sequence[str] = ()) -> int:
    """
    Runs ``command`` and turns what a user can cause into an exit status.

    :param argv: The arguments of the command.

    :returns: The exit status: 2 for bad input, 130 when interrupted.
    """
    try:
        check_streams()

        check_arguments(argv)

        # Before it imports what takes a second.
        watch_cores()

        status = command()

        # A closed pipe, or a full disk, may show only now.
        _flush_stdout()

        return status
    except WarmupError as ex:
        show_error(ex)

        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader, such as `head`, has left.
        _drop_stdout()

        return 141
    except Exception as ex:
        sentence = describe_system_error(ex)

        if sentence is None:
            raise

        show_error(sentence)

        return 2


def check_streams() -> None:
    """
    :raises WarmupError: If standard output is closed.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            # Or the next file that is opened would be taken for it.
            os.open(os.devnull, os.O_RDWR)

    # All three are `None` that were closed as Python began.
    if sys.stderr is None:
        # `print` would take standard output instead.
        sys.stderr = open(os.devnull, "w", encoding="utf-8")

    if sys.stdout is None:
        raise WarmupError(
            "Standard output is closed; send it to a file or to `/dev/null` instead."
        )


def check_arguments(argv: Sequence[str]) -> None:
    """
    :raises WarmupError: If an argument is no text, of which no record can be kept.
    """
    for arg in argv:
        try:
            arg.encode("utf-8")
        except UnicodeEncodeError:
            raise WarmupError(
                f"The argument `{arg}` is not valid UTF-8; rename the file, or correct what was typed."
            ) from None


def find_full_disk(ex: BaseException) -> BaseException | None:
    """Returns what says that a disk is full, among an exception and its causes."""
    for cause in iter_causes(ex):
        if isinstance(cause, OSError):
            if cause.errno in _FULL:
                return cause
        elif _FULL_TEXT.search(str(cause)):
            return cause

    return None


def iter_causes(ex: BaseException) -> Iterator[BaseException]:
    """Goes through an exception and all that led to it, the outermost first."""
    seen: set[int] = set()

    pending = [ex]

    while pending:
        cause = pending.pop(0)

        if id(cause) in seen:
            continue

        seen.add(id(cause))

        yield cause

        pending += [c for c in (cause.__cause__, cause.__context__) if c is not None]


def describe_system_error(ex: BaseException) -> str | None:
    """
    Describes what the system refused in a sentence.

    :returns: ``None`` if it was not the system.
    """
    full = find_full_disk(ex)

    if full is not None:
        where = _name_file(full)

        return f"{where} cannot be written, since there is no more room for it ({_get_reason(full)}); free some space, raise the limit or name another place, and run the same command again."

    # A loop of links, which `Path.resolve()` reports in its own way.
    if isinstance(ex, RuntimeError) and "ymlink loop" in str(ex):
        return f"{ex}; correct the path."

    if isinstance(ex, OSError):
        return f"{_name_file(ex)} cannot be read or written ({_get_reason(ex)}); check the path and its permissions."

    return None


def _name_file(ex: BaseException) -> str:
    name = getattr(ex, "filename", None)

    if isinstance(name, bytes):
        name = os.fsdecode(name)

    return "A file" if name is None else f"`{name}`"


def _get_reason(ex: BaseException) -> str:
    return getattr(ex, "strerror", None) or " ".join(str(ex).split())


def _flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as ex:
        raise _make_stdout_error(ex) from None


def _make_stdout_error(ex: OSError) -> WarmupError:
    _drop_stdout()

    return WarmupError(
        f"Standard output cannot be written ({ex.strerror}); write to another place."
    )


def _drop_stdout() -> None:
    # Python would complain once more when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
