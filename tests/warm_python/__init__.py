# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
A Python in which the imports of a command are already made.

Each of the many commands that the tests start in a process of its own takes four seconds to
import PyTorch and fairseq2. Here one process imports them (``server.py``) and is forked for each
command; what the tests start in its place (``client.py``) passes on arguments, environment,
standard streams and signals, and ends as the command does. In all else the command runs as
``python -m MODULE`` or ``python FILE`` would; other calls, and those with an environment that
changes imports, go to the real Python. What is killed by SIGKILL ends a moment after its client:
where that counts, and where imports do, tests start the real one.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

IMPORT_VARIABLE: Final = re.compile(
    "FAIRSEQ2|HF_|LD_|MKL|OMP|PYTHON(?!UNBUFFERED)|TRANSFORMERS"
    "|TORCH(?!ELASTIC|_NCCL|_CPP_LOG_LEVEL)"
)
"""
Those of torchrun are read later, standard streams are told of theirs, and one is left by
what fairseq2 did in the process of the tests.
"""

_HERE: Final = Path(__file__).resolve().parent

# One for each process of tests, and for each environment.
_executables: dict[object, str] = {}


def get_warm_python(env: dict[str, str]) -> str:
    """
    Returns the program to start in place of ``sys.executable``.

    :param env: The environment of the commands.
    """
    key = (os.getpid(), tuple(sorted(_pick(env).items())))

    if key not in _executables:
        _executables[key] = _start(env)

    return _executables[key]


def _start(env: dict[str, str]) -> str:
    # The path of a socket must be short.
    folder = Path(tempfile.mkdtemp(prefix="warm"))

    executable = folder / "python"

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

    with folder.joinpath("log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.warm_python.server"),
                *(str(folder / "socket"), str(executable)),
            ],
            cwd=_HERE.parent.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    assert process.stdout is not None

    # Or the end of the file, if it has failed.
    ready = process.stdout.readline()

    assert ready == b"ready\n", folder.joinpath("log").read_text()

    def stop() -> None:
        process.kill()
        process.wait()

        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)

    return str(executable)


def _pick(env: dict[str, str]) -> dict[str, str]:
    """Picks the variables that are read when modules are imported."""
    return {name: env[name] for name in env if IMPORT_VARIABLE.match(name)}
