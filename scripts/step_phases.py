# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""How long the parts of a step take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final
from unittest import mock

import torch

from scripts.bench_common import synchronize
from scripts.step_variants import BenchStep
from warmup_plugin.criteria import look as look_module
from warmup_plugin.criteria import warmup as warmup_module


@final
class PhaseTimer:
    """Measures how long the parts of a step take, each without those inside it."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}

        self._device = device
        self._nested = 0.0

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the time that passes to a phase; a prefix ``warmup::`` is left out."""
        name = name.removeprefix("warmup::")

        outer_nested, self._nested = self._nested, 0.0

        synchronize(self._device)

        begin = time.perf_counter()

        yield

        synchronize(self._device)

        elapsed = time.perf_counter() - begin

        self.seconds[name] = self.seconds.get(name, 0.0) + elapsed - self._nested

        self._nested = outer_nested + elapsed


def profile_step(step: BenchStep, device: torch.device) -> dict[str, float]:
    """Measures the phases of one step of the criterion ``warmup`` in seconds."""
    assert step.model is not None

    timer = PhaseTimer(device)

    encode = step.model.encode

    def measure_encode(*args: Any) -> Any:
        with timer.measure("encode"):
            return encode(*args)

    with (
        # The phases that the criterion names for PyTorch's profiler, which itself would
        # slow down the many small operations of a step.
        mock.patch.object(look_module, "record_function", timer.measure),
        mock.patch.object(warmup_module, "record_function", timer.measure),
        mock.patch.object(step.model, "encode", measure_encode),
        timer.measure("rest"),
    ):
        loss = step.forward()

        with timer.measure("backward"):
            step.backward(loss)

    return timer.seconds
