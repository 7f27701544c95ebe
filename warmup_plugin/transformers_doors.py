# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
What is reached in transformers beyond the classes that it documents.

As of ``fairseq2_doors.py``: each function is one door, and a test tells when an upgrade
has closed it. Importing transformers takes seconds, so that it waits for the first one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


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


def get_nllb_languages() -> list[str]:
    """Returns the languages of NLLB-200 in the order of their tokens."""
    from transformers.models.nllb.tokenization_nllb import FAIRSEQ_LANGUAGE_CODES

    return list(FAIRSEQ_LANGUAGE_CODES)


def convert_spm(path: Path, arrange: Callable[[list[str]], list[str]]) -> Any:
    """
    Turns a SentencePiece model into a tokenizer of the ``tokenizers`` library.

    :param arrange: Makes the vocabulary from the pieces of the model.
    """
    from transformers.convert_slow_tokenizer import SpmConverter

    class Slow:
        """What the converter wants to know of a tokenizer that is not fast."""

        vocab_file = str(path)
        add_prefix_space = True
        legacy = True

    class Converter(SpmConverter):
        def vocab(self, proto: Any) -> list[tuple[str, float]]:
            scores = {piece.piece: piece.score for piece in proto.pieces}

            tokens = arrange([piece.piece for piece in proto.pieces])

            return [(token, scores.get(token, 0.0)) for token in tokens]

        def unk_id(self, proto: Any) -> int:
            return arrange([piece.piece for piece in proto.pieces]).index("<unk>")

    converter: Any = Converter

    return converter(Slow()).converted()
