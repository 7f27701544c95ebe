# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

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
