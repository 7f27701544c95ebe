# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How many cores a process may use, which a container may limit, and others use too."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final, final

THREADS_VARIABLE: Final = "OMP_NUM_THREADS"
"""The environment variable that says how many threads libraries take."""

_ROOT: Final = Path("/")

_MIN_WATCH_TIME: Final = 0.06
"""In seconds: some of the hundredths that the kernel counts in."""


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


def share_cores(num_sharing: int) -> int:
    """Returns how many cores each of some processes gets; at least 1."""
    return max(1, count_cores() // num_sharing)


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

        Children of this process are no others, nor is who has a lower priority (``nice``)
        than this one. Where the kernel does not tell, all cores are free; who shares the
        quota of a container is not seen.
        """
        num_cores = count_cores(self._root)

        last = self._last

        if last is not None:
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
        # Of `user nice system idle iowait irq softirq …`.
        columns = [0, 2, 5, 6]

        try:
            ticks = os.sysconf("SC_CLK_TCK")

            # Others of low priority are in the way of who has one too.
            if os.getpriority(os.PRIO_PROCESS, 0) > 0:
                columns.append(1)

            own = time.process_time() + self._read_children(ticks)

            lines = (self._root / "proc/stat").read_text(encoding="utf-8").splitlines()

            cpus = {f"cpu{idx}" for idx in os.sched_getaffinity(0)}

            loads = [
                sum(int(values[i]) for i in columns)
                for name, *values in map(str.split, lines)
                if name in cpus
            ]
        except (OSError, ValueError, IndexError, AttributeError):
            return None

        # A container may name them otherwise.
        if len(loads) != len(cpus):
            return None

        return _Load(time.monotonic(), sum(loads) / ticks, own, len(loads))

    def _read_children(self, ticks: int) -> float:
        """Returns the seconds that the children of this process have computed."""
        times = os.times()

        # Of those that have ended.
        seconds = times.children_user + times.children_system

        for file in (self._root / "proc/self/task").glob("*/children"):
            with suppress(OSError, ValueError, IndexError):
                for pid in file.read_text(encoding="utf-8").split():
                    stat = (self._root / "proc" / pid / "stat").read_text("utf-8")

                    # A name may hold anything.
                    fields = stat.rpartition(")")[2].split()

                    seconds += sum(map(int, fields[11:15])) / ticks

        return seconds


_watch: CoreWatch | None = None


def watch_cores() -> CoreWatch:
    """
    Returns the watch of this process, which the first call creates.

    The earlier that is, the less has to be waited for what the watch sees.
    """
    global _watch

    if _watch is None:
        _watch = CoreWatch()

    return _watch


@dataclass(frozen=True)
class _Load:
    """Holds what the kernel has counted, in seconds."""

    time: float

    busy: float
    """Of all processes."""

    own: float
    """Of this one and its children."""

    num_cores: int
