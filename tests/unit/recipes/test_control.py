# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from fairseq2.checkpoint import CheckpointManager
from fairseq2.gang import FakeGang, ReduceOperation
from fairseq2.task import TaskStopException
from fairseq2.trainer import Trainer
from fairseq2.validator import NOOP_VALIDATOR
from torch import Tensor
from typing_extensions import override

from tests.common import device
from warmup_plugin.recipes.control import (
    REPEAT_SECONDS,
    PatienceEarlyStopper,
    StopSignal,
    TrainerControl,
)
from warmup_plugin.runs.run_dir import RunDir


class FakeCheckpointManager:
    """Knows the scores of the checkpoints that are there."""

    def __init__(self, *scores: tuple[float, int]) -> None:
        self.scores = list(scores)

    def load_scores(self) -> list[tuple[float, int]]:
        # As fairseq2 sorts them.
        return sorted(self.scores, reverse=True)


def create_stopper(
    run_dir: Path, *scores: tuple[float, int], patience: int = 2
) -> PatienceEarlyStopper:
    manager = cast(CheckpointManager, FakeCheckpointManager(*scores))

    return PatienceEarlyStopper(manager, RunDir(run_dir), patience, validate_every=10)


def run(stopper: PatienceEarlyStopper, *scores: float, start: int = 10) -> int | None:
    """Returns the step at which training stops."""
    for idx, score in enumerate(scores):
        step_nr = start + 10 * idx

        if stopper.should_stop(step_nr, score):
            return step_nr

    return None


class TestPatienceEarlyStopper:
    @pytest.mark.parametrize(
        "scores,step_nr",
        [
            ([1.0, 2.0, 1.5, 1.9], 40),
            ([1.0, 2.0, 1.5, 2.1, 2.0, 2.0], 60),
            ([3.0, 2.0, 1.0], 30),
            # An equal score is no improvement.
            ([0.0, 0.0, 0.0], 30),
            ([1.0, 2.0, 3.0, 4.0, 3.0], None),
            # A negated loss.
            ([-3.0, -2.0, -2.5, -2.1], 40),
        ],
    )
    def test_call_stops_after_validations_without_improvement(
        self, tmp_path: Path, scores: list[float], step_nr: int | None
    ) -> None:
        assert run(create_stopper(tmp_path), *scores) == step_nr

    def test_call_goes_on_from_scores_of_interrupted_run(self, tmp_path: Path) -> None:
        stopper = create_stopper(tmp_path, (5.0, 10), (4.0, 20))

        assert run(stopper, 4.5, start=30) == 30

    def test_call_ignores_score_of_repeated_step(self, tmp_path: Path) -> None:
        # The checkpoint manager may know the score of this step already.
        stopper = create_stopper(tmp_path, (5.0, 20), (4.0, 10), patience=1)

        assert run(stopper, 5.0, start=20) is None

    def test_call_remembers_first_of_equal_scores(self, tmp_path: Path) -> None:
        assert run(create_stopper(tmp_path), 5.0, 5.0) is None

        # fairseq2 has kept only the last of them.
        stopper = create_stopper(tmp_path, (5.0, 20))

        assert run(stopper, 5.0, start=30) == 30

    def test_call_ignores_memory_of_deleted_run(self, tmp_path: Path) -> None:
        assert run(create_stopper(tmp_path), 9.0, 8.0) is None

        # No checkpoint is left.
        assert run(create_stopper(tmp_path), 1.0, 2.0, 3.0) is None

    def test_call_records_where_it_stopped(self, tmp_path: Path) -> None:
        stopper = create_stopper(tmp_path)

        run(stopper, 1.0, 0.5)

        assert RunDir(tmp_path).load_early_stop() == {
            "best_score": 1.0,
            "best_step": 10,
            "stopped_at": None,
        }

        run(stopper, 0.5, start=30)

        assert RunDir(tmp_path).load_early_stop()["stopped_at"] == 30


