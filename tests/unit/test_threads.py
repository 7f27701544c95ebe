# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import cast

import pytest
import torch
from fairseq2.logging import log

from tests.common import device
from warmup_plugin import threads
from warmup_plugin.cores import CoreWatch
from warmup_plugin.threads import CrowdWarning, limited_threads


class Watch:
    def __init__(self, num_free: int = 3) -> None:
        self.num_free = num_free

    def count_free(self) -> int:
        return self.num_free


def watch(num_free: int) -> CoreWatch:
    return cast(CoreWatch, Watch(num_free))


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "count_cores", lambda: 8)

    for name in ("OMP_NUM_THREADS", "LOCAL_WORLD_SIZE", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)

    num_threads = torch.get_num_threads()

    yield

    torch.set_num_threads(num_threads)


class TestLimitedThreads:
    @pytest.mark.parametrize(
        "num_free,message",
        [(3, "3 thread(s), since other processes keep 5 of 8 cores busy"), (8, "")],
    )
    def test_threads_are_as_many_as_free_cores(
        self, num_free: int, message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.set_num_threads(1)

        with limited_threads(watch(num_free), None):
            assert torch.get_num_threads() == num_free

            # So that nobody sets another number.
            assert os.environ["OMP_NUM_THREADS"] == str(num_free)

        assert torch.get_num_threads() == 1

        assert "OMP_NUM_THREADS" not in os.environ

        err = capsys.readouterr().err

        assert err.startswith(message) and bool(err) == bool(message)

    @pytest.mark.parametrize(
        "name,num_threads",
        [
            ("OMP_NUM_THREADS", None),
            ("LOCAL_WORLD_SIZE", None),
            ("SLURM_NTASKS", None),
            (None, 2),
        ],
    )
    def test_who_says_how_many_gets_them(
        self, name: str | None, num_threads: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.set_num_threads(2)

        if name is not None:
            monkeypatch.setenv(name, "2")

        with limited_threads(watch(5), num_threads):
            assert torch.get_num_threads() == 2

            assert os.environ.get("OMP_NUM_THREADS") != "5"

    def test_full_disk_is_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*args: object, **options: object) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(threads, "show", refuse)

        with limited_threads(watch(3), None):
            assert torch.get_num_threads() == 3


class TestCrowdWarning:
    def test_call_warns_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines: list[str] = []

        monkeypatch.setattr(
            log, "warning", lambda text, *args: lines.append(text.format(*args))
        )

        crowd = Watch(4)

        monkeypatch.setattr(threads, "CoreWatch", lambda: crowd)

        now = [0.0]

        monkeypatch.setattr(time, "monotonic", lambda: now[0])

        torch.set_num_threads(4)

        warning = CrowdWarning(device)

        def check(seconds: float) -> None:
            now[0] += seconds

            warning.check()

        # As many as there are cores.
        check(61.0)

        # More than there are, which is not the fault of others.
        crowd.num_free = 8

        torch.set_num_threads(9)

        check(61.0)

        torch.set_num_threads(4)

        assert not lines

        crowd.num_free = 2

        # Not yet.
        check(59.0)

        assert not lines

        check(2.0)

        [line] = lines

        assert "the 4 threads of this one" in line and "`OMP_NUM_THREADS=2`" in line

        check(61.0)

        assert len(lines) == 1

    def test_processes_that_work_together_are_no_others(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

        def refuse() -> None:
            raise AssertionError("nothing is watched")

        monkeypatch.setattr(threads, "CoreWatch", refuse)

        CrowdWarning(device).check()

    def test_gpu_does_not_wait_for_cores(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse() -> None:
            raise AssertionError("nothing is watched")

        monkeypatch.setattr(threads, "CoreWatch", refuse)

        CrowdWarning(torch.device("cuda")).check()
