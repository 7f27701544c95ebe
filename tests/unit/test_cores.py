# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from warmup_plugin import cores
from warmup_plugin.cores import CoreWatch, count_cores, find_cpu_quota, watch_cores

V1 = "9:name=systemd:/\n8:pids:/\n4:cpu,cpuacct:{}\n3:cpuset:/\n0::/\n"


def write(root: Path, files: dict[str, str]) -> Path:
    """Writes what the kernel would show."""
    for name, content in files.items():
        file = root / name

        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)

    return root


class TestFindCpuQuota:
    @pytest.mark.parametrize(
        "files,expected",
        [
            # Version 2, in a container that sees its own group as the root.
            (
                {
                    "proc/self/cgroup": "0::/\n",
                    "sys/fs/cgroup/cpu.max": "100000 100000\n",
                },
                1.0,
            ),
            (
                {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
                None,
            ),
            # The least of the groups in each other counts, as of a job of Slurm.
            (
                {
                    "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
                    "sys/fs/cgroup/slurm/cpu.max": "1600000 100000\n",
                    "sys/fs/cgroup/slurm/job_7/cpu.max": "250000 100000\n",
                    "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000\n",
                },
                2.5,
            ),
            # Another job's.
            (
                {
                    "proc/self/cgroup": "0::/slurm/job_7\n",
                    "sys/fs/cgroup/slurm/job_8/cpu.max": "100000 100000\n",
                },
                None,
            ),
            # A path outside what the process sees.
            (
                {
                    "proc/self/cgroup": "0::/../other\n",
                    "sys/fs/cgroup/cpu.max": "400000 200000\n",
                    "sys/fs/other/cpu.max": "100000 100000\n",
                },
                2.0,
            ),
            # Version 1, whose path may be that of the host.
            (
                {
                    "proc/self/cgroup": V1.format("/docker/5ab"),
                    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
                    "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                },
                1.5,
            ),
            (
                {
                    "proc/self/cgroup": "1:cpu:/a\n0::/\n",
                    "sys/fs/cgroup/cpu/a/cpu.cfs_quota_us": "300000\n",
                    "sys/fs/cgroup/cpu/a/cpu.cfs_period_us": "100000\n",
                    "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                    "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                },
                3.0,
            ),
            # Both at once.
            (
                {
                    "proc/self/cgroup": V1.format("/"),
                    "sys/fs/cgroup/unified/cpu.max": "100000 100000\n",
                },
                1.0,
            ),
            # Nothing that can be read.
            ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "\n"}, None),
            ({"proc/self/cgroup": "?\n"}, None),
            ({}, None),
        ],
    )
    def test_call_reads_groups_of_process(
        self, tmp_path: Path, files: dict[str, str], expected: float | None
    ) -> None:
        assert find_cpu_quota(write(tmp_path, files)) == expected


class TestCountCores:
    @pytest.mark.parametrize(
        "quota,expected",
        [("max", None), ("10000", 1), ("100000", 1), ("99900000", None)],
    )
    def test_quota_limits_cores(
        self, tmp_path: Path, quota: str, expected: int | None
    ) -> None:
        files = {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": f"{quota} 100000\n",
        }

        num_cores = len(os.sched_getaffinity(0))

        assert count_cores(write(tmp_path, files)) == (expected or num_cores)

    def test_part_of_core_counts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))

        files = {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "250000 100000\n",
        }

        assert count_cores(write(tmp_path, files)) == 3


