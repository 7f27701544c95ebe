# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Reads what a YAML file says into dataclasses, whose fields say what may stand there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, field, fields, is_dataclass
from functools import cache
from types import UnionType
from typing import (
    Annotated,
    Any,
    Final,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import shorten_text

T = TypeVar("T")

ONE_OR_MORE: Final = "one or more"
"""Annotates a list of which a single item may be given without brackets."""


def entry(
    key: str | None = None, *, default: Any = MISSING, remedy: str = "add it"
) -> Any:
    """
    Describes a field of a dataclass that is read.

    :param key: What the file calls it; ``None`` if not otherwise.
    :param remedy: What to do if it has no default and is missing.
    """
    return field(default=default, metadata={"key": key, "remedy": remedy})


def get_key(description: Field[Any]) -> str:
    """Returns what the file calls a field."""
    return description.metadata.get("key") or description.name


def read_section(kls: type[T], content: object, path: str = "") -> T:
    """
    Reads a mapping into a dataclass; what is empty in it counts as missing.

    A field may be a text, a flag, a dataclass, or a ``Sequence`` or ``Mapping`` of these;
    an ``object`` is whatever YAML may hold. A function that annotates a type reads its
    values instead: it is called with a value and its path.

    :param path: Of the mapping in the file; empty for the file itself.

    :raises WarmupError: Something is missing, unknown or of another type.
    """
    if not isinstance(content, dict):
        raise refuse(path, "a mapping of `key: value` lines", content)

    prefix = f"{path}." if path else ""

    described: Any = kls

    by_key = {get_key(f): f for f in fields(described)}

    for key in content:
        if key not in by_key:
            raise WarmupError(
                f"`{prefix}{key}` is not known; use some of {', '.join(f'`{name}`' for name in by_key)}."
            )

    hints = _get_hints(described)

    values = {}

    for key, description in by_key.items():
        value = content.get(key)

        if value is not None:
            value = read_value(hints[description.name], value, f"{prefix}{key}")

        if value is not None and value != []:
            values[description.name] = value
        elif description.default is description.default_factory is MISSING:
            remedy = description.metadata.get("remedy", "add it")

            raise WarmupError(f"`{prefix}{key}` is missing; {remedy}.")

    return kls(**values)


@cache
def _get_hints(kls: Any) -> dict[str, Any]:
    return get_type_hints(kls, include_extras=True)


def read_value(hint: Any, value: object, path: str) -> Any:
    """
    Reads a value of a type.

    :raises WarmupError: As of :func:`read_section`.
    """
    origin, args = get_origin(hint), get_args(hint)

    if origin is Annotated:
        kind, mark = args

        if callable(mark):
            return mark(value, path)

        # Of one item, the error names no index.
        if not isinstance(value, list):
            return [read_value(get_args(kind)[0], value, path)]

        return read_value(kind, value, path)

    # With `None`, which a missing field has.
    if origin in (Union, UnionType):
        return read_value(args[0], value, path)

    if origin is Sequence:
        if not isinstance(value, list):
            raise refuse(path, "a list", value)

        return [
            read_value(args[0], item, f"{path}[{idx}]")
            for idx, item in enumerate(value)
        ]

    if origin is Mapping:
        if not isinstance(value, dict):
            raise refuse(path, "a mapping", value)

        for key in value:
            if not isinstance(key, str):
                raise WarmupError(f"`{path}` has the key {key!r}; write it in quotes.")

        return {
            key: read_value(args[1], item, f"{path}.{key}")
            for key, item in value.items()
        }

    if isinstance(hint, type) and is_dataclass(hint):
        return read_section(hint, value, path)

    return _READERS[hint](value, path)


def refuse(path: str, what: str, value: object) -> WarmupError:
    """Returns the error of a value that is of another type."""
    name = f"`{path}`" if path else "the file"

    return WarmupError(
        f"{name} must be {what}, but is {shorten_text(repr(value))}; correct it."
    )


def read_text(value: object, path: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise refuse(path, "a text", value)

    return value


def read_word(value: object, path: str) -> str:
    """Reads a part of a command line, in which numbers need no quotes."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise refuse(path, "a text or a number", value)

    return str(value)


def whole_number(least: int) -> Callable[[object, str], int]:
    """Returns what reads whole numbers of at least ``least``."""

    def read(value: object, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise refuse(path, f"a whole number of at least {least}", value)

        return value

    return read


def _read_flag(value: object, path: str) -> bool:
    if not isinstance(value, bool):
        raise refuse(path, "`true` or `false`", value)

    return value


def _read_anything(value: object, path: str) -> object:
    if isinstance(value, list):
        return [_read_anything(item, f"{path}[{i}]") for i, item in enumerate(value)]

    if isinstance(value, dict):
        return {k: _read_anything(item, f"{path}.{k}") for k, item in value.items()}

    # YAML has dates as well, which no setting is.
    if value is not None and not isinstance(value, (str, bool, int, float)):
        raise WarmupError(
            f"`{path}` is {value!r}, neither text nor number; write it in quotes."
        )

    return value


_READERS: Final[Mapping[Any, Callable[[object, str], object]]] = {
    str: read_text,
    bool: _read_flag,
    object: _read_anything,
}
