# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

# Starts as a program of its own, without site-packages and the current folder; `SETTINGS` is
# put in front.
# flake8: noqa: F821
# mypy: ignore-errors

import json
import os
import re
import signal
import socket
import sys


def main():
    real_python, socket_path, pattern, picked = json.loads(SETTINGS)

    args = sys.argv[1:]

    def run_real():
        os.execv(real_python, [real_python, *args])

    env = dict(os.environ)

    own = {name: env[name] for name in env if re.match(pattern, name)}

    is_unbuffered = bool(env.get("PYTHONUNBUFFERED"))

    words = args

    if words[:1] == ["-u"]:
        is_unbuffered = True

        words = words[1:]

    is_module = words[:1] == ["-m"] and len(words) > 1

    if own != picked or not words or (words[0].startswith("-") and not is_module):
        run_real()

    try:
        for fd in range(3):
            os.fstat(fd)

        connection = socket.socket(socket.AF_UNIX)

        connection.connect(socket_path)
    except OSError:
        run_real()

    umask = os.umask(0)

    os.umask(umask)

    signums = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

    request = {
        "target": words[1] if is_module else words[0],
        "is_module": is_module,
        "args": words[2:] if is_module else words[1:],
        "cwd": os.getcwd(),
        "env": env,
        "is_unbuffered": is_unbuffered,
        "umask": umask,
        "ignored": [n for n in signums if signal.getsignal(n) == signal.SIG_IGN],
    }

    # They arrive before it has begun.
    for signum in signums:
        signal.signal(signum, lambda number, frame: connection.sendall(bytes([number])))

    data = json.dumps(request).encode()

    socket.send_fds(connection, [len(data).to_bytes(4, "big")], [0, 1, 2])

    connection.sendall(data)

    status = b""

    while len(status) < 4:
        block = connection.recv(4 - len(status))

        # The server has ended.
        if not block:
            os._exit(70)

        status += block

    code = int.from_bytes(status, "big", signed=True)

    if code < 0:
        signal.signal(-code, signal.SIG_DFL)

        os.kill(os.getpid(), -code)

    os._exit(code)


main()
