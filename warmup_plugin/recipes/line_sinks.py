# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Where records of lines are written, and how a job goes on that was interrupted."""

from __future__ import annotations

import fcntl
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, final

from fairseq2.logging import log
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.files import open_to_append, write_text_atomically
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

    def describe_kept(self) -> str | None:
        """Says what is kept of a job that ends before; ``None`` if nothing is."""
        return None


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

    @override
    def describe_kept(self) -> str | None:
        if self._num_lines == 0:
            return None

        return f"{self._num_lines:,} lines are kept in {self._partial(self._files[0])}; the same command goes on there."

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
