# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How the C library deals with the memory of tensors."""

from __future__ import annotations

import ctypes
from typing import Final

# Of `malloc.h`.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_MAX_MMAP_THRESHOLD: Final = 32 * 2**20
"""The most that glibc takes on machines of 64 bits."""

_TRIM_THRESHOLD: Final = 2**30


def keep_freed_memory() -> bool:
    """
    Lets this process keep what it has freed at the end of its heap, up to a GiB, for what
    it allocates next.

    A search makes and drops the same few megabytes at each step. By default glibc gives
    them back to the kernel, which clears every page of them anew: on a CPU that costs
    up to a third of the largest projection.

    :returns: ``False`` where there is no glibc, and nothing changes.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False

    # 1 is success; musl has no such function.
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _MAX_MMAP_THRESHOLD)
        and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
    )
