# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import atexit
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Final, final

from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import (
    Measurement,
    Metric,
    MetricUnavailable,
    References,
    average_over_references,
    measure_mean,
    sign_num_references,
)
from warmup_plugin.metrics.comet import (
    CometClient,
    CometRequestError,
    CometUnavailable,
    CometWorkers,
    find_comet_python,
)
from warmup_plugin.metrics.licences import find_licence

DEFAULT_MODEL: Final = "Unbabel/wmt22-comet-da"
"""What papers of the last years report as COMET."""

DEFAULT_KIWI_MODEL: Final = "Unbabel/wmt22-cometkiwi-da"


@final
class CometMetric(Metric):
    """
    Computes the mean score of a COMET model, in the model's own range.

    COMET reads one reference. Of several the score of a sentence is the mean.
    """

    def __init__(
        self,
        model: str,
        *,
        key: str = "comet",
        name: str = "COMET",
        gpus: int = 0,
        reads_references: bool = True,
        workers: CometWorkers | None = None,
    ) -> None:
        """
        :param model: A checkpoint, its folder or a name on the Hugging Face Hub.
        :param reads_references: If ``False``, the model is given no reference.
        :param workers: Keeps the worker for further measurements; ``None`` to end it
            after each.

        :raises MetricUnavailable: There is no environment of COMET.
        """
        self._python = _find_python()
        self._model = model
        self._key = key
        self._name = name
        self._gpus = gpus
        self._reads_references = reads_references
        self._workers = workers

    @override
    def start(self) -> None:
        if self._workers is None:
            return

        try:
            client = self._workers.get(self._python, self._model, gpus=self._gpus)
        except CometUnavailable as ex:
            raise MetricUnavailable(str(ex)) from None

        self._check_client(client)

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

        try:
            # One worker, which loads the model once, for all systems.
            with self._open_client() as client:
                self._check_client(client)

                scores = [
                    score_sentences(client, hypotheses, references, sources)
                    for hypotheses in systems
                ]

                versions = dict(client.versions)
        # The other metrics are not to be lost, for example where the GPU is full.
        except (CometUnavailable, CometRequestError) as ex:
            raise MetricUnavailable(str(ex)) from None

        model = _name_model(self._model)

        signature = (
            f"{sign_num_references(references)}|model:{model}|precision:fp32|"
            f"version:{_format_versions(versions)}"
        )

        details: dict[str, object] = {"model": self._model}

        if licence := find_licence(model):
            details["licence"] = licence

        return [
            [
                measure_mean(
                    self._key, self._name, system_scores, signature, details=details
                )
            ]
            for system_scores in scores
        ]

    def _open_client(self) -> AbstractContextManager[CometClient]:
        if self._workers is None:
            return CometClient(self._python, self._model, gpus=self._gpus)

        return nullcontext(
            self._workers.get(self._python, self._model, gpus=self._gpus)
        )

    def _check_client(self, client: CometClient) -> None:
        """
        :raises WarmupError: The model cannot do without what it is not given.
        """
        if client.requires_references and not self._reads_references:
            raise WarmupError(
                f"The metric `{self._key}` gives its model no references, but {self._model} requires them; give it to `comet`, or choose one that does without, such as `{DEFAULT_KIWI_MODEL}`."
            )


@final
class CometSentenceMetric:
    """
    Scores single outputs by a COMET model, as
    :class:`~warmup_plugin.metrics.base.SentenceMetric` asks for.

    Its worker is started with the first outputs.
    """

    def __init__(
        self, model: str, *, gpus: int = 0, workers: CometWorkers | None = None
    ) -> None:
        """
        :param model: See :class:`CometMetric`.
        :param workers: Keeps the worker, for others as well; ``None`` to have one that
            ends with the process.

        :raises WarmupError: There is no environment of COMET.
        """
        self._model = model
        self._gpus = gpus

        try:
            self._python = _find_python()
        except MetricUnavailable as ex:
            raise WarmupError(str(ex)) from None

        if workers is None:
            workers = CometWorkers()

            atexit.register(workers.__exit__, None, None, None)

        self._workers = workers

    def __call__(
        self,
        hypotheses: Sequence[str],
        references: References,
        sources: Sequence[str],
    ) -> Sequence[float]:
        try:
            client = self._workers.get(self._python, self._model, gpus=self._gpus)

            return score_sentences(client, hypotheses, references, sources)
        except (CometUnavailable, CometRequestError) as ex:
            raise WarmupError(str(ex)) from None


def score_sentences(
    client: CometClient,
    hypotheses: Sequence[str],
    references: References,
    sources: Sequence[str],
) -> list[float]:
    """
    Scores hypotheses; with several references each, the mean over them.

    :param references: Those of each hypothesis; none of any if the model is to do
        without.
    """
    if not client.uses_references:
        references = [[] for _ in references]

    return average_over_references(client.score, hypotheses, references, sources)


def _find_python() -> Path:
    """
    Finds the interpreter of COMET's environment.

    :raises MetricUnavailable: If there is none.
    """
    python = find_comet_python()

    if python is None:
        raise MetricUnavailable(
            "COMET needs an environment of its own, which is not there; build it "
            "by `make comet` in a clone, or name its interpreter by the "
            "environment variable WARMUP_COMET_PYTHON."
        )

    return python


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
