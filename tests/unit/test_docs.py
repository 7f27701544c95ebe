# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tiny_runs import ROOT

# Not those that speak of the files of fairseq2, or of the reader's own.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes" / "README.md",
    *(
        page
        for page in sorted((ROOT / "docs").glob("*.md"))
        if page.stem not in ("upgrading", "in_your_own_recipe")
    ),
]

# Where a page may begin to name a file from.
FOLDERS = [ROOT, ROOT / "warmup_plugin", ROOT / "warmup_plugin" / "recipes", ROOT / "scripts"]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_that_is_named_exists(page: Path) -> None:
    names = re.findall(r"`([\w./-]+\.py)`", page.read_text(encoding="utf-8"))

    missing = [
        name
        for name in sorted(set(names))
        if not any((folder / name).is_file() for folder in (*FOLDERS, page.parent))
    ]

    assert missing == []
