# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Trains, and writes down which files of weights a process opens for it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from warmup_plugin.recipes.train import main


def watch(log_file: Path) -> None:
    """Appends the name of each file of weights that is opened to be read."""

    def note(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and str(args[0]).endswith(".pt") and args[1] in ("r", "rb"):
            with log_file.open("a") as fp:
                fp.write(f"{args[0]}\n")

    sys.addaudithook(note)


if __name__ == "__main__":
    watch(Path(sys.argv[1], f"opened_{os.environ['RANK']}"))

    sys.exit(main(sys.argv[2:]))
