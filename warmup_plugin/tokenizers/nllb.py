# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, Final, final

from fairseq2.data.tokenizers import (
    TokenDecoder,
    TokenEncoder,
    Tokenizer,
    VocabularyInfo,
)
from fairseq2.models.nllb import NllbTokenizer
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.fairseq2_doors import get_nllb_parts
from warmup_plugin.tokenizers.base import WarmupTokenizer

# NLLB begins its targets with EOS and its sources with the language, so BOS is spare.
_SEPARATOR: Final = "<s>"

_DATA_TOKENS: Final = ("<MINED_DATA>", "<MMT_BT_DATA>", "<SMT_BT_DATA>")


@final
class NllbWarmupTokenizer(WarmupTokenizer):
    """fairseq2's NLLB tokenizer, of which the special tokens are known."""

    def __init__(self, tokenizer: NllbTokenizer) -> None:
        self._tokenizer = tokenizer

        self._langs, self._model = get_nllb_parts(tokenizer)

        names = [f"__{lang}__" for lang in self._langs]

        names += ["<pad>", "<s>", "</s>", *_DATA_TOKENS]

        self._specials = {name: self._model.token_to_index(name) for name in names}

    @override
    def create_encoder(self, *, lang: str | None = None, **kwargs: Any) -> TokenEncoder:
        """
        Constructs a token encoder; see fairseq2's ``NllbTokenizer``.

        :raises WarmupError: If the language is not known.
        """
        if lang is not None:
            self.get_lang_idx(
                lang,
                "`tokenizer.source_lang` and `tokenizer.target_lang`, or of one of several directions `source_token` and `target_token`, to codes",
            )

        return self._tokenizer.create_encoder(lang=lang, **kwargs)

    def get_lang_idx(self, lang: str, what: str) -> int:
        """
        Returns the token of a language.

        :param what: What is to be set to a language, for the message.

        :raises WarmupError: If the language is not known.
        """
        if lang not in self._langs:
            raise WarmupError(
                f"`{lang}` is not a language of the NLLB tokenizer{self._suggest(lang)}; set {what} such as `eng_Latn`."
            )

        return self._specials[f"__{lang}__"]

    @property
    def lang_indices(self) -> frozenset[int]:
        """The tokens of the languages, one of which begins each text."""
        return frozenset(self._specials[f"__{lang}__"] for lang in self._langs)

    def _suggest(self, lang: str) -> str:
        langs = sorted(self._langs)

        matches: Sequence[str] = [code for code in langs if code.startswith(lang)]

        if not matches:
            matches = get_close_matches(lang, langs, n=3)

        if not matches:
            return ""

        return f", unlike {', '.join(f'`{code}`' for code in matches[:3])}"

    @override
    def create_raw_encoder(self, **kwargs: Any) -> TokenEncoder:
        return self._tokenizer.create_raw_encoder(**kwargs)

    @override
    def create_decoder(self, **kwargs: Any) -> TokenDecoder:
        return self._tokenizer.create_decoder(**kwargs)

    @override
    def find_special(self, token: str) -> int | None:
        return self._specials.get(token)

    @override
    def to_tokens(self, indices: Sequence[int]) -> list[str]:
        return [self._model.index_to_token(idx) for idx in indices]

    @property
    @override
    def special_indices(self) -> frozenset[int]:
        return frozenset(self._specials.values())

    @property
    @override
    def default_separator(self) -> str | None:
        return _SEPARATOR

    @property
    @override
    def separators(self) -> tuple[str, ...]:
        return (_SEPARATOR, *_DATA_TOKENS)

    @property
    @override
    def vocab_info(self) -> VocabularyInfo:
        return self._tokenizer.vocab_info


def adapt_nllb_tokenizer(tokenizer: Tokenizer) -> NllbWarmupTokenizer | None:
    """Wraps fairseq2's NLLB tokenizer; ``None`` if it is another one."""
    if isinstance(tokenizer, NllbTokenizer):
        return NllbWarmupTokenizer(tokenizer)

    return None
