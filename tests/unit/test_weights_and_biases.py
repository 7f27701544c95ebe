# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from pathlib import Path

import pytest
import wandb
from wandb.errors import AuthenticationError, CommError

from tests.tiny_runs import tiny_options, to_args
from warmup_plugin.recipes.train import main
from warmup_plugin.weights_and_biases import generate_run_id


@pytest.fixture
def options(text_folder: Path, tokenizer_file: Path) -> dict[str, object]:
    return dict(
        tiny_options(
            text_folder,
            tokenizer_file,
            common__metric_recorders__wandb__enabled=True,
            common__metric_recorders__wandb__project="tests",
        )
    )


def test_run_is_logged_offline(
    tmp_path: Path,
    options: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")

    assert main(to_args(tmp_path / "run", options)) == 0, capfd.readouterr().err

    # At the latest the end of a process does so; what is written may wait until then,
    # also where another test has left a run of its own.
    wandb.teardown()

    run_id = (tmp_path / "run" / "wandb_run_id").read_text()

    [folder] = (tmp_path / "run" / "wandb").glob("offline-run-*")

    assert folder.name.endswith(f"-{run_id}")

    content = (folder / f"run-{run_id}.wandb").read_bytes()

    assert b"train/Label-Smoothed Loss" in content
    assert b"valid/BLEU" in content


@pytest.mark.parametrize("kind", [CommError, AuthenticationError])
def test_failure_is_a_sentence(
    kind: type[Exception],
    tmp_path: Path,
    options: dict[str, object],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(**kwargs: object) -> None:
        raise kind("Timed out: no such host\nConsider increasing it")

    monkeypatch.setattr(wandb, "init", fail)

    assert main(to_args(tmp_path / "run", options)) == 2

    error = "".join(capfd.readouterr())

    assert "cannot be used (Timed out: no such host); check" in error
    assert "`WANDB_MODE=offline`" in error
    assert "Traceback" not in error


def test_run_ids_differ_and_are_valid() -> None:
    a, b = generate_run_id(), generate_run_id()

    assert a != b
    assert re.fullmatch("[a-z0-9]{8}", a)
