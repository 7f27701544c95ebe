# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, final

from fairseq2.models.hg import HuggingFaceConverter
from torch import Tensor


class HuggingFaceFormat(HuggingFaceConverter):
    """
    Says how a model family is written in the format of Hugging Face, and how read.

    The way there is fairseq2's :class:`HuggingFaceConverter`, so that
    ``regime.export_hugging_face`` serves as well; the way back is ours.
    """

    family: ClassVar[str]
    """The fairseq2 family."""

    model_types: ClassVar[tuple[str, ...]]
    """The values of ``model_type`` in a ``config.json`` that belong to it."""

    @abstractmethod
    def from_hg_config(self, hg_config: Mapping[str, object]) -> object:
        """
        Turns the content of a ``config.json`` into the configuration of the family.

        :raises WarmupError: If a value describes a model that the family cannot be,
            with the name of the field.
        """

    @abstractmethod
    def from_hg_state_dict(
        self, hg_state_dict: dict[str, Tensor], config: object
    ) -> dict[str, Tensor]:
        """
        Renames and reorders weights.

        Names that the family does not know are kept as they are, so that whoever
        compares the result with the model finds them. Tied weights are one tensor
        under each of their names.
        """


_LAYER_IDX: Final = re.compile(r"(?<=\.)[0-9]+(?=\.)")


@final
class NameMap:
    """Translates the names of weights between Hugging Face and fairseq2."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        """
        :param pairs: The name of Hugging Face and the one of fairseq2 of each module
            that holds weights, with ``*`` for the index of its layer.
        """
        self._from_hg = dict(pairs)

        self._to_hg = {fs2_name: hg_name for hg_name, fs2_name in pairs}

    def from_hg(self, name: str) -> str:
        """Returns the name of fairseq2; an unknown name is returned as it is."""
        return _translate(name, self._from_hg)

    def to_hg(self, name: str) -> str:
        """Returns the name of Hugging Face; an unknown name is returned as it is."""
        return _translate(name, self._to_hg)


def _translate(name: str, modules: Mapping[str, str]) -> str:
    module, _, weight = _LAYER_IDX.sub("*", name).rpartition(".")

    translated = modules.get(module)

    if translated is None:
        return name

    for idx in _LAYER_IDX.findall(name):
        translated = translated.replace("*", idx, 1)

    return f"{translated}.{weight}"
