# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json

from warmup_plugin.metrics.base import Comparison, MetricScore
from warmup_plugin.metrics.tables import (
    escape_latex,
    format_latex,
    format_number,
    format_p_value,
    format_table,
    to_json,
)

_BLEU = MetricScore("BLEU", 30.0, "s", 28.5, 31.25, 2, "bleu")

_COMET = MetricScore("COMET", 0.81236, "s", None, None, 2, "comet")

_NO_COMET = MetricScore("COMET", None, "", None, None, 2, "comet", reason="No.")


def _compare(system: str, metric: str, p_value: float) -> Comparison:
    return Comparison(system, metric, 30.0, 29.0, p_value, "s")


class TestFormatTable:
    def test_call_aligns_columns(self) -> None:
        scores = {
            "base": [MetricScore("BLEU", 30.0, "s", 28.5, 31.25, 2)],
            "a longer name": [MetricScore("BLEU", 5.125, "s", None, None, 2)],
        }

        text = format_table(scores, extra_columns={"seconds": ["7", "12"]})

        assert text.splitlines() == [
            "system                         BLEU  seconds",
            "--------------------------------------------",
            "base           30.00 [28.50, 31.25]        7",
            "a longer name                  5.12       12",
        ]

    def test_call_adds_p_values(self) -> None:
        scores = {"base": [_BLEU, _COMET], "other": [_BLEU, _COMET]}

        comparisons = [_compare("other", "BLEU", 0.0104)]

        header, _, base, other = format_table(scores, comparisons).splitlines()

        assert header.split() == ["system", "BLEU", "p", "COMET", "p"]
        assert base.split()[4:] == ["-", "0.8124", "-"]
        assert other.split()[4:] == ["0.010", "0.8124", "-"]

    def test_missing_score_is_dash(self) -> None:
        _, _, row = format_table({"base": [_BLEU, _NO_COMET]}).splitlines()

        assert row.split() == ["base", "30.00", "[28.50,", "31.25]", "-"]


class TestFormatLatex:
    def test_call_formats_rows(self) -> None:
        scores = {
            "base_1": [_BLEU, _NO_COMET],
            "R&D 5%": [_BLEU, _COMET],
            "c": [_BLEU, MetricScore("COMET", -0.5, "s", -0.6, -0.4, 2, "comet")],
        }

        comparisons = [
            _compare("R&D 5%", "BLEU", 0.009),
            _compare("R&D 5%", "COMET", 0.05),
            _compare("c", "BLEU", 0.049),
        ]

        assert format_latex(scores, comparisons).splitlines() == [
            r"% system & BLEU & COMET \\",
            "% *: p < 0.05, **: p < 0.01, approximate randomization against the first",
            r"base\_1 & 30.00 $\pm$ 1.38 & -- \\",
            r"R\&D 5\% & 30.00 $\pm$ 1.38$^{**}$ & 0.8124 \\",
            r"c & 30.00 $\pm$ 1.38$^{*}$ & $-0.5000$ $\pm$ 0.1000 \\",
        ]

    def test_call_explains_no_marks_when_there_are_none(self) -> None:
        assert len(format_latex({"a": [_BLEU]}).splitlines()) == 2


def test_escape_latex_leaves_no_command() -> None:
    assert escape_latex("a_b#1 50%&$x^2~{y}\\z\n<|>") == (
        r"a\_b\#1 50\%\&\$x\textasciicircum{}2\textasciitilde{}\{y\}"
        r"\textbackslash{}z \textless{}\textbar{}\textgreater{}"
    )


def test_format_number_shows_sign_of_differences() -> None:
    assert format_number("bleu", 0.5, sign="+") == "+0.50"
    assert format_number("comet", -0.00123, sign="+") == "-0.0012"


def test_to_json_returns_plain_data() -> None:
    data = to_json({"a": [_BLEU, _NO_COMET]}, [_compare("a", "BLEU", 0.5)])

    assert json.loads(json.dumps(data, allow_nan=False)) == data

    _, comet = data["systems"]["a"]  # type: ignore[index]

    assert comet["score"] is None and comet["reason"] == "No."


def test_p_value_is_never_zero() -> None:
    assert [format_p_value(p) for p in (1.0, 0.0499, 0.0005, 0.0004)] == [
        "1.000",
        "0.050",
        "0.001",
        "< 0.001",
    ]
