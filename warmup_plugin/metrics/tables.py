# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Scores as plain text, LaTeX and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Final

from warmup_plugin.metrics.base import Comparison, MetricScore

# All other scores are from 0 to 100.
_NUM_DIGITS: Final = {"comet": 4, "cometkiwi": 4, "metricx": 3, "metricx_qe": 3}

_LATEX_ESCAPES: Final = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        **{char: f"\\{char}" for char in "&%$#_{}"},
    }
)


def format_score(score: MetricScore | None) -> str:
    """Formats a score with its interval, if there is one."""
    if score is None or score.score is None:
        return "-"

    text = format_number(score.key, score.score)

    if score.ci_low is None or score.ci_high is None:
        return text

    low = format_number(score.key, score.ci_low)
    high = format_number(score.key, score.ci_high)

    return f"{text} [{low}, {high}]"


def format_number(key: str, value: float, *, sign: str = "") -> str:
    """
    Formats a score with as many digits as its metric shows.

    :param sign: ``+`` for a difference, which has a sign in any case.
    """
    return f"{value:{sign}.{_NUM_DIGITS.get(key, 2)}f}"


def format_p_value(value: float) -> str:
    """Writes a p-value with three digits; one that they would make 0 is less."""
    return "< 0.001" if value < 0.0005 else f"{value:.3f}"


def format_columns(rows: Sequence[Sequence[str]], *, num_left: int = 1) -> str:
    """
    Aligns cells of plain text.

    :param rows: The first one is the heading.
    :param num_left: The number of columns, from the left, that are not numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    lines = []

    for cells in rows:
        aligned = [
            cell.ljust(width) if idx < num_left else cell.rjust(width)
            for idx, (cell, width) in enumerate(zip(cells, widths))
        ]

        lines.append("  ".join(aligned).rstrip())

    lines.insert(1, "-" * max(map(len, lines)))

    return "\n".join(lines)


def format_table(
    scores: Mapping[str, Sequence[MetricScore]],
    comparisons: Sequence[Comparison] = (),
    *,
    extra_columns: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """
    Formats the scores of several systems as a table of plain text.

    :param scores: The scores by the name of the system.
    :param comparisons: Adds a column of p-values beside each metric.
    :param extra_columns: More columns by their heading, one cell a system.
    """
    header = ["system"]

    for name in _list_names(scores):
        header += [name, "p"] if comparisons else [name]

    rows = [header]

    for system, row in _iter_rows(scores, comparisons):
        rows.append([system])

        for score, p_value in row:
            rows[-1].append(format_score(score))

            if comparisons:
                rows[-1].append("-" if p_value is None else format_p_value(p_value))

    for heading, column in (extra_columns or {}).items():
        for cells, cell in zip(rows, [heading, *column], strict=True):
            cells.append(cell)

    return format_columns(rows)


def format_latex(
    scores: Mapping[str, Sequence[MetricScore]], comparisons: Sequence[Comparison] = ()
) -> str:
    r"""
    Formats the scores as rows of a LaTeX table, one a system, below a comment.

    A score is followed by half the width of its 95% bootstrap interval, if there is
    one, and marked where it differs from the baseline. Needs no package.
    """
    header = map(escape_latex, ["system", *_list_names(scores)])

    lines = [f"% {' & '.join(header)} \\\\"]

    if comparisons:
        lines.append(
            "% *: p < 0.05, **: p < 0.01, approximate randomization against the first"
        )

    for system, row in _iter_rows(scores, comparisons):
        cells = [escape_latex(system), *(_format_latex_score(*pair) for pair in row)]

        lines.append(f"{' & '.join(cells)} \\\\")

    return "\n".join(lines)


def escape_latex(text: str) -> str:
    """Escapes what LaTeX would read as a command."""
    return " ".join(text.translate(_LATEX_ESCAPES).split())


def _format_latex_score(score: MetricScore | None, p_value: float | None) -> str:
    if score is None or score.score is None:
        return "--"

    text = format_number(score.key, score.score)

    if text.startswith("-"):
        # A hyphen would be no minus.
        text = f"${text}$"

    if score.ci_low is not None and score.ci_high is not None:
        half = format_number(score.key, (score.ci_high - score.ci_low) / 2)

        text += rf" $\pm$ {half}"

    if p_value is not None and p_value < 0.05:
        text += "$^{**}$" if p_value < 0.01 else "$^{*}$"

    return text


def _list_names(scores: Mapping[str, Sequence[MetricScore]]) -> list[str]:
    return list(dict.fromkeys(s.name for row in scores.values() for s in row))


def _iter_rows(
    scores: Mapping[str, Sequence[MetricScore]], comparisons: Sequence[Comparison]
) -> Iterator[tuple[str, list[tuple[MetricScore | None, float | None]]]]:
    """Goes through systems, with the score and the p-value of each metric."""
    p_values = {(c.system, c.metric): c.p_value for c in comparisons}

    for system, row in scores.items():
        by_name = {score.name: score for score in row}

        yield system, [
            (by_name.get(name), p_values.get((system, name)))
            for name in _list_names(scores)
        ]


def to_json(
    scores: Mapping[str, Sequence[MetricScore]], comparisons: Sequence[Comparison] = ()
) -> dict[str, object]:
    """Returns the scores and comparisons as data that ``json`` can write."""
    return {
        "systems": {name: [asdict(s) for s in row] for name, row in scores.items()},
        "comparisons": [asdict(c) for c in comparisons],
    }
