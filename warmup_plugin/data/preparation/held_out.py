# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path
from typing import final

from warmup_plugin.data.preparation.hash_set import hash_text
from warmup_plugin.data.preparation.text import make_overlap_key
from warmup_plugin.data.text_files import iter_all_texts


@final
class HeldOutText:
    """
    Knows the sentences of test and validation sets, in any language.

    A text is among them if it equals one in its letters and digits; case, punctuation
    and spaces do not count.
    """

    def __init__(self) -> None:
        self._keys: set[int] = set()

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, text: str) -> None:
        key = make_overlap_key(text)

        # A line of dashes is no leak.
        if key:
            self._keys.add(hash_text(key))

    def add_file(self, path: Path) -> None:
        """Adds a file of one sentence a line, or all texts of JSON lines or TSV."""
        for line in iter_all_texts(path):
            self.add(line)

    def __contains__(self, text: str) -> bool:
        # Keys cost time; where nothing is held out, none is made.
        return bool(self._keys) and hash_text(make_overlap_key(text)) in self._keys
