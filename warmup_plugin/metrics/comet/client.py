# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Scores translations by COMET, which runs in a process and environment of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any, Final, final

from warmup_plugin.errors import WarmupError

_WORKER: Final = Path(__file__).resolve().with_name("worker.py")

_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")

_HOW_TO_MAKE: Final = (
    "build one by `make comet` in a clone, or by `python -m "
    "warmup_plugin.metrics.comet.make_env DIR`, and name its DIR/bin/python by the "
    "environment variable WARMUP_COMET_PYTHON"
)

_MAX_SENTENCES: Final = 512
"""What one request holds, so that a timeout is about a bounded amount of work."""

_CLOSE_TIMEOUT: Final = 10.0


# Raised only outside of fairseq2's recipes, whose handlers look errors up by exact type.
class CometUnavailable(WarmupError):
    """Reports that COMET cannot score here: no environment, no model, no worker."""


class CometRequestError(WarmupError):
    """Reports that sentences were refused; the worker can be asked again."""


def find_comet_python() -> Path | None:
    """
    Finds the interpreter of COMET's environment.

    :returns: What the environment variable ``WARMUP_COMET_PYTHON`` names, whether it
        exists or not; else that of ``.venv-comet`` in the clone; else ``None``. Not that
        of the working directory, which may be anyone's.
    """
    if named := os.environ.get("WARMUP_COMET_PYTHON"):
        return Path(named).expanduser()

    python = _WORKER.parents[3] / ".venv-comet" / "bin" / "python"

    return python if python.is_file() else None


