# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import ast
import inspect
import textwrap


def get_field_docs(kls: type[object]) -> dict[str, str]:
    """
    Reads what is written below the fields of a config class, and of those it derives
    from.

    Python keeps no docstring of a field, so that the source has to be read.
    """
    docs: dict[str, str] = {}

    for base in reversed(kls.__mro__):
        if base.__module__ == "builtins":
            continue

        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):
            continue

        body = ast.parse(textwrap.dedent(source)).body[0]

        if not isinstance(body, ast.ClassDef):
            continue

        for field, below in zip(body.body, body.body[1:]):
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
