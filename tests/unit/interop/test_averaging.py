# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.common import assert_close
from tests.tiny_runs import load_weights, tiny_options, to_args
from warmup_plugin.__main__ import main as plugin_main
from warmup_plugin.commands import evaluate, generate
from warmup_plugin.errors import WarmupError
from warmup_plugin.interop.averaging import average_checkpoints
from warmup_plugin.recipes.train import main
from warmup_plugin.runs.run_dir import RunDir


@pytest.fixture(scope="module")
def run_folder(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, tokenizer_file: Path
) -> Path:
    """A run with the checkpoints 2, 4 and 6; not to be changed."""
    folder = tmp_path_factory.mktemp("run") / "run"

    options = tiny_options(
        text_folder,
        tokenizer_file,
        regime__num_steps=6,
        regime__keep_last_n_checkpoints=3,
        regime__keep_best_n_checkpoints=3,
    )

    assert main(to_args(folder, options)) == 0

    return folder


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> RunDir:
    """A copy of that run, in which the second checkpoint is the best."""
    shutil.copytree(run_folder, tmp_path / "run")

    scores = tmp_path / "run" / "checkpoints" / "scores"

    for step, score in ((2, 1.0), (4, 3.0), (6, 2.0)):
        (scores / f"step_{step}.txt").write_text(f"{score}\n")

    return RunDir(tmp_path / "run")


class TestAverageCheckpoints:
    @pytest.mark.parametrize(
        "num,best,steps", [(2, False, [4, 6]), (3, False, [2, 4, 6]), (1, True, [4])]
    )
    def test_call_averages_weights(
        self, run: RunDir, num: int, best: bool, steps: list[int]
    ) -> None:
        average = average_checkpoints(run, num=num, best=best)

        assert average.steps == steps

        assert average.path == run.path / "average" / f"{'best' if best else 'last'}_{num}"  # fmt: skip

        mean = load_weights(average.path, steps[-1])

        parts = [load_weights(run.path, step) for step in steps]

        # Tied weights come once.
        assert mean.keys() <= parts[0].keys()

        for name in mean:
            expected = torch.stack([part[name].double() for part in parts]).mean(dim=0)

            assert_close(mean[name].double(), expected, rtol=1e-6, atol=1e-7)

        content = json.loads((average.path / "average.json").read_text())

        assert content == {"run": str(run.path), "steps": steps}

    def test_best_are_those_with_best_scores(self, run: RunDir) -> None:
        assert average_checkpoints(run, num=2, best=True).steps == [4, 6]

    def test_average_is_a_run(self, run: RunDir, tmp_path: Path) -> None:
        average = average_checkpoints(run, num=2, best=False, output=tmp_path / "mean")

        # Needs nothing of the run that it comes from.
        shutil.rmtree(run.path)

        output = tmp_path / "out.txt"

        assert generate.main([str(average.path), "--no-rich", "--output", str(output)]) == 0  # fmt: skip

        assert output.read_text().count("\n") == 5

        assert evaluate.main([str(average.path), "--num-bootstrap", "0"]) == 0

        card = RunDir(average.path).card_file.read_text()

        assert "name: mean\n" in card and "step_6/model" in card

    def test_new_run_starts_from_average(
        self, run: RunDir, tmp_path: Path, text_folder: Path
    ) -> None:
        average = average_checkpoints(run, num=2, best=False)

        options = tiny_options(
            text_folder, None, model__arch=None, init_from=average.path
        )

        assert main(to_args(tmp_path / "new", options)) == 0

    @pytest.mark.parametrize(
        "num,best,message",
        [
            (4, False, "has 3 checkpoints, but 4 .*`regime.keep_last_n_checkpoints`"),
            (4, True, "has 3 checkpoints with a score, but 4 .*keep_best_n"),
            (0, False, "must be at least 1, but is 0"),
        ],
    )
    def test_call_raises_error_when_there_are_too_few(
        self, run: RunDir, num: int, best: bool, message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            average_checkpoints(run, num=num, best=best)

        assert not (run.path / "average").exists()

    def test_call_raises_error_when_checkpoint_is_damaged(self, run: RunDir) -> None:
        [file] = run.model_path(4).rglob("*.pt")

        file.write_bytes(file.read_bytes()[:500])

        with pytest.raises(WarmupError, match="step_4/model.*is damaged"):
            average_checkpoints(run, num=2, best=False)

        assert not list((run.path / "average").iterdir())

    def test_output_is_not_replaced(self, run: RunDir) -> None:
        average_checkpoints(run, num=2, best=False)

        with pytest.raises(WarmupError, match="last_2` exists already"):
            average_checkpoints(run, num=2, best=False)

    def test_call_raises_error_when_it_is_no_run(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match="is not a run directory"):
            average_checkpoints(RunDir(tmp_path), num=2, best=False)


class TestCommand:
    def test_command_works(
        self, run: RunDir, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert plugin_main(["average", str(run.path), "--last", "2"]) == 0

        assert capfd.readouterr().out == (
            f"{run.path}/average/last_2: the mean of the steps 4, 6\n"
        )

    def test_command_says_one_sentence(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert plugin_main(["average", str(tmp_path), "--best", "2"]) == 2

        assert capfd.readouterr().err.startswith("error: ")
