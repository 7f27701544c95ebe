# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What a tokenizer makes of a corpus, for whoever starts to train on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np

from warmup_plugin.data.corpus import Corpus, TokenSeqs
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.languages import UNSPACED, get_written_language
from warmup_plugin.tokenizers.codec import TextCodec

MAX_UNKNOWN_SHARE: Final = 0.01
"""More than one token in a hundred is no accident of a rare name or emoji."""

_MAX_SAMPLE_SIZE: Final = 2000
"""The pairs whose words are counted; all else is known of all."""

_MAX_WORD_LEN: Final = 15
"""Where words have more characters in the mean, white space does not separate them."""

_NUM_EXAMPLES: Final = 5

# The lines that examples of unknown characters are looked for in.
_MAX_SEARCHED_LINES: Final = 50


@final
@dataclass(frozen=True, kw_only=True)
class TokenStats:
    """Holds what the tokens of one side of a corpus look like."""

    name: str
    """The split and its side, such as ``train, sources (de)``."""

    lens: tuple[int, int, int, int]
    """At most so many tokens have 50, 90, 99 and 100 % of the pairs; special tokens and
    prompt count, as they do for the length limits."""

    tokens_per_unit: float
    """The tokens of a word or character, without special tokens and prompt."""

    unit: str
    """What is counted: ``word``, or ``character`` where writing separates no words."""

    sample_size: int
    """The number of pairs whose words were counted."""

    unknown_share: float
    """The share of tokens that stand for what the vocabulary does not hold, special
    tokens and prompt left out."""

    unknown_chars: Sequence[str]
    """Some of the characters that it does not hold, if the share is high."""

    def describe(self) -> str:
        """Returns the figures in one line for the log."""
        median, p90, p99, longest = self.lens

        percent = 100.0 * self.unknown_share

        # Few are not none.
        unknown = f"{percent:.2f}" if percent == 0.0 or percent >= 0.005 else "<0.01"

        return f"{self.name}: {self.tokens_per_unit:.2f} tokens a {self.unit} (in {self.sample_size:,} pairs), {unknown}% unknown; lengths in tokens: median {median}, 90% {p90}, 99% {p99}, longest {longest}."

    def find_warning(self) -> str | None:
        """Returns a warning if much of the text is unknown."""
        if self.unknown_share <= MAX_UNKNOWN_SHARE:
            return None

        examples = ""

        if self.unknown_chars:
            examples = f", such as {', '.join(repr(c) for c in self.unknown_chars)}"

        return f"{100.0 * self.unknown_share:.1f}% of the tokens of {self.name} are unknown to the tokenizer{examples}: the model can neither read nor write them. Check that the tokenizer is for this language and writing, or train one on this text with `python -m warmup_plugin train-tokenizer`."


def measure_tokens(
    corpus: Corpus,
    codec: TextCodec,
    *,
    name: str,
    source_lang: str | None,
    target_lang: str | None,
) -> list[TokenStats]:
    """
    Measures the two sides of a corpus of one direction.

    The tokens are counted, not made again; of the text two thousand lines are read, spread
    evenly over the corpus.

    :param name: What the corpus is called.
    """
    try:
        empty_source = codec.encode_source("").source
    except WarmupError:
        # A prompt without any text.
        empty_source = []

    empty_target = codec.encode_target("")

    return [
        _measure(
            _name_side(f"{name}, sources", source_lang),
            corpus.sources,
            corpus.source,
            lambda text: codec.encode_source(text).source,
            empty_source,
            num_further=0,
            unk_idx=codec.layout.unk_idx,
            lang=source_lang,
        ),
        _measure(
            _name_side(f"{name}, targets", target_lang),
            corpus.targets,
            corpus.target,
            codec.encode_target,
            empty_target,
            num_further=codec.layout.prefix_len,
            unk_idx=codec.layout.unk_idx,
            lang=target_lang,
        ),
    ]


def _name_side(name: str, lang: str | None) -> str:
    return name if lang is None else f"{name} ({lang})"


def _measure(
    name: str,
    seqs: TokenSeqs,
    get_text: Callable[[int], str],
    encode: Callable[[str], list[int]],
    empty: Sequence[int],
    *,
    num_further: int,
    unk_idx: int | None,
    lang: str | None,
) -> TokenStats:
    """
    :param empty: The encoded empty text: what is not of the text itself.
    :param num_further: The further tokens of each sequence that are not.
    """
    num_rows = len(seqs)

    rows = np.unique(
        np.linspace(0, num_rows - 1, min(num_rows, _MAX_SAMPLE_SIZE), dtype=np.int64)
    )

    num_own = seqs.lens - len(empty) - num_further

    num_words = num_chars = 0

    for row in rows:
        words = get_text(int(row)).split()

        num_words += len(words)
        num_chars += sum(map(len, words))

    is_unspaced = get_written_language(lang) in ("zh", "ja", *UNSPACED)

    if num_chars > _MAX_WORD_LEN * num_words:
        is_unspaced = True

    num_units = num_chars if is_unspaced else num_words

    unknown_share = 0.0

    if unk_idx is not None:
        num_unknown = seqs.count(unk_idx) - num_rows * list(empty).count(unk_idx)

        unknown_share = num_unknown / max(1, int(num_own.sum()))

    unknown_chars: list[str] = []

    if unk_idx is not None and unknown_share > MAX_UNKNOWN_SHARE:
        texts = [get_text(int(row)) for row in rows if unk_idx in seqs[int(row)]]

        unknown_chars = _find_unknown_chars(
            texts[:_MAX_SEARCHED_LINES], encode, unk_idx, list(empty).count(unk_idx)
        )

    median, p90, p99 = np.percentile(seqs.lens, [50, 90, 99], method="higher").tolist()

    return TokenStats(
        name=name,
        lens=(median, p90, p99, int(seqs.lens.max())),
        tokens_per_unit=float(num_own[rows].sum()) / max(1, num_units),
        unit="character" if is_unspaced else "word",
        sample_size=len(rows),
        unknown_share=unknown_share,
        unknown_chars=unknown_chars,
    )


def _find_unknown_chars(
    texts: Sequence[str],
    encode: Callable[[str], list[int]],
    unk_idx: int,
    num_usual: int,
) -> list[str]:
    """:param num_usual: How often the token stands in an encoded text without any."""
    unknown: list[str] = []

    for char in dict.fromkeys("".join(texts)):
        if not char.isspace() and encode(char).count(unk_idx) > num_usual:
            unknown.append(char)

            if len(unknown) == _NUM_EXAMPLES:
                break

    return unknown
