# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How fairseq2 reads the values of a config."""

from __future__ import annotations

from pathlib import Path
from typing import IO, final

from fairseq2.file_system import FileSystem
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.structured import (
    StandardValueConverter,
    StructureError,
    ValueConverter,
)
from fairseq2.utils.yaml import RuamelYamlLoader, YamlLoader
from ruamel.yaml.error import YAMLError
from typing_extensions import override

from warmup_plugin.fairseq2_doors import remove_provider, set_structurer
from warmup_plugin.parsing import check_tree, shorten_text


def register_config_values(container: DependencyContainer) -> None:
    """Puts our reader of YAML and of values in the place of fairseq2's."""
    for kls in (YamlLoader, ValueConverter):
        remove_provider(container, kls)

    container.register_type(YamlLoader, CheckedYamlLoader, singleton=True)

    container.register(
        ValueConverter, lambda resolver: create_value_converter(), singleton=True
    )


@final
class CheckedYamlLoader(YamlLoader):
    """Loads YAML like fairseq2, but no more than :func:`parse_yaml`."""

    def __init__(self, file_system: FileSystem) -> None:
        self._loader = RuamelYamlLoader(file_system)

    @override
    def load(self, input_: Path | IO[str]) -> list[object]:
        """
        :raises YAMLError: If it is no YAML, or exceeds a limit.
        """
        try:
            documents = self._loader.load(input_)

            check_tree(documents)
        except (OSError, YAMLError):
            raise
        except RecursionError:
            raise YAMLError("it is nested too deeply") from None
        # As of `parse_yaml`.
        except Exception as ex:
            raise YAMLError(str(ex) or type(ex).__name__) from None

        return documents


def create_value_converter() -> StandardValueConverter:
    """
    Creates what turns values from YAML into those of a config.

    fairseq2 takes 1.5 for 1 and ``true`` for 1, and cannot take infinity for a number.
    """
    converter = StandardValueConverter()

    set_structurer(converter, int, _structure_int)
    set_structurer(converter, float, _structure_float)

    return converter


def _structure_int(origin_type: object, type_args: object, obj: object) -> object:
    if isinstance(obj, int) and not isinstance(obj, bool):
        return obj

    try:
        if isinstance(obj, str):
            return int(obj)

        if isinstance(obj, float) and obj.is_integer():
            return int(obj)
    except ValueError:
        pass

    raise StructureError(
        f"It must be a whole number, but is {shorten_text(repr(obj))} instead."
    )


def _structure_float(origin_type: object, type_args: object, obj: object) -> object:
    try:
        if isinstance(obj, (int, float, str)) and not isinstance(obj, bool):
            return float(obj)
    except (OverflowError, ValueError):
        pass

    raise StructureError(
        f"It must be a number, but is {shorten_text(repr(obj))} instead."
    )
