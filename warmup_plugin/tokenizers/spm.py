# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import torch
from fairseq2.composition import register_tokenizer_family
from fairseq2.data.tokenizers import (
    TokenDecoder,
    TokenEncoder,
    VocabularyInfo,
)
from fairseq2.data.tokenizers.sentencepiece import (
    SentencePieceDecoder,
    SentencePieceEncoder,
    SentencePieceModel,
    get_sentencepiece_vocabulary_info,
)
from fairseq2.device import Device
from fairseq2.error import NotSupportedError
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult
from sentencepiece import SentencePieceProcessor
from torch import Tensor
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.tokenizers.base import WarmupTokenizer
from warmup_plugin.tokenizers.special import SEPARATOR

WARMUP_SPM_FAMILY: Final = "warmup_spm"


@dataclass(kw_only=True)
class WarmupSpmConfig(Validatable):
    """Configures how a SentencePiece model is read."""

    separator: str = SEPARATOR
    """The control symbol that ends a warmup."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if not self.separator:
            result.add_error("`separator` must not be empty.")

        return result


@final
class WarmupSpmTokenizer(WarmupTokenizer):
    """
    Represents a SentencePiece tokenizer with one vocabulary for both languages and a
    separator that no text encodes to.
    """

    def __init__(
        self,
        model: SentencePieceModel,
        separator: str,
        control_symbols: Mapping[str, int],
    ) -> None:
        """
        :param model:
            The model. It must have PAD, BOS and EOS, and ``separator`` among its
            control symbols; :func:`load_warmup_spm` checks that.
        :param control_symbols:
            The indices of all its control symbols.
        """
        if model.bos_idx is None or model.eos_idx is None:
            raise ValueError("`model` must have BOS and EOS, but has not.")

        self._model = model
        self._bos_token = model.index_to_token(model.bos_idx)
        self._eos_token = model.index_to_token(model.eos_idx)
        self._separator = separator
        self._control_symbols = control_symbols
        self._vocab_info = get_sentencepiece_vocabulary_info(model)

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

        :param task:
            Must be 'translation' or ``None``.
        :param lang:
            Ignored: the vocabulary is shared. Accepted since fairseq2's text
            converters pass it to every tokenizer.
        :param mode:
            'source' for ``x </s>``, 'target' for ``<s> y </s>`` or 'prompt' for
            ``<s> y``, whose end the generator writes. ``None`` means 'source'.
        """
        if task is not None and task != "translation":
            raise ValueError(f"`task` must be 'translation', but is '{task}' instead.")

        prefix_tokens: list[str]
        suffix_tokens: list[str]

        match mode:
            case None | "source":
                prefix_tokens, suffix_tokens = [], [self._eos_token]
            case "target":
                prefix_tokens, suffix_tokens = [self._bos_token], [self._eos_token]
            case "prompt":
                prefix_tokens, suffix_tokens = [self._bos_token], []
            case _:
                raise NotSupportedError(
                    f"`mode` must be 'source', 'target' or 'prompt', but is '{mode}' instead."
                )

        return SentencePieceEncoder(
            self._model,
            prefix_tokens=prefix_tokens,
            suffix_tokens=suffix_tokens,
            device=device,
            pin_memory=pin_memory,
        )

    @override
    def create_raw_encoder(
        self, *, device: Device | None = None, pin_memory: bool = False
    ) -> TokenEncoder:
        return SentencePieceEncoder(self._model, device=device, pin_memory=pin_memory)

    @override
    def create_decoder(self, *, skip_special_tokens: bool = False) -> TokenDecoder:
        """
        Constructs a token decoder.

        :param skip_special_tokens:
            Has no effect: PAD, BOS, EOS and the separator are always dropped.
        """
        return WarmupSpmDecoder(self)

    @property
    def model(self) -> SentencePieceModel:
        return self._model

    @override
    def to_tokens(self, indices: Sequence[int]) -> list[str]:
        return [self._model.index_to_token(idx) for idx in indices]

    @override
    def find_special(self, token: str) -> int | None:
        return self._control_symbols.get(token)

    @property
    @override
    def special_indices(self) -> frozenset[int]:
        return frozenset(self._control_symbols.values())

    @property
    @override
    def default_separator(self) -> str | None:
        return self._separator

    @property
    @override
    def separators(self) -> tuple[str, ...]:
        info = self._vocab_info

        used = (info.pad_idx, info.bos_idx, info.eos_idx)

        return tuple(t for t, i in self._control_symbols.items() if i not in used)

    @property
    @override
    def vocab_info(self) -> VocabularyInfo:
        return self._vocab_info


