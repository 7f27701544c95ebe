# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
From text to what a model reads, and back.

Every kind of model and tokenizer looks alike from here on: a *source*, which the encoder
reads or which is a prompt; a *prefix*, with which each decoder sequence of that source
begins; then warmup, separator, target and EOS as ``layout.py`` puts them together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from fairseq2.data.tokenizers import TokenDecoder, Tokenizer
from fairseq2.runtime.dependency import DependencyResolver
from typing_extensions import override

from warmup_plugin.blank import is_blank
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout
from warmup_plugin.tokenizers.base import WarmupTokenizer
from warmup_plugin.tokenizers.hugging_face import (
    HuggingFaceTokenizer,
    adapt_fairseq2_tokenizer,
)
from warmup_plugin.tokenizers.nllb import NllbWarmupTokenizer, adapt_nllb_tokenizer


@final
@dataclass(frozen=True)
class EncodedText:
    """Holds the tokens of a source, as a model is to continue them."""

    source: list[int]

    prefix: list[int]
    """What stands before the warmup in the decoder sequence."""


class TextCodec(ABC):
    """Encodes sources and targets, and decodes warmups and outputs."""

    def __init__(self, layout: DecoderLayout, separator: str) -> None:
        """
        :param separator: The name of the token that ends a warmup.
        """
        self.layout = layout
        self.separator = separator
        """The name of the token that ends a warmup."""

    @abstractmethod
    def encode_source(self, source: str) -> EncodedText: ...

    @abstractmethod
    def encode_target(self, target: str) -> list[int]:
        """Returns the tokens of a target and EOS, without prefix."""

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Decodes the tokens of a warmup or an output."""

    @abstractmethod
    def to_tokens(self, tokens: Sequence[int]) -> list[str]:
        """Names tokens as the vocabulary does, special ones too."""

    def encode_pair(self, source: str, target: str) -> tuple[list[int], list[int]]:
        """Returns the source, and ``[prefix] y EOS``."""
        encoded = self.encode_source(source)

        return encoded.source, [*encoded.prefix, *self.encode_target(target)]

    def is_empty_source(self, text: str, encoded: EncodedText) -> bool:
        """
        Tells whether nothing of a source is left to read: it shows nothing, or no token
        stands for it.

        :param encoded: What :meth:`encode_source` makes of the text.
        """
        return is_blank(text) or encoded == self._empty_source

    def is_empty_target(self, text: str, tokens: Sequence[int]) -> bool:
        """:param tokens: What :meth:`encode_target` makes of the text."""
        # EOS.
        return is_blank(text) or len(tokens) <= 1

    @cached_property
    def _empty_source(self) -> EncodedText | None:
        try:
            return self.encode_source("")
        # A prompt without any text, which no source can have either.
        except WarmupError:
            return None

    def get_begin(self) -> int:
        """Returns the token that a target without warmup follows."""
        # A prompt needs more than one token of its own; which text it is of does not
        # matter.
        return self.encode_source("1 2 3").prefix[-1]

    def adopt_layout(self, other: TextCodec) -> None:
        """Takes the separator of the other directions of a run, for one that writes none
        itself."""
        self.layout, self.separator = other.layout, other.separator

    @property
    @abstractmethod
    def template(self) -> str:
        """What a source is put into, without what the tokenizer adds by itself."""

    @property
    @abstractmethod
    def num_template_tokens(self) -> int:
        """The number of tokens of an encoded source that are not the source's own."""


@dataclass(frozen=True, kw_only=True)
class CodecOptions:
    """Says what a codec needs to know besides the tokenizer."""

    source_lang: str | None = None
    """The language of the sources, for tokenizers with language tokens."""

    target_lang: str | None = None

    prompt: str | None = None
    """A template with ``{source}``; see ``dataset.prompt``."""

    separator: str | None = None
    """The special token that ends a warmup; ``None`` for the tokenizer's default."""

    warmup_lang: str | None = None
    """The language of the warmups; see ``tokenizer.warmup_lang``."""

    ends_like_text: bool = False
    """Whether a warmup ends as a text does; see ``tokenizer.warmup_end``."""


