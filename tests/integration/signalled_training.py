# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Trains, but one of the processes gets SIGTERM while it tokenises."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch.distributed as dist

from warmup_plugin.data import tokenizing
from warmup_plugin.recipes.train import main


def send_signal_when_tokenising() -> None:
    encode = tokenizing._Job.encode

    def encode_signalled(*args: Any) -> object:
        os.kill(os.getpid(), signal.SIGTERM)

        return encode(*args)

    setattr(tokenizing._Job, "encode", encode_signalled)


if __name__ == "__main__":
    if os.environ["RANK"] == sys.argv[1]:
        send_signal_when_tokenising()

    status = main(sys.argv[2:])

    # Left to the end of the process, its threads may abort it.
    assert not dist.is_initialized()

    sys.exit(status)
