# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import Command, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    commands = []

    def start(
        name: str, *args: object, is_warm: bool = True, **environment: str
    ) -> Command:
        log_file = tmp_path / f"{name}.log"

        command = Command(log_file, *args, is_warm=is_warm, **environment)

        commands.append(command)

        return command

    yield start

    # Only after a failure.
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
