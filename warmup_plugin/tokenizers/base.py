# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from abc import abstractmethod

from fairseq2.data.tokenizers import Tokenizer


class WarmupTokenizer(Tokenizer):
    """
    A tokenizer that tells which of its tokens no text encodes to.

    One of them ends a warmup; none of the others is ever generated inside a warmup or
    an output. The modes of :meth:`create_encoder` are ``source`` and ``target`` for
    encoder-decoders; tokenizers of decoder-only models encode prompts in
    :mod:`warmup_plugin.tokenizers.hugging_face`.
    """

    @abstractmethod
    def find_special(self, token: str) -> int | None:
        """
        Returns the index of a special token; ``None`` if there is none of that name,
        or if text may become it.
        """

    @property
    @abstractmethod
    def special_indices(self) -> frozenset[int]:
        """The tokens that no text encodes to."""

    @property
    @abstractmethod
    def default_separator(self) -> str | None:
        """The special token that ends a warmup unless another one is chosen; ``None``
        if the tokenizer has none to spare."""

    @property
    @abstractmethod
    def separators(self) -> tuple[str, ...]:
        """The special tokens that may end a warmup, for messages."""
