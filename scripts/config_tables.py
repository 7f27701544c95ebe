# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Fields of configs as tables in Markdown, for ``make_config_docs.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Any,
    Final,
    Literal,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
from fairseq2.utils.structured import StandardValueConverter

from warmup_plugin.config_docs import get_field_docs, get_field_owner


@dataclass(frozen=True)
class Row:
    """One key."""

    key: str

    kind: str

    default: str

    meaning: str

    is_fairseq2: bool


_OTHERWISE: Final = {
    "common.torch.num_threads": "The threads that PyTorch computes with on a CPU, unless `OMP_NUM_THREADS` says; `null` for as many as there are cores that other processes leave free ([training](training.md#threads))."
}
"""What is not as fairseq2 documents it."""


def iter_fields(config: object) -> Iterator[tuple[str, object, object]]:
    """Iterates over the names, types and defaults of the fields of a config."""
    hints = get_type_hints(type(config))

    for config_field in fields(cast(Any, config)):
        name = config_field.name

        yield name, hints[name], getattr(config, name)


def make_row(config: object, name: str, key: str, hint: object, value: object) -> Row:
    kls = type(config)

    if is_config(value):
        kind, default = "section", ""
    else:
        kind, default = _format_type(hint), f"`{format_value(value)}`"

    return Row(
        key,
        kind,
        default,
        to_markdown(_OTHERWISE.get(key) or get_field_docs(kls).get(name, "")),
        is_of_fairseq2(get_field_owner(kls, name)),
    )


def make_table(rows: Iterable[Row]) -> str:
    rows = list(rows)

    marks = {row.is_fairseq2 for row in rows}

    cells = []

    for row in rows:
        meaning = row.meaning

        # Said once if it is true of all.
        if row.is_fairseq2 and len(marks) > 1:
            meaning = f"{meaning} *(fairseq2)*".strip()

        cells.append([f"`{row.key}`", row.kind, row.default, meaning])

    table = make_markdown(["key", "type", "default", "meaning"], cells)

    return f"*Keys of fairseq2:*\n\n{table}" if marks == {True} else table


def make_markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]

    # A bar would end the cell, also inside of code.
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]

    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _format_type(hint: object) -> str:
    """Names a type as one who writes YAML thinks of it."""
    if hint is None or hint is NoneType:
        return "null"

    if isinstance(hint, type):
        if is_dataclass(hint):
            return "section"

        names: dict[type[object], str] = {
            Path: "path",
            torch.dtype: "dtype",
            object: "any",
        }

        if hint in names:
            return names[hint]

    origin, args = get_origin(hint), get_args(hint)

    if origin is Literal:
        # The same literals in another order may come from the cache of `typing`.
        return " or ".join(sorted(f"`{format_value(arg)}`" for arg in args))

    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_format_type(arg) for arg in args))

    if origin is tuple:
        return f"[{', '.join(_format_type(arg) for arg in args)}]"

    if origin is dict:
        return "mapping"

    if origin is not None:
        return f"list of {_format_type(args[0])}"

    return cast(type[object], hint).__name__


def format_value(value: object) -> str:
    """Writes a value as YAML."""
    value = StandardValueConverter().unstructure(value)

    if value is None:
        return "null"

    if isinstance(value, bool):
        return "true" if value else "false"

    if isinstance(value, str):
        # A line of a table; as YAML, in quotes.
        return json.dumps(value) if "\n" in value else value or "''"

    if isinstance(value, list):
        return f"[{', '.join(format_value(item) for item in value)}]"

    return repr(value)


def to_markdown(text: str) -> str:
    """Turns what is written below a field into one line of Markdown."""
    text = re.sub(r"`([^`<]+?)\s*<([^>`]+)>`_", r"[\1](\2)", text)

    # `:class:` and its like; fairseq2 has one without its second colon.
    text = re.sub(r":[a-z]+:?`~?([^`]+)`", r"`\1`", text)

    text = text.replace("``", "`")

    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = text.replace(f"`{python}`", f"`{yaml}`")

    return " ".join(text.split())


def is_config(value: object) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def describe_elements(key: str, hint: object) -> list[str]:
    """Describes the sections of which a field holds a list or a mapping, if any."""
    if get_origin(hint) in (Union, UnionType):
        return [part for arg in get_args(hint) for part in describe_elements(key, arg)]

    kls: Any = next(filter(is_dataclass, get_args(hint)), None)

    if kls is None:
        return []

    element = kls()

    rows = [make_row(element, n, n, h, v) for n, h, v in iter_fields(element)]

    return [f"Each of `{key}`:", make_table(rows)]


def is_of_fairseq2(kls: type[object]) -> bool:
    return kls.__module__.split(".")[0] == "fairseq2"
