# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from warmup_plugin.heap import keep_freed_memory

# Three buffers of 12 MiB, made and dropped 20 times, as a search makes its logits: the
# kernel is asked for 9,000 pages each time, or only at first.
SCRIPT = """
import resource
import sys

import torch

from warmup_plugin.heap import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()

def fill():
    buffers = [torch.ones(3 * 2**20) for _ in range(3)]

# Until there is room for all.
for _ in range(6):
    fill()

before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(20):
    fill()

print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(name: str) -> int:
    """Counts how often a page of memory had to be asked for."""
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT, name],
        # As it is until the first megabytes are freed, and then depends on what was.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 * 1024)},
        capture_output=True,
        text=True,
        check=True,
    )

    return int(process.stdout)


class TestKeepFreedMemory:
    def test_call_works(self) -> None:
        if platform.libc_ver()[0] != "glibc":
            pytest.skip("There is no glibc.")

        # How many there are depends on the size of a page.
        assert 10 * count_faults("kept") < count_faults("given back")

    def test_call_says_so_when_there_is_no_glibc(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def load(name: str) -> None:
            raise OSError(f"{name}: cannot open shared object file")

        monkeypatch.setattr("ctypes.CDLL", load)

        assert not keep_freed_memory()
