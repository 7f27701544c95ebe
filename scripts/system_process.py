# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
A system of ``bench_generate.py`` in a process of its own.

Libraries bring threads of their own, and where two of them are in one process the
second finds the cores slower: with two threads, PyTorch takes 1.5 times as long once
CTranslate2 has run beside it.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import TypeVar, final

import numpy as np
import torch
from typing_extensions import Self

from scripts.bench_common import Setting, measure_step, read_memory, reset_peak_memory
from scripts.generation_systems import (
    System,
    create_random_job,
    create_system,
    load_run_job,
)
from warmup_plugin.data.batching import sorted_batches
from warmup_plugin.errors import WarmupError
from warmup_plugin.heap import keep_freed_memory

R = TypeVar("R")


@final
@dataclass(frozen=True, kw_only=True)
class Work:
    """Says what a system has to do."""

    subject: Setting | Path
    """The shape of an untrained model, or a trained run."""

    num_sentences: int

    beam_size: int

    max_num_tokens: int
    """The size of a batch."""


@final
class SystemProcess:
    """
    Starts a process that generates with a system and otherwise waits.

    All methods raise :class:`WarmupError` for bad input, or if the process dies.
    """

    def __init__(
        self,
        name: str,
        device: torch.device,
        num_threads: int,
        clock: Callable[[], float],
    ) -> None:
        """
        :param name: One of ``PLAIN_SYSTEMS`` or ``WARMUP_SYSTEMS``.
        :param clock: Tells the time in seconds; called in that process.
        """
        self._name = name

        self._executor = ProcessPoolExecutor(
            max_workers=1,
            mp_context=get_context("spawn"),
            initializer=_start,
            initargs=(_Worker(name, device, num_threads, clock),),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    def prepare(self, work: Work) -> tuple[str, int, int]:
        """
        Loads the model and makes batches.

        :returns: What to call the work, and the numbers of sentences and of batches.
        """
        return self._call(_Worker.prepare, work)

    def measure(self, seed: int) -> float:
        """Generates for all sentences once; returns the time in seconds."""
        return self._call(_Worker.measure, seed)

    def measure_memory(self) -> float | None:
        """Generates for all sentences once; returns what that needs beyond the model in
        MiB, ``None`` where the kernel does not tell."""
        return self._call(_Worker.measure_memory)

    def get_outputs(self) -> dict[int, list[int]]:
        """Returns the tokens last written for each sentence, without EOS."""
        return self._call(_Worker.get_outputs)

    def _call(self, method: Callable[..., R], *args: object) -> R:
        try:
            return self._executor.submit(_do, method, *args).result()
        except BrokenProcessPool:
            raise WarmupError(
                f"The process of `{self._name}` has died, of too little memory perhaps; measure fewer `--sentences`, or leave it out of `--systems`."
            ) from None


def measure_memory(step: Callable[[], object]) -> float | None:
    """Measures by how much a step raises the peak of the process's memory, in MiB;
    ``None`` where the kernel does not tell."""
    try:
        # What was freed before is not there to be used.
        ctypes.CDLL("libc.so.6").malloc_trim(0)

        before = reset_peak_memory()
    except (OSError, WarmupError):
        return None

    step()

    return (read_memory("VmHWM") - before) / 2**20


@final
@dataclass
class _Worker:
    """Holds what that process has."""

    _name: str

    _device: torch.device

    _num_threads: int

    _clock: Callable[[], float]

    _system: System | None = field(default=None, init=False)

    _sources: list[list[int]] = field(default_factory=list, init=False)

    _plan: list[list[int]] = field(default_factory=list, init=False)

    _outputs: dict[int, list[int]] = field(default_factory=dict, init=False)

    def start(self) -> None:
        # The terminal sends it to all processes; the one that waits for us ends us.
        signal.signal(signal.SIGINT, signal.SIG_IGN)

        torch.set_num_threads(self._num_threads)

        # As `translate` does; the others have it too.
        keep_freed_memory()

    def prepare(self, work: Work) -> tuple[str, int, int]:
        if isinstance(work.subject, Path):
            job = load_run_job(work.subject, work.num_sentences)
        else:
            job = create_random_job(work.subject, work.num_sentences)

        lens = np.array([len(seq) for seq in job.sources])

        max_num_tokens = work.max_num_tokens // work.beam_size

        self._plan = [rows.tolist() for rows in sorted_batches(lens, max_num_tokens)]

        self._sources = job.sources

        self._system = create_system(
            self._name, job, self._device, work.beam_size, self._num_threads
        )

        self._outputs = {}

        return job.name, len(self._sources), len(self._plan)

    def generate(self) -> None:
        assert self._system is not None

        for rows in self._plan:
            outputs = self._system([self._sources[row] for row in rows])

            self._outputs.update(zip(rows, outputs))

    def measure(self, seed: int) -> float:
        return measure_step(self.generate, self._device, seed, self._clock)

    def measure_memory(self) -> float | None:
        return measure_memory(self.generate)

    def get_outputs(self) -> dict[int, list[int]]:
        return self._outputs


# Of that process.
_worker: _Worker | None = None


def _start(worker: _Worker) -> None:
    global _worker

    _worker = worker

    worker.start()


def _do(method: Callable[..., R], *args: object) -> R:
    return method(_worker, *args)
