# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Text in, text out, line by line: constant memory, several ranks, no line lost.

The first rank reads some lines, all ranks process their share of them, and the first one
writes what came of them in the order of the input, before it reads the next ones.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, final

import torch
import torch.distributed as dist
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.config import GeneratorSection
from fairseq2.task import Task, TaskStopException
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

from warmup_plugin.data.lines import Line, LineError
from warmup_plugin.errors import WarmupError
from warmup_plugin.files import open_to_append, write_text_atomically
from warmup_plugin.gathering import gather_objects
from warmup_plugin.parsing import parse_json
from warmup_plugin.terminal import escape_controls


@final
@dataclass(frozen=True)
class Record:
    """Holds what is written for a line of input."""

    number: int

    text: str
    """One line of plain text."""

    json: str
    """One line of JSON."""

    was_cut: bool = False
    """Whether text of the line was longer than the model reads, and was cut."""


class LineSink(ABC):
    """Takes what came of the lines, in their order."""

    def begin(self) -> tuple[int, int]:
        """
        Prepares for the first record.

        :returns: The number of lines that an earlier job has done, and the checksum of
            these lines.
        """
        return 0, 0

    @abstractmethod
    def write(self, records: Sequence[Record], checksum: int) -> None:
        """
        :param checksum: Of all lines of input so far.

        :raises WarmupError: If there is no room.
        """

    def finish(self) -> None:
        """Called when all lines are done."""


@final
class StreamSink(LineSink):
    """Writes records to standard output."""

    def __init__(self, stream: BinaryIO, *, as_json: bool) -> None:
        self._stream = stream
        self._as_json = as_json

    @override
    def write(self, records: Sequence[Record], checksum: int) -> None:
        lines = [r.json if self._as_json else r.text for r in records]

        text = "".join(f"{line}\n" for line in lines)

        # What goes elsewhere is exact.
        if self._stream.isatty():
            text = escape_controls(text)

        try:
            self._stream.write(text.encode("utf-8"))

            self._stream.flush()
        except OSError as ex:
            # What is still buffered would fail once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

            # The reader, such as `head`, has left.
            if isinstance(ex, BrokenPipeError):
                raise SystemExit(141) from None

            raise WarmupError(
                f"Standard output cannot be written ({ex.strerror}) from line {records[0].number + 1} on; write to another place, or to a file with `--output`, which goes on where it broke."
            ) from None


