# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest

from warmup_plugin.data.lines import (
    Line,
    LineError,
    count_lines,
    iter_files,
    iter_parallel_files,
    iter_stream,
)
from warmup_plugin.errors import WarmupError


class TestIterStream:
    def test_lines_are_stripped_and_numbered(self) -> None:
        data = "\ufeff a \r\n\n\tb\u2028c\nd".encode()

        lines = list(iter_stream(io.BytesIO(data)))

        assert [line.source for line in lines] == ["a", "", "b\u2028c", "d"]
        assert [line.number for line in lines] == [0, 1, 2, 3]

    def test_json_lines_are_refused_unless_lines_are_awaited(self) -> None:
        data = b'{"a": "x"}\n{"a": "y"}\n'

        with pytest.raises(WarmupError, match="^Standard input holds JSON lines, not"):
            list(iter_stream(io.BytesIO(data)))

        # One after the other: whoever waits for the first answer sends no second.
        assert len(list(iter_stream(io.BytesIO(data), at_once=True))) == 2

        # Text may look like that.
        assert len(list(iter_stream(io.BytesIO(data + b"z\n")))) == 3

    def test_line_that_is_not_utf8_is_named(self) -> None:
        lines = iter_stream(io.BytesIO(b"a\nb\xc3\nc\n"), "standard input")

        assert next(lines).source == "a"

        with pytest.raises(
            WarmupError, match="Line 2 of `standard input` is not valid UTF-8 at byte 2"
        ):
            next(lines)


class TestIterFiles:
    def test_files_follow_each_other(self, tmp_path: Path) -> None:
        first, second = tmp_path / "a", tmp_path / "b.gz"

        first.write_bytes(b"x\ny")

        second.write_bytes(gzip.compress(b"z\n"))

        lines = list(iter_files([first, second]))

        assert [(line.number, line.source) for line in lines] == [
            (0, "x"),
            (1, "y"),
            (2, "z"),
        ]

        assert count_lines([first, second]) == 3

    def test_lines_of_empty_and_missing_files_are_counted(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()

        assert count_lines([tmp_path / "empty"]) == 0
        assert count_lines([tmp_path / "nope"]) is None

        (tmp_path / "broken.gz").write_bytes(b"x")

        assert count_lines([tmp_path / "broken.gz"]) is None


class TestIterParallelFiles:
    @pytest.mark.parametrize("shorter", ["a", "b"])
    def test_shorter_file_is_named(self, tmp_path: Path, shorter: str) -> None:
        for name in ("a", "b"):
            text = "x\ny\n" if name == shorter else "x\ny\nz\n"

            (tmp_path / name).write_text(text)

        lines = iter_parallel_files(tmp_path / "a", tmp_path / "b")

        assert next(lines).target == "x"
        assert next(lines).number == 1

        with pytest.raises(
            WarmupError, match=f"`{tmp_path / shorter}` ends after line 2"
        ):
            next(lines)


def test_error_names_line_and_origin() -> None:
    error = LineError(Line(4, "x", origin="`f.txt`"), "is bad.")

    assert str(error) == "Line 5 of `f.txt` is bad."
    assert error.number == 4
