# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence

from warmup_plugin.late_imports import import_fairseq2
from warmup_plugin.recipes.train_arguments import read_train_arguments
from warmup_plugin.terminal import get_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status."""
    args = read_train_arguments(get_arguments(argv))

    # fairseq2 takes seconds; not for `--help` and mistyped options.
    import_fairseq2()

    from warmup_plugin.recipes.train import train

    return train(args)
