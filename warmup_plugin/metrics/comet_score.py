# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import atexit
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Final, final

from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import (
    MetricUnavailable,
    ModelMetric,
    References,
    average_over_references,
)
from warmup_plugin.metrics.comet import (
    CometClient,
    CometRequestError,
    CometUnavailable,
    CometWorkers,
    find_comet_python,
)

DEFAULT_MODEL: Final = "Unbabel/wmt22-comet-da"
"""What papers of the last years report as COMET."""

DEFAULT_KIWI_MODEL: Final = "Unbabel/wmt22-cometkiwi-da"


@final
class CometMetric(ModelMetric):
    """Computes the mean score of a COMET model, in the model's own range."""

    def __init__(
        self,
        model: str,
        *,
        key: str,
        name: str,
        reads_references: bool,
        gpus: int,
        workers: CometWorkers | None,
    ) -> None:
        """
        :param model: A checkpoint, its folder or a name on the Hugging Face Hub.
        :param workers: Keeps the worker for further measurements; ``None`` to end it
            after each.

        :raises MetricUnavailable: There is no environment of COMET.
        """
        super().__init__(model, key=key, name=name, reads_references=reads_references)

        self._model_name = _name_model(model)
        self._python = _find_python()
        self._gpus = gpus
        self._workers = workers

    @override
    def start(self) -> None:
        if self._workers is not None:
            self._score([], [], [])

    @override
    def _score(
        self,
        systems: Sequence[Sequence[str]],
        references: References,
        sources: Sequence[str],
    ) -> tuple[list[list[float]], str, str]:
        kept = self._workers

        try:
            with CometWorkers() if kept is None else nullcontext(kept) as workers:
                client = workers.get(self._python, self._model, gpus=self._gpus)

                if client.requires_references and not self._reads_references:
                    raise WarmupError(
                        f"The metric `{self._key}` gives its model no references, but {self._model} requires them; give it to `comet`, or choose one that does without, such as `{DEFAULT_KIWI_MODEL}`."
                    )

                # One worker, which loads the model once, for all systems.
                scores = [
                    score_sentences(client, hypotheses, references, sources)
                    for hypotheses in systems
                ]

                return scores, "fp32", _format_versions(client.versions)
        # The other metrics are not to be lost, for example where the GPU is full.
        except (CometUnavailable, CometRequestError) as ex:
            raise MetricUnavailable(str(ex)) from None


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
