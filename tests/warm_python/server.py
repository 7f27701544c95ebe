# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Imports what commands need, and is forked for each of them."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from warmup_plugin.late_imports import import_fairseq2

# What `recipes.train`, `translate` and the others import.
_MODULES: Final = (
    "warmup_plugin.commands.generate",
    "warmup_plugin.commands.translate",
    "warmup_plugin.commands.compare",
    "warmup_plugin.recipes.train",
    "warmup_plugin.recipes.translate",
    "warmup_plugin.commands.evaluate",
    # What a training imports once it has begun, in a second and a half.
    "torch._dynamo",
    "torch.utils.tensorboard",
    # And what reads the tokenizers of Hugging Face, in three.
    "transformers.models.auto.tokenization_auto",
    "transformers.tokenization_utils_fast",
)

_PR_SET_PDEATHSIG: Final = 1


@dataclass
class _Job:
    pid: int

    pidfd: int

    connection: socket.socket


def serve(path: str, owner: int) -> dict[str, Any]:
    """
    Answers clients for as long as the tests run.

    :param owner: A file that is readable once they have ended.

    :returns: In a forked process, what it is to do.
    """
    listener = socket.socket(socket.AF_UNIX)

    listener.bind(path)
    listener.listen(64)

    selector = selectors.DefaultSelector()

    for fileobj in (listener, owner):
        selector.register(fileobj, selectors.EVENT_READ)

    print("ready", flush=True)

    while True:
        for key, _ in selector.select():
            if key.fileobj == owner:
                shutil.rmtree(Path(path).parent, ignore_errors=True)

                sys.exit()

            if key.fileobj is listener:
                connection, _ = listener.accept()

                request, fds = _receive(connection)

                # The client has been killed.
                if request is None:
                    connection.close()

                    continue

                pid = os.fork()

                if pid == 0:
                    _become_command(request, fds)

                    return request

                for fd in fds:
                    os.close(fd)

                job = _Job(pid, os.pidfd_open(pid), connection)

                selector.register(job.pidfd, selectors.EVENT_READ, job)
                selector.register(connection, selectors.EVENT_READ, job)

                continue

            job = key.data

            if key.fileobj == job.pidfd:
                _, status = os.waitpid(job.pid, 0)

                code = os.waitstatus_to_exitcode(status)

                for fileobj in (job.pidfd, job.connection):
                    # It is gone if the client was killed.
                    if fileobj in selector.get_map():
                        selector.unregister(fileobj)

                try:
                    job.connection.sendall(code.to_bytes(4, "big", signed=True))
                except OSError:
                    pass

                job.connection.close()

                os.close(job.pidfd)

                continue

            signums = job.connection.recv(16)

            if not signums:
                selector.unregister(job.connection)

                signums = bytes([signal.SIGKILL])

            for signum in signums:
                os.kill(job.pid, signum)


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    head, fds, _, _ = socket.recv_fds(connection, 4, 3)

    data = b""

    size = int.from_bytes(head, "big")

    while len(data) < size:
        block = connection.recv(size - len(data))

        if not block:
            break

        data += block

    if len(head) < 4 or len(data) < size:
        for fd in fds:
            os.close(fd)

        return None, []

    return json.loads(data), list(fds)


def _become_command(request: dict[str, Any], fds: list[int]) -> None:
    _die_with_parent()

    for number, fd in enumerate(fds):
        os.dup2(fd, number)

    # Sockets and all others of the server; none of them is inherited by programs.
    os.closerange(3, 1024)

    # Those of the server are of whoever has started the tests.
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        if signum in request["ignored"]:
            signal.signal(signum, signal.SIG_IGN)
        elif signum == signal.SIGINT:
            signal.signal(signum, signal.default_int_handler)
        else:
            signal.signal(signum, signal.SIG_DFL)

    own_path = _list_path()

    os.environ.clear()
    os.environ.update(request["env"])

    os.chdir(request["cwd"])
    os.umask(request["umask"])

    # Behind the first entry, which is of the program.
    sys.path[1:] = [*_list_path(), *(p for p in sys.path[1:] if p not in own_path)]

    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(  # type: ignore[union-attr]
            line_buffering=stream is sys.stderr or stream.isatty(),
            write_through=request["is_unbuffered"],
        )


def _list_path() -> list[str]:
    path = os.environ.get("PYTHONPATH")

    return [os.path.abspath(entry) for entry in path.split(":")] if path else []


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    path, sys.executable, owner_pid = sys.argv[1:]

    owner = os.pidfd_open(int(owner_pid))

    import_fairseq2()

    for name in _MODULES:
        import_module(name)

    # Else the first collection of each process copies all that is imported.
    gc.freeze()

    # Another thread would be missing in what is forked.
    assert len(os.listdir("/proc/self/task")) == 1

    request = serve(path, owner)

    target = request["target"]

    sys.argv = [target, *request["args"]]

    if request["is_module"]:
        sys.path[0] = os.getcwd()

        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(target).resolve().parent)

        runpy.run_path(target, run_name="__main__")


if __name__ == "__main__":
    main()
