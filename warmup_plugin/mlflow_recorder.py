# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The metrics of a run in MLflow, beside those that fairseq2 writes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

from fairseq2.logging import log
from fairseq2.metrics.recorders import MetricRecorder
from fairseq2.recipe.composition import register_config_section
from fairseq2.runtime.dependency import DependencyContainer, DependencyResolver
from torch import Tensor
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_text_atomically
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import flatten_config, load_yaml


@dataclass(kw_only=True)
class MlflowSection:
    """Configures what MLflow is told of a run; it needs `pip install 'warmup_plugin[mlflow]'`."""

    enabled: bool = False
    """If ``True``, metrics and the config are written to MLflow as well."""

    uri: str | None = None
    """Where to, such as `http://HOST:5000` or `sqlite:///FILE`; ``None`` for `MLFLOW_TRACKING_URI`, or else what MLflow uses by itself."""

    experiment: str = "warmup_plugin"
    """The experiment that the run belongs to."""

    run_name: str | None = None
    """What the run is called; ``None`` for the name of its directory."""


@final
class MlflowRecorder(MetricRecorder):
    """Records metric values to MLflow, by the names that ``regime.score_metric`` has."""

    def __init__(self, section: MlflowSection, output_dir: Path) -> None:
        try:
            self._mlflow: Any = import_module("mlflow")
        except ImportError as ex:
            raise WarmupError(
                f"`mlflow.enabled` needs MLflow, which cannot be imported ({ex}): run `pip install 'warmup_plugin[mlflow]'`, or leave it out."
            ) from None

        try:
            self._start(section, output_dir)
        except Exception as ex:
            raise WarmupError(
                f"MLflow cannot be used ({_shorten(ex)}): check `mlflow.uri` or `MLFLOW_TRACKING_URI`, and that its server runs, or leave out `mlflow.enabled`."
            ) from None

    def _start(self, section: MlflowSection, output_dir: Path) -> None:
        if section.uri is not None:
            self._mlflow.set_tracking_uri(section.uri)

        self._mlflow.set_experiment(section.experiment)

        id_file = output_dir / "mlflow_run_id"

        if id_file.is_file():
            # The run is resumed.
            self._mlflow.start_run(run_id=id_file.read_text(encoding="utf-8"))

            return

        run = self._mlflow.start_run(run_name=section.run_name or output_dir.name)

        write_text_atomically(id_file, run.info.run_id)

        config = flatten_config(load_yaml(RunDir(output_dir).run_file))

        self._mlflow.log_params(config)

    @override
    def record_metric_values(
        self, category: str, values: Mapping[str, object], step_nr: int | None = None
    ) -> None:
        try:
            self._mlflow.log_metrics(
                dict(_flatten_values(category, values)), step=step_nr
            )
        # The run has files of its own, so it outlives a server.
        except Exception as ex:
            log.warning("MLflow has not taken the metrics of step {} ({}).", step_nr, _shorten(ex))  # fmt: skip

    @override
    def close(self) -> None:
        try:
            self._mlflow.end_run()
        except Exception as ex:
            log.warning("MLflow was not told that the run has ended ({}).", _shorten(ex))  # fmt: skip


def register_mlflow(container: DependencyContainer) -> None:
    """Registers the recorder with fairseq2, by the section ``mlflow`` of the config."""
    register_config_section(container, "mlflow", MlflowSection, keyed=False)

    def maybe_create(resolver: DependencyResolver) -> MetricRecorder | None:
        section = resolver.resolve(MlflowSection)

        return (
            MlflowRecorder(section, resolver.resolve(Path)) if section.enabled else None
        )

    container.collection.register(MetricRecorder, maybe_create)


def _flatten_values(name: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, (int, float, Tensor)):
        # MLflow refuses other characters.
        yield re.sub(r"[^-\w./: ]", "_", name), float(value)
    elif isinstance(value, Mapping):
        for key, element in value.items():
            yield from _flatten_values(f"{name}/{key}", element)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for idx, element in enumerate(value):
            yield from _flatten_values(f"{name} {idx}", element)


def _shorten(ex: Exception) -> str:
    lines = str(ex).strip().splitlines()

    return lines[0] if lines else type(ex).__name__
