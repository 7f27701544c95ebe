# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Text in, text out, line by line: constant memory, several ranks, no line lost.

The first rank reads some lines, all ranks process their share of them, and the first one
writes what came of them in the order of the input, before it reads the next ones.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from typing import final

import torch
import torch.distributed as dist
from fairseq2.gang import Gangs
from fairseq2.recipe.config import GeneratorSection
from fairseq2.task import Task
from typing_extensions import override

from warmup_plugin.data.lines import Line, LineError
from warmup_plugin.errors import WarmupError
from warmup_plugin.gathering import gather_objects
from warmup_plugin.recipes.line_progress import LineProgress
from warmup_plugin.recipes.line_sinks import LineSink, Record
from warmup_plugin.threads import CrowdWarning


@final
class LineTask(Task):
    """Processes lines of text, see this module."""

    def __init__(
        self,
        lines: Iterator[Line],
        process: Callable[[Sequence[Line], Callable[[int], None]], list[Record]],
        sink: LineSink,
        gangs: Gangs,
        amp: GeneratorSection,
        *,
        chunk_size: int,
        progress: LineProgress | None = None,
    ) -> None:
        """
        :param lines: All lines; read by the first rank only.
        :param process: Makes one record of each line; calls back with the number of
            lines that are done. Raises a :class:`LineError` for the first line that it
            cannot process.
        :param sink: Used by the first rank only.
        :param chunk_size: The number of lines that are read before any is written.
        """
        self._lines = lines
        self._process = process
        self._sink = sink
        self._gangs = gangs
        self._amp = amp
        self._chunk_size = chunk_size
        self._progress = progress
        self._checksum = 0
        self._step_nr = 0
        self._stop_requested = False
        self._num_cut = 0

    @override
    @torch.inference_mode()
    def run(self) -> None:
        is_first = self._gangs.root.rank == 0

        try:
            self._process_all(is_first)
        except KeyboardInterrupt:
            if is_first and (kept := self._sink.describe_kept()) is not None:
                print(kept, file=sys.stderr)

            raise

        if self._num_cut > 0:
            print(
                f"{self._num_cut:,} of these lines were longer than the model reads and were cut (`--truncate`)",
                file=sys.stderr,
            )

        self._gangs.close()

    def _process_all(self, is_first: bool) -> None:
        """:param is_first: Whether this is the rank that reads and writes."""
        progress = self._progress if is_first else None

        def advance(num_lines: int) -> None:
            if progress is not None:
                progress.advance(num_lines)

        crowd = CrowdWarning(self._gangs.device)

        with progress or nullcontext():
            if is_first:
                advance(self._skip_done())

            while True:
                crowd.check()

                chunk, error, is_last = self._read_chunk()

                records, line_error = self._process_share(chunk, advance)

                if is_first:
                    # Nothing that follows a line which could not be processed.
                    if line_error is not None:
                        number, _ = line_error

                        chunk = [c for c in chunk if c.number < number]

                        records = [r for r in records if r.number < number]

                    self._write(chunk, records)

                if line_error is not None:
                    raise WarmupError(line_error[1])

                if error is not None:
                    raise WarmupError(error)

                self._step_nr += 1

                if is_last:
                    break

            if is_first:
                self._sink.finish()

    def _skip_done(self) -> int:
        """Reads the lines that an earlier job has done."""
        num_done, checksum = self._sink.begin()

        if num_done == 0:
            return 0

        num_read = 0

        for line in islice(self._lines, num_done):
            self._add_to_checksum(line)

            num_read += 1

        if num_read < num_done or self._checksum != checksum:
            raise WarmupError(
                f"The first {num_done} lines of the input are not those that the job which broke has read; give the same input to go on, or delete the `.state` file beside the output to start again."
            )

        return num_done

    def _add_to_checksum(self, line: Line) -> None:
        text = f"{line.source}\n{line.target or ''}\n"

        self._checksum = zlib.crc32(text.encode("utf-8"), self._checksum)

    def _read_chunk(self) -> tuple[list[Line], str | None, bool]:
        """
        Reads the next lines, on all ranks the same.

        :returns: The lines, why there are no more of them although the input has not
            ended, and whether they are the last ones.
        """
        root = self._gangs.root

        chunk: list[Line] = []

        error = None

        if root.rank == 0 and self._stop_requested:
            # As an error, for all ranks: what has been written is not the output.
            kept = self._sink.describe_kept() or "what was written is not all of it."

            error = f"The job was stopped before its end (SIGUSR1); {kept}"
        elif root.rank == 0:
            try:
                for line in islice(self._lines, self._chunk_size):
                    chunk.append(line)
            except WarmupError as ex:
                error = str(ex)

        is_last = len(chunk) < self._chunk_size

        if root.size == 1:
            return chunk, error, is_last

        items = [(chunk, error, is_last)]

        dist.broadcast_object_list(items, src=0, group=root.as_process_group())

        return items[0]

    def _process_share(
        self, chunk: list[Line], on_batch: Callable[[int], None]
    ) -> tuple[list[Record], tuple[int, str] | None]:
        """
        Processes a rank's share of lines.

        :returns: The records of all ranks in order, and the number of the first line
            that could not be processed with what is wrong with it.
        """
        gang = self._gangs.dp

        # Every rank gets as many long lines as the others.
        by_length = sorted(chunk, key=lambda line: len(line.source))

        share = sorted(by_length[gang.rank :: gang.size], key=lambda line: line.number)

        amp = torch.autocast(
            self._gangs.device.type, self._amp.amp_dtype, enabled=self._amp.amp
        )

        def advance(num_lines: int) -> None:
            on_batch(num_lines * gang.size)

        # As a tuple, which can be sent to the first rank.
        error: tuple[int, str] | None = None

        with amp:
            try:
                records = self._process(share, advance)
            except LineError as ex:
                error = (ex.number, str(ex))

                share = [line for line in share if line.number < ex.number]

                records = self._process(share, advance)

        gathered = gather_objects(gang, (records, error))

        errors = [ex for _, ex in gathered if ex is not None]

        all_records = sorted(
            (r for rank_records, _ in gathered for r in rank_records),
            key=lambda record: record.number,
        )

        return all_records, min(errors, default=None)

    def _write(self, chunk: list[Line], records: list[Record]) -> None:
        if not records:
            return

        for line in chunk:
            self._add_to_checksum(line)

        self._sink.write(records, self._checksum)

        self._num_cut += sum(record.was_cut for record in records)

    @override
    def request_stop(self) -> None:
        self._stop_requested = True

    @override
    def close(self) -> None:
        pass

    @property
    @override
    def step_nr(self) -> int:
        return self._step_nr
