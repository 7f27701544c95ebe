# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Disks without room."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from resource import RLIMIT_FSIZE, getrlimit, setrlimit

import pytest


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may be larger, which is told like a full disk."""
    _, hard = getrlimit(RLIMIT_FSIZE)

    with pytest.MonkeyPatch.context() as monkeypatch:
        # The limit holds for its processes too: Git, killed by it while it writes its
        # index, would leave the clone locked.
        monkeypatch.setattr("warmup_plugin.runs.run_dir._find_commit", lambda: None)

        setrlimit(RLIMIT_FSIZE, (size, hard))

        try:
            yield
        finally:
            setrlimit(RLIMIT_FSIZE, (hard, hard))


@contextmanager
def full_disk() -> Iterator[None]:
    """Nothing that is to last has room, though it could be written."""

    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "fsync", fail)

        yield
