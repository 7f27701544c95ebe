# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How many cores a process may use, which a container may limit, and others use too."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, final

_ROOT: Final = Path("/")

_MIN_WATCH_TIME: Final = 0.2
"""In seconds."""


def count_cores(root: Path = _ROOT) -> int:
    """
    Counts the cores that this process may keep busy.

    :param root: Where ``/proc`` and ``/sys`` are.
    """
    if hasattr(os, "sched_getaffinity"):
        num_cores = len(os.sched_getaffinity(0))
    else:
        num_cores = os.cpu_count() or 1

    quota = find_cpu_quota(root)

    # Of a part of a core something is left.
    return num_cores if quota is None else max(1, min(num_cores, math.ceil(quota)))


def find_cpu_quota(root: Path = _ROOT) -> float | None:
    """
    Finds how many cores' time the control groups of this process have, as a container or
    Slurm limits it.

    :param root: As of :func:`count_cores`.

    :returns: ``None`` if there is no limit.
    """
    quotas = [
        quota
        for folder in _iter_groups(root)
        if (quota := _read_quota(folder)) is not None
    ]

    return min(quotas, default=None)


def _iter_groups(root: Path) -> Iterator[Path]:
    """Lists the folders of the groups that this process is in, each of which may limit it."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return

    mount = root / "sys/fs/cgroup"

    for line in lines:
        number, _, rest = line.partition(":")

        controllers, _, group = rest.partition(":")

        if number == "0" and not controllers:
            # Version 2, by itself or beside version 1.
            hierarchies = [mount, mount / "unified"]
        elif "cpu" in controllers.split(","):
            hierarchies = [mount / controllers, mount / "cpu"]
        else:
            continue

        path = PurePosixPath(group.lstrip("/"))

        # A container may see the path of its host, of which only its own group, the
        # root of the mount, is there.
        for hierarchy in hierarchies:
            for folder in (path, *path.parents):
                if ".." not in folder.parts:
                    yield hierarchy / folder


def _read_quota(folder: Path) -> float | None:
    def read(name: str) -> list[str]:
        try:
            return (folder / name).read_text(encoding="utf-8").split()
        except (OSError, ValueError):
            return []

    # Microseconds in each period, and those of the period.
    values = read("cpu.max") or [
        *read("cpu.cfs_quota_us"),
        *read("cpu.cfs_period_us"),
    ]

    try:
        quota, period = map(int, values)
    # There is none, or it is `max`.
    except ValueError:
        return None

    return quota / period if quota > 0 and period > 0 else None


@final
class CoreWatch:
    """
    Watches how busy other processes keep the cores of this one.

    Threads that compute together wait for each other at every operation. One that has to
    share its core lets all others wait for as long as the kernel lets somebody else run,
    which is longer than most operations by far.
    """

    def __init__(self, root: Path = _ROOT) -> None:
        """
        :param root: As of :func:`count_cores`.
        """
        self._root = root
        self._last = self._measure()

    def count_free(self) -> int:
        """
        Counts the cores that others have left since the last call, or since the beginning;
        at least 1.

        Who runs with a lower priority (``nice``) leaves its core to us. Where the kernel
        does not tell, all cores are free.
        """
        num_cores = count_cores(self._root)

        last = self._last

        if last is not None:
            # The kernel counts in hundredths of a second.
            time.sleep(max(0.0, _MIN_WATCH_TIME - (time.monotonic() - last.time)))

        self._last = self._measure()

        if last is None or self._last is None:
            return num_cores

        elapsed = self._last.time - last.time

        others = self._last.busy - last.busy - (self._last.own - last.own)

        # Of those that this process may use; a quota may allow it fewer.
        num_free = self._last.num_cores - round(others / elapsed)

        return max(1, min(num_cores, num_free))

    def _measure(self) -> _Load | None:
        own = time.process_time()

        try:
            lines = (self._root / "proc/stat").read_text(encoding="utf-8").splitlines()

            cpus = {f"cpu{idx}" for idx in os.sched_getaffinity(0)}

            ticks = os.sysconf("SC_CLK_TCK")

            counts = [
                [int(value) for value in values]
                for name, *values in map(str.split, lines)
                if name in cpus
            ]
        except (OSError, ValueError, AttributeError):
            return None

        # A container may name them otherwise.
        if not counts:
            return None

        # Of `user nice system idle iowait irq softirq …`.
        busy = sum(sum(count[i] for i in (0, 2, 5, 6)) for count in counts)

        return _Load(time.monotonic(), busy / ticks, own, len(counts))


@dataclass(frozen=True)
class _Load:
    """Holds what the kernel has counted, in seconds."""

    time: float

    busy: float
    """Of all processes."""

    own: float

    num_cores: int
