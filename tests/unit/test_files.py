# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.small_disk import full_disk, small_disk
from warmup_plugin.data.preparation.files import write_texts
from warmup_plugin.files import (
    open_to_append,
    replaced_files,
    write_bytes_atomically,
    write_text_atomically,
)


class TestReplacedFiles:
    def test_files_appear_together_with_modes_of_umask(self, tmp_path: Path) -> None:
        files = [tmp_path / "a", tmp_path / "b"]

        with replaced_files(files) as streams:
            for stream in streams:
                stream.write(b"x")

            assert not any(file.exists() for file in files)

        umask = os.umask(0)

        os.umask(umask)

        for file in files:
            assert file.read_bytes() == b"x"
            assert file.stat().st_mode & 0o777 == 0o666 & ~umask

        assert len(list(tmp_path.iterdir())) == 2

    @pytest.mark.parametrize("size", [1 << 20, 100])
    def test_full_disk_leaves_what_was_there(self, tmp_path: Path, size: int) -> None:
        """A large text is written at once, a small one only when it is flushed."""
        file, other = tmp_path / "a", tmp_path / "b"

        write_text_atomically(file, "old")

        with small_disk(50), pytest.raises(OSError) as info:
            with write_texts([file, other]) as (stream, other_stream):
                other_stream.write("y")
                stream.write("x" * size)

        assert info.value.errno == errno.EFBIG

        # Not that of the file it would have become.
        assert info.value.filename == f"{file} and {other}"

        assert file.read_text() == "old"
        assert list(tmp_path.iterdir()) == [file]

    def test_full_disk_of_fsync_leaves_what_was_there(self, tmp_path: Path) -> None:
        file = tmp_path / "a"

        write_bytes_atomically(file, b"old")

        with full_disk(), pytest.raises(OSError):
            write_bytes_atomically(file, b"new")

        assert file.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [file]


class TestOpenToAppend:
    def test_call_goes_on(self, tmp_path: Path) -> None:
        for text in (b"a", b"b"):
            with open_to_append(tmp_path / "a") as fp:
                fp.write(text)

        assert (tmp_path / "a").read_bytes() == b"ab"

    def test_link_is_not_followed(self, tmp_path: Path) -> None:
        link, other = tmp_path / "a", tmp_path / "b"

        link.symlink_to(other)

        with pytest.raises(OSError):
            open_to_append(link)

        assert not other.exists()
