# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""No room of the package imports one above it, so that there is no circle either."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.tiny_runs import ROOT

PACKAGE: Final = ROOT / "warmup_plugin"

# From the bottom. A room is a module or a folder of the package.
ROOMS: Final = (
    *("errors", "parsing", "blank", "files", "cores", "terminal", "presets"),
    *("threads", "heap", "processes"),
    *("fairseq2_doors", "transformers_doors"),
    *(
        "collapse",
        "config_docs",
        "options",
        "config_values",
        "components",
        "warmup_lens",
        "console",
    ),
    *("storage", "late_assets", "gathering", "weights_and_biases"),
    # The method.
    *("layout", "objectives", "tokenizers", "models", "sampling", "scoring"),
    # Text and what is made of it.
    *("metrics", "tasks", "data", "preparation", "generation", "criteria"),
    # Imports all of fairseq2's recipes and of these.
    *("composition", "late_imports"),
    # Runs.
    *("runs", "mlflow_recorder", "recipes", "interop", "evaluation", "report", "suite"),
    *("commands", "__main__", "__init__"),
)


def get_room(path: tuple[str, ...]) -> str:
    # It stands in a folder of another room, whose text it makes.
    return "preparation" if path[:2] == ("data", "preparation") else path[0]


def list_imports(file: Path) -> Iterator[str]:
    """Lists the rooms that a module imports, also within functions."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []

        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]

        for name in names:
            package, *path = name.split(".")

            if package != "warmup_plugin" or not path:
                continue

            # What `__init__` has is no room.
            if (PACKAGE / path[0]).is_dir() or (PACKAGE / f"{path[0]}.py").is_file():
                yield get_room(tuple(path))


def test_no_arrow_goes_up() -> None:
    arrows = []

    for file in sorted(PACKAGE.rglob("*.py")):
        room = get_room(file.relative_to(PACKAGE).with_suffix("").parts)

        arrows += [
            f"{file.relative_to(ROOT)} imports {imported}"
            for imported in list_imports(file)
            if imported != room and ROOMS.index(imported) > ROOMS.index(room)
        ]

    assert arrows == []


def test_every_room_has_its_place() -> None:
    rooms = {
        get_room(file.relative_to(PACKAGE).with_suffix("").parts)
        for file in PACKAGE.rglob("*.py")
    }

    assert rooms == set(ROOMS)
