# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Choosing among outputs by a neural metric, once they are text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from warmup_plugin.metrics.base import SentenceMetric
from warmup_plugin.metrics.comet_score import DEFAULT_KIWI_MODEL, DEFAULT_MODEL

NEURAL_RANKINGS: Final = {"mbr_comet": DEFAULT_MODEL, "cometkiwi": DEFAULT_KIWI_MODEL}
"""The rankings by a model of COMET, and the model of each unless told otherwise."""


@dataclass(kw_only=True)
class RerankSection(Validatable):
    """Configures what chooses among the outputs of the generator."""

    by: str | None = None
    """`mbr_comet`: the mean score by COMET against all outputs of a source (minimum Bayes risk); `cometkiwi`: the score by a model that reads no references; ``None`` leaves them in their order."""

    model: str | None = None
    """The model of COMET; ``None`` for the usual one."""

    gpus: int = 0
    """The number of GPUs of COMET, 0 or 1."""

    num_best: int | None = None
    """The number of outputs to keep of a source; ``None`` for all."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.by is not None and self.by not in NEURAL_RANKINGS:
            result.add_error(
                f"`by` must be one of {', '.join(NEURAL_RANKINGS)}, but is `{self.by}`."
            )

        if self.gpus not in (0, 1):
            result.add_error("`gpus` must be 0 or 1.")

        if self.num_best is not None and self.num_best < 1:
            result.add_error("`num_best` must be greater than or equal to 1.")

        return result


@final
@dataclass(frozen=True)
class RankedOutput:
    """Holds one of the outputs of a source that differ."""

    text: str

    score: float

    weight: float
    """The share of the candidates with this output."""


def rank_by_metric(
    metric: SentenceMetric, sources: Sequence[str], candidates: Sequence[Sequence[str]]
) -> list[list[RankedOutput]]:
    """
    Orders the outputs of each source by what a metric without references says.

    All sources are scored at once, which a model does in full batches.

    :param candidates: The outputs of each source.
    """
    counts = [_count(texts) for texts in candidates]

    outputs = [text for group in counts for text in group]

    scores = metric(
        outputs,
        [[] for _ in outputs],
        [source for source, group in zip(sources, counts) for _ in group],
    )

    by_output = iter(scores)

    return [_rank(group, [next(by_output) for _ in group]) for group in counts]


def rank_by_utility(
    metric: SentenceMetric, sources: Sequence[str], candidates: Sequence[Sequence[str]]
) -> list[list[RankedOutput]]:
    """
    Orders the outputs of each source by their mean score against all of them, the own one
    included: minimum Bayes risk, the candidates being draws from the model.

    All sources are scored at once. Equal outputs are scored once and count as often as
    they were drawn.

    :param candidates: The outputs of each source.
    """
    counts = [_count(texts) for texts in candidates]

    pairs = [
        (source, output, reference)
        for source, group in zip(sources, counts)
        for output in group
        for reference in group
    ]

    scores = metric(
        [output for _, output, _ in pairs],
        [[reference] for _, _, reference in pairs],
        [source for source, _, _ in pairs],
    )

    by_pair = iter(scores)

    ranked = []

    for group in counts:
        total = sum(group.values())

        utilities = [
            sum(count * next(by_pair) for count in group.values()) / total
            for _ in group
        ]

        ranked.append(_rank(group, utilities))

    return ranked


def _count(texts: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}

    for text in texts:
        counts[text] = counts.get(text, 0) + 1

    return counts


def _rank(counts: dict[str, int], scores: Sequence[float]) -> list[RankedOutput]:
    """Orders outputs; of equal scores the one that came first stays so."""
    total = sum(counts.values())

    outputs = [
        RankedOutput(text, score, count / total)
        for (text, count), score in zip(counts.items(), scores, strict=True)
    ]

    return sorted(outputs, key=lambda output: -output.score)
