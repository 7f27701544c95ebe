# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Reads the JSON lines that `generate` and `score` write."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, cast, final, get_type_hints

from warmup_plugin.data.text_lines import iter_lines
from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import parse_json

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Hypothesis:
    """Holds an output of the n best, or of several warmups."""

    warmup: str | None
    """``None`` if the model writes no warmup."""

    output: str

    score: float | None

    log_prob: float | None

    warmup_log_prob: float | None
    """log P(c|x)."""

    target_log_prob: float | None
    """log P(y|c,x)."""

    weight: float | None
    """The normalised weight by which it was chosen, where there is one."""


@final
@dataclass(frozen=True)
class Translation:
    """Holds what a run made of one line of the test set."""

    source: str

    best: Hypothesis

    hypotheses: Sequence[Hypothesis]
    """All of them, the best one first; empty in files that hold the best one only."""


@final
@dataclass(frozen=True)
class Draw:
    """Holds a distinct warmup that was drawn, and what it makes of the reference."""

    warmup: str

    warmup_log_prob: float | None
    """log P(c|x)."""

    target_log_prob: float | None
    """log P(y|c,x) of the reference y."""

    weight: float
    """Its share of the posterior weight, that of equal draws added up."""

    count: int
    """How often it was drawn."""


@final
@dataclass(frozen=True)
class ScoredPair:
    """Holds how likely a run finds one reference, without and with warmups."""

    source: str

    num_target_tokens: int

    log_prob: float | None
    """log P(y|x) without warmup."""

    marginal_log_prob: float | None
    """log of the mean of P(y|c,x) over the warmups drawn."""

    gain: float | None

    effective_sample_size: float | None

    draws: Sequence[Draw]

    @property
    def num_draws(self) -> int:
        """The number K of warmups drawn."""
        return sum(draw.count for draw in self.draws)


def read_translations(file: Path) -> list[Translation]:
    """
    Reads ``RUN_DIR/generate/SPLIT.CHECKPOINT.txt.jsonl``.

    :raises WarmupError: If a line is not what ``generate`` writes.
    """
    return [
        Translation(
            row.text("source"),
            row.read(Hypothesis),
            [item.read(Hypothesis) for item in row.items("hypotheses")],
        )
        for row in _read_rows(file, "python -m warmup_plugin generate")
    ]


def read_scores(file: Path) -> list[ScoredPair]:
    """
    Reads ``RUN_DIR/score/SPLIT.CHECKPOINT.jsonl``.

    :raises WarmupError: If a line is not what ``score`` writes.
    """
    return [
        row.read(
            ScoredPair,
            num_target_tokens=int(row.number("num_target_tokens") or 0),
            draws=[
                item.read(
                    Draw,
                    weight=item.number("weight") or 0.0,
                    count=int(item.number("count") or 1),
                )
                for item in row.items("warmups")
            ],
        )
        for row in _read_rows(file, "python -m warmup_plugin score")
    ]


@final
@dataclass(frozen=True)
class _Row:
    """Reads the fields of a JSON object and says what is wrong with them."""

    where: str

    remedy: str

    fields: Mapping[str, object]

    def read(self, kls: type[T], **others: Any) -> T:
        """
        Reads a dataclass, whose fields are texts and numbers.

        :param others: The fields that are not.
        """
        readers: dict[Any, Callable[[str], Any]] = {
            str: self.text,
            str | None: self.optional_text,
            float | None: self.number,
        }

        values = {
            name: readers[hint](name)
            for name, hint in get_type_hints(kls).items()
            if name not in others
        }

        return kls(**values, **others)

    def text(self, name: str) -> str:
        value = self.fields.get(name)

        if not isinstance(value, str):
            raise self._error(name, "text")

        return value

    def optional_text(self, name: str) -> str | None:
        return None if self.fields.get(name) is None else self.text(name)

    def number(self, name: str) -> float | None:
        """Returns a number; ``None`` if there is none, or if it is not finite."""
        value = self.fields.get(name)

        if value is None:
            return None

        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._error(name, "a number")

        return float(value) if math.isfinite(value) else None

    def items(self, name: str) -> list[_Row]:
        values = self.fields.get(name, [])

        if not isinstance(values, list) or not all(isinstance(v, dict) for v in values):
            raise self._error(name, "a list of objects")

        return [
            _Row(f"{self.where}, {name} {idx}", self.remedy, value)
            for idx, value in enumerate(values, start=1)
        ]

    def _error(self, name: str, kind: str) -> WarmupError:
        return WarmupError(
            f"{self.where} has no field `{name}` that is {kind}; {self.remedy}."
        )


_REMEDY: Final = "delete the file and run `{} RUN_DIR` again"


def _read_rows(file: Path, command: str) -> list[_Row]:
    remedy = _REMEDY.format(command)

    rows = []

    for line_nr, line in enumerate(iter_lines(file), start=1):
        where = f"{file}:{line_nr}"

        try:
            fields = parse_json(line)
        except ValueError:
            fields = None

        if not isinstance(fields, dict):
            raise WarmupError(f"{where} holds no JSON object; {remedy}.")

        rows.append(_Row(where, remedy, cast("dict[str, object]", fields)))

    return rows