@final
class CometClient:
    """
    Scores translations by a COMET model, in single precision.

    ``unbabel-comet`` and fairseq2 cannot share an environment, so that the model lives
    in a worker: a process of another interpreter, which is started once and is asked
    as often as needed. Use the client as a context manager, or :meth:`close` it.
    """

    versions: dict[str, str]
    """What scores, by the name of the package."""

    requires_references: bool
    """If ``False``, the model can score without references."""

    uses_references: bool
    """If ``False``, the model reads no references even where there are some."""

    def __init__(
        self,
        python: Path,
        model: str | Path,
        *,
        gpus: int = 0,
        batch_size: int = 16,
        start_timeout: float = 600.0,
        timeout: float = 3600.0,
    ) -> None:
        """
        :param python: The interpreter of COMET's environment.
        :param model: A checkpoint, such as ``DIR/checkpoints/model.ckpt``, its ``DIR``,
            or a name on the Hugging Face Hub, such as ``Unbabel/wmt22-comet-da``.
        :param gpus: 0 or 1.
        :param start_timeout: The most seconds that loading may take, a download
            included.
        :param timeout: The most seconds that 512 sentences may take.
        """
        if gpus not in (0, 1):
            raise CometUnavailable(
                f"`gpus` must be 0 or 1 for COMET, which runs on one GPU, but is {gpus}."
            )

        if batch_size < 1:
            raise CometUnavailable(
                "`batch_size` must be greater than or equal to 1 for COMET, but is "
                f"{batch_size}."
            )

        if not python.is_file():
            raise CometUnavailable(
                f"The environment of COMET has no interpreter {python}; {_HOW_TO_MAKE}."
            )

        self._python = python

        self._timeout = timeout

        self._num_requests = 0

        # Isolated mode: our `PYTHONPATH`, and the folder of the worker, would bring
        # packages of this environment into that one.
        command = [str(python), "-I", "-X", "utf8", str(_WORKER)]

        command += [*_locate_model(model), "--gpus", str(gpus)]

        command += ["--batch-size", str(batch_size)]

        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Control-C in a terminal is for us, who may still need its answer; it ends
                # with its input, and so with us.
                start_new_session=True,
            )
        except OSError as ex:
            raise CometUnavailable(
                f"{python} cannot be run for COMET ({ex.strerror}); {_HOW_TO_MAKE}."
            ) from None

        assert self._process.stdout is not None
        assert self._process.stderr is not None

        self._replies: Queue[bytes | None] = Queue()

        self._log: deque[bytes] = deque(maxlen=40)

        # A pipe that nobody reads fills up and stops the worker.
        _start_reader(self._process.stdout, self._replies.put)

        self._log_reader = _start_reader(
            self._process.stderr, lambda line: self._log.append(line or b"")
        )

        try:
            hello = self._receive(
                start_timeout,
                "loading its model",
                "run the command again, where a download goes on from there",
            )

            if not hello.get("ready"):
                raise CometUnavailable(str(hello.get("error")))

            self.versions = hello["versions"]

            self.requires_references = hello["requires_references"]

            self.uses_references = hello["uses_references"]
        except BaseException:
            self._kill()

            self.close()

            raise

    def score(
        self,
        sources: Sequence[str],
        hypotheses: Sequence[str],
        references: Sequence[str] | None = None,
    ) -> list[float]:
        """
        Scores one hypothesis a source.

        :param references: Must be given if :attr:`requires_references`; other models
            read them if :attr:`uses_references`.

        :returns: One score a hypothesis, in the same order.

        :raises CometRequestError: The sentences cannot be scored.
        :raises CometUnavailable: The worker has ended.
        """
        columns = {"sources": sources, "hypotheses": hypotheses}

        if not self.uses_references:
            pass
        elif references is not None:
            columns["references"] = references
        elif self.requires_references:
            raise CometRequestError(
                "The COMET model needs references, but none are given; give them, or "
                "choose a model that does without, such as `Unbabel/wmt22-cometkiwi-da`."
            )

        _check_columns(columns)

        # COMET's own names.
        keys = ("src", "mt", "ref")

        samples = [dict(zip(keys, row)) for row in zip(*columns.values())]

        scores: list[float] = []

        for begin in range(0, len(samples), _MAX_SENTENCES):
            scores += self._request(samples[begin : begin + _MAX_SENTENCES])

        return scores

    @property
    def is_alive(self) -> bool:
        """``True`` unless the worker has ended, for whatever reason."""
        return self._process.poll() is None

    def close(self) -> None:
        """Ends the worker."""
        stdin = self._process.stdin

        assert stdin is not None

        try:
            # It ends when there is nothing more to read.
            stdin.close()

            self._process.wait(_CLOSE_TIMEOUT)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            pass

        self._kill()

    def __enter__(self) -> CometClient:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        # An interrupted user does not wait for the sentences in work.
        if kind is not None:
            self.kill()
        else:
            self.close()

    def kill(self) -> None:
        """Ends the worker without waiting for what it does."""
        self._kill()

        self.close()

    def _request(self, samples: Sequence[dict[str, str]]) -> list[float]:
        self._num_requests += 1

        # All but ASCII is escaped, so that no text can end the line.
        line = json.dumps({"id": self._num_requests, "samples": samples}) + "\n"

        stdin = self._process.stdin

        assert stdin is not None

        try:
            stdin.write(line.encode("ascii"))

            stdin.flush()
        except (BrokenPipeError, ValueError):
            # It has ended, which reading its answer tells with the reason.
            pass

        reply = self._receive(
            self._timeout,
            f"scoring {len(samples)} sentence(s)",
            "a GPU or a smaller model is faster",
        )

        if reply.get("id") != self._num_requests:
            self._kill()

            raise CometUnavailable(
                "The COMET worker answered another request than the last one and was "
                "ended; run the command again."
            )

        if "error" in reply:
            raise CometRequestError(str(reply["error"]))

        return [float(score) for score in reply["scores"]]

    def _receive(self, timeout: float, task: str, remedy: str) -> dict[str, Any]:
        """
        :param task: What the worker is doing.
        :param remedy: What helps if it takes too long.
        """
        try:
            line = self._replies.get(timeout=timeout)
        except Empty:
            self._kill()

            raise CometUnavailable(
                f"The COMET worker was ended after {timeout:g} seconds without an "
                f"answer while {task}; {remedy}."
            ) from None

        if line is None:
            # For the next one who asks.
            self._replies.put(None)

            raise CometUnavailable(self._describe_end(task))

        try:
            reply = json.loads(line)
        except ValueError:
            reply = None

        if not isinstance(reply, dict):
            self._kill()

            raise CometUnavailable(
                f"{self._python} does not run the COMET worker, but answers "
                f"{line[:40]!r}; {_HOW_TO_MAKE}."
            )

        return reply

    def _describe_end(self, task: str) -> str:
        """Returns a sentence about a worker whose output has ended."""
        try:
            status = self._process.wait(_CLOSE_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._kill()

            status = self._process.wait()

        if status == -signal.SIGKILL:
            return (
                f"The COMET worker was ended by SIGKILL while {task}; it may have run "
                "out of memory, which a smaller `batch_size` saves."
            )

        if status < 0:
            reason = f"was ended by {signal.Signals(-status).name} while {task}"
        else:
            reason = f"ended with status {status} while {task}"

            # What it wrote may still be on its way.
            self._log_reader.join(1.0)

            lines = b"".join(self._log).decode(errors="replace").split("\n")

            # Of a traceback, the last line tells most.
            if last := next((ln.strip() for ln in lines[::-1] if ln.strip()), None):
                reason = f"{reason} and last wrote: {last[:300]}"

        return (
            f"The COMET worker {reason}; check its environment by "
            f"`{self._python} -c 'import comet'`."
        )

    def _kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()

        self._process.wait()


@final
class CometWorkers:
    """
    Keeps workers of COMET between measurements, since loading a model takes long.

    A worker is started when it is first asked for, and again if it has ended. Use this as
    a context manager, which ends all of them.
    """

    def __init__(self) -> None:
        self._clients: dict[tuple[Path, str, int], CometClient] = {}

    def get(self, python: Path, model: str, *, gpus: int = 0) -> CometClient:
        """
        Returns the client of a model; see :class:`CometClient`.

        :raises CometUnavailable: It cannot be started.
        """
        key = (python, model, gpus)

        client = self._clients.get(key)

        if client is not None and not client.is_alive:
            self._clients.pop(key).close()

            client = None

        if client is None:
            client = self._clients[key] = CometClient(python, model, gpus=gpus)

        return client

    def __enter__(self) -> CometWorkers:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        while self._clients:
            _, client = self._clients.popitem()

            client.__exit__(kind, value, traceback)


def _start_reader(stream: IO[bytes], put: Callable[[bytes | None], None]) -> Thread:
    """Passes the lines of a stream on until it ends, then ``None``."""

    def read() -> None:
        with stream:
            for line in stream:
                put(line)

        put(None)

    thread = Thread(target=read, daemon=True)

    thread.start()

    return thread


def _locate_model(model: str | Path) -> list[str]:
    """Returns the arguments that tell the worker where the model is."""
    path = Path(model).expanduser()

    if path.is_dir():
        path = path / "checkpoints" / "model.ckpt"

    if path.is_file():
        path = path.absolute()

        hparams_file = path.parents[1] / "hparams.yaml"

        if not hparams_file.is_file():
            raise CometUnavailable(
                f"The COMET model {model} lacks {hparams_file}, which says what the "
                "checkpoint is; copy it from where the checkpoint comes from."
            )

        return ["--checkpoint", str(path)]

    if _HUB_NAME.fullmatch(str(model)) and path.suffix != ".ckpt":
        return ["--hub-name", str(model)]

    raise CometUnavailable(
        f"The COMET model {path} does not exist; give a checkpoint, its folder, or a "
        "name on the Hugging Face Hub, such as `Unbabel/wmt22-comet-da`."
    )


def _check_columns(columns: Mapping[str, Sequence[str]]) -> None:
    # COMET would cut the longer lists, and score `None` as the text "None".
    for name, texts in columns.items():
        if isinstance(texts, str):
            raise CometRequestError(
                f"The {name} of COMET must be a list of strings, one a sentence, but "
                "are one string."
            )

        for idx, text in enumerate(texts):
            if not isinstance(text, str):
                raise CometRequestError(
                    f"The {name} of COMET must be strings, but number {idx + 1} is "
                    f"{text!r}."
                )

    counts = {name: len(texts) for name, texts in columns.items()}

    if len(set(counts.values())) != 1:
        described = ", ".join(f"{count} {name}" for name, count in counts.items())

        raise CometRequestError(
            f"COMET needs one hypothesis and reference a source, but there are "
            f"{described}."
        )
