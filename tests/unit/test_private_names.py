# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Private names of other libraries are reached in the files of doors alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.doors import DOORS, ROOT, find_fault, find_private, is_private, list_sources

EXCEPTIONS: Final = {
    # Of PyTorch, which has no public name for it; tests of 8 bits fail without it.
    ("warmup_plugin/models/int8.py", "_int_mm"),
    # Of `datasets`: what tells one version of its rows from another.
    ("warmup_plugin/data/preparation/summarization.py", "_fingerprint"),
}

# What our own private attributes are reached by: an object reaches its own, and helpers
# of a file those of its class.
_RECEIVERS: Final = ("self", "cls", "pairs", "part")


def list_own(trees: list[ast.Module]) -> set[str]:
    """Lists the private attributes that our classes have."""
    own: set[str] = set()

    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            own.update(n.name for n in node.body if isinstance(n, ast.FunctionDef))
            own.update(
                n.target.id
                for n in node.body
                if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)
            )
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in _RECEIVERS:
                own.add(node.attr)

    return own


def find_foreign(tree: ast.Module, own: set[str]) -> Iterator[tuple[int, str]]:
    """Finds private names that are not of the object they are reached by."""
    allowed = {
        (node.lineno, node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in _RECEIVERS
        and node.attr in own
    }

    for found in find_private(tree):
        if found not in allowed:
            yield found

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if node.attr == "__class__":
                yield node.lineno, node.attr
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [getattr(node, "module", None) or ""]

            modules += [alias.name for alias in node.names]

            for module in modules:
                if any(map(is_private, module.split(".")[:-1])):
                    yield node.lineno, module


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {
        str(file.relative_to(ROOT)): ast.parse(file.read_text(encoding="utf-8"))
        for file in list_sources()
    }


def test_only_doors_reach_private_names(trees: dict[str, ast.Module]) -> None:
    own = list_own(list(trees.values()))

    found = {
        (file, name): f"{file}:{line_nr}: `{name}`"
        for file, tree in trees.items()
        if file not in DOORS
        for line_nr, name in find_foreign(tree, own)
    }

    others = [place for key, place in found.items() if key not in EXCEPTIONS]

    assert not others, "Move these into a file of doors: " + ", ".join(others)

    # An exception that is none any more is deleted.
    assert EXCEPTIONS <= found.keys()


@pytest.mark.parametrize(
    "line",
    [
        "trainer._max_num_steps = None",
        "self._project_q(x)",
        "self._model._tok",
        "module.__class__ = Other",
        "setattr(trainer, '_validate', f)",
        "from fairseq2.trainer import _TrainerState",
        "import torch._dynamo.config",
        "from torch._inductor.utils import x",
    ],
)
def test_each_way_is_found(line: str) -> None:
    assert list(find_foreign(ast.parse(line), {"_max_num_steps", "_model"}))


@pytest.mark.parametrize(
    "name,fault",
    [
        ("fairseq2.gone:Trainer", "has no module any more"),
        ("fairseq2.nn:BatchLayout._gone", "is gone"),
        ("fairseq2.nn:Gone._width", "is gone with `Gone`"),
        ("fairseq2.nn:BatchLayout.of/7", "no longer takes 7 arguments"),
        ("fairseq2.nn:BatchLayout._width", None),
    ],
)
def test_what_is_gone_is_told(name: str, fault: str | None) -> None:
    assert find_fault(name) == fault


def test_doors_exist() -> None:
    assert all(Path(ROOT, file).is_file() for file in DOORS)