def create_codec(
    tokenizer: Tokenizer, options: CodecOptions, *, reads_prompts: bool
) -> TextCodec:
    """
    Creates the codec of a tokenizer.

    :param reads_prompts: ``True`` for a decoder-only model.

    :raises WarmupError: If the tokenizer has no separator, no PAD or no EOS, does not
        know a language, or is not of that kind of model; if the prompt is no template,
        or the language of the warmups cannot stand before that of the targets.
    """
    adapted = adapt_tokenizer(tokenizer)

    if options.warmup_lang is not None and not isinstance(adapted, NllbWarmupTokenizer):
        raise WarmupError(
            f"`tokenizer.warmup_lang` is `{options.warmup_lang}`, but the tokenizer has no tokens of languages to begin and end a warmup with; leave it out, or start from an NLLB."
        )

    if reads_prompts:
        if not isinstance(adapted, HuggingFaceTokenizer):
            raise WarmupError(
                f"The tokenizer is a `{type(tokenizer).__name__}`, which cannot write the prompts of a decoder-only model; set `tokenizer.family` to `hugging_face` and `tokenizer.path` to a folder with a `tokenizer.json`, such as `train-tokenizer --model-type byte_bpe` writes."
            )

        # A prompt's last token begins the rows that continue it.
        layout, separator = _create_layout(
            adapted,
            options.separator,
            prefix=[None],
            ends_like_text=options.ends_like_text,
        )

        # What follows the end of a prompt is to be written.
        end = adapted.prompt_end or "\n"

        template = _complete_template(options, f"{{source}}{end}")

        return _PromptCodec(adapted, layout, separator, template)

    if isinstance(adapted, HuggingFaceTokenizer):
        raise WarmupError(
            "The tokenizer is of a decoder-only model, but the model is an encoder-decoder; set `tokenizer.family` to the model's, or `model.family` to `llama`."
        )

    # Other tokenizers have no language tokens.
    source_lang = target_lang = None

    warmup_idx: int | None = None

    if isinstance(adapted, NllbWarmupTokenizer):
        source_lang, target_lang = options.source_lang, options.target_lang

        if options.warmup_lang is not None:
            warmup_idx = adapted.get_lang_idx(
                options.warmup_lang, "`tokenizer.warmup_lang` to a code"
            )

    return _Seq2SeqCodec(
        adapted,
        options.separator,
        _complete_template(options, "{source}"),
        source_lang=source_lang,
        target_lang=target_lang,
        warmup_idx=warmup_idx,
        ends_like_text=options.ends_like_text,
    )


def find_codec(resolver: DependencyResolver, *, reads_prompts: bool) -> TextCodec:
    """
    Returns the codec that a recipe has registered, else one that fits its tokenizer.

    :raises WarmupError: As of :func:`create_codec`.
    """
    codec = resolver.maybe_resolve(TextCodec)

    if codec is not None:
        return codec

    return create_codec(
        resolver.resolve(Tokenizer, key="tokenizer"),
        CodecOptions(),
        reads_prompts=reads_prompts,
    )


def adapt_tokenizer(tokenizer: Tokenizer) -> WarmupTokenizer:
    """
    Finds the special tokens of a tokenizer.

    :raises WarmupError: If it is none of the known ones.
    """
    if isinstance(tokenizer, WarmupTokenizer):
        return tokenizer

    adapted = adapt_nllb_tokenizer(tokenizer) or adapt_fairseq2_tokenizer(tokenizer)

    if adapted is None:
        raise WarmupError(
            f"The tokenizer is a `{type(tokenizer).__name__}`, which has no separator to end a warmup; set `tokenizer.family` to `warmup_spm`, `t5`, `nllb` or `hugging_face`."
        )

    return adapted


def find_template_error(key: str, template: str) -> str | None:
    """
    Says what is wrong with a prompt; ``None`` for nothing.

    :param key: What it is the value of.
    """
    if template.count("{source}") == 1:
        return None

    return f"`{key}` is {template!r}, but a template must hold `{{source}}` once; add it where the source belongs."


