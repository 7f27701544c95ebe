# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Files that appear under their names only when they are complete."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

from warmup_plugin.errors import WarmupError


@contextmanager
def replaced_files(files: Sequence[Path]) -> Iterator[list[BinaryIO]]:
    """
    Opens files that appear under their names only when all of them are complete.

    What interrupts the block, a full disk for one, leaves the files that were there
    before as they were, and nothing beside them.
    """
    # Nobody can have put a link there, and two commands do not write the same.
    temps = [f.with_name(f"{f.name}.{token_hex(8)}.tmp") for f in files]

    try:
        with ExitStack() as stack:
            streams = [stack.enter_context(open_new(temp)) for temp in temps]

            yield streams

            for stream in streams:
                stream.flush()

                # Some file systems tell only now that there is no room.
                os.fsync(stream.fileno())

        for temp, file in zip(temps, files):
            os.replace(temp, file)
    except OSError as ex:
        if ex.errno is not None and ex.filename in (None, *map(str, temps)):
            # The other name says nothing to a user.
            ex.filename = " and ".join(map(str, files))

        raise
    finally:
        for temp in temps:
            temp.unlink(missing_ok=True)


def open_new(file: Path) -> BinaryIO:
    """Opens a file that does not exist yet, with the mode that the umask says."""
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)

    return open(fd, "wb")


def open_to_append(file: Path) -> BinaryIO:
    """
    Opens a file that an earlier command may have begun.

    :raises OSError: If it is a link, which would lead elsewhere.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW

    return open(os.open(file, flags, 0o666), "ab")


def write_bytes_atomically(file: Path, data: bytes) -> None:
    """Writes a file so that a crash leaves the old or the new one, never half."""
    file.parent.mkdir(parents=True, exist_ok=True)

    with replaced_files([file]) as (stream,):
        stream.write(data)


def write_text_atomically(file: Path, text: str) -> None:
    """Writes a file like :func:`write_bytes_atomically`, in UTF-8."""
    write_bytes_atomically(file, text.encode("utf-8"))


def write_output(file: Path, text: str, remedy: str) -> None:
    """
    Writes a file that a user has named like :func:`write_text_atomically`.

    :param remedy: What to do if it cannot be written.

    :raises WarmupError: If it cannot.
    """
    try:
        write_text_atomically(file, text)
    except OSError as ex:
        raise WarmupError(
            f"{file} cannot be written ({ex.strerror}); {remedy}."
        ) from None


def digest_weights(folder: Path) -> str:
    """
    Returns what tells the weights of a checkpoint from any others.

    :param folder: As fairseq2 writes it; what was written beside its files are their
        checksums, so that none of them is read.
    """
    digest = sha256()

    for file in sorted(folder.rglob("*.pt")):
        sum_file = file.with_name(f"{file.name}.sha256")

        if sum_file.is_file():
            content = sum_file.read_bytes()[:64]
        else:
            # Of an earlier version.
            stat = file.stat()

            content = f"{stat.st_size} {stat.st_mtime_ns}".encode()

        digest.update(f"{file.relative_to(folder)} ".encode() + content + b"\n")

    return digest.hexdigest()
