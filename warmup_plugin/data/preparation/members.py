# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Final

from warmup_plugin.errors import WarmupError

MAX_FILE_BYTES: Final = 1 << 26
"""The size of the largest file that is read of an archive, a test set of which is small."""

MAX_ARCHIVE_BYTES: Final = 1 << 32
"""The size of all files of an archive that are unpacked to find those."""


def read_members(
    source: Path,
    select: Callable[[PurePosixPath], bool],
    *,
    password: str | None = None,
) -> dict[PurePosixPath, bytes]:
    """
    Reads files of a folder, a tar archive (compressed or not) or a zip archive.

    Nothing is unpacked to disk. Archives of several files that share a name inside are
    left to the caller, who knows which paths to expect.

    :param source: The folder or the archive.
    :param select: Returns ``True`` for the paths that are wanted.
    :param password: What opens a zip archive that is locked.

    :returns: The content of each selected file by its path inside ``source``.
    """
    if not source.exists():
        raise WarmupError(f"`{source}` does not exist: check the path.")

    try:
        if source.is_dir():
            members = _iter_folder(source, select)
        elif zipfile.is_zipfile(source):
            members = _iter_zip(source, select, password)
        elif tarfile.is_tarfile(source):
            members = _iter_tar(source, select)
        else:
            raise WarmupError(
                f"`{source}` is neither a folder nor a tar or zip archive, or it is damaged: give one of them, or delete what was downloaded and run the same command again."
            )

        return dict(members)
    except (WarmupError, MemoryError):
        raise
    except (gzip.BadGzipFile, tarfile.TarError) as ex:
        raise _make_damage_error(source, ex) from None
    except OSError as ex:
        # Of a compressed file that is damaged, the error has no number.
        if ex.errno is None:
            raise _make_damage_error(source, ex) from None

        raise WarmupError(
            f"`{source}` cannot be read ({ex.strerror or ex}): check its permissions."
        ) from None
    # What a damaged archive makes of its reader is not limited to some errors.
    except Exception as ex:
        raise _make_damage_error(source, ex) from None


def _make_damage_error(source: Path, ex: Exception) -> WarmupError:
    return WarmupError(
        f"`{source}` is damaged ({str(ex) or type(ex).__name__}): delete it and run the same command again."
    )


def _iter_folder(
    source: Path, select: Callable[[PurePosixPath], bool]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    for file in sorted(source.rglob("*")):
        path = PurePosixPath(file.relative_to(source).as_posix())

        if select(path) and file.is_file():
            with file.open("rb") as fp:
                yield path, _read(fp, path, source)


def _iter_tar(
    source: Path, select: Callable[[PurePosixPath], bool]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    with tarfile.open(source) as archive:
        num_bytes = 0

        # In its own order: a compressed archive is read once, without going back.
        for member in archive:
            # What is passed over is unpacked as well.
            num_bytes += max(0, member.size)

            if num_bytes > MAX_ARCHIVE_BYTES:
                raise WarmupError(
                    f"`{source}` holds more than {MAX_ARCHIVE_BYTES:,} bytes, which no release of a test set does: check where it comes from, or unpack it and give its folder."
                )

            path = PurePosixPath(member.name)

            if not member.isfile() or not select(path):
                continue

            fp = archive.extractfile(member)

            if fp is not None:
                yield path, _read(fp, path, source)


def _iter_zip(
    source: Path, select: Callable[[PurePosixPath], bool], password: str | None
) -> Iterator[tuple[PurePosixPath, bytes]]:
    pwd = password.encode("utf-8") if password is not None else None

    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            path = PurePosixPath(info.filename)

            if info.is_dir() or not select(path):
                continue

            try:
                with archive.open(info, pwd=pwd) as fp:
                    data = _read(fp, path, source)
            except (NotImplementedError, RuntimeError) as ex:
                # A method of locking that Python lacks, or a wrong password.
                raise WarmupError(
                    f"`{info.filename}` in `{source}` cannot be unlocked ({ex}): unpack the archive and give its folder."
                ) from None

            yield path, data


def _read(fp: IO[bytes], path: PurePosixPath, source: Path) -> bytes:
    """Reads a file whatever an archive says of its size."""
    data = fp.read(MAX_FILE_BYTES + 1)

    if len(data) > MAX_FILE_BYTES:
        raise WarmupError(
            f"`{path}` in `{source}` is larger than {MAX_FILE_BYTES:,} bytes, which no file of a test set is: check where it comes from."
        )

    return data