def _complete_template(options: CodecOptions, default: str) -> str:
    template = default if options.prompt is None else options.prompt

    error = find_template_error("dataset.prompt", template)

    if error is not None:
        raise WarmupError(error)

    for name, lang in (
        ("{source_lang}", options.source_lang),
        ("{target_lang}", options.target_lang),
    ):
        template = template.replace(name, lang or "")

    return template


def _create_layout(
    tokenizer: WarmupTokenizer,
    separator: str | None,
    *,
    prefix: Sequence[int | None],
    ends_like_text: bool,
) -> tuple[DecoderLayout, str]:
    info = tokenizer.vocab_info

    pad_idx = info.pad_idx

    # Rows of a decoder-only model are padded behind their end, where nothing looks;
    # many of its tokenizers have no PAD of their own.
    if pad_idx is None and isinstance(tokenizer, HuggingFaceTokenizer):
        pad_idx = info.eos_idx

    if pad_idx is None or info.eos_idx is None:
        raise WarmupError(
            "The tokenizer has no PAD or no EOS; train one with `python -m warmup_plugin train-tokenizer`."
        )

    separator_idx, name = _find_separator(tokenizer, separator, prefix)

    control = {pad_idx, info.bos_idx, info.eos_idx, info.unk_idx, *prefix}

    control |= tokenizer.special_indices

    in_warmup = {idx for idx in control if idx is not None} - {separator_idx}

    # EOS ends a target.
    in_target = {*in_warmup, separator_idx} - {info.eos_idx}

    layout = DecoderLayout(
        separator_idx=separator_idx,
        eos_idx=info.eos_idx,
        pad_idx=pad_idx,
        prefix_len=len(prefix),
        vocab_size=info.size,
        banned_in_warmup=tuple(sorted(in_warmup)),
        banned_in_target=tuple(sorted(in_target)),
        unk_idx=info.unk_idx,
        ends_like_text=ends_like_text,
    )

    return layout, name


def _find_separator(
    tokenizer: WarmupTokenizer, separator: str | None, prefix: Sequence[int | None]
) -> tuple[int, str]:
    name = tokenizer.default_separator if separator is None else separator

    spare = tokenizer.separators

    known = f"such as {', '.join(f'`{s}`' for s in spare[:3])}" if spare else "if any"

    if name is None:
        raise WarmupError(
            f"The tokenizer has no token known to be spare that could end a warmup; set `tokenizer.separator` to one of its special tokens that no text holds, {known}."
        )

    idx = tokenizer.find_special(name)

    if idx is None:
        raise WarmupError(
            f"The tokenizer has no special token `{name}` to end a warmup with; set `tokenizer.separator` to one that it has, {known}."
        )

    info = tokenizer.vocab_info

    if idx in (info.pad_idx, info.eos_idx, info.unk_idx, *prefix):
        raise WarmupError(
            f"The separator `{name}` already pads, begins or ends sequences; set `tokenizer.separator` to another special token, {known}."
        )

    return idx, name


