# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The data of the sentence browser.

Its keys are short, since they are repeated for each sentence; ``page.js`` reads them. A
text with marks is a list of parts, of which every second one is marked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

from warmup_plugin.report.lexical import find_words, split_words
from warmup_plugin.runs.records import Hypothesis, ScoredPair, Translation

Json: TypeAlias = dict[str, object]


def mark_words(text: str, known: Collection[str]) -> list[str]:
    """
    Splits a text into parts, of which the first one and every second after it is not
    marked, and the others are.

    :param known: The forms of the words to mark.
    """
    parts = mark_by_run(text, [known])

    begins_marked = bool(parts) and parts[0][1] == 1

    return [""] * begins_marked + [part for part, _ in parts]


def mark_by_run(text: str, known: Sequence[Collection[str]]) -> list[tuple[str, int]]:
    """
    Splits a text into parts with the runs that know their words.

    :param known: The forms that each run knows.

    :returns: Pairs of text and a number whose bit k is set if run k knows its words.
        Neighbours differ in this number.
    """
    parts: list[tuple[str, int]] = []

    def append(piece: str, mask: int) -> None:
        if parts and parts[-1][1] == mask:
            piece = parts.pop()[0] + piece

        if piece:
            parts.append((piece, mask))

    end = 0

    for word in find_words(text):
        mask = sum(1 << idx for idx, forms in enumerate(known) if word.form in forms)

        gap = text[end : word.begin]

        # White space between words of the same runs is marked with them.
        is_inside = bool(parts) and parts[-1][1] == mask and not gap.strip()

        append(gap, mask if is_inside else 0)

        append(text[word.begin : word.end], mask)

        end = word.end

    append(text[end:], 0)

    return parts


def build_sentence(
    line_nr: int,
    reference: str,
    lines: Sequence[Translation | None],
    chrf: Sequence[float | None],
    scores: Sequence[ScoredPair | None],
) -> Json:
    """
    Builds what the browser shows of a line of the test set.

    :param lines: What each run made of it; ``None`` for runs without translations. At
        least one is not ``None``.
    :param chrf: The chrF++ of each output.
    :param scores: What each run makes of the reference, where it is known.
    """
    source = next(line.source for line in lines if line is not None)

    known = [
        set() if line is None else set(split_words(line.best.warmup or ""))
        for line in lines
    ]

    reference_words = set(split_words(reference))

    return {
        "n": line_nr,
        "s": source,
        "l": len(split_words(source)),
        "r": mark_by_run(reference, known),
        "o": [
            None if line is None else _build_output(line, score, pair, reference_words)
            for line, score, pair in zip(lines, chrf, scores, strict=True)
        ],
    }


def _build_output(
    line: Translation,
    chrf: float | None,
    pair: ScoredPair | None,
    reference_words: Collection[str],
) -> Json:
    output = {**_build_hypothesis(line.best, reference_words), "f": _round(chrf, 2)}

    # The only one is the output itself.
    if len(line.hypotheses) > 1:
        output["h"] = [_build_hypothesis(h, reference_words) for h in line.hypotheses]

    if pair is not None:
        output["k"] = {
            "y": _round(pair.log_prob),
            "m": _round(pair.marginal_log_prob),
            "g": _round(pair.gain),
            "e": _round(pair.effective_sample_size),
            "d": [
                {
                    "c": mark_words(draw.warmup, reference_words),
                    "a": _round(draw.warmup_log_prob),
                    "b": _round(draw.target_log_prob),
                    "w": _round(draw.weight, 4),
                    "n": draw.count,
                }
                for draw in sorted(pair.draws, key=lambda d: -d.weight)
            ],
        }

    return output


def _build_hypothesis(
    hypothesis: Hypothesis, reference_words: Collection[str]
) -> dict[str, object]:
    warmup = hypothesis.warmup

    built: dict[str, object] = {
        "t": hypothesis.output,
        "c": None if warmup is None else mark_words(warmup, reference_words),
        "s": _round(hypothesis.score),
        "p": _round(hypothesis.log_prob),
        "a": _round(hypothesis.warmup_log_prob),
        "b": _round(hypothesis.target_log_prob),
        "w": _round(hypothesis.weight, 4),
    }

    return {key: value for key, value in built.items() if value is not None}


def _round(value: float | None, num_digits: int = 3) -> float | None:
    return None if value is None else round(value, num_digits)
