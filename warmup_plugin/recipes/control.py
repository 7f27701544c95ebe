# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Early stopping, stopping on a signal, going on: what fairseq2 0.8.1 leaves undone."""

from __future__ import annotations

import json
import signal
import time
from contextlib import AbstractContextManager
from types import FrameType
from typing import Final, final

import torch
from fairseq2.checkpoint import CheckpointManager
from fairseq2.early_stopper import EarlyStopper
from fairseq2.gang import Gang, ReduceOperation, broadcast_flag
from fairseq2.logging import log
from fairseq2.task import TaskStopException
from fairseq2.trainer import Trainer
from typing_extensions import override

from warmup_plugin.fairseq2_doors import (
    call_when_restored,
    is_last_step,
    is_scored_checkpoint,
    replace_early_stopper,
    request_stop,
    should_stop_early,
    validate,
)
from warmup_plugin.files import write_text_atomically
from warmup_plugin.processes import handled_signals
from warmup_plugin.runs.run_dir import RunDir


@final
class PatienceEarlyStopper(EarlyStopper):
    """Stops when the score has not improved for a number of validations."""

    def __init__(
        self,
        checkpoint_manager: CheckpointManager,
        run_dir: RunDir,
        patience: int,
        validate_every: int,
    ) -> None:
        """
        :param checkpoint_manager: Tells the scores so far of a resumed run.
        :param run_dir: Remembers the best score over interruptions.
        :param patience: The number of validations without improvement.
        :param validate_every: The number of steps between two validations.
        """
        self._checkpoint_manager = checkpoint_manager
        self._run_dir = run_dir
        self._max_num_steps = patience * validate_every
        self._best: tuple[float, int] | None = None

    @override
    def should_stop(self, step_nr: int, score: float) -> bool:
        if self._best is None:
            self._best = self._find_best(step_nr)

        if self._best is None or score > self._best[0]:
            self._best = (score, step_nr)

        should_stop = step_nr - self._best[1] >= self._max_num_steps

        state = {
            "best_score": self._best[0],
            "best_step": self._best[1],
            "stopped_at": step_nr if should_stop else None,
        }

        write_text_atomically(self._run_dir.early_stop_file, json.dumps(state) + "\n")

        if not should_stop:
            return False

        log.info("No improvement since step {} (score {:.2f}); stopping early.", self._best[1], self._best[0])  # fmt: skip

        return True

    def _find_best(self, step_nr: int) -> tuple[float, int] | None:
        """Finds the best score before ``step_nr`` and its step, the first of equals."""
        scores = [(s, n) for s, n in self._checkpoint_manager.load_scores()]

        state = self._run_dir.load_early_stop()

        score, step = state.get("best_score"), state.get("best_step")

        # Not if it is of a run that once was in this directory, or if the run was
        # killed then and repeats the step.
        if scores and isinstance(score, float) and isinstance(step, int):
            scores.append((score, step))

        earlier = [(s, n) for s, n in scores if n < step_nr]

        return min(earlier, key=lambda best: (-best[0], best[1]), default=None)


REPEAT_SECONDS: Final = 3
"""Within this time a signal that comes again counts as the same one."""


@final
class StopSignal:
    """Remembers a SIGTERM or SIGINT until the trainer can stop."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._time = 0.0

    def listen(self) -> AbstractContextManager[None]:
        """Catches the first signal; one sent again later ends the process as usual."""
        return handled_signals((signal.SIGTERM, signal.SIGINT), self._handle)

    def check(self) -> None:
        """
        Ends what goes before the first step, when there is nothing to save.

        :raises TaskStopException: If a signal has come.
        """
        if self.signum is not None:
            raise TaskStopException()

    def adopt(self, signum: int) -> None:
        """Takes a signal that another process has received for one's own."""
        if self.signum is not None:
            return

        self.signum, self._time = signum, time.monotonic()

        log.info("Another process received {}. Saving a checkpoint after this step and stopping.", signal.Signals(signum).name)  # fmt: skip

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()

        # Slurm signals every process of a job, and torchrun passes the signal on: each
        # process gets the same one twice at once.
        if self.signum is not None and now - self._time < REPEAT_SECONDS:
            return

        if self.signum is not None:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)

            return

        self.signum, self._time = signum, now

        log.info("{} received. Saving a checkpoint after this step and stopping; send it again after {} seconds to stop at once.", signal.Signals(signum).name, REPEAT_SECONDS)  # fmt: skip


@final
class TrainerControl:
    """Stops a trainer, and lets it go on, where fairseq2 0.8.1 offers no way."""

    def __init__(
        self,
        stop_signal: StopSignal,
        gang: Gang,
        run_dir: RunDir,
        validate_every: int | None,
        *,
        has_scores: bool = True,
    ) -> None:
        """
        :param has_scores: If ``False``, validations give no score, so that nothing tells
            whether one was cut off.
        """
        self._stop_signal = stop_signal
        self._gang = gang
        self._run_dir = run_dir
        self._validate_every = validate_every
        self._has_scores = has_scores
        self._trainer: Trainer | None = None
        self._stopping = False

    def attach(self, trainer: Trainer, early_stopper: EarlyStopper | None) -> None:
        self._trainer = trainer

        # The factory passes a stopper that never stops and offers no other.
        if early_stopper is not None:
            replace_early_stopper(trainer, early_stopper)

        call_when_restored(trainer, self._make_up)

    def _make_up(self, has_ended: bool) -> bool:
        """
        Makes up for a validation that was cut off.

        The validation of a step completes the checkpoint that is being saved, so that a
        run killed during it has the checkpoint, but not its score. It would never be
        the best one.

        :returns: ``True`` to stop early.
        """
        trainer = self._trainer

        assert trainer is not None

        if not self._has_scores or not is_scored_checkpoint(trainer):
            return False

        has_score = False

        if self._gang.rank == 0:
            has_score = self._run_dir.has_whole_score(trainer.step_nr)

        if broadcast_flag(self._gang, has_score):
            return False

        log.info("The validation of step {} was cut off; it is repeated.", trainer.step_nr)  # fmt: skip

        score = validate(trainer)

        return score is not None and not has_ended and should_stop_early(trainer, score)

    def begin_step(self, step_nr: int) -> None:
        """Called on all ranks when a step begins; makes it the last if asked to."""
        trainer = self._trainer

        if trainer is None or self._stopping:
            return

        signum = self._stop_signal.signum or 0

        # The ranks receive a signal at different times, and on several machines only
        # some may; all stop at the same step, or some would wait for the others, and
        # with the same status. One that comes while they agree is of the next step.
        if self._gang.size > 1:
            reduced = torch.tensor(signum, device=self._gang.device)

            self._gang.all_reduce(reduced, ReduceOperation.MAX)

            signum = int(reduced)

        if signum == 0:
            return

        self._stop_signal.adopt(signum)

        self._stopping = True

        # Ends by itself, and with the validation that ends a run.
        if is_last_step(trainer, step_nr):
            return

        # A scheduler kills soon after its signal; a validation would not end in time.
        # One that is due is still run: without a checkpoint that is due as well, a
        # resumed run would not know that it is missing.
        is_due = (
            self._validate_every is not None and step_nr % self._validate_every == 0
        )

        request_stop(trainer, validate=is_due)
