# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
From raw data to folders that training reads: the work behind ``scripts/prepare_*.py``.

Nothing here imports torch or fairseq2; ``mtdata``, ``datasets`` and libraries that
identify languages are optional and imported where they are used.
"""

from __future__ import annotations
