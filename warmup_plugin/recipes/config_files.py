# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What stands behind ``--config-file``: files and presets, merged into one file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from fairseq2.utils.config import (
    ReplacePathDirective,
    StandardConfigMerger,
    StandardConfigProcessor,
)
from fairseq2.utils.structured import StandardValueConverter

from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import parse_yaml, read_yaml, shorten_text
from warmup_plugin.presets import find_preset, list_presets
from warmup_plugin.run_dir import dump_yaml

_OPTION: Final = "--config-file"

_BASE: Final = "base"

# No config has sections in each other so often.
_MAX_KEYS: Final = 20


@contextmanager
def resolve_config_files(
    argv: Sequence[str], config_kls: type[object]
) -> Iterator[list[str]]:
    """
    Replaces what stands behind ``--config-file`` by one file, as fairseq2 wants it.

    The option may be given several times; later files go before earlier ones. A file
    that begins with ``base``, a preset or file or a list of them, comes after those.
    Mappings are merged key by key, anything else is replaced. A component, which has
    ``name`` and ``config``, loses its earlier ``config`` when a file changes its name.

    A single file without ``base`` is not touched. Otherwise the merged file lives as
    long as the context.

    :param argv: The command line, without the name of the program.
    :param config_kls: The class of the configuration, whose defaults are merged into.

    :returns: The command line for fairseq2.

    :raises WarmupError: If a file is missing or cannot be merged.
    """
    args = list(argv)

    _check_settings(argv)

    # Where each name stands, and what stands before it in the same argument.
    places: list[tuple[int, str]] = []

    files: list[Path] = []

    for idx, arg in enumerate(argv):
        option, equals, name = arg.partition("=")

        if option != _OPTION:
            continue

        if equals:
            places.append((idx, f"{_OPTION}="))
        elif idx + 1 < len(argv):
            places.append((idx + 1, ""))

            name = argv[idx + 1]
        else:
            raise WarmupError(f"`{_OPTION}` is the last word; put a file behind it.")

        files.append(_find_file(name, Path(), f"`{_OPTION} {name}`"))

    parts = [part for file in files for part in _read_parts(file, [])]

    def replace(new_files: Sequence[Path]) -> list[str]:
        for (idx, prefix), file in zip(places, new_files, strict=True):
            args[idx] = f"{prefix}{file}"

        return args

    if len(parts) == len(files) <= 1:
        yield replace(files)

        return

    with tempfile.TemporaryDirectory(prefix="warmup_plugin-") as tmp_dir:
        file = Path(tmp_dir, "config.yaml")

        file.write_text(_merge(parts, config_kls), encoding="utf-8")

        # The last one counts. Nothing is removed, or `--config` would take what follows.
        yield replace([file] * len(files))


def _check_settings(argv: Sequence[str]) -> None:
    """
    :raises WarmupError: If a value behind ``--config`` is nested beyond what fairseq2 can
        read.
    """
    is_setting = False

    for arg in argv:
        if arg.startswith("-"):
            is_setting = arg == "--config"

            continue

        key, equals, value = arg.partition("=")

        if not is_setting or not equals:
            continue

        try:
            if key.count(".") > _MAX_KEYS:
                raise ValueError("its name is too long")

            # Anything else is one value.
            if any(char in value for char in "[{&*:"):
                parse_yaml(value)
        except ValueError as ex:
            raise WarmupError(
                f"`--config {shorten_text(key)}` cannot be read ({ex}); correct it."
            ) from None


@final
@dataclass(frozen=True)
class _Part:
    """Holds the content of a config file, without ``base``."""

    file: Path

    settings: Mapping[str, object]


def _find_file(name: str, folder: Path, where: str) -> Path:
    """:param where: What names it, as the beginning of a sentence."""
    path = folder / Path(name).expanduser()

    if path.is_file():
        return path

    preset = find_preset(name)
    if preset is None:
        kind = name.rpartition("/")[0]

        # There are too many to read if the kind is known.
        known = [n for n in list_presets() if kind and n.startswith(f"{kind}/")]

        raise WarmupError(
            f"{where} is neither a file nor a preset; the presets are {', '.join(known or list_presets())}."
        )

    return preset


def _read_parts(file: Path, users: Sequence[Path]) -> list[_Part]:
    """
    Reads a config file and all that it is based on, in the order of merging.

    :param users: The files on whose behalf it is read, the outermost first.
    """
    real_file = file.resolve()

    if real_file in users:
        circle = [*users[users.index(real_file) :], real_file]

        raise WarmupError(
            f"`{_BASE}` goes round in a circle, {' to '.join(f'`{f}`' for f in circle)}; take one of them out."
        )

    settings = _load(file)

    names = settings.pop(_BASE, [])

    if isinstance(names, str):
        names = [names]

    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        raise WarmupError(
            f"`{_BASE}` in `{file}` must be the name of a preset or file or a list of names, but is {names!r}; correct it."
        )

    parts = []

    for name in names:
        base_file = _find_file(name, file.parent, f"`{name}`, `{_BASE}` of `{file}`,")

        parts += _read_parts(base_file, [*users, real_file])

    return [*parts, _Part(file, settings)]


def _load(file: Path) -> dict[str, object]:
    try:
        content = read_yaml(file)
    except (OSError, ValueError) as ex:
        reason = " ".join(str(ex).split())

        raise WarmupError(
            f"`{file}` cannot be read as YAML ({reason}); correct it."
        ) from None

    if content is None:
        raise WarmupError(f"`{file}` is empty; write settings, or leave it out.")

    if not isinstance(content, dict):
        raise WarmupError(
            f"`{file}` must hold a mapping, but holds a {type(content).__name__}; write `key: value` lines."
        )

    return content


def _merge(parts: Sequence[_Part], config_kls: type[object]) -> str:
    """
    Merges config files.

    :returns: YAML. It is complete, since `_del_` may take out what is a default.
    """
    merger = StandardConfigMerger()

    config = StandardValueConverter().unstructure(config_kls())

    # What files have said so far, without the defaults.
    earlier: object = {}

    for part in parts:
        # Each file has its own folder, which fairseq2 would replace by that of the last.
        settings = StandardConfigProcessor([]).process(
            dict(part.settings), [ReplacePathDirective(part.file.resolve().parent)]
        )

        settings = _drop_old_config(settings, earlier, config)

        try:
            earlier = merger.merge(earlier, settings)

            config = merger.merge(config, settings)
        except (TypeError, ValueError) as ex:
            raise WarmupError(
                f"`{part.file}` cannot be merged ({ex}); correct it."
            ) from None

    return dump_yaml({"_set_": config})


def _drop_old_config(settings: object, earlier: object, config: object) -> object:
    """
    Lets a component that a file chooses anew have no settings of the one before.

    :param settings: What the file says.
    :param earlier: What the files before it say. A component that only the defaults
        name keeps their settings, as it does when fairseq2 reads a single file.
    :param config: The same with the defaults, which tell components from other sections.
    """
    if not (
        isinstance(settings, Mapping)
        and isinstance(earlier, Mapping)
        and isinstance(config, Mapping)
    ):
        return settings

    output = {
        key: _drop_old_config(value, earlier.get(key), config.get(key))
        for key, value in settings.items()
    }

    old_name = earlier.get("name")

    if "config" in config and old_name not in (None, settings.get("name", old_name)):
        further = output.get("_set_") or {}

        if isinstance(further, Mapping):
            output["_set_"] = {"config": output.pop("config", {}), **further}

    return output
