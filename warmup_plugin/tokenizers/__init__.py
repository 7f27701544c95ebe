# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

# Nothing is re-exported: `training` runs in commands that must not wait for the
# seconds that importing fairseq2, which `spm` needs, takes.
