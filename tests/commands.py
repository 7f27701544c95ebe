# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.tiny_runs import ROOT, command_environment, python_command

TIMEOUT: Final = 400.0
"""The seconds that a command may take, also on a machine that is busy."""


class Command:
    """A command in a process of its own, with its output in a file."""

    def __init__(
        self,
        log_file: Path,
        *args: object,
        is_warm: bool = True,
        **environment: str,
    ) -> None:
        """:param is_warm: See :func:`python_command`."""
        self._log_file = log_file

        with log_file.open("ab") as fp:
            self.process = subprocess.Popen(
                python_command(*args, is_warm=is_warm),
                cwd=ROOT,
                env={**command_environment(), **environment},
                stdin=subprocess.PIPE,
                stdout=fp,
                stderr=subprocess.STDOUT,
            )

    def wait(self) -> int:
        return self.process.wait(TIMEOUT)

    def kill(self) -> None:
        """Kills it as it stands, and waits until it is gone."""
        self.process.kill()

        assert self.process.wait() == -signal.SIGKILL

        assert self.process.stdin is not None

        poll = select.poll()

        # Of a pipe that nobody can read any more. What is warm ends after its client.
        poll.register(self.process.stdin, select.POLLERR)

        assert poll.poll(1000.0 * TIMEOUT), "still runs"

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + TIMEOUT

        while not condition():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output

            time.sleep(0.002)

    @property
    def output(self) -> str:
        return self._log_file.read_text(errors="replace")


Start = Callable[..., Command]


def run(command: Command) -> str:
    assert command.wait() == 0, command.output

    return command.output


def read_losses(run_dir: Path) -> dict[int, list[tuple[float, float]]]:
    """Returns what was logged of each step, more than once if it was repeated."""
    losses: dict[int, list[tuple[float, float]]] = {}

    for line in (run_dir / "metrics" / "train.jsonl").read_text().splitlines():
        record = json.loads(line)

        # SFT smooths labels.
        loss = record.get("Label-Smoothed Loss", record.get("NLL Loss"))

        values = (loss, record["Gradient Norm"])

        losses.setdefault(record["Step"], []).append(values)

    return losses
