# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
What the words of warmups have to do with source, output and reference.

A *word* is what stands between white space, without the punctuation and symbols around
it, whatever its case. Chinese characters and Japanese kana have no space between words:
there each character is a word, in whatever language the rest of the line is.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final, TypeAlias, final

from warmup_plugin.runs.records import Draw

NUM_POSITION_BINS: Final = 10

NUM_MOST_FREQUENT: Final = 10

TEXTS: Final = ("source", "output", "reference", "other reference")
"""What warmups are compared with. The last one, the reference of an unrelated line, shows
how much overlap frequent words alone make."""

# Kana with their extensions and half-width forms, and ideographs.
_CHARACTER: Final = (
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d"
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)

_PIECE: Final = re.compile(rf"[{_CHARACTER}]|[^\s{_CHARACTER}]+")


@final
@dataclass(frozen=True)
class Word:
    """Holds a word and where in the text it stands."""

    form: str
    """What counts as equal: without case, in Unicode's composed form."""

    begin: int

    end: int


Words: TypeAlias = Sequence[str]
"""The forms of the words of a text."""


def find_words(text: str) -> list[Word]:
    """Finds the words of a text, see the head of this module."""
    words = []

    for match in _PIECE.finditer(text):
        begin, end = match.span()

        while begin < end and _is_punctuation(text[begin]):
            begin += 1

        while begin < end and _is_punctuation(text[end - 1]):
            end -= 1

        if begin < end:
            form = unicodedata.normalize("NFC", text[begin:end].casefold())

            words.append(Word(form, begin, end))

    return words


def split_words(text: str) -> list[str]:
    """Returns the forms of the words of a text."""
    return [word.form for word in find_words(text)]


def _is_punctuation(char: str) -> bool:
    # Punctuation, symbols, and what is no character, such as U+200B and U+FEFF.
    return unicodedata.category(char)[0] in "PSC"


def count_overlap(warmup: Words, text: Words, n: int) -> tuple[int, int]:
    """
    Counts the n-grams of a warmup that the text has too, at least once.

    An n-gram that the warmup repeats counts as often as it stands there.

    :returns: How many the text has, and how many there are.
    """
    known = set(_ngrams(text, n))

    ngrams = _ngrams(warmup, n)

    return sum(ngram in known for ngram in ngrams), len(ngrams)


def _ngrams(words: Words, n: int) -> list[tuple[str, ...]]:
    return [tuple(words[idx : idx + n]) for idx in range(len(words) - n + 1)]


def measure_longest_copy(warmup: Words, text: Words) -> int:
    """Measures the longest sequence of words without a gap that both texts have."""
    longest = 0

    # The longest common sequence that ends at each word of the text.
    lengths = [0] * (len(text) + 1)

    for word in warmup:
        previous = lengths

        lengths = [0] * (len(text) + 1)

        for idx, other in enumerate(text, start=1):
            if word == other:
                lengths[idx] = previous[idx - 1] + 1

                longest = max(longest, lengths[idx])

    return longest


def count_repeated(warmup: Words) -> int:
    """Counts the words that have stood earlier in the warmup."""
    return len(warmup) - len(set(warmup))


def locate_shared_words(warmup: Words, reference: Words) -> list[tuple[float, float]]:
    """
    Locates the words of a warmup in the reference.

    :returns: Pairs of position and weight. The position is the middle of the word, from
        0 (begin of the reference) to 1 (end). A word of the warmup has weight 1 in all,
        however often the warmup repeats it, divided among the places where the reference
        has it: choosing the first one would favour the beginning.
    """
    shared = set(warmup)

    counts = Counter(word for word in reference if word in shared)

    return [
        ((idx + 0.5) / len(reference), 1 / counts[word])
        for idx, word in enumerate(reference)
        if word in counts
    ]


@final
@dataclass(frozen=True)
class WarmupText:
    """Holds the warmup of one line and the texts it is compared with."""

    warmup: str

    source: str

    output: str

    reference: str


@final
@dataclass(frozen=True)
class LexicalAnalysis:
    """
    Holds what the warmups of a test set look like.

    Shares are between 0 and 1, and ``None`` where there is nothing to divide by.
    """

    num_warmups: int

    num_empty: int
    """Warmups without a word."""

    num_distinct: int

    most_frequent: Sequence[tuple[str, int]]
    """Those that occur more than once, with their number."""

    lengths: Sequence[int]
    """The number of words of each warmup, empty ones included."""

    repeated: float | None
    """Of all words, those that have stood earlier in the same warmup."""

    overlaps: dict[tuple[str, int], float | None]
    """By the name of the text and n: of all n-grams, those that the text has too."""

    copied: dict[str, float | None]
    """By the name of the text: the longest sequence of words that the text has too,
    divided by the length of the warmup; the mean over warmups that are not empty."""

    positions: Sequence[float]
    """How the words that warmup and reference share are distributed over the reference,
    in bins of equal width from its begin to its end; empty if there are none."""

    mean_position: float | None
    """The mean position of those words, from 0 to 1."""

    @property
    def empty(self) -> float | None:
        return _divide(self.num_empty, self.num_warmups)

    @property
    def distinct(self) -> float | None:
        return _divide(self.num_distinct, self.num_warmups)

    @property
    def mean_length(self) -> float | None:
        return _divide(sum(self.lengths), self.num_warmups)


