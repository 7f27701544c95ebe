# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from fairseq2.composition import register_tokenizer_family
from fairseq2.data.tokenizers import Tokenizer, VocabularyInfo
from fairseq2.runtime.dependency import DependencyContainer
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import find_transformers_tokenizer
from warmup_plugin.tokenizers.base import PlainTokenizer
from warmup_plugin.tokenizers.settings import read_settings
from warmup_plugin.tokenizers.special import PROMPT_END, SEPARATOR

HUGGING_FACE_FAMILY: Final = "hugging_face"

# Reserved by their vocabularies and in no text that the models were trained on; the
# first of them that a tokenizer has is its default separator.
_SPARE_TOKENS: Final = (
    "<|reserved_special_token_0|>",  # Llama 3
    "<|vision_pad|>",  # Qwen 2.5 and 3: only their vision models read it
    "<file_sep>",  # SmolLM2: its embedding is that of ten others, as if never seen
    SEPARATOR,  # ours
)

# What may name the code of a tokenizer.
_CODE_FILES: Final = ("tokenizer_config.json", "config.json")


@dataclass(kw_only=True)
class HuggingFaceTokenizerConfig:
    """Configures a tokenizer of a decoder-only model."""

    eos_token: str | None = None
    """The token that ends an output; ``None`` for the one that the tokenizer names."""


