# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How many cores a process may use, which a container may limit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

_ROOT: Final = Path("/")


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
