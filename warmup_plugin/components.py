# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, ClassVar, Generic, TypeVar, cast

from fairseq2.recipe.component import ComponentManager, ComponentNotKnownError
from fairseq2.recipe.config import SupportsStructure
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyResolver
from fairseq2.utils.structured import StructureError
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

T = TypeVar("T")


class ComponentSection(SupportsStructure, Generic[T]):
    """Chooses a component by its name; a base of dataclasses that have these fields."""

    name: str

    config: object
    """The settings of the component; ``None`` for its defaults."""

    kls: ClassVar[Any]
    """What the component is registered as."""

    key: ClassVar[str]
    """Where the section stands in a config, for messages."""

    known: ClassVar[tuple[str, ...]]
    """The names that we register, for messages."""

    @override
    def structure(self, resolver: DependencyResolver) -> None:
        """
        :raises RecipeError: If no component of that name is registered.
        :raises fairseq2.utils.structured.StructureError: If its settings, or those of a component that they choose,
            are none of it.
        """
        # fairseq2 tells the section from this.
        with _named_field("config"):
            self.config = self._structure_config(resolver.resolve(ComponentManager))

            if not is_dataclass(self.config):
                return

            # fairseq2 comes to these later, and who creates the component would not know
            # where they stand.
            for field in fields(self.config):
                section = getattr(self.config, field.name)

                if isinstance(section, SupportsStructure):
                    with _named_field(field.name):
                        section.structure(resolver)

    def create(self, resolver: DependencyResolver) -> T:
        """
        Creates the component.

        :raises RecipeError: As of :meth:`structure`.
        """
        manager = resolver.resolve(ComponentManager)

        # fairseq2 has not structured a config that was made by Python instead of read.
        config = self._structure_config(manager)

        return cast(T, manager.create_component(self.kls, self.name, config))

    def _structure_config(self, manager: ComponentManager) -> object:
        config = {} if self.config is None else self.config

        try:
            return manager.structure_component_config(self.kls, self.name, config)
        except ComponentNotKnownError:
            known = ", ".join(f"`{name}`" for name in self.known)

            raise RecipeError(
                f"`{self.key}.name` is `{self.name}`, which is not registered; use {known} or one that your own package registers."
            ) from None


class Checked(Validatable):
    """A config that says what is wrong with it."""

    @abstractmethod
    def find_errors(self) -> Iterator[str]:
        """Finds what is wrong, a sentence each."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        for error in self.find_errors():
            result.add_error(error)

        return result


def find_too_small(section: object, **least: float) -> Iterator[str]:
    """
    Finds the numbers of a section that are less than they may be, or not finite.

    :param least: By the name of the field, which may also be ``None``.
    """
    for name, bound in least.items():
        value = getattr(section, name)

        if value is not None and not bound <= value < math.inf:
            yield f"`{name}` must be greater than or equal to {bound}."


@contextmanager
def _named_field(name: str) -> Iterator[None]:
    """Says of an error in which field it is, as fairseq2 does."""
    try:
        yield
    except StructureError as ex:
        raise StructureError(f"`{name}` field cannot be structured.") from ex
