# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.commands import TIMEOUT, Start
from tests.tiny_runs import (
    ROOT,
    SHORT_OUTPUTS,
    command_environment,
    python_command,
    tiny_options,
    to_args,
)
from warmup_plugin.commands import generate
from warmup_plugin.recipes import train

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def sft_run(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, tokenizer_file: Path
) -> Path:
    run_dir = tmp_path_factory.mktemp("sft") / "run"

    options = tiny_options(text_folder, tokenizer_file, **SHORT_OUTPUTS)

    assert train.main(to_args(run_dir, options)) == 0

    return run_dir


def test_killed_job_goes_on_in_two_processes(
    tmp_path: Path, text_folder: Path, tokenizer_file: Path, start: Start
) -> None:
    run_dir = tmp_path / "run"

    options = tiny_options(
        text_folder, tokenizer_file, criterion__name="warmup", **SHORT_OUTPUTS
    )

    assert train.main(to_args(run_dir, options)) == 0

    # Enough that the job is killed in the middle.
    lines = (text_folder / "train.src").read_text().splitlines() * 6

    lines[7] = lines[200] = ""

    text = tmp_path / "in.txt"

    text.write_text("".join(f"{line}\n" for line in lines))

    expected = tmp_path / "expected.txt"

    generation = ["--warmup", "sample", "--num-warmups", "2", "--beam-size", "2"]

    args = [str(run_dir), "--input", str(text), "--output", str(expected), *generation]

    assert generate.main(args) == 0

    output = tmp_path / "out.txt"

    args = [
        *("-m", "warmup_plugin", "translate", str(run_dir), str(text), *generation),
        *("--output", str(output), "--chunk-size", "4"),
    ]

    job = start("job", *args)

    # The first lines are done.
    job.wait_for((tmp_path / "out.txt.state").exists)

    job.kill()

    assert not output.exists()

    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

    result = subprocess.run(
        python_command(*torchrun, *args),
        cwd=ROOT,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )

    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert " done before" in result.stderr

    assert output.read_bytes() == expected.read_bytes()

    # Nothing is left of the job.
    assert sorted(f.name for f in tmp_path.iterdir() if f.name.startswith("out")) == [
        "out.txt",
        "out.txt.origin.json",
    ]


@pytest.mark.parametrize(
    "redirection,message",
    [("<&-", "Standard input is closed"), (">&- < /dev/null", "Standard output")],
)
def test_closed_stream_is_one_sentence(
    sft_run: Path, redirection: str, message: str
) -> None:
    args = python_command("-m", "warmup_plugin", "translate", str(sft_run))

    result = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *args],
        cwd=ROOT,
        env=command_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )

    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_terminal_is_asked_line_by_line(sft_run: Path) -> None:
    leader, follower = os.openpty()

    process = subprocess.Popen(
        python_command("-m", "warmup_plugin", "translate", sft_run, is_warm=False),
        cwd=ROOT,
        env={**command_environment(), "TERM": "xterm"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )

    os.close(follower)

    output = b""

    def read_prompt() -> bytes:
        """Returns what stands before the next one."""
        nonlocal output

        end = time.monotonic() + TIMEOUT

        while b"> " not in output:
            assert time.monotonic() < end, output

            output += os.read(leader, 4096)

        text, _, output = output.partition(b"> ")

        return text

    assert b"loading the model" in read_prompt()

    os.write(leader, b"puke kuse\n")

    echo, _, answer = read_prompt().partition(b"\r\n")

    assert echo == b"puke kuse"
    assert len(answer.splitlines()) == 1

    # A line that cannot be translated is told, and does not end it.
    os.write(leader, b"ta " * 600 + b"\n")

    assert b"error: Line 2 of standard input has " in read_prompt()

    os.write(leader, b"\x04")

    assert process.wait(TIMEOUT) == 2

    os.close(leader)