@final
class _Seq2SeqCodec(TextCodec):
    def __init__(
        self,
        tokenizer: WarmupTokenizer,
        separator: str | None,
        template: str,
        *,
        source_lang: str | None,
        target_lang: str | None,
        warmup_idx: int | None,
        ends_like_text: bool,
    ) -> None:
        """
        :param warmup_idx: The token of the language of the warmups; then that of the
            targets is the separator.
        """
        # A recipe runs under a default device, but text stays in main memory.
        device = torch.device("cpu")

        self._source_encoder = tokenizer.create_encoder(
            mode="source", lang=source_lang, device=device
        )

        self._target_encoder = tokenizer.create_encoder(
            mode="target", lang=target_lang, device=device
        )

        prefix = self._target_encoder.prefix_indices

        self._prefix: list[int] = [] if prefix is None else prefix.tolist()

        if warmup_idx is not None:
            if separator is not None:
                raise WarmupError(
                    f"`tokenizer.separator` is `{separator}`, but with `tokenizer.warmup_lang` the token of the targets' language ends a warmup; leave out one of the two."
                )

            if self._prefix[-1] == warmup_idx:
                raise WarmupError(
                    "`tokenizer.warmup_lang` is the language of the targets, whose token has to end the warmup; set it to another language, or leave it out."
                )

            [separator] = tokenizer.to_tokens(self._prefix[-1:])

            self._prefix[-1] = warmup_idx

        super().__init__(
            *_create_layout(
                tokenizer,
                separator,
                prefix=self._prefix,
                ends_like_text=ends_like_text,
            )
        )

        self._tokenizer = tokenizer

        self._template = template

        self._head, self._tail = template.split("{source}")

        self._decoder = tokenizer.create_decoder(skip_special_tokens=True)

    @override
    def encode_source(self, source: str) -> EncodedText:
        text = f"{self._head}{source}{self._tail}"

        return EncodedText(self._source_encoder(text).tolist(), self._prefix)

    @override
    def encode_target(self, target: str) -> list[int]:
        tokens: list[int] = self._target_encoder(target).tolist()

        return tokens[len(self._prefix) :]

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        return decode_tokens(self._decoder, tokens)

    @override
    def to_tokens(self, tokens: Sequence[int]) -> list[str]:
        return self._tokenizer.to_tokens(tokens)

    @property
    @override
    def template(self) -> str:
        return self._template

    @property
    @override
    def num_template_tokens(self) -> int:
        around = len(self._source_encoder(f"{self._head}{self._tail}"))

        # EOS and what else the tokenizer adds always counts.
        return around - len(self._source_encoder(""))


@final
class _PromptCodec(TextCodec):
    def __init__(
        self,
        tokenizer: HuggingFaceTokenizer,
        layout: DecoderLayout,
        separator: str,
        template: str,
    ) -> None:
        super().__init__(layout, separator)

        self._tokenizer = tokenizer
        self._template = template

    @override
    def encode_source(self, source: str) -> EncodedText:
        tokens = self._tokenizer.encode_prompt(self._template, source)

        if len(tokens) < 2:
            raise WarmupError(
                f"The prompt {self._template!r} of the source {source!r} has only {len(tokens)} token; a decoder-only model needs two: set `dataset.prompt` to a template with more text."
            )

        return EncodedText(tokens[:-1], tokens[-1:])

    @override
    def encode_target(self, target: str) -> list[int]:
        return [*self._tokenizer.encode(target), self.layout.eos_idx]

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    @override
    def to_tokens(self, tokens: Sequence[int]) -> list[str]:
        return self._tokenizer.to_tokens(tokens)

    @property
    @override
    def template(self) -> str:
        return self._template.removeprefix(self._tokenizer.tok.bos_token or "")

    @property
    @override
    def num_template_tokens(self) -> int:
        # The last token is that of the rows.
        return len(self._tokenizer.encode_prompt(self._template, "")) - 1


def decode_tokens(decoder: TokenDecoder, tokens: Sequence[int]) -> str:
    """Turns token indices into text; no tokens into empty text."""
    if not tokens:
        return ""

    # On the CPU whatever the default device of the recipe is.
    return decoder(torch.tensor(list(tokens), dtype=torch.int64, device="cpu"))


def encode_labels(codec: TextCodec, labels: Sequence[str]) -> list[list[int]]:
    """
    Returns the tokens of each label, with EOS.

    :raises WarmupError: If two of them are the same, as where a tokenizer knows neither.
    """
    label_tokens = [codec.encode_target(label) for label in labels]

    for idx, tokens in enumerate(label_tokens):
        first = label_tokens.index(tokens)

        if first != idx:
            raise WarmupError(
                f"The labels `{labels[first]}` and `{labels[idx]}` are the same tokens of this tokenizer, so that neither is likelier; leave one out, or name a tokenizer that knows them."
            )

    return label_tokens
