# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The metrics that a run has written while it trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast, final

import numpy as np

from warmup_plugin.collapse import MAX_CUT, MAX_DUPLICATE, MAX_EMPTY, MAX_REPETITION
from warmup_plugin.data.test_sets import make_file_name
from warmup_plugin.data.text_lines import iter_lines
from warmup_plugin.parsing import parse_json

MAX_NUM_POINTS: Final = 1000
"""The most points of a curve; of more, neighbours are averaged."""

LOSS: Final = "NLL Loss"

# What training calls it where it includes label smoothing.
_SMOOTHED_LOSS: Final = "Label-Smoothed Loss"

NUM_WARMUPS: Final = "Warmups per Source (K)"

# The time since the first start of a run in `train.jsonl`; validation has none.
_TOTAL_TIME: Final = "Total Time"


@final
@dataclass(frozen=True)
class Panel:
    """Describes a plot of curves."""

    key: str
    """What the metric is called in the JSONL files."""

    title: str

    note: str
    """One sentence below the title."""

    is_share: bool = False
    """If ``True``, values are between 0 and 1 and shown as percentages."""

    begins_at_zero: bool = False
    """If ``True``, the axis does, as it does for shares."""

    limit: float | None = None
    """Where a run warns of a collapse."""

    limit_scales_with_k: bool = False
    """If ``True``, the limit is a share of the K - 1 draws that could differ."""


QUALITY_PANELS: Final = (
    Panel("BLEU", "BLEU", "Development set, at each validation."),
    Panel("chrF++", "chrF++", "Development set, at each validation."),
    Panel(
        LOSS,
        "Loss per target token (nats)",
        "Solid: training batches, of SFT with label smoothing where that is set. Dashed: development set, without.",
    ),
)

WARMUP_PANELS: Final = (
    Panel(
        "Effective Sample Size",
        "Effective sample size",
        "1/Σw² of the posterior weights: 1 if one warmup counts, K if all do alike, as when y ignores them.",
        begins_at_zero=True,
    ),
    Panel(
        "Gain over No Warmup (nats)",
        "Gain over no warmup (nats)",
        "log P(y|x) with K warmups less that without; also rises when a model forgets to write y alone.",
    ),
    Panel(
        "Warmup Length",
        "Warmup length (tokens)",
        "Mean of the warmups drawn.",
        begins_at_zero=True,
    ),
    Panel(
        "Warmup Entropy (nats)",
        "Warmup entropy (nats)",
        "Mean −log P(c|x) of the warmups drawn.",
        begins_at_zero=True,
    ),
    Panel(
        "Duplicate Warmups (%)",
        "Duplicates",
        "Warmups that an earlier draw of the same source equals.",
        is_share=True,
        limit=MAX_DUPLICATE,
        limit_scales_with_k=True,
    ),
    Panel(
        "Repetition in Warmups (%)",
        "Repetition",
        "Tokens that only repeat the warmup they are in.",
        is_share=True,
        limit=MAX_REPETITION,
    ),
    Panel(
        "Empty Warmups (%)",
        "Empty warmups",
        "Warmups without a token.",
        is_share=True,
        limit=MAX_EMPTY,
    ),
    Panel(
        "Cut Warmups (%)",
        "Cut warmups",
        "Warmups ended by the length limit, not by the model.",
        is_share=True,
        limit=MAX_CUT,
    ),
)

PANELS: Final = QUALITY_PANELS + WARMUP_PANELS


@final
@dataclass(frozen=True)
class Curve:
    """Holds a metric over the steps of a run."""

    steps: Sequence[float]

    times: Sequence[float | None]
    """The training time of each point in seconds, as far as it is known."""

    values: Sequence[float]


