# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Processes that wait for what the first of them makes."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from fairseq2.device import CPU
from fairseq2.gang import ProcessGroupGang

from tests.commands import Start, run
from warmup_plugin.recipes.corpora import PatientGroup

pytestmark = pytest.mark.integration

TIMEOUT = timedelta(seconds=1)


def wait(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )

    group = dist.new_group(timeout=TIMEOUT)

    gang = ProcessGroupGang(group, CPU)

    patient_group = PatientGroup(gang)

    if rank == 0:
        time.sleep(4.0 * TIMEOUT.total_seconds())

    assert patient_group.gather(f"made by {rank}") == ["made by 0", "made by 1"]


def test_first_process_may_take_longer_than_a_collective_call(
    tmp_path: Path, start: Start
) -> None:
    args = ("-m", "tests.integration.test_waiting")

    for process in [start(f"rank_{n}", *args, n, tmp_path) for n in range(2)]:
        run(process)


if __name__ == "__main__":
    wait(int(sys.argv[1]), Path(sys.argv[2]))
