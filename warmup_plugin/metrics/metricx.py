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
    Measurement,
    Metric,
    References,
    average_over_references,
    measure_mean,
    sign_num_references,
)
from warmup_plugin.metrics.licences import find_licence

DEFAULT_MODEL: Final = "google/metricx-24-hybrid-large-v2p6"


@final
class MetricXMetric(Metric):
    """
    Computes the mean score of a MetricX-24 model, from 0 to 25; lower is better.

    It reads one reference. Of several the score of a sentence is the mean.
    """

    def __init__(
        self, model: str, *, key: str, name: str, reads_references: bool
    ) -> None:
        """
        :param model: A folder or a name on the Hugging Face Hub.
        :param reads_references: If ``False``, the model is given no reference.

        :raises WarmupError: There is no such folder.
        """
        path = Path(model).expanduser()

        if path.is_dir():
            model = str(path)
        elif model.startswith((".", "/", "~")) or model.count("/") != 1:
            raise WarmupError(
                f"The model of MetricX {model} does not exist; give a folder or a name on the Hugging Face Hub, such as `{DEFAULT_MODEL}`."
            )

        self._model = model
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

        # PyTorch and transformers take seconds.
        from warmup_plugin.metrics.metricx_model import load_scorer

        scorer = load_scorer(self._model)

        rows = [
            average_over_references(scorer.score, hypotheses, references, sources)
            for hypotheses in systems
        ]

        name = Path(self._model).name

        signature = f"{sign_num_references(references)}|model:{name}|precision:{scorer.precision}|version:transformers-{version('transformers')}"

        details: dict[str, object] = {"model": self._model}

        if licence := find_licence(name):
            details["licence"] = licence

        return [
            [
                measure_mean(
                    self._key,
                    self._name,
                    scores,
                    signature,
                    higher_is_better=False,
                    details=details,
                )
            ]
            for scores in rows
        ]
