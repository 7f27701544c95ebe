# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What is written below config classes and their fields."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import final


def get_field_docs(kls: type[object]) -> dict[str, str]:
    """
    Reads what is written below the fields of a config class, and of those it derives
    from; they are at the top level of their modules.

    Python keeps no docstring of a field, so that the source has to be read.
    """
    docs: dict[str, str] = {}

    for base in reversed(kls.__mro__):
        node = _parse_classes(base.__module__).get(base.__qualname__)

        if node is not None:
            docs.update({n: doc for n, _, doc in _iter_fields(node) if doc})

    return docs


@final
@dataclass(frozen=True)
class FieldSource:
    """Holds what the source of a config class says of a field."""

    name: str

    type: str

    default: object

    doc: str


def read_fields(module: str, kls_name: str) -> list[FieldSource]:
    """
    Reads the fields of a config class of ours without importing its module, whose own
    imports take seconds.

    :param kls_name: A class that has all its fields itself, with literals as defaults.
    """
    file = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")

    node = _parse(file.read_text(encoding="utf-8"))[kls_name]

    return [
        FieldSource(
            name,
            ast.unparse(field.annotation),
            None if field.value is None else ast.literal_eval(field.value),
            doc,
        )
        for name, field, doc in _iter_fields(node)
    ]


def _iter_fields(node: ast.ClassDef) -> Iterator[tuple[str, ast.AnnAssign, str]]:
    """Iterates over fields and what is written below them; empty if nothing is."""
    for idx, field in enumerate(node.body):
        if not isinstance(field, ast.AnnAssign):
            continue

        if not isinstance(field.target, ast.Name):
            continue

        doc = ""

        for below in node.body[idx + 1 : idx + 2]:
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                if isinstance(below.value.value, str):
                    doc = inspect.cleandoc(below.value.value)

        yield field.target.id, field, doc


# `inspect.getsource` of a class parses its whole module, and again for the next class.
@cache
def _parse_classes(module: str) -> Mapping[str, ast.ClassDef]:
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return {}

    return _parse(source)


@cache
def _parse(source: str) -> Mapping[str, ast.ClassDef]:
    nodes = ast.parse(source).body

    return {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}


def get_field_owner(kls: type[object], name: str) -> type[object]:
    """Returns the class that declares a field: a config class or one it derives from."""
    for base in kls.__mro__:
        if name in base.__dict__.get("__annotations__", {}):
            return base

    raise ValueError(f"`kls` must have a field `{name}`, but is `{kls}`.")


def get_class_doc(kls: type[object]) -> str:
    """Returns the docstring of a config class; empty if it has none of its own."""
    doc = kls.__doc__ or ""

    # What `dataclass` writes where there is none.
    if doc.startswith(f"{kls.__name__}("):
        return ""

    return inspect.cleandoc(doc)
