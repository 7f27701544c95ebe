# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The files of a tokenizer that is a folder, and whether two are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def list_tokenizer_files(folder: Path) -> list[Path]:
    """Lists the files of a Hugging Face tokenizer, which may lie beside a model."""
    return [folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()]


def is_same_tokenizer(a: Path, b: Path) -> bool:
    """Tells whether two tokenizers, files or folders, hold the same."""

    def read(path: Path) -> dict[str, bytes]:
        if not path.is_dir():
            return {"": path.read_bytes()}

        return {file.name: file.read_bytes() for file in list_tokenizer_files(path)}

    return read(a) == read(b)
