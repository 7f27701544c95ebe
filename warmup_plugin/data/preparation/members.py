# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from warmup_plugin.errors import WarmupError


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
    except (
        EOFError,
        gzip.BadGzipFile,
        lzma.LZMAError,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as ex:
        raise WarmupError(
            f"`{source}` is damaged ({ex}): delete it and run the same command again."
        ) from None
    except OSError as ex:
        raise WarmupError(
            f"`{source}` cannot be read ({ex.strerror or ex}): check its permissions."
        ) from None


def _iter_folder(
    source: Path, select: Callable[[PurePosixPath], bool]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    for file in sorted(source.rglob("*")):
        path = PurePosixPath(file.relative_to(source).as_posix())

        if select(path) and file.is_file():
            yield path, file.read_bytes()


def _iter_tar(
    source: Path, select: Callable[[PurePosixPath], bool]
) -> Iterator[tuple[PurePosixPath, bytes]]:
    with tarfile.open(source) as archive:
        # In its own order: a compressed archive is read once, without going back.
        for member in archive:
            path = PurePosixPath(member.name)

            if not member.isfile() or not select(path):
                continue

            fp = archive.extractfile(member)

            if fp is not None:
                yield path, fp.read()


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
                yield path, archive.read(info, pwd=pwd)
            except (NotImplementedError, RuntimeError) as ex:
                # A method of locking that Python lacks, or a wrong password.
                raise WarmupError(
                    f"`{info.filename}` in `{source}` cannot be unlocked ({ex}): unpack the archive and give its folder."
                ) from None
