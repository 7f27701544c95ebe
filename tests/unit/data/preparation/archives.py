# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Archives as the servers of data sets have them."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping


def make_tar(files: Mapping[str, str], mode: str = "gz") -> bytes:
    """Makes a tar archive, compressed by ``gz``, ``bz2``, ``xz`` or not at all."""
    buffer = io.BytesIO()

    with tarfile.open(fileobj=buffer, mode=f"w:{mode}") as archive:  # type: ignore[call-overload]
        folder = tarfile.TarInfo("folder")

        folder.type = tarfile.DIRTYPE

        archive.addfile(folder)

        for name, text in files.items():
            data = text.encode("utf-8")

            info = tarfile.TarInfo(name)

            info.size = len(data)

            archive.addfile(info, io.BytesIO(data))

    return buffer.getvalue()


def make_zip(files: Mapping[str, str], password: str | None = None) -> bytes:
    """Makes a zip archive, locked if there is a password."""
    if password is not None:
        return _make_locked_zip(files, password.encode("utf-8"))

    buffer = io.BytesIO()

    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)

    return buffer.getvalue()


def _make_locked_zip(files: Mapping[str, str], password: bytes) -> bytes:
    """
    Makes what ``zip --password`` does: Python can read such archives, but not write them.

    The format is that of PKWARE's APPNOTE, the encryption its "traditional" one.
    """
    members, directory = b"", b""

    for name, text in files.items():
        data = text.encode("utf-8")

        checksum = zlib.crc32(data)

        # Twelve bytes come first; the last one lets a reader check the password.
        plain = bytes(11) + bytes([checksum >> 24]) + data

        encrypted = _encrypt(plain, password)

        # Version, flags (encrypted), method (stored), time, date, checksum, sizes, the
        # length of the name and that of the extra field.
        common = struct.pack(
            "<HHHHHIIIHH",
            20,
            1,
            0,
            0,
            33,
            checksum,
            len(encrypted),
            len(data),
            len(name),
            0,
        )

        directory += b"PK\x01\x02" + struct.pack("<H", 20) + common
        directory += struct.pack("<HHHII", 0, 0, 0, 0, len(members)) + name.encode()

        members += b"PK\x03\x04" + common + name.encode() + encrypted

    end = struct.pack(
        "<HHHHIIH", 0, 0, len(files), len(files), len(directory), len(members), 0
    )

    return members + directory + b"PK\x05\x06" + end


def _encrypt(data: bytes, password: bytes) -> bytes:
    keys = [0x12345678, 0x23456789, 0x34567890]

    def update(byte: int) -> None:
        keys[0] = _crc32(keys[0], byte)
        keys[1] = ((keys[1] + (keys[0] & 0xFF)) * 134775813 + 1) & 0xFFFFFFFF
        keys[2] = _crc32(keys[2], keys[1] >> 24)

    for byte in password:
        update(byte)

    encrypted = bytearray()

    for byte in data:
        word = keys[2] | 2

        encrypted.append(byte ^ (((word * (word ^ 1)) >> 8) & 0xFF))

        update(byte)

    return bytes(encrypted)


def _crc32(crc: int, byte: int) -> int:
    # `zlib` inverts before and after.
    return zlib.crc32(bytes([byte]), crc ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
