# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Several processes of one command on this machine, as torchrun would start them."""

from __future__ import annotations

import argparse
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final, final

from warmup_plugin.cores import THREADS_VARIABLE, share_cores
from warmup_plugin.errors import WarmupError

_POLL_SECONDS: Final = 0.05

_PATIENCE_SECONDS: Final = 10.0
"""For so long the others may end by themselves once one has failed."""

_INTERRUPT_SECONDS: Final = 1.0
"""After so long nobody but this process has been interrupted."""

# Tells a process that it is one of several, whose options it shares.
_MARK: Final = "WARMUP_PROCESSES"


@contextmanager
def handled_signals(
    signums: Iterable[signal.Signals], handle: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Lets a function handle signals for a time."""
    old_handlers = {signum: signal.signal(signum, handle) for signum in signums}

    try:
        yield
    finally:
        for signum, handler in old_handlers.items():
            signal.signal(signum, handler)


def add_processes_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="share the lines out among N processes on this machine, one a GPU, or some threads each (default: 1)",
    )


def wants_processes(args: argparse.Namespace) -> bool:
    """
    Tells whether this process is to start several instead of doing the work.

    :raises WarmupError: If there are none to start, or several already.
    """
    if _MARK in os.environ:
        return False

    if args.processes < 1:
        raise WarmupError(
            f"`--processes` must be at least 1, but is {args.processes}; correct it."
        )

    if args.processes > 1 and "RANK" in os.environ:
        raise WarmupError(
            "`--processes` starts several processes, but torchrun has done so already; leave it out."
        )

    return bool(args.processes > 1)


def run_processes(command: str, argv: Sequence[str], num_processes: int) -> int:
    """
    Runs a command in several processes.

    The first reads standard input. Signals are passed on; if a process fails, the others
    are ended.

    :param command: The name of the command.
    :param argv: Its arguments.

    :returns: The exit status of the first that failed; 0 if none has.
    """
    shared = {
        THREADS_VARIABLE: str(share_cores(num_processes)),
        **os.environ,
        _MARK: str(num_processes),
        "WORLD_SIZE": str(num_processes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_find_port()),
    }

    processes: list[subprocess.Popen[bytes]] = []

    with _passing_signals(processes) as passing:
        try:
            for rank in range(num_processes):
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "warmup_plugin", command, *argv],
                        stdin=None if rank == 0 else subprocess.DEVNULL,
                        env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    )
                )

            return wait_for(processes, passing)
        finally:
            # Such as those that have begun where another could not.
            _end(processes, signal.SIGTERM)


def _find_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))

        port: int = sock.getsockname()[1]

        return port


@final
class Passing:
    """Remembers the signal that this process received, which its processes get too."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._due = math.inf

    def note(self, signum: int) -> None:
        self.signum = signum

        if signum == signal.SIGINT:
            # A terminal interrupts all; a second time would disturb the end of the others.
            self._due = time.monotonic() + _INTERRUPT_SECONDS

    def is_due(self) -> bool:
        """Tells, once, that those that are still at work have to be interrupted."""
        if time.monotonic() < self._due:
            return False

        self._due = math.inf

        return True

    def has_ended(self, process: subprocess.Popen[bytes]) -> bool:
        """Tells whether the signal has ended a process, even if others broke off first."""
        if self.signum is None:
            return False

        return process.returncode in (-self.signum, 128 + self.signum)


@contextmanager
def _passing_signals(
    processes: Sequence[subprocess.Popen[bytes]],
) -> Iterator[Passing]:
    passing = Passing()

    def handle(signum: int, frame: FrameType | None) -> None:
        passing.note(signum)

        if signum != signal.SIGINT:
            for process in processes:
                process.send_signal(signum)

    signums = [
        signum
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # As `nohup` asks for; the processes inherit it.
        if signal.getsignal(signum) is not signal.SIG_IGN
    ]

    with handled_signals(signums, handle):
        yield passing


def wait_for(processes: Sequence[subprocess.Popen[bytes]], passing: Passing) -> int:
    """
    Waits until all have ended; if one fails, the others are ended.

    :returns: The exit status, as of :func:`run_processes`.
    """
    failure: int | None = None

    end = math.inf

    # It may have come while they were being started.
    if passing.signum is not None and passing.signum != signal.SIGINT:
        _end(processes, passing.signum)

    # All of them are asked, also those behind one that goes on.
    while None in [process.poll() for process in processes]:
        if passing.is_due():
            _end(processes, signal.SIGINT)

        failures = [p.returncode for p in processes if p.returncode]

        if failures and failure is None:
            # What a signal has ended goes before what failed for want of it.
            failure, end = min(failures), time.monotonic() + _PATIENCE_SECONDS

            _end(processes, signal.SIGTERM)

        if time.monotonic() > end:
            _end(processes, signal.SIGKILL)

        time.sleep(_POLL_SECONDS)

    # One that hears of the end of another before the signal reaches it fails for want of
    # that one, which is not why the command ended.
    if (ended := next(filter(passing.has_ended, processes), None)) is not None:
        failure = ended.returncode

    if failure is None:
        failure = min((p.returncode for p in processes if p.returncode), default=0)

    return 128 - failure if failure < 0 else failure


def _end(processes: Sequence[subprocess.Popen[bytes]], signum: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signum)
