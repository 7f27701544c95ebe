# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fairseq2.data.tokenizers import Tokenizer
from fairseq2.data.tokenizers.family import TokenizerFamily, TokenizerModelError
from fairseq2.device import CPU
from fairseq2.gang import create_fake_gangs
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.utils.structured import StructureError, ValueConverter

from warmup_plugin.errors import WarmupError


def load_tokenizer(
    path: Path, family_name: str, overrides: Mapping[str, object] | None
) -> Tokenizer:
    """
    Loads a tokenizer outside of a recipe, as fairseq2 does inside.

    :param overrides: The settings of the family that differ from its defaults.

    :raises WarmupError: If it is not of that family.
    """
    resolver = get_dependency_resolver()

    family = resolver.maybe_resolve(TokenizerFamily, key=family_name)

    if family is None:
        raise WarmupError(
            f"`tokenizer.family` is `{family_name}`, which is not a known tokenizer family; use `warmup_spm`, `t5`, `nllb` or `hugging_face`."
        )

    try:
        config = resolver.resolve(ValueConverter).structure(
            dict(overrides or {}), family.config_kls
        )
    except StructureError as ex:
        reason = " ".join(str(ex.__cause__ or ex).split())

        raise WarmupError(
            f"`tokenizer.config_overrides` does not fit the family `{family_name}` ({reason}); correct it."
        ) from None

    try:
        return family.load_custom_tokenizer(path, config, create_fake_gangs(CPU))
    except TokenizerModelError:
        raise WarmupError(
            f"The tokenizer `{path}` is not one of the family `{family_name}`; correct `tokenizer.family` or `tokenizer.path`."
        ) from None
