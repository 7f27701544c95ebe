# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Protocol, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from warmup_plugin.metrics.licences import find_licence

DEFAULT_METRICS: Final = ("bleu", "chrf")
"""What translations are scored by unless told otherwise."""

FloatArray = NDArray[np.float64]

References = Sequence[Sequence[str]]
"""All right translations of each sentence, at least one; not all sentences need have as
many."""

ScoreFn = Callable[[FloatArray], FloatArray]
"""Maps statistics, one row a corpus, to one score a row."""


class MetricUnavailable(Exception):
    """
    Reports that a metric cannot be computed here, since an optional part is missing.

    The message is one sentence that names the part and the remedy. The score is then
    ``null`` with this reason; only where scores are indispensable is it an error.
    """


@final
@dataclass(frozen=True)
class MetricScore:
    """Holds the corpus score of one system."""

    name: str

    score: float | None
    """``None`` if it cannot be computed here; see ``reason``."""

    signature: str
    """
    How it was computed, in the form of sacreBLEU's signatures. Scores compare only if
    their signatures are equal.
    """

    ci_low: float | None
    """The lower end of the 95% bootstrap interval."""

    ci_high: float | None

    num_sentences: int

    key: str = ""
    """The name in files and settings, such as ``chrf``."""

    higher_is_better: bool = True

    reason: str | None = None
    """Why there is no score."""

    details: Mapping[str, object] = field(default_factory=dict)
    """What belongs to the score, such as the number of invalid answers."""

    @property
    def notes(self) -> list[str]:
        """What a score is to be read with: the signature, and what not all have."""
        notes = [self.signature]

        if not self.higher_is_better:
            notes.append("lower is better")

        if "licence" in self.details:
            notes.append(f"licence of the model: {self.details['licence']}")

        return notes


@final
@dataclass(frozen=True)
class Comparison:
    """Holds the paired tests of one system against the baseline."""

    system: str

    metric: str

    score: float

    baseline_score: float

    p_value: float
    """Of the approximate randomization, which is two-sided."""

    signature: str

    bootstrap_p_value: float | None = None
    """Of sacreBLEU's paired bootstrap, if it was asked for."""

    key: str = ""
    """The metric's name in files and settings."""


@final
@dataclass(frozen=True)
class Evaluation:
    """Holds the scores of several systems; the first one is the baseline."""

    scores: Mapping[str, Sequence[MetricScore]]
    """By the name of the system, in one order for all."""

    comparisons: Sequence[Comparison]
    """For each other system and metric, in this order."""

    measurements: Mapping[str, Mapping[str, Measurement]] = field(default_factory=dict)
    """By the name of the system and the key of the score; none without a score."""

    is_resampled: bool = True
    """Whether intervals and tests were asked for."""


@final
@dataclass(frozen=True)
class Measurement:
    """
    Holds what a metric says of the output of one system.

    Every score here is a function of sums over sentences: of n-gram counts for BLEU,
    of edits and words for TER, of sentence scores and ones for a mean. Resampling
    therefore needs the statistics of the sentences alone.
    """

    key: str

    name: str

    score: float

    signature: str

    stats: FloatArray
    """*Shape:* :math:`(N,D)`, one row a sentence."""

    score_sums: ScoreFn
    """Computes corpus scores from sums of rows of ``stats``."""

    sentence_fn: ScoreFn | None = None
    """Computes sentence scores from ``stats``; ``None`` if a sentence has none."""

    higher_is_better: bool = True

    details: Mapping[str, object] = field(default_factory=dict)

    def sentence_scores(self) -> FloatArray | None:
        return None if self.sentence_fn is None else self.sentence_fn(self.stats)

    def score_subset(self, mask: NDArray[np.bool_]) -> float:
        """Scores the sentences at which ``mask`` is ``True`` as a corpus."""
        # (N, D) -> (1, D)
        sums = self.stats[mask].sum(axis=0, keepdims=True)

        return float(self.score_sums(sums)[0])


def sign_num_references(references: References) -> str:
    """Returns how many references there are, as sacreBLEU's signatures say it."""
    numbers = {len(texts) for texts in references}

    return f"nrefs:{numbers.pop() if len(numbers) == 1 else 'var'}"


def measure_mean(
    key: str,
    name: str,
    sentence_scores: Sequence[float],
    signature: str,
    *,
    higher_is_better: bool = True,
    details: Mapping[str, object] | None = None,
) -> Measurement:
    """Makes a measurement of a metric that is the mean over the sentences."""
    scores = np.asarray(sentence_scores, dtype=np.float64)

    return Measurement(
        key,
        name,
        float(scores.mean()),
        signature,
        # (N, 2)
        np.stack([scores, np.ones_like(scores)], axis=1),
        score_sums=_divide_sums,
        sentence_fn=_divide_sums,
        higher_is_better=higher_is_better,
        details=details or {},
    )


