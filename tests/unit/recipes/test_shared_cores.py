# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""That commands take as many threads as there are free cores, and tell of crowds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tiny_runs import tiny_options, to_args
from warmup_plugin import threads
from warmup_plugin.__main__ import main
from warmup_plugin.recipes import running, train


class Crowd:
    """Others leave two of eight cores."""

    def __init__(self) -> None:
        self.num_looks = 0

    def count_free(self) -> int:
        self.num_looks += 1

        return 2


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Crowd:
    crowd = Crowd()

    monkeypatch.delenv("OMP_NUM_THREADS")

    monkeypatch.setattr(threads, "count_cores", lambda: 8)
    monkeypatch.setattr(running, "watch_cores", lambda: crowd)

    # Time to look at every step.
    monkeypatch.setattr(threads, "_CHECK_EVERY", 0.0)
    monkeypatch.setattr(threads, "CoreWatch", lambda: crowd)

    return crowd


def test_training_takes_free_cores(
    crowd: Crowd,
    text_folder: Path,
    tokenizer_file: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    num_threads = torch.get_num_threads()

    run = tmp_path / "run"

    assert train.main(to_args(run, tiny_options(text_folder, tokenizer_file))) == 0

    err = capfd.readouterr().err

    assert err.startswith("2 thread(s), since other processes keep 6 of 8 cores busy")

    assert "1 process on cpu, 2 thread(s) each." in err

    [start] = json.loads((run / "versions.json").read_text(encoding="utf-8"))

    assert start["num_threads"] == 2

    # Of each step, and once to begin with.
    assert crowd.num_looks > 2

    assert torch.get_num_threads() == num_threads


def test_lines_are_told_of_crowd(
    crowd: Crowd, sft_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "in.txt"

    text.write_text("ta momu\n", encoding="utf-8")

    # More threads than others leave.
    settings = ["--config", "common.torch.num_threads=4"]

    assert main(["translate", str(sft_run), str(text), "--no-rich", *settings]) == 0

    err = capfd.readouterr().err

    assert "that the 4 threads of this one compute with" in err
    assert "since other processes" not in err