@final
class WarmupSpmDecoder(TokenDecoder):
    """Decodes text, leaving out every token that no text encodes to."""

    def __init__(self, tokenizer: WarmupSpmTokenizer) -> None:
        indices = sorted(tokenizer.special_indices)

        self._special_indices = torch.tensor(indices, device="cpu")
        self._special_tokens = {tokenizer.model.index_to_token(i) for i in indices}
        self._decoder = SentencePieceDecoder(tokenizer.model)

    @override
    def __call__(self, token_indices: Tensor) -> str:
        """
        :param token_indices: The indices on any device. *Shape:* :math:`(S)`.
        """
        token_indices = token_indices.detach().cpu()

        # Taken out here rather than left to SentencePiece, which drops only those
        # that the model file itself declares as control symbols.
        if token_indices.dim() == 1:
            special_mask = torch.isin(token_indices, self._special_indices)

            token_indices = token_indices[~special_mask]

        return self._decoder(token_indices)

    @override
    def decode_from_tokens(self, tokens: Sequence[str]) -> str:
        return self._decoder.decode_from_tokens(
            [t for t in tokens if t not in self._special_tokens]
        )


def load_warmup_spm(path: Path, *, separator: str = SEPARATOR) -> WarmupSpmTokenizer:
    """
    Loads a SentencePiece model and checks that it can separate warmups.

    No fairseq2 container is needed.

    :raises WarmupError: The file is missing, is not a SentencePiece model, or lacks
        PAD, BOS, EOS or the separator.
    """
    remedy = "train one with `python -m warmup_plugin train-tokenizer`"

    # fairseq2 prints the stack trace of a `TokenizerModelError` and of an `OSError`;
    # `WarmupError` reaches its command line with the message alone.
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise WarmupError(
            f"The tokenizer model `{path}` does not exist; correct the path or {remedy}."
        ) from None
    except OSError as ex:
        raise WarmupError(
            f"The tokenizer model `{path}` cannot be read ({ex.strerror}); name a readable file or {remedy}."
        ) from None

    # An empty file parses as a model without pieces, which breaks only later.
    try:
        if not content:
            raise RuntimeError()

        processor = SentencePieceProcessor(model_proto=content)

        model = SentencePieceModel(path)
    except RuntimeError:
        raise WarmupError(
            f"The tokenizer model `{path}` is not a SentencePiece model; name the `.model` file or {remedy}."
        ) from None

    indices = {
        "padding": model.pad_idx,
        "beginning-of-sequence": model.bos_idx,
        "end-of-sequence": model.eos_idx,
    }

    for name, idx in indices.items():
        if idx is None:
            raise WarmupError(
                f"The tokenizer model `{path}` has no {name} token; {remedy}, which adds it."
            )

    # An ordinary piece would let text end a warmup.
    separator_idx = processor.piece_to_id(separator)
    if not processor.is_control(separator_idx):
        raise WarmupError(
            f"The tokenizer model `{path}` has no control symbol `{separator}` to end a warmup with; {remedy}, which adds `{SEPARATOR}`."
        )

    if separator_idx in indices.values():
        raise WarmupError(
            f"The separator `{separator}` of the tokenizer model `{path}` already pads, begins or ends sequences; set `separator` to another control symbol."
        )

    control_symbols = {
        processor.id_to_piece(idx): idx
        for idx in range(processor.vocab_size())
        if processor.is_control(idx)
    }

    # Also where the model file declares them as something else.
    for idx in indices.values():
        if idx is not None:
            control_symbols[processor.id_to_piece(idx)] = idx

    return WarmupSpmTokenizer(model, separator, control_symbols)


def load_warmup_spm_with_config(
    path: Path, config: WarmupSpmConfig
) -> WarmupSpmTokenizer:
    """Loads a SentencePiece model for fairseq2's tokenizer family."""
    return load_warmup_spm(path, separator=config.separator)


def register_warmup_spm_family(container: DependencyContainer) -> None:
    register_tokenizer_family(
        container,
        WARMUP_SPM_FAMILY,
        WarmupSpmTokenizer,
        WarmupSpmConfig,
        loader=load_warmup_spm_with_config,
    )
