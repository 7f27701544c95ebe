# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""MetricX-24 as a metric; ``metricx_model.py`` scores."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Final, final

from typing_extensions import override

from warmup_plugin.metrics.base import (
    ModelMetric,
    References,
    average_over_references,
)

DEFAULT_MODEL: Final = "google/metricx-24-hybrid-large-v2p6"


@final
class MetricXMetric(ModelMetric):
    """Computes the mean score of a MetricX-24 model, from 0 to 25; lower is better."""

    higher_is_better = False

    @override
    def _score(
        self,
        systems: Sequence[Sequence[str]],
        references: References,
        sources: Sequence[str],
    ) -> tuple[list[list[float]], str, str]:
        # PyTorch and transformers take seconds.
        from warmup_plugin.metrics.metricx_model import load_scorer

        scorer = load_scorer(self._model)

        scores = [
            average_over_references(scorer.score, hypotheses, references, sources)
            for hypotheses in systems
        ]

        return scores, scorer.precision, f"transformers-{version('transformers')}"
