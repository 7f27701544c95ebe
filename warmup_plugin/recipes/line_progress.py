# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Shows how far a job is."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import Final, final

from fairseq2.utils.rich import get_error_console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
)
from rich.progress import Task as RichTask
from rich.progress import TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from typing_extensions import override

_SECONDS_BETWEEN_MESSAGES: Final = 60.0


class LineProgress(AbstractContextManager["LineProgress"]):
    """
    Shows on standard error how many lines are done: a bar on a terminal, else a message
    now and then; in the end the speed.
    """

    def __init__(self, total: int | None) -> None:
        """:param total: The number of lines, if it is known."""
        self._total = total
        self._num_done = 0
        self._num_skipped: int | None = None
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None

        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _SpeedColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=get_error_console(),
                transient=True,
            )

            self._bar_task = self._bar.add_task("lines", total=total)

    @override
    def __enter__(self) -> LineProgress:
        self._start = self._last = time.monotonic()

        if self._bar is not None:
            self._bar.start()

        return self

    def advance(self, num_lines: int) -> None:
        # What an earlier job has done says nothing of the speed.
        if self._num_skipped is None:
            self._num_skipped = num_lines

        self._num_done += num_lines

        if self._total is not None:
            # A rank knows of the others only that they are about as far.
            self._num_done = min(self._num_done, self._total)

        if self._bar is not None:
            self._bar.update(self._bar_task, completed=self._num_done)

            return

        now = time.monotonic()

        if now - self._last >= _SECONDS_BETWEEN_MESSAGES:
            self._last = now

            total = "" if self._total is None else f" of {self._total:,}"

            print(f"{self._num_done:,}{total} lines", file=sys.stderr)

    @override
    def __exit__(self, exc_type: object, exc: object, traceback: object) -> None:
        if self._bar is not None:
            self._bar.stop()

        if exc is not None:
            return

        seconds = time.monotonic() - self._start

        num_lines = self._num_done - (self._num_skipped or 0)

        skipped = f", {self._num_skipped:,} done before" if self._num_skipped else ""

        print(
            f"{num_lines:,} lines in {seconds:.1f} s ({num_lines / max(seconds, 1e-9):.1f} a second){skipped}",
            file=sys.stderr,
        )


@final
class _SpeedColumn(ProgressColumn):
    @override
    def render(self, task: RichTask) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")
