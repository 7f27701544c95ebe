# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_runs import tiny_options, to_args
from warmup_plugin.errors import WarmupError
from warmup_plugin.mlflow_recorder import MlflowRecorder, MlflowSection
from warmup_plugin.recipes.train import main


def test_run_asks_for_what_is_missing(
    tmp_path: Path,
    text_folder: Path,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)

    options = tiny_options(text_folder, tokenizer_file, mlflow__enabled=True)

    assert main(to_args(tmp_path / "run", options)) == 2

    error = "".join(capfd.readouterr())

    assert "run `pip install 'warmup_plugin[mlflow]'`, or leave it out" in error
    assert "Traceback" not in error


class TestMlflow:
    @pytest.fixture
    def mlflow(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        # Whatever stands in the environment of a user.
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
            monkeypatch.delenv(name, raising=False)

        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

        return pytest.importorskip("mlflow", reason="MLflow is not installed")

    def test_run_is_recorded_and_resumed(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path, mlflow: Any
    ) -> None:
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

        for num_steps in (2, 4):
            options = tiny_options(
                text_folder,
                tokenizer_file,
                mlflow__enabled=True,
                mlflow__uri=uri,
                mlflow__experiment="tests",
                regime__num_steps=num_steps,
                lr_scheduler__name="myle",
            )

            assert main(to_args(tmp_path / "my run", options)) == 0

        client = mlflow.MlflowClient(tracking_uri=uri)

        experiment = client.get_experiment_by_name("tests")

        [run] = client.search_runs([experiment.experiment_id])

        assert (run.info.run_name, run.info.status) == ("my run", "FINISHED")

        assert run.data.params["criterion.name"] == "sft"
        assert run.data.params["optimizer.config.betas"] == "[0.9, 0.98]"

        steps = client.get_metric_history(run.info.run_id, "train/smoothed_loss")

        assert [metric.step for metric in steps] == [1, 2, 3, 4]
        assert all(metric.value > 0 for metric in steps)

        assert {"valid/valid/bleu", "valid/valid/chrf"} <= run.data.metrics.keys()

    def test_server_that_is_not_there_is_a_sentence(
        self, tmp_path: Path, mlflow: Any
    ) -> None:
        section = MlflowSection(enabled=True, uri="http://127.0.0.1:9")

        with pytest.raises(WarmupError, match="MLflow cannot be used .*`mlflow.uri`"):
            MlflowRecorder(section, tmp_path)

        assert not list(tmp_path.iterdir())

    def test_run_outlives_what_is_lost_later(self, tmp_path: Path, mlflow: Any) -> None:
        tmp_path.joinpath("run.yaml").write_text("model: {arch: a}")

        file = tmp_path / "mlflow.db"

        recorder = MlflowRecorder(
            MlflowSection(enabled=True, uri=f"sqlite:///{file}"), tmp_path
        )

        with sqlite3.connect(file) as database:
            database.execute("drop table metrics")

        # What MLflow says of it is logged.
        recorder.record_metric_values("train", {"loss": 1.0}, 1)

        recorder.close()
