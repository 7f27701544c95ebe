# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from warmup_plugin.errors import WarmupError
from warmup_plugin.terminal import (
    check_arguments,
    describe_system_error,
    escape_controls,
    find_full_disk,
    guard,
    show,
)

STEERING = "a\x1b]0;x\x07\x9b31m\rb\u202ec\u2066d\x85e\u2028\ud800"

ESCAPED = "a\\x1b]0;x\\x07\\x9b31m\\rb\\u202ec\\u2066d\\x85e\\u2028\\ud800".replace(
    "\\rb", "\\x0db"
)


def fail(ex: BaseException) -> int:
    raise ex


class TestEscapeControls:
    def test_call_escapes_what_steers_a_terminal(self) -> None:
        assert escape_controls(STEERING) == ESCAPED

    @pytest.mark.parametrize(
        "text", ["", "a\tb\nc", "Grüße, 世界! 😀", "a\u200db", "\\x1b"]
    )
    def test_call_keeps_text(self, text: str) -> None:
        assert escape_controls(text) == text

    def test_show_escapes(self, capsys: pytest.CaptureFixture[str]) -> None:
        show(STEERING)
        show(STEERING, file=sys.stderr)

        assert capsys.readouterr() == (f"{ESCAPED}\n", f"{ESCAPED}\n")


class TestGuard:
    def test_call_returns_status_of_command(self) -> None:
        assert guard(lambda: 3) == 3

    def test_call_escapes_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert guard(lambda: fail(WarmupError(STEERING))) == 2

        assert capsys.readouterr().err == f"error: {ESCAPED}\n"

    @pytest.mark.parametrize(
        "code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.ELOOP]
    )
    def test_call_says_what_the_system_refused(
        self, capsys: pytest.CaptureFixture[str], code: int
    ) -> None:
        reason = os.strerror(code)

        assert guard(lambda: fail(OSError(code, reason, "some/file"))) == 2

        err = capsys.readouterr().err

        assert err.startswith("error: `some/file` cannot be")
        assert reason in err
        assert err.count("\n") == 1

    def test_call_finds_full_disk_behind_another_error(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def command() -> int:
            try:
                raise OSError(errno.ENOSPC, "No space left on device")
            except OSError:
                # As of `torch.save`, whose destructor fails once more.
                raise RuntimeError("unexpected pos 64 vs 0")

        assert guard(command) == 2

        assert "no more room for it (No space" in capsys.readouterr().err

    def test_call_finds_full_disk_in_words_of_a_library(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = "I/O error: No space left on device (os error 28)"

        assert guard(lambda: fail(ValueError(text))) == 2

        assert "no more room" in capsys.readouterr().err

    def test_loop_of_links_is_a_sentence(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        link = tmp_path / "link"

        link.symlink_to(link)

        def command() -> int:
            # Newer Pythons do not mind.
            link.resolve()

            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(link))

        assert guard(command) == 2

        err = capsys.readouterr().err

        assert str(link) in err and "the path" in err

    def test_call_keeps_other_errors(self) -> None:
        with pytest.raises(ValueError, match="^a$"):
            guard(lambda: fail(ValueError("a")))

    def test_argument_that_is_no_text_is_refused(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert guard(lambda: 0, ["a", os.fsdecode(b"b\xff")]) == 2

        err = capsys.readouterr().err

        assert "`b\\udcff` is not valid UTF-8" in err

        check_arguments(["ä"])

    @pytest.mark.parametrize(
        "redirection,status,text",
        [
            ("<&-", 0, ""),
            (">&-", 2, "Standard output is closed"),
            ("<&- >&-", 2, "Standard output is closed"),
            ("2>&-", 0, ""),
            ("> /dev/full", 2, "Standard output cannot be written (No space"),
        ],
    )
    def test_closed_streams(self, redirection: str, status: int, text: str) -> None:
        code = "import sys; from warmup_plugin.terminal import guard, show; sys.exit(guard(lambda: show('a') or 0))"

        result = subprocess.run(
            ["bash", "-c", f'"$0" -c "$1" {redirection}', sys.executable, code],
            capture_output=True,
            text=True,
        )

        assert result.returncode == status
        assert text in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stderr.count("\n") == (1 if text else 0)

        if not text:
            assert result.stdout == "a\n"

    def test_reader_that_leaves_is_no_error(self) -> None:
        code = "import sys; from warmup_plugin.terminal import guard, show; sys.exit(guard(lambda: [show('a' * 100) for _ in range(10000)] and 0))"

        result = subprocess.run(
            ["bash", "-c", '"$0" -c "$1" | head -1; exit ${PIPESTATUS[0]}']
            + [sys.executable, code],
            capture_output=True,
            text=True,
        )

        assert (result.returncode, result.stderr) == (141, "")


class TestFindFullDisk:
    def test_errors_that_led_to_each_other_end(self) -> None:
        first, second = ValueError("a"), ValueError("b")

        first.__context__, second.__cause__ = second, first

        assert find_full_disk(first) is None
        assert describe_system_error(first) is None
