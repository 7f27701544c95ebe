# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path
from typing import Final

_PACKAGE_DIR: Final = Path(__file__).resolve().parent


def get_presets_dir() -> Path:
    """
    Returns the folder of the presets: ``configs`` in an installed wheel and
    ``recipes/configs``, the only copy, in a clone.
    """
    wheel_dir = _PACKAGE_DIR / "configs"

    # In this order: beside an installed package, `recipes` is somebody else's.
    if wheel_dir.is_dir():
        return wheel_dir

    return _PACKAGE_DIR.parent / "recipes" / "configs"


def find_preset(name: str) -> Path | None:
    """
    Finds a preset.

    :param name: The name, such as ``translation/multi30k_en_de_sft``, with or without
        ``.yaml``.

    :returns: The file, or ``None`` if there is no such preset.
    """
    name = name.removesuffix(".yaml")

    # Compared with the list, since a name such as `../x` is a path and no preset.
    if name not in list_presets():
        return None

    return get_presets_dir() / f"{name}.yaml"


def list_presets() -> list[str]:
    """Returns the names of all presets in alphabetical order."""
    presets_dir = get_presets_dir()

    files = presets_dir.rglob("*.yaml")

    return sorted(f.relative_to(presets_dir).with_suffix("").as_posix() for f in files)


def describe_preset(name: str) -> str:
    """
    Returns what a preset is for: the sentence that its first line, a comment, begins with.

    :param name: One of :func:`list_presets`.
    """
    with (get_presets_dir() / f"{name}.yaml").open(encoding="utf-8") as fp:
        line = fp.readline()

    if not line.startswith("#"):
        return ""

    sentence, _, _ = line.strip("# \n").partition(". ")

    return sentence.removesuffix(".")