def _divide_sums(sums: FloatArray) -> FloatArray:
    means: FloatArray = sums[:, 0] / sums[:, 1]

    return means


def average_over_references(
    score: Callable[[Sequence[str], Sequence[str], Sequence[str] | None], list[float]],
    hypotheses: Sequence[str],
    references: References,
    sources: Sequence[str],
) -> list[float]:
    """
    Scores hypotheses by what reads at most one reference.

    :param score: Gets sources, hypotheses and references, or ``None`` for these.
    :param references: Those of each hypothesis; none of any to score without.

    :returns: The mean over the references of each.
    """
    if not any(references):
        return score(sources, hypotheses, None)

    num_references = [len(texts) for texts in references]

    # Where the references of each sentence begin.
    starts = np.cumsum([0, *num_references[:-1]])

    def repeat(lines: Sequence[str]) -> list[str]:
        return [line for line, n in zip(lines, num_references) for _ in range(n)]

    scores = score(
        repeat(sources),
        repeat(hypotheses),
        [text for texts in references for text in texts],
    )

    means: list[float] = (np.add.reduceat(scores, starts) / num_references).tolist()

    return means


class Metric(ABC):
    """Scores the outputs of systems for the same sources against references."""

    def start(self) -> None:
        """
        Loads what is kept between measurements, so that what is wrong shows early.

        :raises MetricUnavailable: An optional part is missing.
        """

    def check_references(self, references: References) -> None:
        """
        Checks that references are of the kind that is scored by.

        :raises WarmupError: If one of them is not.
        """

    @abstractmethod
    def measure(
        self,
        systems: Sequence[Sequence[str]],
        references: References,
        sources: Sequence[str] | None,
    ) -> list[list[Measurement]]:
        """
        Measures all systems at once, so that what they share is computed once.

        :param systems: The hypotheses of each system.
        :param references: Those of each sentence; as many as each system has hypotheses.
            A sentence has none only if the metric does not need them.
        :param sources: ``None`` only if the metric does not need them.

        :returns: For each system, one measurement for each score of the metric.

        :raises MetricUnavailable: An optional part turns out to be missing.
        """


class SystemwiseMetric(Metric):
    """A metric for which systems share nothing but the references."""

    @override
    def measure(
        self,
        systems: Sequence[Sequence[str]],
        references: References,
        sources: Sequence[str] | None,
    ) -> list[list[Measurement]]:
        return [self.measure_one(hypotheses, references) for hypotheses in systems]

    @abstractmethod
    def measure_one(
        self, hypotheses: Sequence[str], references: References
    ) -> list[Measurement]: ...


class ModelMetric(Metric):
    """
    The mean score of a model that reads source and output, with or without reference.

    It reads one reference. Of several the score of a sentence is the mean.
    """

    higher_is_better: ClassVar[bool] = True

    def __init__(
        self, model: str, *, key: str, name: str, reads_references: bool
    ) -> None:
        """
        :param model: A file, a folder or a name on the Hugging Face Hub.
        :param reads_references: If ``False``, the model is given no reference.
        """
        self._model = model
        self._model_name = Path(model).name
        self._key = key
        self._name = name
        self._reads_references = reads_references

    @override
    def measure(
        self,
        systems: Sequence[Sequence[str]],
        references: References,
        sources: Sequence[str] | None,
    ) -> list[list[Measurement]]:
        assert sources is not None

        if not self._reads_references:
            references = [[] for _ in references]

        scores, precision, version = self._score(systems, references, sources)

        signature = f"{sign_num_references(references)}|model:{self._model_name}|precision:{precision}|version:{version}"

        details: dict[str, object] = {"model": self._model}

        if licence := find_licence(self._model_name):
            details["licence"] = licence

        return [
            [
                measure_mean(
                    self._key,
                    self._name,
                    system_scores,
                    signature,
                    higher_is_better=self.higher_is_better,
                    details=details,
                )
            ]
            for system_scores in scores
        ]

    @abstractmethod
    def _score(
        self,
        systems: Sequence[Sequence[str]],
        references: References,
        sources: Sequence[str],
    ) -> tuple[list[list[float]], str, str]:
        """
        :param references: Those of each sentence; none of any to score without.

        :returns: For each system the score of each sentence, the precision of the model
            and the version of what runs it.
        """


class SentenceMetric(Protocol):
    """Scores single outputs, higher for better ones: what ``mrt`` trains for."""

    def __call__(
        self,
        hypotheses: Sequence[str],
        references: References,
        sources: Sequence[str],
    ) -> Sequence[float]:
        """
        :param references: Those of the hypothesis of the same index.
        :param sources: That of the hypothesis of the same index.

        :returns: One finite number a hypothesis, such that 1 is a good output rather
            than 100.

        :raises WarmupError: If what the metric needs is missing.
        """
