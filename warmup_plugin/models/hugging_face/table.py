# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fairseq2.models.hg import HuggingFaceConverter
from fairseq2.runtime.dependency import DependencyContainer

from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.format import HuggingFaceFormat
from warmup_plugin.models.hugging_face.llama import LlamaHuggingFaceFormat
from warmup_plugin.models.hugging_face.nllb import NllbHuggingFaceFormat
from warmup_plugin.models.hugging_face.qwen import QwenHuggingFaceFormat
from warmup_plugin.models.t5.interop import T5HuggingFaceFormat

_FORMATS: Final[Mapping[str, type[HuggingFaceFormat]]] = {
    "nllb": NllbHuggingFaceFormat,
    "llama": LlamaHuggingFaceFormat,
    "qwen": QwenHuggingFaceFormat,
    "t5": T5HuggingFaceFormat,
}


def get_format(family: str) -> HuggingFaceFormat:
    """
    Returns the format of a fairseq2 family.

    :raises WarmupError: If the family has none.
    """
    kls = _FORMATS.get(family)

    if kls is None:
        raise WarmupError(
            f"The fairseq2 family `{family}` cannot be exchanged with Hugging Face; supported are {', '.join(_FORMATS)}."
        )

    return kls()


def find_format(hg_config: Mapping[str, object]) -> HuggingFaceFormat:
    """
    Returns the format that a ``config.json`` belongs to.

    :raises WarmupError: If its ``model_type`` is missing or not supported.
    """
    model_type = hg_config.get("model_type")

    for kls in _FORMATS.values():
        if model_type in kls.model_types:
            return kls()

    supported = ", ".join(name for kls in _FORMATS.values() for name in kls.model_types)

    if model_type is None:
        raise WarmupError(
            f"`model_type` is missing in the Hugging Face configuration; add the one of the model, supported are {supported}."
        )

    raise WarmupError(
        f"`model_type` is {model_type!r} in the Hugging Face configuration, which is not supported; choose a model of one of {supported}."
    )


def register_hugging_face_converters(container: DependencyContainer) -> None:
    """
    Registers what ``regime.export_hugging_face`` lacks.

    fairseq2 has converters of its own for LLaMA and Qwen, and our families register
    theirs.
    """
    container.register_type(HuggingFaceConverter, NllbHuggingFaceFormat, key="nllb")
