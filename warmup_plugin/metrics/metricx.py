# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""MetricX-24 as a metric; ``metricx_model.py`` scores."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final, final

from typing_extensions import override

from warmup_plugin.errors import WarmupError
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

    def __init__(
        self, model: str, *, key: str, name: str, reads_references: bool
    ) -> None:
        """
        :param model: A folder or a name on the Hugging Face Hub.

        :raises WarmupError: There is no such folder.
        """
        path = Path(model).expanduser()

        if path.is_dir():
            model = str(path)
        elif model.startswith((".", "/", "~")) or model.count("/") != 1:
            raise WarmupError(
                f"The model of MetricX {model} does not exist; give a folder or a name on the Hugging Face Hub, such as `{DEFAULT_MODEL}`."
            )

        super().__init__(model, key=key, name=name, reads_references=reads_references)

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