@final
@dataclass(frozen=True)
class Curves:
    """Holds the metrics of a run by their name in the JSONL files."""

    train: Mapping[str, Curve]

    valid: Mapping[str, Curve]

    last_step: int
    """The last step with metrics; 0 if there is none."""

    total_time: float | None
    """The training time in seconds, validation included."""

    begin: str | None
    """The time of the first record, as written."""

    end: str | None

    unreadable: Sequence[str]
    """Says which lines cannot be read, one entry a file."""

    def is_empty(self) -> bool:
        return not self.train and not self.valid


def read_curves(run_dir: Path, valid_split: str) -> Curves:
    """Reads what a run has written in ``metrics/``; nothing is no error."""
    train_file = run_dir / "metrics" / "train.jsonl"
    valid_file = run_dir / "metrics" / "valid" / f"{make_file_name(valid_split)}.jsonl"

    files = (train_file, valid_file)

    (train, _), (valid, _) = records = [_read_rows(file) for file in files]

    clock = [
        (float(step), time)
        for row in train
        if (step := _number(row.get("Step"))) is not None
        and (time := _number(row.get(_TOTAL_TIME))) is not None
    ]

    unreadable = [
        f"{num_unreadable} line(s) of {file.relative_to(run_dir)}"
        for file, (_, num_unreadable) in zip(files, records)
        if num_unreadable > 0
    ]

    stamps = sorted(str(r["Time"]) for r in (*train, *valid) if "Time" in r)

    steps = [int(cast(float, r["Step"])) for r in (*train, *valid)]

    return Curves(
        train=_collect_curves(train, clock),
        valid=_collect_curves(valid, clock),
        last_step=max(steps, default=0),
        total_time=clock[-1][1] if clock else None,
        begin=stamps[0] if stamps else None,
        end=stamps[-1] if stamps else None,
        unreadable=unreadable,
    )


def _read_rows(file: Path) -> tuple[list[Mapping[str, object]], int]:
    """Returns the records of a file, and how many lines cannot be read."""
    if not file.is_file():
        return [], 0

    rows: list[Mapping[str, object]] = []

    num_unreadable = 0

    for line in iter_lines(file):
        try:
            row = parse_json(line)
        except ValueError:
            row = None

        # A run that is killed, or that writes just now, may leave a part of a line.
        if not isinstance(row, dict) or _number(row.get("Step")) is None:
            num_unreadable += 1

            continue

        # A run that was resumed repeats what came after its checkpoint.
        while rows and cast(float, rows[-1]["Step"]) >= row["Step"]:
            rows.pop()

        rows.append(row)

    return rows, num_unreadable


def _collect_curves(
    rows: Sequence[Mapping[str, object]], clock: Sequence[tuple[float, float]]
) -> dict[str, Curve]:
    curves = {}

    for key in (*(panel.key for panel in PANELS), NUM_WARMUPS):
        # A run of an earlier version that was resumed has both.
        other = _SMOOTHED_LOSS if key == LOSS else key

        points = [
            (float(cast(float, row["Step"])), value)
            for row in rows
            # A loss that is no number has no place in a plot.
            if (value := _number(row.get(key, row.get(other)))) is not None
        ]

        if points:
            steps, values = _thin(points)

            curves[key] = Curve(steps, _find_times(steps, clock), values)

    return curves


def _thin(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    size = math.ceil(len(points) / MAX_NUM_POINTS)

    steps, values = [], []

    for begin in range(0, len(points), size):
        group = points[begin : begin + size]

        # The last step, as a record is of the steps since the one before.
        steps.append(group[-1][0])

        values.append(sum(value for _, value in group) / len(group))

    return steps, values


def _find_times(
    steps: Sequence[float], clock: Sequence[tuple[float, float]]
) -> list[float | None]:
    """Interpolates the training time of each step."""
    if not clock:
        return [None] * len(steps)

    known_steps, known_times = zip((0.0, 0.0), *clock)

    # After the last record of training, its time.
    return [float(time) for time in np.interp(steps, known_steps, known_times)]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None

    return value if math.isfinite(value) else None
