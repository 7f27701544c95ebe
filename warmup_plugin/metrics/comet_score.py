# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
from typing_extensions import override

from warmup_plugin.metrics.base import (
    Measurement,
    Metric,
    MetricUnavailable,
    References,
    measure_mean,
    sign_num_references,
)
from warmup_plugin.metrics.comet import (
    CometClient,
    CometRequestError,
    CometUnavailable,
    find_comet_python,
)


@final
class CometMetric(Metric):
    """
    Computes the mean score of a COMET model, in the model's own range.

    COMET reads one reference. Of several the score of a sentence is the mean.
    """

    def __init__(self, model: str, *, gpus: int = 0) -> None:
        """
        :param model: A checkpoint, its folder or a name on the Hugging Face Hub.

        :raises MetricUnavailable: There is no environment of COMET.
        """
        python = find_comet_python()

        if python is None:
            raise MetricUnavailable(
                "COMET needs an environment of its own, which is not there; build it "
                "by `make comet` in a clone, or name its interpreter by the "
                "environment variable WARMUP_COMET_PYTHON."
            )

        self._python = python
        self._model = model
        self._gpus = gpus

    @override
    def measure(
        self,
        systems: Sequence[Sequence[str]],
        references: References,
        sources: Sequence[str] | None,
    ) -> list[list[Measurement]]:
        assert sources is not None

        num_references = [len(texts) for texts in references]

        flat = [text for texts in references for text in texts]

        # Where the references of each sentence begin in it.
        starts = np.cumsum([0, *num_references[:-1]])

        def repeat(lines: Sequence[str]) -> list[str]:
            return [line for line, n in zip(lines, num_references) for _ in range(n)]

        try:
            # One worker, which loads the model once, for all systems.
            with CometClient(self._python, self._model, gpus=self._gpus) as client:
                # Some models read references that they do not require.
                scores = [
                    client.score(repeat(sources), repeat(hypotheses), flat)
                    for hypotheses in systems
                ]

                versions = dict(client.versions)
        # The other metrics are not to be lost, for example where the GPU is full.
        except (CometUnavailable, CometRequestError) as ex:
            raise MetricUnavailable(str(ex)) from None

        signature = (
            f"{sign_num_references(references)}|model:{_name_model(self._model)}|precision:fp32|"
            f"version:{_format_versions(versions)}"
        )

        return [
            [measure_mean("comet", "COMET", means.tolist(), signature)]
            for means in (
                np.add.reduceat(system_scores, starts) / num_references
                for system_scores in scores
            )
        ]


def _name_model(model: str) -> str:
    path = Path(model)

    # DIR/checkpoints/model.ckpt, whose own name tells nothing.
    if path.parent.name == "checkpoints":
        path = path.parent.parent

    return path.name


def _format_versions(versions: dict[str, str]) -> str:
    if "unbabel-comet" in versions:
        return f"unbabel-comet-{versions['unbabel-comet']}"

    return ",".join(f"{name}-{version}" for name, version in sorted(versions.items()))
