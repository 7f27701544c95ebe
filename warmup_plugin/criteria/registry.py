# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, final

from fairseq2.recipe.component import register_component
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver

if TYPE_CHECKING:
    from warmup_plugin.criteria.base import Criterion, CriterionContext

ConfigT = TypeVar("ConfigT")


@final
@dataclass(frozen=True)
class CriterionFactory:
    """Creates a criterion whose settings are known: the component that
    ``criterion.name`` chooses."""

    create: Callable[[CriterionContext], Criterion]

    writes_warmups: bool
    """``True`` if the model learns to write warmups."""


def register_criterion(
    container: DependencyContainer,
    name: str,
    config_kls: type[ConfigT],
    create: Callable[[CriterionContext, ConfigT], Criterion],
    *,
    writes_warmups: bool,
) -> None:
    """
    Lets ``criterion.name`` choose a criterion, whose settings ``criterion.config``
    holds.

    :param config_kls: A dataclass, whose ``validate()`` is called if it is a
        ``Validatable``.
    :param create: Most often the class of the criterion.
    :param writes_warmups: If ``True``, the model is prepared to write warmups, and the
        commands that translate with a run expect some.
    """

    def create_factory(
        resolver: DependencyResolver, config: ConfigT
    ) -> CriterionFactory:
        return CriterionFactory(lambda context: create(context, config), writes_warmups)

    register_component(container, CriterionFactory, name, config_kls, create_factory)
