# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Scores of single sentences, as for minimum Bayes risk and minimum risk training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import MetricUnavailable, References, SentenceMetric
from warmup_plugin.metrics.overlap import create_bleu, create_chrf
from warmup_plugin.metrics.sacrebleu_doors import read_references, score_sentence

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric

_FACTORIES: Final[dict[str, Callable[[str | None], Metric]]] = {
    "bleu": lambda target_lang: create_bleu(target_lang, effective_order=True),
    "chrf": lambda target_lang: create_chrf(),
}


def create_sentence_metric(metric: str, target_lang: str | None) -> SentenceMetric:
    """
    Creates what scores single outputs from 0 to 1.

    :param metric: See :func:`sentence_scores`.
    :param target_lang: See :func:`sentence_scores`.
    """

    def score(
        hypotheses: Sequence[str], references: References, sources: Sequence[str]
    ) -> Sequence[float]:
        scores = sentence_scores(
            metric, hypotheses, references, target_lang=target_lang
        )

        return [score / 100.0 for score in scores]

    return score


def sentence_scores(
    metric: str,
    hypotheses: Sequence[str],
    references: References,
    *,
    target_lang: str | None = None,
) -> list[float]:
    """
    Scores each hypothesis against the references of the same index.

    :param metric: ``chrf``, which is chrF++, or ``bleu``, of which orders longer than
        the hypothesis are left out (sacreBLEU's ``effective_order``).
    :param target_lang: Selects the tokenizer of BLEU.

    :returns: The scores, from 0 to 100.

    :raises WarmupError: The metric is unknown, its tokenizer is not installed, or the
        numbers of hypotheses and references differ.
    """
    create = _FACTORIES.get(metric)
    if create is None:
        raise WarmupError(
            f"`{metric}` scores no single sentences; use {' or '.join(f'`{m}`' for m in sorted(_FACTORIES))}."
        )

    if len(hypotheses) != len(references):
        raise WarmupError(
            f"There are {len(hypotheses)} hypotheses but the references of {len(references)}; give those of each hypothesis."
        )

    try:
        scorer = create(target_lang)
    except MetricUnavailable as ex:
        raise WarmupError(str(ex)) from None

    # Candidates of one source share their references; counting the n-grams of a text
    # is most of the work.
    known: dict[tuple[str, ...], Any] = {}

    scores = []

    for hypothesis, texts in zip(hypotheses, map(tuple, references)):
        info = known.get(texts)

        if info is None:
            info = known[texts] = read_references(scorer, texts)

        scores.append(score_sentence(scorer, hypothesis, info))

    return scores
