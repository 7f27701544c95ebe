# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from fairseq2.composition import register_tokenizer_family
from fairseq2.data.tokenizers import TokenEncoder, VocabularyInfo
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult
from sentencepiece import SentencePieceProcessor
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.tokenizers.base import PlainTokenizer
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
class WarmupSpmTokenizer(PlainTokenizer):
    """
    Represents a SentencePiece tokenizer with one vocabulary for both languages and a
    separator that no text encodes to.
    """

    def __init__(
        self,
        processor: SentencePieceProcessor,
        separator: str,
        control_symbols: Mapping[str, int],
    ) -> None:
        """
        :param processor:
            The model. It must have PAD, BOS and EOS, and ``separator`` among its
            control symbols; :func:`load_warmup_spm` checks that.
        :param control_symbols:
            The indices of all its control symbols.
        """
        vocab_info = VocabularyInfo(
            processor.vocab_size(),
            processor.unk_id(),
            processor.bos_id(),
            processor.eos_id(),
            processor.pad_id(),
        )

        used = (vocab_info.pad_idx, vocab_info.bos_idx, vocab_info.eos_idx)

        bos, eos = [processor.bos_id()], [processor.eos_id()]

        super().__init__(
            vocab_info,
            control_symbols,
            # The end of a prompt is written by the generator.
            {
                None: ([], eos),
                "source": ([], eos),
                "target": (bos, eos),
                "prompt": (bos, []),
            },
            separator,
            [t for t, idx in control_symbols.items() if idx not in used],
        )

        self._processor = processor

    @override
    def create_encoder(self, *, task: str | None = None, **kwargs: Any) -> TokenEncoder:
        """
        Constructs a token encoder.

        :param task:
            Must be 'translation' or ``None``.
        """
        if task is not None and task != "translation":
            raise ValueError(f"`task` must be 'translation', but is '{task}' instead.")

        return super().create_encoder(**kwargs)

    @override
    def encode(self, text: str) -> list[int]:
        indices: list[int] = self._processor.encode(text)

        return indices

    @override
    def decode(self, indices: Iterable[int]) -> str:
        # Taken out here rather than left to SentencePiece, which drops only those
        # that the model file itself declares as control symbols.
        text: str = self._processor.decode(
            [idx for idx in indices if idx not in self._special_indices]
        )

        return text

    @override
    def to_tokens(self, indices: Sequence[int]) -> list[str]:
        return [self._processor.id_to_piece(idx) for idx in indices]

    @override
    def to_indices(self, tokens: Sequence[str]) -> list[int]:
        return [self._processor.piece_to_id(token) for token in tokens]


def load_warmup_spm(
    path: Path, config: WarmupSpmConfig | None = None
) -> WarmupSpmTokenizer:
    """
    Loads a SentencePiece model and checks that it can separate warmups.

    No fairseq2 container is needed.

    :raises WarmupError: The file is missing, is not a SentencePiece model, or lacks
        PAD, BOS, EOS or the separator.
    """
    separator = SEPARATOR if config is None else config.separator

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
    except RuntimeError:
        raise WarmupError(
            f"The tokenizer model `{path}` is not a SentencePiece model; name the `.model` file or {remedy}."
        ) from None

    indices = {
        "padding": processor.pad_id(),
        "beginning-of-sequence": processor.bos_id(),
        "end-of-sequence": processor.eos_id(),
    }

    for name, idx in indices.items():
        if idx < 0:
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
        control_symbols[processor.id_to_piece(idx)] = idx

    return WarmupSpmTokenizer(processor, separator, control_symbols)


def register_warmup_spm_family(container: DependencyContainer) -> None:
    register_tokenizer_family(
        container,
        WARMUP_SPM_FAMILY,
        WarmupSpmTokenizer,
        WarmupSpmConfig,
        loader=load_warmup_spm,
    )