@final
class HuggingFaceTokenizer(PlainTokenizer):
    """
    Represents the tokenizer of a decoder-only model, as Hugging Face stores it.

    Unlike fairseq2's own ``llama`` and ``qwen`` tokenizers it takes whatever the folder
    says as BOS and EOS, counts added tokens into the vocabulary, and never turns text
    that spells a special token into that token.
    """

    def __init__(self, tok: Any, eos_token: str | None = None) -> None:
        """
        :param tok: A fast tokenizer of transformers.

        :raises WarmupError: If it has no EOS.
        """
        eos_token = eos_token or tok.eos_token

        vocab: dict[str, int] = tok.get_vocab()

        eos_idx = None if eos_token is None else vocab.get(eos_token)
        if eos_idx is None:
            raise WarmupError(
                f"The tokenizer `{tok.name_or_path}` has no end-of-sequence token{'' if eos_token is None else f' `{eos_token}`'}; name one of its special tokens as `eos_token` in `tokenizer_config.json`, or in `tokenizer.config_overrides` when you train."
            )

        specials = {
            token.content: idx
            for idx, token in tok.added_tokens_decoder.items()
            if token.special
        }

        # Longest first, since one may begin with another.
        spellings = sorted(specials, key=len, reverse=True)

        self._special_pattern = re.compile("|".join(map(re.escape, spellings)) or r"$^")

        vocab_info = VocabularyInfo(
            max(vocab.values()) + 1,
            tok.unk_token_id,
            tok.bos_token_id,
            eos_idx,
            tok.pad_token_id,
        )

        # What the tokenizer puts before a text, which is BOS or nothing.
        indices: list[int] = tok.encode("", add_special_tokens=True)

        prefix = [idx for idx in indices if idx == tok.bos_token_id]

        frames: dict[str | None, tuple[list[int], list[int]]] = {
            None: (prefix, [eos_idx]),
            "default": (prefix, [eos_idx]),
            "prompt": (prefix, []),
            "prompt_response": ([], [eos_idx]),
            "target": ([], [eos_idx]),
            "as_is": ([], []),
        }

        used = {tok.unk_token_id, tok.bos_token_id, eos_idx, tok.pad_token_id}
        used.add(specials.get(PROMPT_END))

        super().__init__(
            vocab_info,
            specials,
            frames,
            next((t for t in _SPARE_TOKENS if t in specials), None),
            [t for t, idx in specials.items() if idx not in used],
        )

        self.tok = tok
        """The tokenizer of transformers."""
        self._prefix = prefix

    @override
    def encode(self, text: str) -> list[int]:
        indices: list[int] = self.tok.encode(
            text, add_special_tokens=False, split_special_tokens=True
        )

        return indices

    def encode_prompt(self, template: str, source: str) -> list[int]:
        """
        Encodes a prompt, BOS included.

        :param template: May name special tokens, such as those of a chat, and holds
            ``{source}`` once.
        :param source: Text, which cannot become a special token.
        """
        head, tail = template.split("{source}")

        prefix = self._prefix

        # Between special tokens text is encoded in one piece, as those split it anyway.
        pieces: list[str | int] = [""]

        def add(part: str) -> None:
            begin = 0

            for match in self._special_pattern.finditer(part):
                pieces[-1] = f"{pieces[-1]}{part[begin : match.start()]}"

                pieces.extend([self._specials[match[0]], ""])

                begin = match.end()

            pieces[-1] = f"{pieces[-1]}{part[begin:]}"

        add(head)

        pieces[-1] = f"{pieces[-1]}{source}"

        add(tail)

        indices = list(prefix)

        for piece in pieces:
            if isinstance(piece, int):
                # A template may begin with BOS itself.
                if indices != prefix or [piece] != prefix:
                    indices.append(piece)
            elif piece:
                indices.extend(self.encode(piece))

        return indices

    @override
    def decode(self, indices: Iterable[int]) -> str:
        text: str = self.tok.decode(
            list(indices), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

        return text

    @override
    def to_tokens(self, indices: Sequence[int]) -> list[str]:
        tokens: list[str] = self.tok.convert_ids_to_tokens(list(indices))

        return tokens

    @override
    def to_indices(self, tokens: Sequence[str]) -> list[int]:
        indices: list[int] = self.tok.convert_tokens_to_ids(list(tokens))

        return indices

    @property
    def prompt_end(self) -> str | None:
        """The special token that ends a prompt; ``None`` if text does, as in all but
        tokenizers of ours."""
        return PROMPT_END if PROMPT_END in self._specials else None


def load_hugging_face_tokenizer(
    path: Path, config: HuggingFaceTokenizerConfig | None = None
) -> HuggingFaceTokenizer:
    """
    Loads the tokenizer in a folder, ``tokenizer.json`` and what describes it.

    :raises WarmupError: If there is none, it is broken, or it has no EOS.
    """
    folder = path if path.is_dir() else path.parent

    if not folder.joinpath("tokenizer.json").is_file():
        what = "" if path == folder else f" of `{path}`"

        raise WarmupError(
            f"The folder `{folder}`{what} has no `tokenizer.json`; name the folder of a Hugging Face tokenizer, or save a fast tokenizer there with its `save_pretrained()`."
        )

    # A second, and only decoder-only models need it.
    from transformers import PreTrainedTokenizerFast

    class TokenizersBackend(PreTrainedTokenizerFast):
        """As transformers 5 calls what `tokenizer.json` says all of."""

    kls: Any

    name = read_settings(folder / "tokenizer_config.json").get("tokenizer_class")

    if name == TokenizersBackend.__name__:
        kls = TokenizersBackend
    elif name == PreTrainedTokenizerFast.__name__:
        kls = PreTrainedTokenizerFast
    else:
        # Imports what all models of transformers need: four more seconds.
        from transformers import AutoTokenizer

        kls = AutoTokenizer

    # The tokenizers library raises plain `Exception`.
    try:
        tok = kls.from_pretrained(
            str(folder),
            use_fast=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as ex:
        if any("auto_map" in read_settings(folder / name) for name in _CODE_FILES):
            raise WarmupError(
                f"The tokenizer in `{folder}` needs Python code of its own (`auto_map` in its settings), which is never run here; if `tokenizer.json` says all, name `PreTrainedTokenizerFast` as `tokenizer_class` in its `tokenizer_config.json`, else take another tokenizer."
            ) from None

        reason = " ".join(str(ex).split())

        raise WarmupError(
            f"The tokenizer in `{folder}` cannot be read ({reason[:200]}); copy its files again."
        ) from None

    return HuggingFaceTokenizer(tok, config.eos_token if config else None)


def get_prompt_end(tokenizer: Tokenizer | None) -> str | None:
    """
    Returns the special token with which the prompts of a tokenizer end.

    :returns: ``None`` if text ends them, as with all tokenizers but ours.
    """
    return getattr(tokenizer, "prompt_end", None)


def register_hugging_face_family(container: DependencyContainer) -> None:
    register_tokenizer_family(
        container,
        HUGGING_FACE_FAMILY,
        HuggingFaceTokenizer,
        HuggingFaceTokenizerConfig,
        loader=load_hugging_face_tokenizer,
    )


def adapt_fairseq2_tokenizer(tokenizer: Tokenizer) -> HuggingFaceTokenizer | None:
    """
    Wraps what fairseq2's ``llama`` and ``qwen`` tokenizers have loaded.

    :returns: ``None`` if it is another tokenizer.
    """
    # Its special tokens are needed.
    parts = find_transformers_tokenizer(tokenizer)

    return None if parts is None else HuggingFaceTokenizer(*parts)
