# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence


class WarmupError(Exception):
    """
    Reports bad input in one sentence that names the file, line or field and the
    remedy.

    Every command prints the message alone and exits with 2. Subclass it only for errors
    that no fairseq2 recipe raises: fairseq2 looks its error handlers up by exact type.
    """


def shorten_names(names: Sequence[str]) -> str:
    """Lists names for a message, the first ten of them."""
    max_num_names = 10

    text = ", ".join(names[:max_num_names])

    if len(names) > max_num_names:
        text += f" and {len(names) - max_num_names} more"

    return text


def check_least(name: str, value: float, least: float) -> None:
    """
    :param name: What it is called where it is given.

    :raises WarmupError: If a number is less than it may be.
    """
    if value < least:
        raise WarmupError(
            f"`{name}` must be greater than or equal to {least}, but is {value}."
        )