class TestCoreWatch:
    """Four of eight cores are ours; a second passes from one look to the next."""

    @pytest.fixture(autouse=True)
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 4, 5})

        times = iter(range(100))

        now = [0.0]

        def measure_own() -> float:
            now[0] = float(next(times))

            # Half a core.
            return 0.5 * now[0]

        monkeypatch.setattr(time, "process_time", measure_own)
        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(time, "sleep", lambda _: None)

        self.niceness = 0

        monkeypatch.setattr(os, "getpriority", lambda *_: self.niceness)

        self.hundred = os.sysconf("SC_CLK_TCK")

    def write_load(self, root: Path, **loads: list[float]) -> Path:
        """Writes how long each core was busy, and with what: `user nice system idle …`."""
        lines = ["cpu  9 9 9 9 9 9 9 9 0 0"]

        for name, load in loads.items():
            values = [*load, 0, 0, 0, 0, 0, 0, 0, 0][:8]

            lines.append(
                f"{name} " + " ".join(str(int(self.hundred * x)) for x in values)
            )

        return write(root, {"proc/stat": "\n".join([*lines, "intr 5 6", "ctxt 3"])})

    @pytest.mark.parametrize(
        "loads,expected",
        [
            # Nobody but us.
            ({"cpu2": [0.5]}, 4),
            # One that computes, and one that has little to do.
            ({"cpu2": [0.5], "cpu3": [0.9, 0, 0.1], "cpu4": [0.3]}, 3),
            ({"cpu2": [1.0], "cpu3": [1.0], "cpu4": [0.5], "cpu5": [0, 0, 1.0]}, 1),
            # All of ours; something is left.
            ({name: [1.0] for name in ("cpu2", "cpu3", "cpu4", "cpu5")}, 1),
            # With low priority, idle, or waiting for a disk.
            ({"cpu2": [0.5], "cpu3": [0, 1.0], "cpu4": [0, 0, 0, 1.0, 1.0]}, 4),
            # On cores that are not ours.
            ({"cpu2": [0.5], "cpu6": [1.0], "cpu7": [1.0]}, 4),
        ],
    )
    def test_cores_of_others_are_not_free(
        self, tmp_path: Path, loads: dict[str, list[float]], expected: int
    ) -> None:
        names = [f"cpu{idx}" for idx in range(8)]

        watch = CoreWatch(self.write_load(tmp_path, **{name: [0.0] for name in names}))

        self.write_load(tmp_path, **{name: loads.get(name, [0.0]) for name in names})

        assert watch.count_free() == expected

    def test_call_looks_at_time_since_last_one(self, tmp_path: Path) -> None:
        idle = {"cpu4": [0.0], "cpu5": [0.0]}

        watch = CoreWatch(self.write_load(tmp_path, cpu2=[0.0], cpu3=[0.0], **idle))

        self.write_load(tmp_path, cpu2=[0.5], cpu3=[1.0], **idle)

        assert watch.count_free() == 3

        self.write_load(tmp_path, cpu2=[1.0], cpu3=[1.0], **idle)

        assert watch.count_free() == 4

    def test_who_is_nice_minds_others_who_are(self, tmp_path: Path) -> None:
        self.niceness = 10

        names = ["cpu2", "cpu3", "cpu4", "cpu5"]

        watch = CoreWatch(self.write_load(tmp_path, **{name: [0.0] for name in names}))

        self.write_load(tmp_path, cpu2=[0, 0.5], cpu3=[0, 1.0], cpu4=[1.0], cpu5=[0.0])

        assert watch.count_free() == 2

    def test_children_are_no_others(self, tmp_path: Path) -> None:
        def write_child(seconds: float) -> None:
            ticks = int(seconds * self.hundred)

            stat = f"77 (a) b) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20 0 1\n"

            files = {"proc/self/task/5/children": "77 78 ", "proc/77/stat": stat}

            write(tmp_path, files)

        names = ["cpu2", "cpu3", "cpu4", "cpu5"]

        write_child(0.0)

        watch = CoreWatch(self.write_load(tmp_path, **{name: [0.0] for name in names}))

        write_child(1.0)

        self.write_load(tmp_path, cpu2=[0.5], cpu3=[1.0], cpu4=[1.0], cpu5=[0.0])

        assert watch.count_free() == 3

    def test_call_waits_until_there_is_something_to_see(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        waits: list[float] = []

        now = [0.0]

        def sleep(seconds: float) -> None:
            waits.append(seconds)

            now[0] += seconds

        monkeypatch.setattr(time, "monotonic", lambda: now[0])
        monkeypatch.setattr(time, "process_time", lambda: 0.0)
        monkeypatch.setattr(time, "sleep", sleep)

        names = ["cpu2", "cpu3", "cpu4", "cpu5"]

        watch = CoreWatch(self.write_load(tmp_path, **{name: [0.0] for name in names}))

        now[0] = 0.01

        assert watch.count_free() == 4

        now[0] += 1.0

        watch.count_free()

        assert waits == [pytest.approx(0.05), 0.0]

    def test_quota_is_less_than_what_is_free(self, tmp_path: Path) -> None:
        files = {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "200000 100000\n",
        }

        write(tmp_path, files)

        names = ["cpu2", "cpu3", "cpu4", "cpu5"]

        watch = CoreWatch(self.write_load(tmp_path, **{name: [0.0] for name in names}))

        # Of the two cores' time nothing is taken by who keeps one of four busy.
        self.write_load(tmp_path, cpu2=[0.5], cpu3=[1.0], cpu4=[0.0], cpu5=[0.0])

        assert watch.count_free() == 2

    def test_process_has_one_watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cores, "_watch", None)

        watch = watch_cores()

        # One that begins only now would have to wait.
        assert watch_cores() is watch

    @pytest.mark.parametrize(
        "content",
        [None, "", "cpu  1 2\n", "cpu2 x\n", "cpu2 1 2\n", "cpu2 9 9 9 9 9 9 9 9\n"],
    )
    def test_kernel_that_does_not_tell_leaves_all(
        self, tmp_path: Path, content: str | None
    ) -> None:
        if content is not None:
            write(tmp_path, {"proc/stat": content})

        assert CoreWatch(tmp_path).count_free() == 4
