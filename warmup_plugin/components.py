# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from fairseq2.recipe.component import (
    ComponentManager,
    ComponentNotKnownError,
    _StandardComponentManager,
)
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyResolver, get_dependency_resolver

from warmup_plugin.config_values import create_value_converter


def structure_component(
    resolver: DependencyResolver,
    kls: type[object],
    name: str,
    config: object,
    message: str,
) -> object:
    """
    Turns the settings of a component into what its factory expects.

    :raises RecipeError: With ``message`` if no such component is registered.
    """
    manager = resolver.resolve(ComponentManager)

    try:
        return manager.structure_component_config(
            kls, name, {} if config is None else config
        )
    except ComponentNotKnownError:
        raise RecipeError(message) from None


def create_component(kls: type[object], name: str, config: object) -> object:
    """
    Creates a component outside of a recipe, before fairseq2 starts one.

    :param config: Its settings as a mapping; ``None`` for its defaults.
    """
    # fairseq2 has a manager only within a recipe.
    manager = _StandardComponentManager(
        get_dependency_resolver(), create_value_converter()
    )

    structured = manager.structure_component_config(
        kls, name, {} if config is None else config
    )

    return manager.create_component(kls, name, structured)
