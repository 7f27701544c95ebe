# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How many threads PyTorch computes with on a CPU."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, final

import torch
from fairseq2.logging import log

from warmup_plugin.cores import THREADS_VARIABLE, CoreWatch, count_cores
from warmup_plugin.errors import WarmupError
from warmup_plugin.terminal import show

_CHECK_EVERY: Final = 60.0
"""In seconds."""

_COMPANY: Final = ("LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
"""What torchrun and Slurm call the number of processes that work together."""


def is_alone() -> bool:
    """Returns ``False`` for one of several processes that work together."""
    return all(os.environ.get(name, "1") == "1" for name in _COMPANY)


@contextmanager
def limited_threads(watch: CoreWatch, num_threads: int | None) -> Iterator[None]:
    """
    Takes as many threads as there are free cores, unless somebody has said how many.

    :param num_threads: The number that the config says, if it does.
    """
    if THREADS_VARIABLE in os.environ or num_threads is not None or not is_alone():
        yield

        return

    num_cores, num_free = count_cores(), watch.count_free()

    if num_free < num_cores:
        # The log has not begun; a full disk is told of by those who need one.
        with suppress(OSError, WarmupError):
            show(
                f"{num_free} thread(s), since other processes keep {num_cores - num_free} of {num_cores} cores busy (`{THREADS_VARIABLE}={num_cores}` takes all, and waits for them)",
                file=sys.stderr,
            )

    old_num_threads = torch.get_num_threads()

    # fairseq2 would take all cores.
    os.environ[THREADS_VARIABLE] = str(num_free)

    torch.set_num_threads(num_free)

    try:
        yield
    finally:
        del os.environ[THREADS_VARIABLE]

        torch.set_num_threads(old_num_threads)


@final
class CrowdWarning:
    """Warns, at most once, if others use the cores that threads of this process need."""

    def __init__(self, device: torch.device) -> None:
        """
        :param device: What this process computes with; only a CPU is watched.
        """
        self._watch: CoreWatch | None = None

        if device.type == "cpu" and is_alone():
            self._watch = CoreWatch()

        self._last_time = time.monotonic()

    def check(self) -> None:
        """Looks at the time since the last look, if that is a minute or more."""
        if self._watch is None or time.monotonic() - self._last_time < _CHECK_EVERY:
            return

        self._last_time = time.monotonic()

        num_threads, num_free = torch.get_num_threads(), self._watch.count_free()

        if num_free < min(num_threads, count_cores()):
            self._watch = None

            log.warning("Other processes use cores that the {} threads of this one compute with, which may make it many times slower; with `OMP_NUM_THREADS={}` it would not wait for them, and a training may be stopped and resumed with that.", num_threads, num_free)  # fmt: skip
