# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What stands behind ``--config-file`` and ``--config``, merged."""

from __future__ import annotations

from argparse import ArgumentError, ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

from fairseq2.utils.argparse import ConfigAction
from fairseq2.utils.config import (
    ReplaceEnvDirective,
    ReplacePathDirective,
    StandardConfigMerger,
    StandardConfigProcessor,
)
from fairseq2.utils.env import StandardEnvironment
from fairseq2.utils.structured import StandardValueConverter

from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import parse_yaml, shorten_text
from warmup_plugin.presets import find_preset, list_presets
from warmup_plugin.runs.yaml_files import read_yaml_file

_BASE: Final = "base"

# No config has sections in each other so often.
_MAX_KEYS: Final = 20


def read_config(
    config_kls: type[object], files: Sequence[str], settings: Sequence[str]
) -> object:
    """
    Reads what stands behind ``--config-file`` and ``--config``.

    Later files go before earlier ones, and settings before files. A file that begins
    with ``base``, a preset or file or a list of them, comes after those. Mappings are
    merged key by key, anything else is replaced. A component, which has ``name`` and
    ``config``, loses its earlier ``config`` when a file changes its name.

    :param config_kls: The class of the configuration, whose defaults are merged into.
    :param files: Files and presets.
    :param settings: Pairs such as ``a.b=c``, whose values are YAML.

    :returns: The values of the configuration, which have not been structured yet.

    :raises WarmupError: If a file is missing or cannot be merged, or a pair is none.
    """
    parts: list[_Part] = []

    for name in files:
        parts += _read_parts(_find_file(name, Path(), f"`--config-file {name}`"), [])

    return apply_settings(_merge(parts, config_kls), settings)


def apply_settings(config: object, settings: Sequence[str]) -> object:
    """
    Sets what stands behind ``--config``, as fairseq2 does.

    :raises WarmupError: If a pair is none, or its value is nested beyond what can be read.
    """
    for setting in settings:
        key, _, value = setting.partition("=")

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

    namespace = Namespace()

    try:
        ConfigAction(["--config"], "config")(ArgumentParser(), namespace, settings)
    except (ArgumentError, ValueError) as ex:
        reason = ex.message if isinstance(ex, ArgumentError) else ex

        raise WarmupError(
            f"`--config` cannot be read ({reason}); write `KEY=VALUE`, with a value in YAML."
        ) from None

    merger = StandardConfigMerger()

    for overrides in namespace.config:
        try:
            config = merger.merge(config, overrides)
        except (TypeError, ValueError) as ex:
            raise WarmupError(f"`--config` cannot be applied ({ex}).") from None

    return config


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
    content = read_yaml_file(file, "correct it")

    if content is None:
        raise WarmupError(f"`{file}` is empty; write settings, or leave it out.")

    if not isinstance(content, dict):
        raise WarmupError(
            f"`{file}` must hold a mapping, but holds a {type(content).__name__}; write `key: value` lines."
        )

    return content


def _merge(parts: Sequence[_Part], config_kls: type[object]) -> object:
    """Merges config files into the defaults."""
    merger = StandardConfigMerger()

    processor = StandardConfigProcessor([ReplaceEnvDirective(StandardEnvironment())])

    config = StandardValueConverter().unstructure(config_kls())

    # What files have said so far, without the defaults.
    earlier: object = {}

    for part in parts:
        # Each file has its own folder.
        settings = processor.process(
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

    return config


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
