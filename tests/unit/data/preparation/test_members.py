# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import random
from pathlib import Path, PurePosixPath

import pytest

from tests.unit.data.preparation.archives import make_tar, make_zip
from warmup_plugin.data.preparation.members import read_members
from warmup_plugin.errors import WarmupError

FILES = {"root/a.txt": "A\n", "root/sub/b.txt": "B\n", "root/c.bin": "C\n"}


def is_text(path: PurePosixPath) -> bool:
    return path.suffix == ".txt"


EXPECTED = {
    PurePosixPath("root/a.txt"): b"A\n",
    PurePosixPath("root/sub/b.txt"): b"B\n",
}


class TestReadMembers:
    @pytest.mark.parametrize(
        ("name", "data"),
        [
            ("a.tar.gz", make_tar(FILES)),
            ("a.tar.xz", make_tar(FILES, "xz")),
            ("a.tar", make_tar(FILES, "")),
            ("a.zip", make_zip(FILES)),
            # What a file is called says nothing.
            ("a.dat", make_zip(FILES)),
            ("locked.zip", make_zip(FILES, "open sesame")),
        ],
    )
    def test_call_reads_archive(self, tmp_path: Path, name: str, data: bytes) -> None:
        file = tmp_path / name

        file.write_bytes(data)

        assert read_members(file, is_text, password="open sesame") == EXPECTED

    def test_call_reads_folder(self, tmp_path: Path) -> None:
        for name, text in FILES.items():
            file = tmp_path / name

            file.parent.mkdir(parents=True, exist_ok=True)

            file.write_text(text)

        assert read_members(tmp_path, is_text) == EXPECTED

    def test_call_explains_locked_archive(self, tmp_path: Path) -> None:
        file = tmp_path / "a.zip"

        file.write_bytes(make_zip(FILES, "open sesame"))

        with pytest.raises(WarmupError, match="`root/a.txt` in .* cannot be unlocked"):
            read_members(file, is_text, password="please")

    @pytest.mark.parametrize("kind", ["gz", "zip"])
    def test_call_explains_damaged_archive(self, tmp_path: Path, kind: str) -> None:
        # Long and random, so that it remains so when compressed.
        text = "".join(random.Random(1).choices("abcdefghij", k=40000))

        if kind == "gz":
            data = make_tar({"a.txt": text})[:-3000]
        else:
            data = make_zip({"a.txt": text})

            data = data[:500] + bytes(200) + data[700:]

        file = tmp_path / "archive"

        file.write_bytes(data)

        with pytest.raises(WarmupError, match="is damaged"):
            read_members(file, is_text)

    def test_call_explains_what_is_no_archive(self, tmp_path: Path) -> None:
        file = tmp_path / "a.txt"

        file.write_text("A\n")

        with pytest.raises(WarmupError, match="neither a folder nor a tar or zip"):
            read_members(file, is_text)

        with pytest.raises(WarmupError, match="does not exist"):
            read_members(tmp_path / "b", is_text)


class TestLimits:
    @pytest.mark.parametrize("name", ["a.tar.gz", "a.zip", "folder"])
    def test_large_file_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setattr(
            "warmup_plugin.data.preparation.members.MAX_FILE_BYTES", 1000
        )

        files = {"root/a.txt": "A" * 1000}

        def write(source: Path) -> None:
            if name == "folder":
                (source / "root").mkdir(parents=True, exist_ok=True)
                (source / "root/a.txt").write_text(files["root/a.txt"])
            else:
                source.write_bytes(
                    make_zip(files) if name == "a.zip" else make_tar(files)
                )

        source = tmp_path / name

        write(source)

        assert len(read_members(source, is_text)) == 1

        files = {"root/a.txt": "A" * 1001}

        write(source)

        with pytest.raises(WarmupError, match="larger than 1,000 bytes"):
            read_members(source, is_text)

    def test_size_that_a_zip_states_is_not_believed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "warmup_plugin.data.preparation.members.MAX_FILE_BYTES", 1000
        )

        data = bytearray(make_zip({"a.txt": "A" * 100_000}))

        # The size, in the header of the file and in the directory.
        stated = (100_000).to_bytes(4, "little")

        source = tmp_path / "a.zip"

        source.write_bytes(bytes(data).replace(stated, (10).to_bytes(4, "little")))

        with pytest.raises(WarmupError):
            read_members(source, is_text)

    def test_large_archive_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "warmup_plugin.data.preparation.members.MAX_ARCHIVE_BYTES", 1000
        )

        source = tmp_path / "a.tar.gz"

        source.write_bytes(make_tar({"a.bin": "A" * 600, "b.bin": "B" * 600}))

        with pytest.raises(WarmupError, match="more than 1,000 bytes"):
            read_members(source, is_text)
