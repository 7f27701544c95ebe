# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from tests.commands import Command, Start, read_losses, run
from tests.tiny_runs import (
    SHORT_OUTPUTS,
    assert_same_weights,
    load_weights,
    tiny_options,
    to_args,
)
from warmup_plugin.commands import evaluate, generate
from warmup_plugin.recipes import train
from warmup_plugin.runs.run_dir import RunDir

pytestmark = pytest.mark.integration

NUM_STEPS: Final = 24

CHECKPOINT_EVERY: Final = 6


def check_files(run_dir: Path, *, has_warmup: bool) -> None:
    """Checks what generating and evaluating left behind."""
    output = run_dir / "generate" / "test.best.txt"

    lines = output.read_text(encoding="utf-8").splitlines()

    assert len(lines) == 5

    text = output.with_name("test.best.txt.jsonl").read_text(encoding="utf-8")

    records = [json.loads(line) for line in text.splitlines()]

    assert [record["output"] for record in records] == lines

    for record in records:
        assert (record["warmup"] is not None) == has_warmup
        assert math.isfinite(record["log_prob"])

    report = json.loads((run_dir / "evaluate" / "test.best.json").read_text())

    [scores] = report["systems"].values()

    assert [score["name"] for score in scores] == ["BLEU", "chrF2++"]

    for score in scores:
        assert score["ci_low"] <= score["score"] <= score["ci_high"]
        assert "version:" in score["signature"]

    assert report["num_sentences"] == 5