class TestStopSignal:
    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_listen_ends_process_when_signal_comes_again_later(
        self, signum: signal.Signals, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old_handler = signal.getsignal(signum)

        raised: list[int] = []

        monkeypatch.setattr(signal, "raise_signal", raised.append)

        now = 100.0

        monkeypatch.setattr(time, "monotonic", lambda: now)

        stop_signal = StopSignal()

        with stop_signal.listen():
            os.kill(os.getpid(), signum)

            assert stop_signal.signum == signum

            # The same one, passed on by a launcher.
            now += 1.0

            os.kill(os.getpid(), signum)

            assert not raised

            now += REPEAT_SECONDS

            os.kill(os.getpid(), signum)

            assert raised == [signum]
            assert signal.getsignal(signum) == signal.SIG_DFL

        assert signal.getsignal(signum) is old_handler

    def test_check_ends_what_has_nothing_to_save(self) -> None:
        stop_signal = StopSignal()

        with stop_signal.listen():
            stop_signal.check()

            os.kill(os.getpid(), signal.SIGTERM)

            with pytest.raises(TaskStopException):
                stop_signal.check()

    def test_listen_restores_handlers_after_error(self) -> None:
        old_handler = signal.getsignal(signal.SIGTERM)

        with pytest.raises(RuntimeError):
            with StopSignal().listen():
                raise RuntimeError()

        assert signal.getsignal(signal.SIGTERM) is old_handler


class FakeTrainer:
    def __init__(self, max_num_steps: int | None = 100) -> None:
        self.validator = object()
        self._validator = self.validator
        self._early_stopper = object()
        self._max_num_steps = max_num_steps
        self._maybe_restore_state = object()
        self.stop_requested = False

    def request_stop(self) -> None:
        self.stop_requested = True


class SignalledGang:
    """A gang another process of which has received SIGTERM."""

    def __init__(self, device: torch.device, rank: int, size: int) -> None:
        self.device, self.rank, self.size = device, rank, size

    def all_reduce(self, tensor: Tensor, op: ReduceOperation) -> None:
        assert op == ReduceOperation.MAX

        tensor.fill_(signal.SIGTERM)


class TestTrainerControl:
    def create(
        self, stop_signal: StopSignal, trainer: FakeTrainer, **kwargs: Any
    ) -> TrainerControl:
        control = TrainerControl(
            stop_signal, FakeGang(device), RunDir(Path()), 10, **kwargs
        )

        control.attach(cast(Trainer, trainer), None)

        return control

    def test_begin_step_does_nothing_without_signal(self) -> None:
        trainer = FakeTrainer()

        self.create(StopSignal(), trainer).begin_step(10)

        assert not trainer.stop_requested
        assert trainer._max_num_steps == 100

    def test_begin_step_stops_without_validation(self) -> None:
        stop_signal, trainer = StopSignal(), FakeTrainer()

        control = self.create(stop_signal, trainer)

        stop_signal.signum = signal.SIGTERM

        control.begin_step(11)

        assert trainer.stop_requested
        assert trainer._max_num_steps is None
        assert trainer._validator is NOOP_VALIDATOR

    def test_begin_step_keeps_validation_that_is_due(self) -> None:
        stop_signal, trainer = StopSignal(), FakeTrainer()

        stop_signal.signum = signal.SIGTERM

        self.create(stop_signal, trainer).begin_step(20)

        assert trainer.stop_requested
        assert trainer._validator is trainer.validator

    def test_begin_step_leaves_last_step_alone(self) -> None:
        stop_signal, trainer = StopSignal(), FakeTrainer(max_num_steps=25)

        stop_signal.signum = signal.SIGTERM

        self.create(stop_signal, trainer).begin_step(25)

        assert not trainer.stop_requested
        assert trainer._max_num_steps == 25
        assert trainer._validator is trainer.validator

    def test_begin_step_takes_over_signal_of_another_rank(self) -> None:
        stop_signal, trainer = StopSignal(), FakeTrainer()

        gang = SignalledGang(device, rank=0, size=2)

        control = TrainerControl(stop_signal, cast(Any, gang), RunDir(Path()), 10)

        control.attach(cast(Trainer, trainer), None)

        control.begin_step(11)

        assert trainer.stop_requested
        # What the process ends with.
        assert stop_signal.signum == signal.SIGTERM

    def test_begin_step_leaves_signal_that_comes_while_ranks_agree(self) -> None:
        stop_signal, trainer = StopSignal(), FakeTrainer()

        class LateGang(SignalledGang):
            """The ranks have told each other of no signal when this one receives it."""

            @override
            def all_reduce(self, tensor: Tensor, op: ReduceOperation) -> None:
                stop_signal.signum = signal.SIGTERM

        gang = LateGang(device, rank=0, size=2)

        control = TrainerControl(stop_signal, cast(Any, gang), RunDir(Path()), 10)

        control.attach(cast(Trainer, trainer), None)

        control.begin_step(11)

        # Or the others would wait for it.
        assert not trainer.stop_requested

    def test_attach_replaces_early_stopper_if_there_is_one(self) -> None:
        trainer = FakeTrainer()

        old_stopper, stopper = trainer._early_stopper, cast(Any, object())

        control = self.create(StopSignal(), trainer)

        assert trainer._early_stopper is old_stopper

        control.attach(cast(Trainer, trainer), stopper)

        assert trainer._early_stopper is stopper
