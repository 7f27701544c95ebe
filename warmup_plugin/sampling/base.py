# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.conditional import ConditionalModel, EncodedSource
from warmup_plugin.sampling.candidates import Candidates


class WarmupSampler(Protocol):
    """
    Draws K warmups of each source.

    Registered as a fairseq2 component under the name that ``warmup.sampler.name``
    takes. A sampler whose warmups of a source all differ may say so by an attribute
    ``distinct`` that is ``True``. One that takes the argument ``with_empty``, see
    :func:`~warmup_plugin.sampling.draw.draw_candidates`, says so by
    ``enumerates_empty``.
    """

    def __call__(
        self,
        model: ConditionalModel,
        source: EncodedSource,
        layout: DecoderLayout,
        prefixes: Tensor,
        *,
        num_warmups: int,
        max_warmup_len: int,
    ) -> Candidates:
        """
        :param model: In evaluation mode.
        :param prefixes: The tokens before a warmup. *Shape:* :math:`(N,P)`.
        :param max_warmup_len: The most tokens of a warmup; then the separator is
            forced.
        """


def is_distinct(sampler: WarmupSampler) -> bool:
    """Returns ``True`` if all warmups of a source differ, see :class:`WarmupSampler`."""
    return bool(getattr(sampler, "distinct", False))


def enumerates_empty(sampler: WarmupSampler) -> bool:
    """Returns ``True`` if a sampler takes ``with_empty``, see :class:`WarmupSampler`."""
    return bool(getattr(sampler, "enumerates_empty", False))
