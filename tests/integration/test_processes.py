# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Commands that start several processes of themselves."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.commands import TIMEOUT
from tests.tiny_runs import (
    ROOT,
    SHORT_OUTPUTS,
    command_environment,
    python_command,
    tiny_options,
    to_args,
)
from warmup_plugin.commands import score, translate
from warmup_plugin.errors import WarmupError
from warmup_plugin.processes import Passing, wait_for, wants_processes
from warmup_plugin.recipes.train import main as train

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def run_dir(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, tokenizer_file: Path
) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sft"

    options = tiny_options(text_folder, tokenizer_file, **SHORT_OUTPUTS)

    assert train(to_args(out, options)) == 0

    return out


def start(
    *args: object, preexec_fn: Callable[[], object] | None = None
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        python_command("-m", "warmup_plugin", *args),
        cwd=ROOT,
        env=command_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec_fn,
    )


def test_lines_are_those_of_one_process(
    tmp_path: Path, run_dir: Path, text_folder: Path
) -> None:
    text = (text_folder / "train.src").read_text()

    assert text.count("\n") == 60

    process = start("translate", run_dir, "--processes", 2, "--chunk-size", 7)

    output, err = process.communicate(text, timeout=TIMEOUT)

    assert process.returncode == 0, err

    expected = tmp_path / "expected.txt"

    args = [str(run_dir), str(text_folder / "train.src"), "-o", str(expected)]

    assert translate.main(args) == 0

    assert output == expected.read_text()


def test_pairs_are_those_of_one_process(
    tmp_path: Path, run_dir: Path, text_folder: Path
) -> None:
    further = ["--split", "valid", "--num-warmups", "0"]

    files = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]

    process = start("score", run_dir, *further, "-o", files[1], "--processes", 2)

    _, err = process.communicate(timeout=TIMEOUT)

    assert process.returncode == 0, err

    assert score.main([str(run_dir), *further, "-o", str(files[0])]) == 0

    one, two = (
        [json.loads(line) for line in f.read_text().splitlines()] for f in files
    )

    assert len(one) == 6

    for a, b in zip(one, two, strict=True):
        assert b["log_prob"] == pytest.approx(a["log_prob"], rel=1e-5)


def test_bad_line_is_one_sentence(run_dir: Path, text_folder: Path) -> None:
    process = start("translate", run_dir, "--processes", 2)

    _, err = process.communicate("ba\n" + "ba " * 3000 + "\n", timeout=TIMEOUT)

    assert process.returncode == 2

    errors = [line for line in err.splitlines() if "error:" in line.lower()]

    assert len(errors) == 1 and "line 2" in errors[0].lower(), err
    assert "Traceback" not in err


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_all(run_dir: Path, signum: signal.Signals) -> None:
    process = start(
        *("translate", run_dir, "--processes", 2, "--interactive"),
        # Whoever started the tests may have it ignored.
        preexec_fn=partial(signal.signal, signum, signal.SIG_DFL),
    )

    assert process.stdin is not None and process.stdout is not None

    process.stdin.write("ba\n")
    process.stdin.flush()

    # Both are at work.
    assert process.stdout.readline() != ""

    # Not from a terminal, which would interrupt all processes.
    process.send_signal(signum)

    begin = time.monotonic()

    # Its input stays open: the end of it would be an end as well.
    process.wait(timeout=TIMEOUT)

    # The streams end with the last process that holds them.
    process.communicate(timeout=TIMEOUT)

    assert process.returncode == 128 + signum
    assert time.monotonic() - begin < 60.0


class TestRunProcesses:
    """The processes are those of a shell, which does as its rank tells it."""

    @pytest.fixture
    def start_shells(self, tmp_path: Path) -> Callable[..., subprocess.Popen[bytes]]:
        def start(*scripts: str) -> subprocess.Popen[bytes]:
            cases = "".join(f"{n}) {script};;\n" for n, script in enumerate(scripts))

            # Stands for Python.
            shell = tmp_path / "python"

            shell.write_text(f"""#!/bin/sh
go_on() {{
    touch {tmp_path}/started$RANK
    while true; do sleep 0.05; done
}}
case $RANK in
{cases}esac
""")

            shell.chmod(0o755)

            code = f"""
import sys

from warmup_plugin.processes import run_processes

sys.executable = {str(shell)!r}

sys.exit(run_processes("translate", [], {len(scripts)}))
"""

            return subprocess.Popen(
                python_command("-c", code), cwd=ROOT, env=command_environment()
            )

        return start

    def test_signal_is_the_status_though_another_failed_first(
        self, tmp_path: Path, start_shells: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        # The signal ends the second; the first fails for want of it and is seen before.
        process = start_shells(
            'trap "exit 70" TERM; go_on',
            'trap "sleep 0.5; trap - TERM; kill -TERM \\$\\$" TERM; go_on',
        )

        end = time.monotonic() + TIMEOUT

        while not all((tmp_path / f"started{rank}").exists() for rank in range(2)):
            assert time.monotonic() < end

            time.sleep(0.05)

        process.terminate()

        assert process.wait(timeout=TIMEOUT) == 128 + signal.SIGTERM

    def test_last_one_that_fails_ends_the_first(
        self, start_shells: Callable[..., subprocess.Popen[bytes]]
    ) -> None:
        begin = time.monotonic()

        assert start_shells("go_on", "exit 3").wait(timeout=TIMEOUT) == 3

        assert time.monotonic() - begin < TIMEOUT / 2

    def test_signal_that_came_while_they_started_reaches_all(self) -> None:
        passing = Passing()

        passing.note(signal.SIGTERM)

        begin = time.monotonic()

        assert wait_for([subprocess.Popen(["sleep", "300"])], passing) == 143

        assert time.monotonic() - begin < 150

    def test_signal_of_somebody_else_goes_before_what_failed_for_want(self) -> None:
        # As where memory is short. Both have ended when they are looked at.
        ended = [subprocess.Popen(["sh", "-c", s]) for s in ("exit 1", "kill -9 $$")]

        for process in ended:
            process.wait()

        assert wait_for(ended, Passing()) == 128 + signal.SIGKILL


def test_hangup_that_is_ignored_ends_none(run_dir: Path) -> None:
    old_handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    try:
        # As `nohup` starts it.
        process = start("translate", run_dir, "--processes", 2, "--interactive")
    finally:
        signal.signal(signal.SIGHUP, old_handler)

    assert process.stdin is not None and process.stdout is not None

    for _ in range(2):
        process.stdin.write("ba\n")
        process.stdin.flush()

        assert process.stdout.readline() != ""

        process.send_signal(signal.SIGHUP)

    _, err = process.communicate(timeout=TIMEOUT)

    assert process.returncode == 0, err


class TestWantsProcesses:
    @pytest.fixture(autouse=True)
    def environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("RANK", "WARMUP_PROCESSES"):
            monkeypatch.delenv(name, raising=False)

    def test_call_tells_whether_to_start_them(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert not wants_processes(argparse.Namespace(processes=1))
        assert wants_processes(argparse.Namespace(processes=2))

        # This is one of them.
        monkeypatch.setenv("WARMUP_PROCESSES", "2")

        assert not wants_processes(argparse.Namespace(processes=2))

    def test_call_refuses_wrong_numbers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(WarmupError, match="must be at least 1, but is 0"):
            wants_processes(argparse.Namespace(processes=0))

        monkeypatch.setenv("RANK", "0")

        assert not wants_processes(argparse.Namespace(processes=1))

        with pytest.raises(WarmupError, match="torchrun has done so already"):
            wants_processes(argparse.Namespace(processes=2))
