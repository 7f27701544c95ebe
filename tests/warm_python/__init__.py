# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
A Python in which the imports of a command are already made.

Each of the many commands that the tests start in a process of its own takes eight seconds to
import PyTorch and fairseq2. Here one process imports them (``server.py``) and is forked for each
command; what the tests start in its place (``client.py``) passes on arguments, environment,
standard streams and signals, those that are ignored too, and ends as the command does. In all
else the command runs as ``python -m MODULE`` or ``python FILE`` would; other calls, and those
with an environment that changes imports, go to the real Python. What is killed by SIGKILL ends a
moment after its client, and with it its standard streams; where imports count, tests start the
real one, and where ``PYTHONPATH`` hides what the server has imported. All processes of
pytest-xdist share one server.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

IMPORT_VARIABLE: Final = re.compile(
    "FAIRSEQ2|HF_|LD_|MKL|OMP|PYTHON(?!UNBUFFERED|PATH)|TRANSFORMERS"
    "|TORCH(?!ELASTIC|_NCCL|_CPP_LOG_LEVEL|_SHOW_CPP)"
)
"""
Those of torchrun are read later, standard streams and the path are told of theirs, and two are
left by what fairseq2 did in the process of the tests.
"""

_HERE: Final = Path(__file__).resolve().parent

# One for each process of tests, and for each environment.
_executables: dict[object, str] = {}

_servers: list[subprocess.Popen[bytes]] = []


def get_warm_python(env: dict[str, str]) -> str:
    """
    Returns the program to start in place of ``sys.executable``.

    :param env: The environment of the commands.
    """
    key = (os.getpid(), *sorted(_pick(env).items()))

    if key not in _executables:
        _executables[key] = _find_or_start(env)

    return _executables[key]


def _find_or_start(env: dict[str, str]) -> str:
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")

    if run is None:
        return _start(env, Path(tempfile.mkdtemp(prefix="warm")), owner=os.getpid())

    name = hashlib.sha256(json.dumps([run, sorted(_pick(env).items())]).encode())

    # The path of a socket must be short.
    folder = Path(tempfile.gettempdir(), f"warm{name.hexdigest()[:16]}")

    folder.mkdir(exist_ok=True)

    with folder.joinpath("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        executable = folder / "python"

        if executable.exists():
            return str(executable)

        # The process that has started those of the tests, the first of which may end early.
        return _start(env, folder, owner=os.getppid())


def _start(env: dict[str, str], folder: Path, *, owner: int) -> str:
    """
    :param owner: The process with which the server ends.
    """
    executable = folder / "python"

    with folder.joinpath("log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.warm_python.server"),
                *(str(folder / "socket"), str(executable), str(owner)),
            ],
            cwd=_HERE.parent.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    _servers.append(process)

    assert process.stdout is not None

    # Or the end of the file, if it has failed.
    ready = process.stdout.readline()

    assert ready == b"ready\n", folder.joinpath("log").read_text()

    program = _HERE.joinpath("client.py").read_text(encoding="utf-8")

    settings = json.dumps(
        [
            *(sys.executable, str(folder / "socket")),
            *(IMPORT_VARIABLE.pattern, _pick(env)),
        ]
    )

    # Without site-packages it starts in a few milliseconds.
    executable.write_text(
        f"#!{sys.executable} -IS\nSETTINGS = {settings!r}\n{program}", encoding="utf-8"
    )

    executable.chmod(0o755)

    return str(executable)


def _pick(env: dict[str, str]) -> dict[str, str]:
    """Picks the variables that are read when modules are imported."""
    return {name: env[name] for name in env if IMPORT_VARIABLE.match(name)}
