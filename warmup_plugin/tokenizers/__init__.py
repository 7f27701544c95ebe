# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

# Nothing is re-exported: `special` and `byte_bpe` are read by commands that must not wait for the
# seconds that importing fairseq2, which `spm` needs, takes.
