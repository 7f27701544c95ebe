# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Training that is validated by COMET, whose worker is a stand-in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.tiny_runs import SHORT_OUTPUTS, tiny_options, to_args
from tests.unit.metrics.fake_comet import install_comet_worker, write_comet_model
from warmup_plugin.commands import evaluate
from warmup_plugin.recipes.train import main
from warmup_plugin.runs.run_dir import RunDir


def has_worker_ended(folder: Path) -> bool:
    try:
        os.kill(int((folder / "pid").read_text()), 0)
    except ProcessLookupError:
        return True

    return False


def test_comet_picks_best_checkpoint_by_one_worker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text_folder: Path,
    tokenizer_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    install_comet_worker(tmp_path, monkeypatch)

    run = tmp_path / "run"

    options = tiny_options(
        text_folder,
        tokenizer_file,
        validation__metrics="[chrf,comet]",
        validation__comet_model=write_comet_model(tmp_path),
        regime__score_metric="comet",
        regime__validate_every_n_steps=1,
        regime__checkpoint_every_n_steps=1,
        regime__keep_best_n_checkpoints=2,
    )

    assert main(to_args(run, options)) == 0

    [file] = (run / "metrics" / "valid").glob("*.jsonl")

    shown = [json.loads(line)["COMET"] for line in file.read_text().splitlines()]

    assert RunDir(run).scores() == pytest.approx(dict(enumerate(shown, start=1)))

    assert len(shown) == 2 and min(shown) > 0

    # Of two validations.
    assert (tmp_path / "starts").read_text() == "x"

    assert has_worker_ended(tmp_path)

    # The run says what it is scored by.
    assert evaluate.main([str(run), "--num-bootstrap", "0"]) == 0

    assert "COMET: nrefs:1|model:tiny-comet|" in capsys.readouterr().out


def test_training_for_comet_and_validation_share_worker(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text_folder: Path,
    tokenizer_file: Path,
) -> None:
    install_comet_worker(tmp_path, monkeypatch)

    model = write_comet_model(tmp_path)

    metric = f"{{name: comet, config: {{model: {model}}}}}"

    options = tiny_options(
        text_folder,
        tokenizer_file,
        criterion__name="mrt",
        criterion__config=f"{{num_samples: 2, metric: {metric}, max_len_a: 0.0, max_len_b: 4}}",
        validation__metrics="[comet]",
        validation__comet_model=model,
        **SHORT_OUTPUTS,
    )

    assert main(to_args(tmp_path / "run", options)) == 0

    assert (tmp_path / "starts").read_text() == "x"

    assert has_worker_ended(tmp_path)


def test_worker_ends_when_training_breaks(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text_folder: Path,
    tokenizer_file: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    install_comet_worker(tmp_path, monkeypatch, fails=True)

    options = tiny_options(
        text_folder,
        tokenizer_file,
        validation__metrics="[comet]",
        validation__comet_model=write_comet_model(tmp_path),
    )

    assert main(to_args(tmp_path / "run", options)) == 2

    assert has_worker_ended(tmp_path)

    err = capfd.readouterr().err

    assert "ERROR: out of memory\n" in err
    assert "Traceback" not in err


def test_missing_environment_is_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text_folder: Path,
    tokenizer_file: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WARMUP_COMET_PYTHON", str(tmp_path / "nope"))

    options = tiny_options(
        text_folder, tokenizer_file, validation__metrics="[cometkiwi]"
    )

    assert main(to_args(tmp_path / "run", options)) == 2

    err = capfd.readouterr().err

    assert f"The environment of COMET has no interpreter {tmp_path}/nope; build" in err
    assert "Traceback" not in err
    assert not RunDir(tmp_path / "run").checkpoint_steps()
