# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
from pathlib import Path

import pytest

from warmup_plugin.cores import count_cores, find_cpu_quota

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
