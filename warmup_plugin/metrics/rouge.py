# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""ROUGE-1, ROUGE-2, ROUGE-L and ROUGE-Lsum, by ``rouge-score``."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import groupby
from typing import Final, final

from typing_extensions import override

from warmup_plugin.metrics.base import (
    Measurement,
    MetricUnavailable,
    References,
    SystemwiseMetric,
    measure_mean,
    sign_num_references,
)
from warmup_plugin.metrics.languages import UNSPACED, get_written_language
from warmup_plugin.metrics.overlap import load_bleu

NAMES: Final = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "rougeLsum": "ROUGE-Lsum",
}


@final
class RougeMetric(SystemwiseMetric):
    """
    Computes the mean F1 of ROUGE, from 0 to 100; of several references, for each kind of
    ROUGE, the one that gives the most.

    English is tokenised and stemmed as ``rouge-score`` does by default. That keeps
    nothing but ``a`` to ``z`` and digits, so that other languages get another tokenizer
    and no stemmer.
    """

    def __init__(self, target_lang: str) -> None:
        """
        :raises MetricUnavailable: ``rouge-score``, or a tokenizer, is not installed.
        """
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError:
            raise MetricUnavailable(
                "ROUGE needs the package rouge-score, which is not installed; run "
                "`pip install 'warmup_plugin[metrics]'`."
            ) from None

        lang = get_written_language(target_lang)

        if lang == "en":
            self._scorer = RougeScorer(list(NAMES), use_stemmer=True)

            tokenizer = "tok:default|stem:porter"
        else:
            name, tokenize = _create_tokenizer(lang)

            self._scorer = RougeScorer(list(NAMES), tokenizer=_Tokenizer(tokenize))

            tokenizer = f"tok:{name}|stem:no"

        self._signature = (
            f"f:1|{tokenizer}|version:rouge-score-{version('rouge-score')}"
        )

    @override
    def measure_one(
        self, hypotheses: Sequence[str], references: References
    ) -> list[Measurement]:
        scores: dict[str, list[float]] = {key: [] for key in NAMES}

        for hypothesis, texts in zip(hypotheses, references):
            # The targets come first.
            result = self._scorer.score_multi(texts, hypothesis)

            for key in NAMES:
                scores[key].append(100.0 * float(result[key].fmeasure))

        signature = f"{sign_num_references(references)}|{self._signature}"

        return [
            measure_mean(key, name, scores[key], signature)
            for key, name in NAMES.items()
        ]


@final
class _Tokenizer:
    """What ``rouge-score`` calls."""

    def __init__(self, tokenize: Callable[[str], list[str]]) -> None:
        self._tokenize = tokenize

    def tokenize(self, text: str) -> list[str]:
        return self._tokenize(text.lower())


def _create_tokenizer(lang: str) -> tuple[str, Callable[[str], list[str]]]:
    name = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}.get(lang)

    if name is not None:
        # It puts spaces between tokens.
        tokenize = load_bleu(f"ROUGE for the target language {lang}", name).tokenizer

        return name, lambda text: tokenize(text).split()

    if lang in UNSPACED:
        return "char", lambda text: list("".join(split_words(text)))

    return "words", split_words


def split_words(text: str) -> list[str]:
    """
    Splits text into runs of letters, marks and digits of any script.

    Marks, which ``\\w`` of regular expressions leaves out, are the vowel signs of
    Hindi, for example, and would otherwise cut its words.
    """
    return [
        "".join(chars)
        for is_word, chars in groupby(text, key=_is_word_character)
        if is_word
    ]


def _is_word_character(char: str) -> bool:
    return unicodedata.category(char)[0] in "LMN"
