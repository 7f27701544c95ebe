# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from fairseq2.recipe.component import ComponentNotKnownError
from fairseq2.recipe.config import structure_component_config
from fairseq2.recipe.error import RecipeError
from fairseq2.runtime.dependency import DependencyResolver


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
    try:
        return structure_component_config(
            resolver, kls, name, {} if config is None else config
        )
    except ComponentNotKnownError:
        raise RecipeError(message) from None
