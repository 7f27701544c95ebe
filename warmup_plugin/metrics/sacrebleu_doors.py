# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
What is reached behind the public interface of sacreBLEU.

As of ``fairseq2_doors.py``: each function is one door, and a test tells when an upgrade
has closed it. ``corpus_score()`` would read the references again for every system, and
keep the statistics to itself, which resampling goes on from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric, Score


@contextmanager
def cached_references(
    metric: Metric, references: Sequence[Sequence[str | None]]
) -> Iterator[None]:
    """
    Lets a metric read references once for all hypotheses that are scored within.

    :param references: As ``corpus_score()`` takes them: the first ones of all sentences,
        the second ones and so on, ``None`` where there are fewer.
    """
    # Typed without what it knows to leave out.
    metric._ref_cache = metric._cache_references(cast(Any, references))

    try:
        yield
    finally:
        # Many times larger than the text.
        metric._ref_cache = None


def extract_statistics(metric: Metric, hypotheses: Sequence[str]) -> list[list[float]]:
    """Returns the statistics of each sentence, against the cached references."""
    stats: list[list[float]] = metric._extract_corpus_statistics(hypotheses, None)

    return stats


def aggregate_statistics(metric: Metric, stats: list[list[float]]) -> Score:
    """Returns the score of a corpus."""
    score: Score = metric._aggregate_and_compute(stats)

    return score


def compute_score(metric: Metric, sums: Sequence[float]) -> float:
    """Returns the score of summed statistics."""
    return float(metric._compute_score_from_stats(list(sums)).score)


def read_references(metric: Metric, references: Sequence[str]) -> Any:
    """Returns what a metric wants to know of the references of one sentence."""
    return metric._extract_reference_info(
        [metric._preprocess_segment(reference) for reference in references]
    )


def score_sentence(metric: Metric, hypothesis: str, references: Any) -> float:
    """
    Scores one sentence.

    :param references: As of :func:`read_references`.
    """
    stats = metric._compute_segment_statistics(
        metric._preprocess_segment(hypothesis), references
    )

    return compute_score(metric, stats)


def find_spm_file(tokenizer: str) -> tuple[str, Path]:
    """Returns where the model of a tokenizer is downloaded from, and where to."""
    from sacrebleu import utils
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS

    url = str(SPM_MODELS[tokenizer]["url"])

    return url, Path(utils.SACREBLEU_DIR, "models", Path(url).name)
