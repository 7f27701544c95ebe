# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Final

import pytest

from tests.commands import Command, Start, read_losses, run
from tests.tiny_runs import assert_same_weights, load_weights, tiny_options, to_args
from warmup_plugin.runs.run_dir import RunDir

NUM_ROUNDS: Final = int(os.environ.get("KILL_ROUNDS", "0"))
"""How often each criterion trains; set by ``make kill-test``."""

SEED: Final = int(os.environ.get("KILL_SEED", "1"))

NUM_STEPS: Final = 40

NUM_KILLS: Final = 6
"""After as many, a run is left to finish."""

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(NUM_ROUNDS == 0, reason="Takes minutes; run `make kill-test`."),
]


@pytest.mark.parametrize("criterion", ["sft", "warmup", "mrt"])
def test_killed_runs_equal_uninterrupted_one(
    tmp_path: Path,
    text_folder: Path,
    tokenizer_file: Path,
    start: Start,
    criterion: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    options = tiny_options(
        text_folder,
        tokenizer_file,
        criterion__name=criterion,
        regime__num_steps=NUM_STEPS,
        regime__validate_every_n_steps=4,
        regime__checkpoint_every_n_steps=4,
    )

    def train(name: str) -> Command:
        args = to_args(tmp_path / name, options)

        return start(name, "-m", "recipes.train", *args, is_warm=False)

    begin = time.monotonic()

    run(train("whole"))

    duration = time.monotonic() - begin

    weights = load_weights(tmp_path / "whole", NUM_STEPS)

    scores = RunDir(tmp_path / "whole").scores()

    losses = read_losses(tmp_path / "whole")

    assert set(losses) == set(range(1, NUM_STEPS + 1))

    rng = random.Random(f"{SEED} {criterion}")

    for round_nr in range(NUM_ROUNDS):
        name = f"killed_{round_nr}"

        moments = []

        for _ in range(NUM_KILLS):
            command = train(name)

            # Anywhere, or soon after a step: most of the time is that of the start.
            step = rng.choice([None, rng.randint(1, NUM_STEPS)])

            seconds = rng.uniform(0.0, duration if step is None else 0.3)

            moments.append(f"step {step} + {seconds:.2f} s")

            if step is not None and not has_reached(command, tmp_path / name, step):
                break

            if has_ended(command, seconds):
                break

            command.process.kill()

            assert command.wait() == -signal.SIGKILL
        else:
            command = train(name)

        assert command.wait() == 0, command.output

        with capfd.disabled():
            print(f"\n{name} of {criterion}: {', '.join(moments)}")

        assert "Traceback" not in command.output

        assert_same_weights(load_weights(tmp_path / name, NUM_STEPS), weights)

        assert RunDir(tmp_path / name).scores() == scores

        # A step that was repeated had the same loss, and none is missing.
        assert {
            step: set(values) for step, values in read_losses(tmp_path / name).items()
        } == {step: set(values) for step, values in losses.items()}


def has_reached(command: Command, run_dir: Path, step: int) -> bool:
    """Waits for a step; tells whether it was reached before the command ended."""
    file = run_dir / "metrics" / "train.jsonl"

    while command.process.poll() is None:
        if file.exists() and file.read_bytes().count(b"\n") >= step:
            return True

        time.sleep(0.001)

    return False


def has_ended(command: Command, seconds: float) -> bool:
    """Waits for as long; tells whether a command has ended by itself."""
    end = time.monotonic() + seconds

    while time.monotonic() < end:
        if command.process.poll() is not None:
            return True

        time.sleep(0.001)

    return False