@final
class FileSink(LineSink):
    """
    Writes records to files, which get their names when all lines are done.

    Until then they are called ``NAME.partial``, and ``NAME.state`` of the first one says
    how far they are, so that the same command goes on after a job that broke.
    """

    def __init__(
        self,
        text_file: Path | None,
        json_file: Path | None,
        settings: Mapping[str, object],
        *,
        restart: bool = False,
    ) -> None:
        """
        :param settings: What the records depend on; a job with others cannot go on.
        :param restart: If ``True``, a job with other settings is begun again instead of
            refused: its output is a default one, which nobody named.
        """
        self._text_file = text_file
        self._json_file = json_file
        self._restart = restart

        self._files = [f for f in (text_file, json_file) if f is not None]

        # As it comes back from the file.
        self._settings = json.loads(json.dumps(settings, default=str))

        self._num_lines = 0

        self._streams: list[BinaryIO] = []

    @property
    def _state_file(self) -> Path:
        return self._files[0].with_name(f"{self._files[0].name}.state")

    @staticmethod
    def _partial(file: Path) -> Path:
        return file.with_name(f"{file.name}.partial")

    @override
    def begin(self) -> tuple[int, int]:
        try:
            for file in self._files:
                file.parent.mkdir(parents=True, exist_ok=True)

                # Appending leaves alone what another job may be writing.
                stream = open_to_append(self._partial(file))

                self._streams.append(stream)

                self._lock(file, stream)

            state = self._load_state()

            for n, stream in enumerate(self._streams):
                # What was written after the last state belongs to lines that will be
                # processed again.
                stream.truncate(state["sizes"][n] if state else 0)

                stream.seek(0, os.SEEK_END)
        except OSError as ex:
            raise self._make_error(ex) from None

        if not state:
            return 0, 0

        self._num_lines = state["num_lines"]

        return state["num_lines"], state["checksum"]

    def _lock(self, file: Path, stream: BinaryIO) -> None:
        is_free = True

        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_free = False
        except OSError:
            # A file system without locks, as some network ones are.
            pass

        # The other job may have ended and given the file its name.
        if not is_free or not os.path.samestat(
            os.fstat(stream.fileno()), self._partial(file).stat()
        ):
            raise WarmupError(
                f"Another job is writing `{file}`; wait for it, or name another file."
            )

    def _load_state(self) -> dict[str, Any]:
        try:
            state = parse_json(self._state_file.read_text(encoding="utf-8"))

            sizes = [self._partial(f).stat().st_size for f in self._files]

            is_whole = all(a >= b for a, b in zip(sizes, state["sizes"], strict=True))

            settings = state["settings"]
        # Whatever is missing, nothing can go on from it.
        except (OSError, ValueError, LookupError, TypeError):
            return {}

        if not is_whole:
            return {}

        if settings != self._settings:
            if self._restart:
                return {}

            names = [
                name
                for name in sorted({*settings, *self._settings})
                if settings.get(name) != self._settings.get(name)
            ]

            raise WarmupError(
                f"`{self._partial(self._files[0])}` is of a job that broke and had other settings ({', '.join(names)}); give the same ones to go on, or delete `{self._state_file}` to start again."
            )

        loaded: dict[str, Any] = state

        return loaded

    @override
    def write(self, records: Sequence[Record], checksum: int) -> None:
        texts = []

        if self._text_file is not None:
            texts.append([r.text for r in records])

        if self._json_file is not None:
            texts.append([r.json for r in records])

        try:
            for stream, lines in zip(self._streams, texts, strict=True):
                stream.write("".join(f"{line}\n" for line in lines).encode("utf-8"))

                stream.flush()

                # The state must not be ahead of what it tells of.
                os.fsync(stream.fileno())

            state = {
                "num_lines": self._num_lines + len(records),
                "checksum": checksum,
                "sizes": [stream.tell() for stream in self._streams],
                "settings": self._settings,
            }

            write_text_atomically(self._state_file, json.dumps(state))
        except OSError as ex:
            raise self._make_error(ex) from None

        self._num_lines += len(records)

    @override
    def finish(self) -> None:
        try:
            for stream in self._streams:
                stream.close()

            # The first one last: it is there only if the others are.
            for file in reversed(self._files):
                self._partial(file).replace(file)

            self._state_file.unlink(missing_ok=True)
        except OSError as ex:
            raise self._make_error(ex) from None

        log.info("{:,} lines written to {}.", self._num_lines, self._files[0])

    def _make_error(self, ex: OSError) -> WarmupError:
        # Closing a file that could not be flushed tries it once more.
        for stream in self._streams:
            try:
                stream.close()
            except OSError:
                pass

        return WarmupError(
            f"`{self._files[0]}` cannot be written ({ex.strerror}); {self._num_lines} lines are done and kept: see to it and run the same command again, which goes on there."
        )


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

        progress = self._progress if is_first else None

        def advance(num_lines: int) -> None:
            if progress is not None:
                progress.advance(num_lines)

        with progress or nullcontext():
            if is_first:
                advance(self._skip_done())

            while True:
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

        if self._num_cut > 0:
            print(
                f"{self._num_cut:,} of these lines were longer than the model reads and were cut (`--truncate`)",
                file=sys.stderr,
            )

        self._gangs.close()

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

        if root.rank == 0:
            if self._stop_requested:
                raise TaskStopException()

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


_SECONDS_BETWEEN_MESSAGES: Final = 60.0


class LineProgress(AbstractContextManager["LineProgress"]):
    """
    Shows on standard error how many lines are done: a bar on a terminal, else a message
    now and then; in the end the speed.
    """

    def __init__(self, total: int | None, *, unit: str = "lines") -> None:
        """:param total: The number of lines, if it is known."""
        self._total = total
        self._unit = unit
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

            self._bar_task = self._bar.add_task(unit, total=total)

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

            print(f"{self._num_done:,}{total} {self._unit}", file=sys.stderr)

    @override
    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

        if exc is not None:
            return

        seconds = time.monotonic() - self._start

        num_lines = self._num_done - (self._num_skipped or 0)

        skipped = f", {self._num_skipped:,} done before" if self._num_skipped else ""

        print(
            f"{num_lines:,} {self._unit} in {seconds:.1f} s ({num_lines / max(seconds, 1e-9):.1f} a second){skipped}",
            file=sys.stderr,
        )


@final
class _SpeedColumn(ProgressColumn):
    @override
    def render(self, task: RichTask) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f}/s")