@pytest.mark.parametrize(
    "criterion,stop_signal",
    [("sft", signal.SIGINT), ("warmup", signal.SIGTERM)],
)
def test_interrupted_runs_equal_uninterrupted_one(
    tmp_path: Path,
    text_folder: Path,
    tokenizer_file: Path,
    start: Start,
    criterion: str,
    stop_signal: signal.Signals,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = tiny_options(
        text_folder,
        tokenizer_file,
        criterion__name=criterion,
        regime__num_steps=NUM_STEPS,
        regime__validate_every_n_steps=CHECKPOINT_EVERY,
        regime__checkpoint_every_n_steps=CHECKPOINT_EVERY,
        regime__publish_metrics_every_n_steps=3,
        **SHORT_OUTPUTS,
    )

    def train(name: str) -> Command:
        args = to_args(tmp_path / name, options)

        return start(name, "-m", "recipes.train", *args)

    def has_checkpoint(name: str) -> Callable[[], bool]:
        return lambda: bool(RunDir(tmp_path / name).checkpoint_steps())

    whole, killed = train("whole"), train("killed")

    killed.wait_for(has_checkpoint("killed"))

    killed.kill()

    # It had to go on from somewhere.
    assert RunDir(tmp_path / "killed").checkpoint_steps()[-1] < NUM_STEPS

    killed, stopped = train("killed"), train("stopped")

    stopped.wait_for(has_checkpoint("stopped"))

    stopped.process.send_signal(stop_signal)

    assert stopped.wait() == 128 + stop_signal, stopped.output

    steps = RunDir(tmp_path / "stopped").checkpoint_steps()

    assert steps[-1] < NUM_STEPS
    assert "Traceback" not in stopped.output

    run(whole)
    run(killed)
    run(train("stopped"))

    weights = load_weights(tmp_path / "whole", NUM_STEPS)

    for name in ("killed", "stopped"):
        assert_same_weights(load_weights(tmp_path / name, NUM_STEPS), weights)

    losses, resumed_losses = (read_losses(tmp_path / n) for n in ("whole", "killed"))

    assert set(losses) == set(range(3, NUM_STEPS + 1, 3))

    # Bit for bit, before and after it was killed.
    for step, [values] in losses.items():
        assert set(resumed_losses[step]) == {values}

    run_dir = tmp_path / "killed"

    # In this process, which saves two starts.
    assert generate.main([str(run_dir), "--no-rich"]) == 0

    assert "5 lines written to" in "".join(capfd.readouterr())

    assert evaluate.main([str(run_dir), "--num-bootstrap", "50"]) == 0

    assert "chrF2++" in capfd.readouterr().out

    check_files(run_dir, has_warmup=criterion == "warmup")


def join_shards(run_dir: Path, step: int) -> dict[str, Tensor]:
    """Loads the parameters of a checkpoint, whatever wrote it."""
    folder = run_dir / "checkpoints" / f"step_{step}" / "model" / "pp_00" / "tp_00"

    shards: list[dict[str, Any]] = [
        torch.load(file, weights_only=True) for file in sorted(folder.glob("*.pt"))
    ]

    # FSDP cuts along the first dimension, the last share may be smaller.
    return {name: torch.cat([s[name] for s in shards]) for name in shards[0]}


class TestTwoProcesses:
    def train(
        self,
        start: Start,
        out: Path,
        text_folder: Path,
        tokenizer_file: Path,
        criterion: str,
        data_parallelism: str,
    ) -> Command:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            criterion__name=criterion,
            trainer__data_parallelism=data_parallelism,
            regime__num_steps=4,
            dataset__cache=out.parent / "cache",
            **SHORT_OUTPUTS,
        )

        return start(
            out.name,
            *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2),
            *("-m", "recipes.train", *to_args(out, options)),
        )

    def test_runs_finish_and_agree(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path, start: Start
    ) -> None:
        first = tmp_path / "sft_ddp"

        def train(criterion: str, data_parallelism: str) -> Path:
            out = tmp_path / f"{criterion}_{data_parallelism}"

            args = (text_folder, tokenizer_file, criterion, data_parallelism)

            output = run(self.train(start, out, *args))

            assert "; 2 processes on cpu, 1 thread(s) each.\n" in output

            # By one process of the first run.
            assert output.count("tokenising, once") == (2 if out == first else 0)

            losses = read_losses(out)

            assert set(losses) == {1, 2, 3, 4}

            for [values] in losses.values():
                assert all(math.isfinite(value) for value in values)

            [versions] = json.loads((out / "versions.json").read_text())

            assert versions["num_processes"] == 2

            assert sorted(os.listdir(out / "logs"))[-2:] == ["rank_0.log", "rank_1.log"]

            return out

        sft = train("sft", "ddp")
        ddp = train("warmup", "ddp")
        fsdp = train("warmup", "fsdp")

        # Under DDP a model whose gradients are not synchronised differs from rank to
        # rank and nobody tells; under FSDP there is only one.
        ddp_weights, fsdp_weights = join_shards(ddp, 4), join_shards(fsdp, 4)

        assert ddp_weights.keys() == fsdp_weights.keys()

        for name in ddp_weights:
            torch.testing.assert_close(
                fsdp_weights[name], ddp_weights[name], rtol=1e-4, atol=1e-5
            )

        # Evaluating translates first.
        args: Sequence[object] = (sft, ddp, fsdp, "--num-bootstrap", 50)

        output = run(start("evaluate", "-m", "recipes.evaluate", *args))

        assert str(fsdp) in output

        for run_dir in (sft, ddp, fsdp):
            check_files(run_dir, has_warmup=run_dir is not sft)

    def start_ranks(
        self,
        start: Start,
        out: Path,
        options: Sequence[dict[str, object]],
        *module: object,
    ) -> list[Command]:
        """Starts processes as torchrun does, but none ends the others."""
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))

            port = sock.getsockname()[1]

        return [
            start(
                f"rank_{rank}",
                *("-m", *(module or ["recipes.train"]), *to_args(out, rank_options)),
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE=str(len(options)),
                LOCAL_WORLD_SIZE=str(len(options)),
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )
            for rank, rank_options in enumerate(options)
        ]

    def test_signal_to_one_ends_all_with_checkpoint(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path, start: Start
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            regime__num_steps=100_000,
            regime__validate_every_n_steps=5,
            regime__checkpoint_every_n_steps=5,
            **SHORT_OUTPUTS,
        )

        run_dir = RunDir(tmp_path / "run")

        commands = self.start_ranks(start, run_dir.path, [options, options])

        commands[1].wait_for(lambda: bool(run_dir.checkpoint_steps()))

        commands[1].process.send_signal(signal.SIGTERM)

        for command in commands:
            assert command.wait() == 128 + signal.SIGTERM, command.output

        log = (run_dir.path / "logs" / "rank_0.log").read_text()

        assert "Another process received SIGTERM" in log

        # Not only those that were due.
        assert f"at step {run_dir.checkpoint_steps()[-1]}!" in log

    # The second one does not tokenise where the first one fills the cache.
    @pytest.mark.parametrize("cache,rank", [("none", 1), ("cache", 0)])
    def test_signal_to_one_that_tokenises_ends_all(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        start: Start,
        cache: str,
        rank: int,
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            dataset__cache=cache if cache == "none" else tmp_path / cache,
        )

        module = "tests.integration.signalled_training"

        commands = self.start_ranks(
            *(start, tmp_path / "run", [options, options], module, rank)
        )

        for n, command in enumerate(commands):
            assert command.wait() == 128 + signal.SIGTERM, command.output
            assert "Traceback" not in command.output

            log = (tmp_path / "run" / "logs" / f"rank_{n}.log").read_text()

            assert "No step has begun, so that there is nothing to save" in log

        assert list((tmp_path / "cache").glob("*")) == []

    def test_other_data_is_noticed(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path, start: Start
    ) -> None:
        other_folder = tmp_path / "other"

        shutil.copytree(text_folder, other_folder)

        for file in other_folder.glob("train.*"):
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)

            file.write_text("".join([lines[1], lines[0], *lines[2:]]), encoding="utf-8")

        commands = self.start_ranks(
            start,
            tmp_path / "run",
            [tiny_options(f, tokenizer_file) for f in (text_folder, other_folder)],
        )

        for command in commands:
            assert command.wait() == 2, command.output

        assert "Process 1 has read other pairs" in commands[0].output
        assert "Traceback" not in commands[0].output + commands[1].output

    @pytest.mark.parametrize("data_parallelism", ["ddp", "fsdp"])
    def test_resumed_adapter_gets_its_base_from_the_first_process(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        start: Start,
        data_parallelism: str,
    ) -> None:
        base, out = tmp_path / "base", tmp_path / "run"

        assert train.main(to_args(base, tiny_options(text_folder, tokenizer_file))) == 0

        options = tiny_options(
            text_folder,
            None,
            criterion__name="warmup",
            init_from=base,
            lora__rank=2,
            optimizer__config__lr=0.01,
            lr_scheduler__config__num_warmup_steps=1,
            trainer__data_parallelism=data_parallelism,
            regime__num_steps=4,
            regime__keep_last_n_checkpoints=2,
            **SHORT_OUTPUTS,
        )

        def run_twice(folder: str) -> dict[str, Tensor]:
            (tmp_path / folder).mkdir()

            run(
                start(
                    folder,
                    *("-m", "torch.distributed.run", "--standalone"),
                    *("--nproc-per-node", 2, "-m", "tests.integration.opened_files"),
                    *(tmp_path / folder, *to_args(out, options)),
                )
            )

            return load_weights(out, 4)

        weights = run_twice("whole")

        # As if it was killed after the first checkpoint.
        shutil.rmtree(out / "checkpoints" / "step_4")

        assert_same_weights(run_twice("resumed"), weights)

        for folder in ("whole", "resumed"):
            for rank in range(2):
                file = tmp_path / folder / f"opened_{rank}"

                opened = file.read_text() if file.exists() else ""

                assert (str(base) in opened) == (rank == 0)
                assert (str(out) in opened) == (folder == "resumed")
