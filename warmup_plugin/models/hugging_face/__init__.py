# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from warmup_plugin.models.hugging_face.format import (
    HuggingFaceFormat as HuggingFaceFormat,
)
