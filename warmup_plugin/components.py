# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any, ClassVar, Generic, TypeVar, cast

from fairseq2.recipe.component import ComponentManager, ComponentNotKnownError
from fairseq2.recipe.config import SupportsStructure
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyResolver
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
        """
        self.config = self._structure_config(resolver.resolve(ComponentManager))

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
