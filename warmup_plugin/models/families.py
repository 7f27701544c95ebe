# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Final

from fairseq2.models.family import ModelFamily
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.runtime.dependency import DependencyResolver, get_dependency_resolver

from warmup_plugin.errors import WarmupError

_FAMILIES: Final = ("t5", "nllb", "llama", "qwen")


def find_family(
    name: str | None,
    resolver: DependencyResolver | None = None,
    *,
    section: str = "model",
) -> ModelFamily:
    """
    Returns a fairseq2 model family.

    :param resolver: That of a recipe; ``None`` for that of the process.
    :param section: Of the config that names it.

    :raises WarmupError: If it is not registered.
    """
    if name is None:
        raise WarmupError(
            f"No model is given; set `{section}.family` or `{section}.name`."
        )

    if resolver is None:
        resolver = get_dependency_resolver()

    family = resolver.maybe_resolve(ModelFamily, key=name)

    if family is None:
        raise WarmupError(
            f"`{section}.family` is `{name}`, which is not a known model family; use {', '.join(f'`{n}`' for n in _FAMILIES)} or another one of fairseq2."
        )

    return family


def get_arch_config(
    family: ModelFamily, arch: str, *, section: str = "model"
) -> object:
    """
    Returns the config of an architecture.

    :param section: Of the config that names it.

    :raises WarmupError: If the family has none of that name.
    """
    config = family.maybe_get_arch_config(arch)

    if config is None:
        known = ", ".join(f"`{name}`" for name in sorted(family.get_archs()))

        raise WarmupError(
            f"`{section}.arch` is `{arch}`, which is not a known architecture of `{family.name}`; use one of {known}."
        )

    return config


def reads_prompts(family: ModelFamily) -> bool:
    """Tells whether the models of a family are decoder-only."""
    return issubclass(family.kls, TransformerLM)
