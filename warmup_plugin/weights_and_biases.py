# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import secrets
import string
import sys
from typing import Final

from fairseq2.logging import log
from fairseq2.recipe.cli import register_cli_error
from fairseq2.runtime.dependency import DependencyContainer

_ALPHABET: Final = string.ascii_lowercase + string.digits


def register_weights_and_biases(container: DependencyContainer) -> None:
    """
    Lets fairseq2 0.8.1 log to today's Weights & Biases.

    ``fairseq2.recipe.composition.metric_recorders`` names a run with
    ``wandb.util.generate_id()``, which wandb 0.31, within fairseq2's bounds, no longer
    has; and what wandb raises where it is not reached has no message of fairseq2's. Does
    nothing before wandb is imported.
    """
    if "wandb" not in sys.modules:
        return

    import wandb.util
    from wandb.errors import Error

    if not hasattr(wandb.util, "generate_id"):
        setattr(wandb.util, "generate_id", generate_run_id)

    kinds: list[type[Exception]] = [Error]

    # fairseq2 looks for the very class. A login that is refused is a kind of a kind.
    for kind in kinds:
        kinds.extend(kind.__subclasses__())

        register_cli_error(container, kind, _handle_wandb_error)


def generate_run_id(length: int = 8) -> str:
    """Returns a random name for a run, as wandb's own was."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _handle_wandb_error(ex: Exception) -> int:
    reason = str(ex).strip().splitlines()

    log.error("Weights & Biases cannot be used ({}); check the connection and `wandb login`, set the environment variable `WANDB_MODE=offline` and upload later with `wandb sync`, or leave out `common.metric_recorders.wandb.enabled`.", reason[0] if reason else type(ex).__name__)  # fmt: skip

    return 2
