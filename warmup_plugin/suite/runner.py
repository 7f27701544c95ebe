# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Runs the steps of a suite, several at a time, and survives those that fail."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from types import FrameType
from typing import BinaryIO, Final, final

from warmup_plugin.cores import THREADS_VARIABLE, watch_cores
from warmup_plugin.errors import WarmupError
from warmup_plugin.files import open_to_append
from warmup_plugin.processes import handled_signals
from warmup_plugin.suite.steps import NotReady, Step
from warmup_plugin.terminal import show

_POLL_SECONDS: Final = 0.1

_NUM_LOG_LINES: Final = 15


class Status(Enum):
    """Says how a step ended."""

    DONE_BEFORE = "done before"
    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"
    """Something that it needs is not done."""
    NOT_READY = "left out"
    """There is nothing to run yet."""
    STOPPED = "stopped"
    """By a signal."""


@final
@dataclass(frozen=True)
class Outcome:
    step: Step

    status: Status

    note: str = ""

    error: str = ""
    """The last line that a command wrote which failed."""

    cause: str = ""
    """The step that failed, where this one was skipped because of it."""


@final
@dataclass
class _Process:
    step: Step

    command: Sequence[str]

    popen: subprocess.Popen[bytes]

    log: BinaryIO

    log_begin: int
    """Where in the log it begins."""

    begin: float


@final
class Runner:
    """Runs each step when what it needs is done."""

    def __init__(
        self,
        steps: Sequence[Step],
        *,
        num_jobs: int = 1,
        program: Sequence[str] | None = None,
        say: Callable[[str], None] = lambda line: show(line),
    ) -> None:
        """
        :param num_jobs: The most commands that run at the same time.
        :param program: What stands before the command of a step; ``None`` for
            ``python -m warmup_plugin``.
        """
        self._pending = list(steps)
        self._num_steps = len(steps)
        self._num_jobs = num_jobs

        # The same for all, whose times are compared.
        self._num_threads = max(1, watch_cores().count_free() // num_jobs)

        self._program = program or (sys.executable, "-m", "warmup_plugin")
        self._say = say
        self._running: list[_Process] = []
        self._outcomes: dict[str, Outcome] = {}

        # By what they need, those that are not told of yet.
        self._skipped: Counter[str] = Counter()

        self.signum: int | None = None
        """The signal that stopped it."""

    def run(self) -> list[Outcome]:
        """
        Runs the steps; those that are done are not run again.

        On SIGINT and SIGTERM, which it passes on, it waits for the running commands to
        save what they have, and starts no other.
        """
        with handled_signals((signal.SIGTERM, signal.SIGINT), self._handle):
            try:
                while True:
                    self._collect()

                    if self.signum is None:
                        self._start()

                    if not self._running:
                        break

                    time.sleep(_POLL_SECONDS)
            finally:
                # Something broke, such as the pipe that it reports to.
                for process in self._running:
                    process.popen.terminate()

                for process in self._running:
                    process.popen.wait()

                    process.log.close()

        return list(self._outcomes.values())

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is None and self._running:
            self._say("stopping: the commands that run save what they have")

        self.signum = signum

        for process in self._running:
            process.popen.send_signal(signum)

    def _start(self) -> None:
        """Starts steps until the jobs are used up or nothing is ready."""
        # A step that ends at once may make others ready.
        while any([self._start_one(step) for step in self._pending[:]]):
            pass

        # One failure may cost the whole grid.
        for cause, num_skipped in self._skipped.items():
            what = describe_skipped(num_skipped)

            self._say(f"{self._describe_progress()} {what} `{cause}`: skipped")

        self._skipped.clear()

    def _start_one(self, step: Step) -> bool:
        """Returns whether the step has ended at once."""
        for need in step.needs:
            outcome = self._outcomes.get(need.key)

            if outcome is None:
                return False

            if outcome.status not in (Status.DONE, Status.DONE_BEFORE):
                cause = outcome.cause or need.key

                self._skipped[cause] += 1

                return self._settle(
                    step, Status.SKIPPED, f"needs `{need.key}`", cause=cause
                )

        if any(other in self._pending for other in step.after):
            return False

        if any(process.step in step.after for process in self._running):
            return False

        if len(self._running) >= self._num_jobs:
            return False

        if step.is_done():
            return self._settle(step, Status.DONE_BEFORE)

        try:
            self._start_process(step, step.begin())
        except NotReady as ex:
            return self._settle(step, Status.NOT_READY, str(ex))
        except WarmupError as ex:
            return self._settle(step, Status.FAILED, str(ex))

        return False

    def _start_process(self, step: Step, command: Sequence[str]) -> None:
        args = [*self._program, *command]

        try:
            log = open_to_append(step.log_file)
        except OSError as ex:
            raise WarmupError(
                f"{step.log_file} cannot be written ({ex.strerror}); choose another `out`."
            ) from None

        # Resuming appends to what a broken command has left.
        log.write(f"# {datetime.now():%F %T}  {shlex.join(args)}\n".encode())
        log.flush()

        env = dict(os.environ)

        # It would not listen to a key of its config.
        if not any("common.torch.num_threads" in arg for arg in command):
            env.setdefault(THREADS_VARIABLE, str(self._num_threads))

        popen = subprocess.Popen(
            args,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=env,
        )

        self._pending.remove(step)

        self._running.append(
            _Process(step, command, popen, log, log.tell(), time.monotonic())
        )

        self._report(step, "begins")

        # It may have come since the last look.
        if self.signum is not None:
            popen.send_signal(self.signum)

    def _collect(self) -> None:
        for process in self._running[:]:
            status = process.popen.poll()

            if status is None:
                continue

            self._running.remove(process)

            process.log.close()

            self._end_process(process, status)

    def _end_process(self, process: _Process, status: int) -> None:
        step, seconds = process.step, time.monotonic() - process.begin

        if status == 0:
            try:
                step.end(process.command, seconds)
            except WarmupError as ex:
                self._settle(step, Status.FAILED, str(ex))
            else:
                self._settle(step, Status.DONE, f"{seconds:.0f} s")

            return

        if self.signum is not None:
            self._settle(step, Status.STOPPED)

            return

        with step.log_file.open("rb") as fp:
            fp.seek(process.log_begin)

            text = fp.read().decode("utf-8", errors="replace")

        lines = text.rstrip().split("\n")[-_NUM_LOG_LINES:]

        self._settle(step, Status.FAILED, f"exit status {status}", error=lines[-1])

        for line in lines:
            self._say(f"    {line}")

        self._say(f"    log: {step.log_file}")

    def _settle(
        self,
        step: Step,
        status: Status,
        note: str = "",
        *,
        error: str = "",
        cause: str = "",
    ) -> bool:
        if step in self._pending:
            self._pending.remove(step)

        self._outcomes[step.key] = Outcome(step, status, note, error, cause)

        # What was done before, or cannot be, is not worth a line each.
        if status not in (Status.DONE_BEFORE, Status.SKIPPED):
            self._report(step, f"{status.value}{', ' if note else ''}{note}")

        return True

    def _report(self, step: Step, what: str) -> None:
        self._say(f"{self._describe_progress()} {step.key}: {what}")

    def _describe_progress(self) -> str:
        return f"[{len(self._outcomes)}/{self._num_steps}]"


def describe_skipped(num_skipped: int) -> str:
    """Counts the steps that cannot be done for want of another."""
    return "1 step that needs" if num_skipped == 1 else f"{num_skipped} steps that need"
