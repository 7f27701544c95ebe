# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""JSON and YAML that others wrote, with limits that no honest file reaches."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from ruamel.yaml import YAML

MAX_YAML_BYTES: Final = 1 << 24
"""The size of the largest YAML file that is read."""

_MAX_KEPT_YAML: Final = 1 << 16

_MAX_DEPTH: Final = 100

_MAX_NODES: Final = 200_000

# As JSON spells it.
_SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(text: str) -> Any:
    """
    Parses JSON.

    :raises ValueError: If it is none, is nested too deeply or holds half a surrogate pair.
    """
    value = parse_json_leniently(text)

    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("it has half a surrogate pair") from None

    return value


def read_json(file: Path) -> Any:
    """
    Reads a JSON file that we have written.

    :returns: ``None`` if it is not there, or damaged, as a killed process may leave it.
    """
    try:
        return parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def parse_json_leniently(text: str) -> Any:
    """
    Parses JSON, whose strings may hold halves of surrogate pairs.

    :raises ValueError: If it is none or is nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None

    # Of nearly all lines the number of brackets tells.
    if text.count("[") + text.count("{") > _MAX_DEPTH:
        check_depth(value)

    return value


def parse_yaml(text: str) -> object:
    """
    Parses a YAML document.

    :raises ValueError: As of :func:`parse_yaml_leniently`, and if it is nested in itself or
        holds what no text holds.
    """
    value = parse_yaml_leniently(text)

    check_tree(value)

    return value


def parse_yaml_leniently(text: str) -> object:
    """
    Parses a YAML document, of which nothing but the syntax is checked.

    :raises ValueError: If it is none, is too large or is nested too deeply; with the reason
        in one line.
    """
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"it is larger than {MAX_YAML_BYTES:,} bytes")

    try:
        # Nothing large is kept, and what is returned is often changed.
        load = _load_yaml if len(text) > _MAX_KEPT_YAML else _load_yaml_once

        value = deepcopy(load(text))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    # What broken text makes of the reader is not limited to errors of YAML.
    except Exception as ex:
        # Without how to let a key stand there twice.
        reason, *_ = " ".join(str(ex).split()).split(" To suppress this check")

        raise ValueError(reason or type(ex).__name__) from None

    return value


def _load_yaml(text: str) -> object:
    value: object = YAML(typ="safe", pure=True).load(text)

    return value


# A command reads the config of its run more than once, a hundredth of its start each time.
_load_yaml_once = lru_cache(maxsize=8)(_load_yaml)


def read_yaml(file: Path) -> object:
    """
    Reads a YAML file of one document.

    :raises ValueError: As of :func:`parse_yaml`, and if it is not UTF-8.
    :raises OSError: If it cannot be read.
    """
    with file.open("rb") as fp:
        data = fp.read(MAX_YAML_BYTES + 1)

    return parse_yaml(data.decode("utf-8"))


def check_depth(value: object) -> None:
    """
    :raises ValueError: If a value is nested too deeply.
    """
    level = [value]

    for _ in range(_MAX_DEPTH + 1):
        next_level: list[object] = []

        for item in level:
            if isinstance(item, Mapping):
                next_level += item.values()
            elif isinstance(item, (list, tuple)):
                next_level += item

        if not next_level:
            return

        level = next_level

    raise ValueError("it is nested too deeply")


def check_tree(value: object) -> None:
    """
    :raises ValueError: If a value from YAML, in which anchors name what is elsewhere, is
        not a tree of some size, or holds what UTF-8 cannot spell.
    """
    num_nodes = 0

    pending = [(value, 0)]

    while pending:
        item, depth = pending.pop()

        num_nodes += 1

        if depth > _MAX_DEPTH:
            raise ValueError("it is nested too deeply, or in itself")

        if num_nodes > _MAX_NODES:
            raise ValueError("it holds too many values")

        if isinstance(item, str):
            try:
                item.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError("it has half a surrogate pair") from None
        elif isinstance(item, Mapping):
            pending += [(part, depth + 1) for pair in item.items() for part in pair]
        elif isinstance(item, (list, tuple, set)):
            pending += [(part, depth + 1) for part in item]


def shorten_text(text: str) -> str:
    """Cuts a text that a message is to show."""
    return text if len(text) <= 40 else f"{text[:40]}…"
