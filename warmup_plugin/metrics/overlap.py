# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""BLEU, chrF++ and TER, as sacreBLEU computes them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Final, final

import numpy as np
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import (
    FloatArray,
    Measurement,
    Metric,
    MetricUnavailable,
    References,
    ScoreFn,
)
from warmup_plugin.metrics.languages import UNSPACED, get_written_language
from warmup_plugin.metrics.sacrebleu_doors import (
    aggregate_statistics,
    cached_references,
    compute_score,
    extract_statistics,
    find_spm_file,
)

# Every command reads this file, and few of them score.
if TYPE_CHECKING:
    import sacrebleu.metrics.base
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.metrics.ter import TER

# All other languages are tokenised by "13a".
_BLEU_TOKENIZERS: Final = {
    "zh": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
    **dict.fromkeys(sorted(UNSPACED), "char"),
}

# It narrates what it does.
logging.getLogger("sacrebleu").setLevel(logging.WARNING)


def create_bleu(
    target_lang: str | None,
    tokenizer: str | None = None,
    *,
    effective_order: bool = False,
) -> BLEU:
    """
    Creates sacreBLEU's BLEU.

    :param target_lang: Selects the tokenizer unless ``tokenizer`` does.
    :param tokenizer: One of sacreBLEU's tokenizers, such as ``flores200``.

    :raises MetricUnavailable: The tokenizer is not installed or cannot be downloaded.
    """
    from sacrebleu.metrics.bleu import BLEU

    if tokenizer is None:
        tokenizer = _BLEU_TOKENIZERS.get(get_written_language(target_lang), "13a")

    if tokenizer not in BLEU.TOKENIZERS:
        names = ", ".join(sorted(BLEU.TOKENIZERS))

        raise WarmupError(
            f"BLEU has no tokenizer `{tokenizer}`; choose one of {names}."
        )

    what = "BLEU"

    if target_lang is not None:
        what += f" for the target language {target_lang}"

    return load_bleu(what, tokenizer, effective_order=effective_order)


def load_bleu(what: str, tokenizer: str, *, effective_order: bool = False) -> BLEU:
    """
    Loads BLEU with a tokenizer of sacreBLEU.

    :param what: What needs it, for the message.
    :param tokenizer: Such as ``flores200``: the pieces of one SentencePiece model for all
        languages, or ``spBLEU-1K``, which knows more of them.

    :raises MetricUnavailable: It is not installed or cannot be downloaded.
    """
    from sacrebleu.metrics.bleu import BLEU

    try:
        return BLEU(tokenize=tokenizer, effective_order=effective_order)
    # sacreBLEU exits where a download has trouble with certificates.
    except (RuntimeError, ImportError, OSError, SystemExit) as ex:
        reason = " ".join(str(ex).split())

    extra = tokenizer.removesuffix("-mecab")

    if extra != tokenizer:
        raise MetricUnavailable(
            f"{what} needs the tokenizer {tokenizer}, which is not installed; run "
            f"`pip install 'sacrebleu[{extra}]'`."
        )

    url, file = find_spm_file(tokenizer)

    raise MetricUnavailable(
        f"{what} needs the tokenizer {tokenizer}, which cannot be loaded ({reason}); "
        f"download {url} to {file}."
    )


def create_chrf() -> CHRF:
    """Creates chrF++: chrF with words and pairs of words."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(word_order=2)


def create_ter(target_lang: str | None) -> TER:
    """
    Creates TER.

    Its words are what spaces separate. Chinese and Japanese, which have none, are split
    into characters by Tercom's own rules (``norm:yes``, ``asian:yes`` in the
    signature).
    """
    from sacrebleu.metrics.ter import TER

    has_no_spaces = get_written_language(target_lang) in ("zh", "ja")

    return TER(normalized=has_no_spaces, asian_support=has_no_spaces)


@final
class OverlapMetric(Metric):
    """Makes a metric of sacreBLEU one of ours."""

    def __init__(
        self,
        key: str,
        metric: sacrebleu.metrics.base.Metric,
        *,
        name: str | None = None,
        sentence_metric: sacrebleu.metrics.base.Metric | None = None,
        higher_is_better: bool = True,
    ) -> None:
        """
        :param name: What the score is called; ``None`` for what sacreBLEU calls it.
        :param sentence_metric: What computes sentence scores, from the same statistics,
            if not ``metric``.
        """
        self._key = key
        self._metric = metric
        self._name = name
        self._sentence_metric = sentence_metric or metric
        self._higher_is_better = higher_is_better

    @override
    def measure(
        self,
        systems: Sequence[Sequence[str]],
        references: References,
        sources: Sequence[str] | None,
    ) -> list[list[Measurement]]:
        # sacreBLEU wants the first ones of all sentences, the second ones and so on.
        streams = list(zip_longest(*references))

        with cached_references(self._metric, streams):
            return [[self._measure_one(hypotheses)] for hypotheses in systems]

    def _measure_one(self, hypotheses: Sequence[str]) -> Measurement:
        stats = extract_statistics(self._metric, hypotheses)

        score = aggregate_statistics(self._metric, stats)

        return Measurement(
            self._key,
            self._name or score.name,
            float(score.score),
            # Known only once references have been read.
            str(self._metric.get_signature()),
            np.array(stats, dtype=np.float64),
            score_sums=_make_score_fn(self._metric),
            sentence_fn=_make_score_fn(self._sentence_metric),
            higher_is_better=self._higher_is_better,
        )


def _make_score_fn(metric: sacrebleu.metrics.base.Metric) -> ScoreFn:
    def score(sums: FloatArray) -> FloatArray:
        scores = [compute_score(metric, row) for row in sums.tolist()]

        return np.array(scores, dtype=np.float64)

    return score
