# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What is written below config classes and their fields."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Mapping
from functools import cache


def get_field_docs(kls: type[object]) -> dict[str, str]:
    """
    Reads what is written below the fields of a config class, and of those it derives
    from; they are at the top level of their modules.

    Python keeps no docstring of a field, so that the source has to be read.
    """
    docs: dict[str, str] = {}

    for base in reversed(kls.__mro__):
        node = _parse_classes(base.__module__).get(base.__qualname__)

        if node is None:
            continue

        for field, below in zip(node.body, node.body[1:]):
            if not isinstance(field, ast.AnnAssign):
                continue

            if not isinstance(field.target, ast.Name):
                continue

            if not isinstance(below, ast.Expr):
                continue

            if isinstance(below.value, ast.Constant):
                if isinstance(below.value.value, str):
                    docs[field.target.id] = inspect.cleandoc(below.value.value)

    return docs


# `inspect.getsource` of a class parses its whole module, and again for the next class.
@cache
def _parse_classes(module: str) -> Mapping[str, ast.ClassDef]:
    try:
        source = inspect.getsource(sys.modules[module])
    except (KeyError, OSError, TypeError):
        return {}

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
