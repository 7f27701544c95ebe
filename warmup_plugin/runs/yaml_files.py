# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Configs as YAML files and as flat keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML

from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import read_yaml


def read_yaml_file(file: Path, remedy: str) -> object:
    """
    Reads a YAML file.

    :param remedy: What to do if it cannot be read.

    :raises WarmupError: If it cannot.
    """
    try:
        return read_yaml(file)
    except (OSError, ValueError) as ex:
        reason = " ".join(str(ex).split())

        raise WarmupError(
            f"`{file}` cannot be read as YAML ({reason}); {remedy}."
        ) from None


def load_yaml(file: Path) -> dict[str, object]:
    """
    Loads a YAML file that holds a mapping.

    :raises WarmupError: If it cannot be read.
    """
    content = read_yaml_file(file, "restore the file")

    if not isinstance(content, dict):
        raise WarmupError(f"`{file}` holds no YAML mapping; restore the file.")

    return content


def dump_yaml(*documents: Mapping[str, object]) -> str:
    """Writes YAML with one key a line."""
    yaml = YAML(typ="safe", pure=True)

    yaml.default_flow_style = False

    stream = StringIO()

    yaml.dump_all(documents, stream)

    return stream.getvalue()


def flatten_config(config: object, prefix: str = "") -> dict[str, object]:
    """Flattens nested mappings to ``a.b.c`` keys."""
    if not isinstance(config, Mapping):
        if isinstance(config, Sequence) and not isinstance(config, str):
            config = list(config)

        return {prefix: config}

    items: dict[str, object] = {}

    for key, value in config.items():
        items.update(flatten_config(value, f"{prefix}.{key}" if prefix else str(key)))

    return items
