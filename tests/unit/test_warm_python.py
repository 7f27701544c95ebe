# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What the tests start in place of Python behaves like it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import Command
from tests.tiny_runs import command_environment, python_command

_PROGRAM = """\
import os, sys, time

# Whoever is warm has been here before.
print("torch" in sys.modules, sys.argv[1:], os.getcwd(), os.environ.get("NAME"), flush=True)

print("problem", file=sys.stderr)

for line in sys.stdin:
    if line == "wait\\n":
        open("began", "w").close()

        time.sleep(100)

    print(line.upper(), end="")

sys.exit(3)
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "program.py"

    file.write_text(_PROGRAM)

    return file


def start(program: Path, *args: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        python_command(program, *args),
        cwd=program.parent,
        env={**command_environment(), **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("is_warm", [True, False])
def test_command_runs_as_python_would(program: Path, is_warm: bool) -> None:
    further = {} if is_warm else {"PYTHONHASHSEED": "1"}

    process = start(program, "a b", "", NAME="größer", **further)

    out, err = process.communicate("one\ntwo\n")

    # Another environment at import is that of another process.
    expected = f"{is_warm} ['a b', ''] {program.parent} größer\nONE\nTWO\n"

    assert (out, err, process.returncode) == (expected, "problem\n", 3)


def test_other_calls_go_to_python() -> None:
    code = "import sys; print('torch' in sys.modules)"

    result = subprocess.run(
        python_command("-c", code), env=command_environment(), capture_output=True
    )

    assert result.stdout == b"False\n"


def wait_for_begin(process: subprocess.Popen[str], folder: Path) -> None:
    assert process.stdin is not None

    process.stdin.write("wait\n")
    process.stdin.flush()

    end = time.monotonic() + 60.0

    while not folder.joinpath("began").exists():
        assert time.monotonic() < end and process.poll() is None

        time.sleep(0.002)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_signal_ends_the_command(program: Path, signum: signal.Signals) -> None:
    process = start(program)

    wait_for_begin(process, program.parent)

    process.send_signal(signum)

    # The streams end with whoever holds them, which is the command itself.
    process.communicate(timeout=60.0)

    assert process.returncode == -signum


def test_ignored_signal_is_ignored(program: Path) -> None:
    old_handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    try:
        process = start(program)
    finally:
        signal.signal(signal.SIGHUP, old_handler)

    assert process.stdout is not None

    # It has begun.
    process.stdout.readline()

    process.send_signal(signal.SIGHUP)

    assert process.communicate("one\n")[0] == "ONE\n"
    assert process.returncode == 3


def test_path_is_that_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "theirs.py").write_text("NAME = 'ours'\n")

    file = tmp_path / "program.py"

    file.write_text("import sys, theirs; print('torch' in sys.modules, theirs.NAME)\n")

    process = start(file, PYTHONPATH=str(tmp_path / "lib"))

    assert process.communicate()[0] == "True ours\n"


def list_holders(file: Path) -> set[int]:
    """Lists the processes that have a file open."""
    holders = set()

    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(link) == str(file):
                holders.add(int(link.parts[2]))
        except OSError:
            pass

    return holders


def test_killed_command_is_gone(program: Path) -> None:
    log = program.parent / "log"

    command = Command(log, program)

    command.wait_for(lambda: "problem" in command.output)

    # What is started, and what is warm.
    assert len(list_holders(log)) == 2

    command.kill()

    assert list_holders(log) == set()


def test_exception_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "program.py"

    file.write_text("1 / 0\n")

    result = subprocess.run(
        python_command(file),
        env=command_environment(),
        capture_output=True,
        text=True,
    )

    assert result.returncode == 1
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_executable_of_a_command_is_warm(tmp_path: Path) -> None:
    file = tmp_path / "program.py"

    file.write_text("import sys; print(sys.executable)\n")

    [python, *args] = python_command(file)

    output = subprocess.check_output(
        [python, *args], env=command_environment(), text=True
    )

    assert output.strip() == python != sys.executable
    assert os.access(python, os.X_OK)
