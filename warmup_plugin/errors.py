# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations


class WarmupError(Exception):
    """
    Reports bad input in one sentence that names the file, line or field and the
    remedy.

    Every command prints the message alone and exits with 2. Subclass it only for errors
    that no fairseq2 recipe raises: fairseq2 looks its error handlers up by exact type.
    """
