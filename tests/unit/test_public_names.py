# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import warmup_plugin


class TestPublicNames:
    def test_import_brings_neither_torch_nor_fairseq2(self) -> None:
        code = "import sys, warmup_plugin; print(sorted({'torch', 'fairseq2'} & {*sys.modules}))"

        process = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )

        assert process.stdout == "[]\n"

    def test_every_name_is_found(self) -> None:
        for name in warmup_plugin.__all__:
            assert getattr(warmup_plugin, name).__module__, name

    def test_type_checker_knows_same_names(self) -> None:
        tree = ast.parse(Path(str(warmup_plugin.__file__)).read_text(encoding="utf-8"))

        imported = {
            alias.asname: f"{node.module}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
            if alias.asname
        }

        places = {
            name: f"warmup_plugin.{place}"
            for name, place in warmup_plugin._PLACES.items()
        }

        assert imported == places

    def test_unknown_name_is_error(self) -> None:
        with pytest.raises(AttributeError, match="has no attribute `nope`"):
            getattr(warmup_plugin, "nope")
