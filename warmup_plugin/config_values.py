# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How fairseq2 reads the values of a config."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, cast, final

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

    fairseq2 takes 1.5 for 1, ``true`` for 1 and a word for the list of its letters, and
    cannot take infinity for a number.
    """
    converter = StandardValueConverter()

    def structure_list(origin_type: object, type_args: object, obj: object) -> object:
        [element_type] = cast("tuple[object]", type_args)

        return _structure_list(converter, element_type, obj)

    set_structurer(converter, int, _structure_int)
    set_structurer(converter, float, _structure_float)
    set_structurer(converter, bool, _structure_bool)
    set_structurer(converter, list, structure_list)
    set_structurer(converter, Sequence, structure_list)

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


def _structure_bool(origin_type: object, type_args: object, obj: object) -> object:
    if isinstance(obj, bool):
        return obj

    raise StructureError(
        f"It must be `true` or `false`, but is {shorten_text(repr(obj))} instead."
    )


def _structure_list(
    converter: ValueConverter, element_type: object, obj: object
) -> object:
    if isinstance(obj, str) or not isinstance(obj, Sequence):
        raise StructureError(
            f"It must be a list, such as `[A, B]`, but is {shorten_text(repr(obj))} instead."
        )

    values = []

    for idx, value in enumerate(obj):
        try:
            values.append(converter.structure(value, element_type))
        except StructureError as ex:
            # As fairseq2 says it.
            raise StructureError(
                f"Element {value} at index {idx} cannot be structured as {element_type}."
            ) from ex

    return values
