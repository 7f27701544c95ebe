# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from scripts import run_suite
from tests.tiny_runs import (
    ROOT,
    SHORT_OUTPUTS,
    command_environment,
    python_command,
    take_snapshot,
    tiny_options,
)
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import dump_yaml
from warmup_plugin.suite.runs import is_finished, measure_training

pytestmark = pytest.mark.integration

TIMEOUT: Final = 400.0
"""The seconds that a command may take, also on a machine that is busy."""


@pytest.fixture(autouse=True)
def warm_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a suite in this process start commands whose imports are made."""
    [python] = python_command()

    monkeypatch.setattr(sys, "executable", python)


def write_grid(file: Path, text_folder: Path, tokenizer_file: Path) -> Path:
    """Writes a grid of two systems and two seeds, whose first training is longer."""
    options = tiny_options(
        text_folder,
        tokenizer_file,
        criterion__name=None,
        regime__num_steps=None,
        **SHORT_OUTPUTS,
    )

    grid = {
        "name": "tiny",
        "out": str(file.parent / "out"),
        "seeds": [1, 2],
        "baseline": "sft",
        "tasks": [
            {
                "name": "toy",
                "config": {
                    name: value if isinstance(value, int) else str(value)
                    for name, value in options.items()
                },
                "split": "test",
            }
        ],
        "systems": [
            {
                "name": "sft",
                "title": "SFT",
                "config": {
                    "criterion.name": "sft",
                    "regime.validate_every_n_steps": 10,
                    "regime.checkpoint_every_n_steps": 10,
                },
                "steps": 40,
            },
            {
                "name": "warmup",
                "init_from": "sft",
                "config": {"criterion.name": "warmup"},
                "steps": 2,
            },
        ],
    }

    file.write_text(dump_yaml(grid))

    return file


def test_broken_suite_goes_on(
    tmp_path: Path,
    text_folder: Path,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    grid = write_grid(tmp_path / "grid.yaml", text_folder, tokenizer_file)

    out = tmp_path / "out"

    first_run = out / "toy" / "sft" / "seed_1"

    log_file = tmp_path / "suite.log"

    with log_file.open("wb") as fp:
        process = subprocess.Popen(
            python_command(ROOT / "scripts" / "run_suite.py", grid),
            env=command_environment(),
            stdout=fp,
            stderr=subprocess.STDOUT,
        )

    try:
        end = time.monotonic() + TIMEOUT

        while not RunDir(first_run).checkpoint_steps():
            assert process.poll() is None, log_file.read_text()
            assert time.monotonic() < end, log_file.read_text()

            time.sleep(0.002)

        process.terminate()

        assert process.wait(TIMEOUT) == 128 + signal.SIGTERM, log_file.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()

    # The signal was passed on: the training has saved what it had.
    assert "train toy/sft/1: stopped" in log_file.read_text()
    assert not is_finished(first_run)
    assert not (out / "toy" / "sft" / "seed_2").exists()

    table = (out / "tiny.md").read_text()

    assert "| SFT | 0 of 2 |  |  |  |  |  |  |" in table
    assert "- toy/sft/1: not trained" in table

    for name, value in command_environment().items():
        monkeypatch.setenv(name, value)

    assert run_suite.main([str(grid), "--jobs", "2"]) == 0, capsys.readouterr().out

    assert "steps were not done" not in capsys.readouterr().out

    # It went on with the broken run and began each other once.
    num_starts = {
        path.parent.name + path.name: len(json.loads(file.read_text()))
        for file in out.rglob("versions.json")
        if (path := file.parent)
    }

    assert num_starts == {
        "sftseed_1": 2,
        "sftseed_2": 1,
        "warmupseed_1": 1,
        "warmupseed_2": 1,
    }

    assert measure_training(first_run).num_steps == 40

    report = json.loads((out / "tiny.json").read_text())["tasks"]["toy"]

    for name, num_steps in (("sft", 40), ("warmup", 2)):
        system = report["systems"][name]

        for seed in ("1", "2"):
            run = system["runs"][seed]

            assert run["num_steps"] == num_steps
            assert run["seconds"] > 0.0
            assert run["missing"] is None

            config = RunDir(Path(run["path"])).load_config()

            assert isinstance(config["common"], dict)
            assert config["common"]["seed"] == int(seed)

            # The scores are those that `evaluate` keeps with the run.
            file = Path(run["path"]) / "evaluate" / "test.best.json"

            [scores] = json.loads(file.read_text())["systems"].values()

            assert run["scores"] == {s["key"]: s["score"] for s in scores}

    difference = report["systems"]["warmup"]["against"]["sft"]["chrf"]

    assert set(difference["by_seed"]) == {"1", "2"}
    assert 0.0 < difference["p_sentences"] <= 1.0
    assert difference["p_seeds"] in (0.5, 1.0)

    table = (out / "tiny.md").read_text()

    [row] = [line for line in table.splitlines() if line.startswith("| warmup |")]

    cells = [cell.strip() for cell in row.strip("|").split("|")]

    assert cells[:3] == ["warmup", "2 of 2", "+2"]
    assert all(cells)
    assert "Not measured" not in table

    assert (out / "tiny.tex").read_text().count(r" \\") == 3

    # All of it is done, so that nothing is run and nothing is written but the tables.
    before = take_snapshot(out / "toy")

    assert run_suite.main([str(grid)]) == 0
    assert "begins" not in capsys.readouterr().out
    assert take_snapshot(out / "toy") == before


def test_legs_are_shared_decoded_and_chained(
    tmp_path: Path,
    text_folder: Path,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"

    data.mkdir()

    # Three languages, two of them alike.
    for split in ("train", "valid", "test"):
        for lang, name in (("a", "src"), ("b", "tgt"), ("c", "src")):
            shutil.copyfile(text_folder / f"{split}.{name}", data / f"{split}.{lang}")

    options = tiny_options(
        data,
        None,
        criterion__name=None,
        regime__num_steps=None,
        dataset__source_lang="a",
        dataset__target_lang="c",
        dataset__prompt="{target_lang}: {source}",
        **SHORT_OUTPUTS,
    )

    legs = {
        "dataset.directions": {"a-b": {}, "b-c": {}},
        "tokenizer.path": str(tokenizer_file),
    }

    few = {"dataset.max_train_pairs": 9, "init_checkpoint": "last"}

    task = {"split": "test", "checkpoint": "last"}

    trained = {
        "steps": 2,
        "config": {
            "criterion.name": "sft",
            **{k: v if isinstance(v, int) else str(v) for k, v in options.items()},
        },
    }

    of_task = {"tasks": "n9"}

    grid = {
        "name": "tiny",
        "out": str(out),
        "seeds": [1],
        "baseline": "sft",
        "tasks": [
            {**task, "name": "legs", "config": legs, "direction": "b-c"},
            {**task, "name": "n9", "config": few, "direction": "a-c"},
        ],
        "systems": [
            {"name": "legs", "tasks": "legs", **trained},
            {"name": "sft", **of_task, "init_from": "legs/legs", **trained},
            {"name": "plain", **of_task}
            | {"decode": "sft", "options": ["--beam-size", 1]},
            {"name": "cascade", **of_task}
            | {"cascade": "legs/legs", "directions": ["a-b", "b-c"]},
        ],
    }

    file = tmp_path / "grid.yaml"

    file.write_text(dump_yaml(grid))

    for name, value in command_environment().items():
        monkeypatch.setenv(name, value)

    assert run_suite.main([str(file)]) == 0, capsys.readouterr().out

    assert (out / "legs/legs/seed_1/generate/test.b-c.last.txt").is_file()

    log = "".join(p.read_text() for p in (out / "n9/sft/seed_1/logs").rglob("*.log"))

    assert "train (the first 9 of 60 pairs): all 9 pairs kept." in log

    folder = out / "n9" / "cascade"

    sources = (folder / "seed_1.sources.jsonl").read_text().splitlines()

    assert [json.loads(line)["source"] for line in sources] == (
        (data / "test.a").read_text().splitlines()
    )

    for name in ("seed_1.a-b.jsonl", "seed_1.jsonl"):
        assert len((folder / name).read_text().splitlines()) == 5

    report = json.loads((out / "tiny.json").read_text())["tasks"]["n9"]["systems"]

    for system in ("plain", "cascade"):
        assert report[system]["runs"]["1"]["missing"] is None
        assert "chrf" in report[system]["against"]["sft"]

    # All of it is done.
    before = take_snapshot(out / "n9")

    capsys.readouterr()

    assert run_suite.main([str(file)]) == 0
    assert "begins" not in capsys.readouterr().out
    assert take_snapshot(out / "n9") == before


def test_directions_of_another_folder_are_scored(
    tmp_path: Path,
    text_folder: Path,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flores, out = tmp_path / "flores", tmp_path / "out"

    flores.mkdir()

    for lang in ("src", "tgt"):
        shutil.copyfile(text_folder / f"test.{lang}", flores / f"devtest.{lang}")

    directions = ["src-tgt", "tgt-src"]

    options = tiny_options(
        text_folder,
        tokenizer_file,
        criterion__name="sft",
        regime__num_steps=None,
        dataset__source_lang=None,
        dataset__target_lang=None,
        **SHORT_OUTPUTS,
    )

    config = {k: v if isinstance(v, int) else str(v) for k, v in options.items()}

    grid = {
        "name": "tiny",
        "out": str(out),
        "seeds": [1],
        "baseline": "sft",
        "tasks": [
            {
                "name": "toy",
                "split": [{"name": "devtest", "data": str(flores)}],
                "direction": directions,
                "config": {
                    **config,
                    "dataset.directions": {name: {} for name in directions},
                },
                "steps": 2,
            }
        ],
        "systems": [
            {"name": "sft"},
            {"name": "greedy", "decode": "sft", "options": ["--beam-size", 1]},
        ],
    }

    file = tmp_path / "grid.yaml"

    file.write_text(dump_yaml(grid))

    for name, value in command_environment().items():
        monkeypatch.setenv(name, value)

    assert run_suite.main([str(file)]) == 0, capsys.readouterr().out

    report = json.loads((out / "tiny.json").read_text())["tasks"]["toy"]

    # The mean is that of the scores that `evaluate` keeps with the run.
    scores = []

    for name in directions:
        path = out / "toy/sft/seed_1/evaluate" / f"devtest.{name}.best.json"

        [(_, chrf)] = json.loads(path.read_text())["systems"].values()

        assert chrf["key"] == "chrf"

        scores.append(chrf["score"])

    run = report["systems"]["sft"]["runs"]["1"]

    assert run["scores"]["chrf"] == pytest.approx(sum(scores) / 2)

    for part in (report, *report["directions"].values()):
        difference = part["systems"]["greedy"]["against"]["sft"]["chrf"]

        assert 0.0 < difference["p_sentences"] <= 1.0

    # All of it is done.
    capsys.readouterr()

    assert run_suite.main([str(file)]) == 0
    assert "begins" not in capsys.readouterr().out
