# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from fairseq2.composition import register_tokenizer_family
from fairseq2.data.tokenizers import VocabularyInfo
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.tokenizers.base import PlainTokenizer
from warmup_plugin.tokenizers.settings import read_settings

T5_TOKENIZER_FAMILY: Final = "t5"

NUM_SENTINELS: Final = 100

_SENTINEL_PATTERN: Final = re.compile(r"^▁?(<extra_id_\d+>)$")

_FRAMES: Final[Mapping[str | None, tuple[list[int], list[int]]]] = {
    None: ([], [1]),
    "source": ([], [1]),
    "target": ([0], [1]),
    "prompt": ([0], []),
}
"""PAD and EOS around a text, by what it is."""


@dataclass(kw_only=True)
class T5TokenizerConfig(Validatable):
    """Configures how a T5 tokenizer is read."""

    num_sentinels: int | None = None
    """The number of tokens ``<extra_id_0>``, ``<extra_id_1>``, … put behind the SentencePiece model; ``None`` for what ``tokenizer_config.json`` beside it says, or 100. A model that holds them itself, as that of mT5, gets no more."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.num_sentinels is not None and self.num_sentinels < 0:
            result.add_error("`num_sentinels` must be greater than or equal to 0.")

        return result


@final
@dataclass(frozen=True)
class _Pieces:
    """Splits text into the pieces of a vocabulary."""

    encode: Callable[[str], list[int]]

    decode: Callable[[list[int]], str]

    vocab: Mapping[str, int]
    """The index of each piece."""


def _read_sentencepiece(path: Path) -> _Pieces:
    """Reads ``spiece.model``."""
    from sentencepiece import SentencePieceProcessor

    content = path.read_bytes()

    # An empty file parses as a model without pieces.
    if not content:
        raise RuntimeError()

    processor = SentencePieceProcessor(model_proto=content)

    vocab = {processor.id_to_piece(i): i for i in range(processor.vocab_size())}

    return _Pieces(processor.encode, processor.decode, vocab)


def _read_fast(path: Path) -> _Pieces:
    """Reads ``tokenizer.json``."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))

    # Text that spells a sentinel is text.
    tokenizer.encode_special_tokens = True

    # A file may hold what a training script has set.
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(text: str) -> list[int]:
        indices: list[int] = tokenizer.encode(text, add_special_tokens=False).ids

        return indices

    return _Pieces(encode, tokenizer.decode, tokenizer.get_vocab())


@final
class T5Tokenizer(PlainTokenizer):
    """
    Represents the tokenizer of T5 and mT5: PAD 0, EOS 1, unknown 2, no BOS.

    The sentinels ``<extra_id_0>``, … are candidates for the separator. Text that spells
    one of them stays text, unlike in Hugging Face's tokenizer and, for mT5, in its
    SentencePiece model.
    """

    def __init__(self, pieces: _Pieces, num_sentinels: int) -> None:
        """
        :param num_sentinels: The number of sentinels to add if the pieces hold none.

        :raises WarmupError: If PAD, EOS or unknown are not where T5 has them.
        """
        vocab = pieces.vocab

        if [vocab.get(t) for t in ("<pad>", "</s>", "<unk>")] != [0, 1, 2]:
            raise WarmupError(
                "The tokenizer does not begin with `<pad>`, `</s>` and `<unk>`, so it is not of T5 or mT5; name the `spiece.model` of the checkpoint."
            )

        specials, sentinels = {"<pad>": 0, "</s>": 1}, {}

        for piece, idx in vocab.items():
            match = _SENTINEL_PATTERN.match(piece)
            if match is not None:
                sentinels[match[1]] = specials[piece] = idx

        size = max(vocab.values()) + 1

        if not sentinels:
            # The first is the last of the vocabulary.
            size += num_sentinels

            sentinels = {f"<extra_id_{i}>": size - 1 - i for i in range(num_sentinels)}

        super().__init__(
            VocabularyInfo(size, 2, None, 1, 0),
            specials | sentinels,
            _FRAMES,
            "<extra_id_0>" if "<extra_id_0>" in sentinels else None,
            sentinels,
        )

        self._pieces = pieces
        self._vocab = vocab
        self._names = {idx: piece for piece, idx in vocab.items()}
        self._names.update({idx: name for name, idx in sentinels.items()})
        self._sentinels = sentinels

    @override
    def encode(self, text: str) -> list[int]:
        indices = self._pieces.encode(text)

        if self._special_indices.isdisjoint(indices):
            return indices

        return [i for idx in indices for i in self._spell(idx)]

    def _spell(self, idx: int) -> Iterable[int]:
        """Replaces a special token, which text has spelled, by its characters."""
        if idx not in self._special_indices:
            return [idx]

        return [self._vocab.get(char, 2) for char in self._names[idx]]

    @override
    def decode(self, indices: Iterable[int]) -> str:
        return self._pieces.decode(
            [i for i in indices if i not in self._special_indices]
        )

    @override
    def to_tokens(self, indices: Sequence[int]) -> list[str]:
        return [self._names[idx] for idx in indices]

    @override
    def to_indices(self, tokens: Sequence[str]) -> list[int]:
        return [self._sentinels.get(t, self._vocab.get(t, 2)) for t in tokens]

    @property
    def num_pieces(self) -> int:
        """The number of tokens without the sentinels that were added."""
        return max(self._vocab.values()) + 1


