# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import final

import torch
from fairseq2.data.tokenizers import (
    TokenDecoder,
    TokenEncoder,
    Tokenizer,
    VocabularyInfo,
)
from fairseq2.device import Device
from fairseq2.error import NotSupportedError
from torch import Tensor
from typing_extensions import override


class WarmupTokenizer(Tokenizer):
    """
    A tokenizer that tells which of its tokens no text encodes to.

    One of them ends a warmup; none of the others is ever generated inside a warmup or
    an output. The modes of ``create_encoder()`` are ``source`` and ``target`` for
    encoder-decoders; tokenizers of decoder-only models encode prompts in
    ``warmup_plugin/tokenizers/hugging_face.py``.
    """

    @abstractmethod
    def find_special(self, token: str) -> int | None:
        """
        Returns the index of a special token; ``None`` if there is none of that name,
        or if text may become it.
        """

    @abstractmethod
    def to_tokens(self, indices: Sequence[int]) -> list[str]:
        """Names tokens as the vocabulary does."""

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


class PlainTokenizer(WarmupTokenizer):
    """A tokenizer that encodes and decodes text without special tokens; its encoders
    put them around it."""

    def __init__(
        self,
        vocab_info: VocabularyInfo,
        specials: Mapping[str, int],
        frames: Mapping[str | None, tuple[Sequence[int], Sequence[int]]],
        default_separator: str | None,
        separators: Iterable[str],
    ) -> None:
        """
        :param specials: The tokens that no text encodes to.
        :param frames: What an encoder of each mode puts before a text and behind it.
        """
        self._vocab_info = vocab_info
        self._specials = specials
        self._special_indices = frozenset(specials.values())
        self._frames = frames
        self._default_separator = default_separator
        self._separators = tuple(separators)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Encodes text; what spells a special token stays text."""

    @abstractmethod
    def decode(self, indices: Iterable[int]) -> str:
        """Decodes text, leaving out special tokens."""

    @abstractmethod
    def to_indices(self, tokens: Sequence[str]) -> list[int]:
        """Undoes :meth:`to_tokens`."""

    @override
    def create_encoder(
        self,
        *,
        task: str | None = None,
        lang: str | None = None,
        mode: str | None = None,
        device: Device | None = None,
        pin_memory: bool = False,
    ) -> TokenEncoder:
        """
        Constructs a token encoder.

        :param task: Ignored, as is ``lang``: fairseq2's text converters pass both to every
            tokenizer.
        :param mode: What the text is, by the names that the tokenizer has for it.
        """
        if mode not in self._frames:
            known = ", ".join(f"'{name}'" for name in self._frames if name is not None)

            raise NotSupportedError(
                f"`mode` must be one of {known}, but is '{mode}' instead."
            )

        return FramedTextEncoder(self, *self._frames[mode], device)

    @override
    def create_raw_encoder(
        self, *, device: Device | None = None, pin_memory: bool = False
    ) -> TokenEncoder:
        return FramedTextEncoder(self, [], [], device)

    @override
    def create_decoder(self, *, skip_special_tokens: bool = False) -> TokenDecoder:
        """
        Constructs a token decoder.

        :param skip_special_tokens: Has no effect: they are always left out.
        """
        return PlainTextDecoder(self)

    @override
    def find_special(self, token: str) -> int | None:
        return self._specials.get(token)

    @property
    @override
    def special_indices(self) -> frozenset[int]:
        return self._special_indices

    @property
    @override
    def default_separator(self) -> str | None:
        return self._default_separator

    @property
    @override
    def separators(self) -> tuple[str, ...]:
        return self._separators

    @property
    @override
    def vocab_info(self) -> VocabularyInfo:
        return self._vocab_info


@final
class FramedTextEncoder(TokenEncoder):
    """Encodes text between fixed tokens."""

    def __init__(
        self,
        tokenizer: PlainTokenizer,
        prefix: Sequence[int],
        suffix: Sequence[int],
        device: Device | None,
    ) -> None:
        self._tokenizer = tokenizer
        self._prefix = list(prefix)
        self._suffix = list(suffix)
        self._device = device

    @override
    def __call__(self, text: str) -> Tensor:
        return torch.tensor(
            [*self._prefix, *self._tokenizer.encode(text), *self._suffix],
            dtype=torch.int64,
            device=self._device,
        )

    @override
    def encode_as_tokens(self, text: str) -> list[str]:
        return self._tokenizer.to_tokens(self(text).tolist())

    @property
    @override
    def prefix_indices(self) -> Tensor | None:
        return self._to_tensor(self._prefix)

    @property
    @override
    def suffix_indices(self) -> Tensor | None:
        return self._to_tensor(self._suffix)

    def _to_tensor(self, indices: list[int]) -> Tensor | None:
        return torch.tensor(indices, device=self._device) if indices else None


@final
class PlainTextDecoder(TokenDecoder):
    """Decodes text, leaving out special tokens."""

    def __init__(self, tokenizer: PlainTokenizer) -> None:
        self._tokenizer = tokenizer

    @override
    def __call__(self, token_indices: Tensor) -> str:
        """
        :param token_indices: The indices on any device. *Shape:* :math:`(S)`.
        """
        if token_indices.dim() != 1:
            raise ValueError("`token_indices` must be one dimensional.")

        return self._tokenizer.decode(token_indices.tolist())

    @override
    def decode_from_tokens(self, tokens: Sequence[str]) -> str:
        return self._tokenizer.decode(self._tokenizer.to_indices(tokens))
