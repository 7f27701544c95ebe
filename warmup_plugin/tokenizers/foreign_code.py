# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import sys


def refuse_foreign_code() -> None:
    """
    Lets transformers refuse what only runs with Python code of its own folder.

    By default it asks on standard input, which here holds the text to translate: a line
    of it would be taken for the answer. Where we load ourselves, ``trust_remote_code``
    is ``False``; this is for the libraries that load for us, such as fairseq2 with its
    ``llama`` and ``qwen`` tokenizers and ``bert-score``, and take no such argument. Does
    nothing before transformers is imported.
    """
    if "transformers" not in sys.modules:
        return

    from transformers import dynamic_module_utils

    # With no time to answer it does not ask.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
