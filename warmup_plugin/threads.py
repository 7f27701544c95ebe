# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How many threads PyTorch computes with on a CPU."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, final

import torch
from fairseq2.logging import log

from warmup_plugin.cores import CoreWatch, count_cores
from warmup_plugin.terminal import show

_VARIABLE: Final = "OMP_NUM_THREADS"

_CHECK_EVERY: Final = 60.0
"""In seconds."""


def is_alone() -> bool:
    """Returns ``False`` for one of several processes on this machine that work together."""
    return os.environ.get("LOCAL_WORLD_SIZE", "1") == "1"


@contextmanager
def limited_threads(watch: CoreWatch, num_threads: int | None) -> Iterator[None]:
    """
    Takes as many threads as there are free cores, unless somebody has said how many.

    :param watch: Created a little while ago.
    :param num_threads: The number that the config says, if it does.
    """
    if _VARIABLE in os.environ or num_threads is not None or not is_alone():
        yield

        return

    num_cores, num_free = count_cores(), watch.count_free()

    if num_free < num_cores:
        # The log has not begun.
        show(
            f"{num_free} thread(s), since other processes keep {num_cores - num_free} of {num_cores} cores busy (`{_VARIABLE}={num_cores}` takes all, and waits for them)",
            file=sys.stderr,
        )

    old_num_threads = torch.get_num_threads()

    # fairseq2 would take all cores.
    os.environ[_VARIABLE] = str(num_free)

    torch.set_num_threads(num_free)

    try:
        yield
    finally:
        del os.environ[_VARIABLE]

        torch.set_num_threads(old_num_threads)


@final
class CrowdWarning:
    """Warns once if others begin to use the cores of this process."""

    def __init__(self, device: torch.device) -> None:
        """
        :param device: What this process computes with; only a CPU is watched.
        """
        self._watch: CoreWatch | None = None

        if device.type == "cpu" and is_alone():
            self._watch = CoreWatch()

        self._last_time = time.monotonic()

    def check(self) -> None:
        """Looks if it is time to."""
        if self._watch is None or time.monotonic() - self._last_time < _CHECK_EVERY:
            return

        self._last_time = time.monotonic()

        num_threads, num_free = torch.get_num_threads(), self._watch.count_free()

        if num_threads > num_free:
            self._watch = None

            log.warning("Other processes have begun to use the cores that the {} threads of this one compute with, which may make it many times slower; with `OMP_NUM_THREADS={}` it would not wait for them, and a training may be stopped and resumed with that.", num_threads, num_free)  # fmt: skip
