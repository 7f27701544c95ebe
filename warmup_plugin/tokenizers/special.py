# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The special tokens that our own tokenizers are trained with."""

from __future__ import annotations

from typing import Final

SEPARATOR: Final = "<sep>"
"""What ends a warmup."""

PROMPT_END: Final = "<mid>"
"""What ends the prompt of a decoder-only model."""
