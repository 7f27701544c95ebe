# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
How long the warmups of a run may be, which may change while it trains, and what it has
learned to write without one.

Imports neither fairseq2 nor torch: commands ask it what a run has learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

LEAVES_SEPARATOR_OUT: Final = "leaves_separator_out"


def get_max_warmup_len(warmup: Mapping[str, Any], step_nr: int) -> int:
    """
    Returns the most tokens of a warmup at a step; 0 if all are empty.

    :param warmup: The section ``warmup`` of a run, which may be of an earlier version.
    """
    return interpolate_len(
        int(warmup["max_warmup_len"]), warmup.get("len_schedule"), step_nr
    )


def interpolate_len(
    max_warmup_len: int, schedule: Sequence[Sequence[int]] | None, step_nr: int
) -> int:
    """
    Returns the length that a schedule has at a step.

    :param schedule: Pairs of step and length, in the order of the steps; ``None`` for
        the same length all the time. Between two of them the length changes evenly,
        rounded down; before the first and after the last it is theirs.
    """
    if not schedule:
        return max_warmup_len

    last_step, last_len = schedule[0]

    for step, length in schedule:
        if step_nr <= step:
            if step == last_step:
                return length

            share = (step_nr - last_step) / (step - last_step)

            return int(last_len + share * (length - last_len))

        last_step, last_len = step, length

    return last_len


def writes_warmups(run_config: Mapping[str, Any]) -> bool:
    """
    Tells whether a run teaches its model to write warmups.

    :param run_config: That of a run, which may be of an earlier version.
    """
    section = run_config["criterion"]

    stated = section.get("writes_warmups")

    return section.get("name") != "sft" if stated is None else bool(stated)


def has_empty_warmup(run_config: Mapping[str, Any]) -> bool:
    """
    Tells whether a model without warmup writes the empty one: else its outputs follow
    no separator.

    :param run_config: That of a run, as ``RunDir.load_config()`` returns it; with the
        length of warmups at a checkpoint if that is to count, where 0 means that all of
        them are empty.
    """
    if not writes_warmups(run_config):
        return False

    warmup = run_config["warmup"]

    return bool(
        warmup.get("plain_path", "bare") == "empty" or warmup["max_warmup_len"] == 0
    )


def leaves_separator_out(run_config: Mapping[str, Any]) -> bool:
    """
    Tells whether the separator has no probability in the outputs of a run, also in those
    without: as all rows are trained beside warmups, those of plain directions as well.

    :param run_config: As :func:`~warmup_plugin.recipes.job_configs.load_run_config` returns it,
        of one direction.
    """
    return bool(run_config["warmup"].get(LEAVES_SEPARATOR_OUT))