def analyze_warmups(texts: Sequence[WarmupText]) -> LexicalAnalysis:
    """Analyzes the warmups of a test set, one a line."""
    lines = [
        {name: split_words(part) for name, part in asdict(text).items()}
        for text in texts
    ]

    # Neighbours may be of one document, so the unrelated line is far away.
    for idx, line in enumerate(lines):
        other = lines[(idx + len(lines) // 2) % len(lines)]

        # The only line has no other.
        line["other reference"] = [] if other is line else other["reference"]

    overlaps: dict[tuple[str, int], float | None] = {}

    for name in TEXTS:
        for n in (1, 2):
            counts = [count_overlap(line["warmup"], line[name], n) for line in lines]

            found, total = sum(c[0] for c in counts), sum(c[1] for c in counts)

            is_there = name != "other reference" or len(lines) > 1

            overlaps[name, n] = _divide(found, total) if is_there else None

    filled = [line for line in lines if line["warmup"]]

    copied = {
        name: _mean(
            measure_longest_copy(line["warmup"], line[name]) / len(line["warmup"])
            for line in filled
        )
        for name in ("source", "output", "reference")
    }

    places = [
        place
        for line in filled
        for place in locate_shared_words(line["warmup"], line["reference"])
    ]

    lengths = [len(line["warmup"]) for line in lines]

    frequencies = Counter(text.warmup.strip() for text in texts)

    total_weight = sum(weight for _, weight in places)

    return LexicalAnalysis(
        num_warmups=len(lines),
        num_empty=len(lines) - len(filled),
        num_distinct=len(frequencies),
        most_frequent=[
            (warmup, count)
            for warmup, count in frequencies.most_common(NUM_MOST_FREQUENT)
            if count > 1
        ],
        lengths=lengths,
        repeated=_divide(
            sum(count_repeated(line["warmup"]) for line in lines), sum(lengths)
        ),
        overlaps=overlaps,
        copied=copied,
        positions=_fill_bins(places),
        mean_position=_divide(
            sum(pos * weight for pos, weight in places), total_weight
        ),
    )


def _fill_bins(places: Sequence[tuple[float, float]]) -> list[float]:
    bins = [0.0] * NUM_POSITION_BINS

    for position, weight in places:
        bins[int(position * NUM_POSITION_BINS)] += weight

    total = sum(bins)

    return [value / total for value in bins] if total > 0.0 else []


@final
@dataclass(frozen=True)
class DrawsAnalysis:
    """Holds what warmups that were drawn, several a line, look like."""

    num_draws: int

    distinct: float | None
    """Of the warmups of a line, those that differ from all earlier ones of it; the mean
    over lines."""

    overlap: float | None
    """Of the words of a warmup, those that the reference has too; the mean over the
    warmups of a line that have words, then over lines."""

    weighted_overlap: float | None
    """The same, but the mean over a line weighted. Above :attr:`overlap`, the warmups
    that share words with the reference are those that make it likelier."""


def analyze_draws(lines: Sequence[tuple[Sequence[Draw], str]]) -> DrawsAnalysis:
    """
    Analyzes drawn warmups, several a line.

    :param lines: The distinct warmups drawn for a line, and its reference.
    """
    distinct, plain, weighted = [], [], []

    num_draws = 0

    for draws, text in lines:
        if not draws:
            continue

        num_draws += (num_line_draws := sum(draw.count for draw in draws))

        # The same text may be of other tokens.
        distinct.append(len({draw.warmup.strip() for draw in draws}) / num_line_draws)

        reference = split_words(text)

        # (share, count, weight)
        shares = []

        for draw in draws:
            found, total = count_overlap(split_words(draw.warmup), reference, 1)

            if total > 0:
                shares.append((found / total, draw.count, draw.weight))

        total_count = sum(count for _, count, _ in shares)

        total_weight = sum(weight for _, _, weight in shares)

        # Weights may underflow where only an empty warmup has any.
        if total_weight > 0.0:
            plain.append(sum(s * count for s, count, _ in shares) / total_count)

            weighted.append(sum(s * weight for s, _, weight in shares) / total_weight)

    return DrawsAnalysis(num_draws, _mean(distinct), _mean(plain), _mean(weighted))


def _divide(a: float, b: float) -> float | None:
    return a / b if b else None


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)

    return _divide(sum(numbers), len(numbers))