def load_t5_tokenizer(
    path: Path, config: T5TokenizerConfig | None = None
) -> T5Tokenizer:
    """
    Loads a T5 tokenizer.

    :param path: ``spiece.model``, ``tokenizer.json``, or the folder of a checkpoint
        that holds one of them.

    :raises WarmupError: If there is none, it is broken, or it is not of T5.
    """
    files = [path]

    if path.is_dir():
        files = [path / "spiece.model", path / "tokenizer.json"]

        files = [file for file in files if file.is_file()]

        if not files:
            raise WarmupError(
                f"The folder `{path}` has neither `spiece.model` nor `tokenizer.json`; copy the tokenizer of the checkpoint there."
            )

    file = files[0]

    is_fast = file.suffix == ".json"

    # The tokenizers library raises plain `Exception`.
    try:
        pieces = _read_fast(file) if is_fast else _read_sentencepiece(file)
    except FileNotFoundError:
        raise WarmupError(
            f"The tokenizer `{file}` does not exist; correct the path."
        ) from None
    except Exception:
        raise WarmupError(
            f"The tokenizer `{file}` cannot be read as {'a `tokenizer.json`' if is_fast else 'a SentencePiece model'}; copy it again."
        ) from None

    # `tokenizer.json` holds them already.
    if is_fast:
        return T5Tokenizer(pieces, 0)

    settings = read_settings(file.parent / "tokenizer_config.json")

    num_sentinels = None if config is None else config.num_sentinels

    if num_sentinels is None:
        value = settings.get("extra_ids")

        num_sentinels = value if isinstance(value, int) else NUM_SENTINELS

    tokenizer = T5Tokenizer(pieces, num_sentinels)

    if path.is_dir():
        _refuse_added_tokens(path, settings, tokenizer.vocab_info.size)

    return tokenizer


def _refuse_added_tokens(
    folder: Path, settings: Mapping[str, Any], vocab_size: int
) -> None:
    """
    :raises WarmupError: If a user has added tokens, which ``spiece.model`` lacks.
    """
    added = {str(t): i for t, i in read_settings(folder / "added_tokens.json").items()}

    decoder = settings.get("added_tokens_decoder")

    if isinstance(decoder, dict):
        added.update({str(token): idx for idx, token in decoder.items()})

    lost = [t for t, i in added.items() if str(i).isdecimal() and int(i) >= vocab_size]

    if lost:
        raise WarmupError(
            f"The tokenizer in `{folder}` has tokens that were added to `spiece.model` ({lost[0]}); remove `spiece.model` from a copy of the folder, so that `tokenizer.json` is read."
        )


def register_t5_tokenizer_family(container: DependencyContainer) -> None:
    register_tokenizer_family(
        container,
        T5_TOKENIZER_FAMILY,
        T5Tokenizer,
        T5TokenizerConfig,
        loader=load_t5_tokenizer,
    )
