# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from typing import Any

import pytest

from scripts.check_estimators import (
    ESTIMATORS,
    KEEP_ESTIMATORS,
    KEEP_NUMS_WARMUPS,
    KEEPS,
    NUMS_WARMUPS,
    PROPOSALS,
    WITH_EMPTY,
    main,
)
from scripts.enumerable import PROBLEMS

# All warmups of at most three of four words.
NUM_WARMUPS = 1 + 4 + 16 + 64


def run(*args: str) -> tuple[list[str], dict[str, Any]]:
    """Returns the lines for people and what is for scripts."""
    out = io.StringIO()

    with redirect_stdout(out):
        assert main(["--num-trials", "100", *args]) == 0

    *lines, last_line = out.getvalue().splitlines()

    return lines, json.loads(last_line)


@pytest.fixture(scope="module")
def output() -> tuple[list[str], dict[str, Any]]:
    return run()


class TestMain:
    def test_call_measures_everything(
        self, output: tuple[list[str], dict[str, Any]]
    ) -> None:
        lines, result = output

        assert result["num_trials"] == 100
        assert result["seed"] == 0

        expected = {
            (name, proposal, num_warmups)
            for name in ESTIMATORS
            for proposal in PROPOSALS
            for num_warmups in (*NUMS_WARMUPS, NUM_WARMUPS)
            if proposal == "stochastic beam"
            or (name != "joint" and num_warmups != NUM_WARMUPS)
            if proposal not in WITH_EMPTY or (name != "elbo" and num_warmups > 1)
        }

        expected_keeps = {
            (name, num_warmups, keep)
            for name in KEEP_ESTIMATORS
            for num_warmups in KEEP_NUMS_WARMUPS
            for keep in KEEPS
        }

        assert [r["spread"]["model"] for r in result["reports"]] == [*PROBLEMS]

        for report in result["reports"]:
            rows = {
                (row["objective"], row["proposal"], row["num_warmups"]): row
                for row in report["rows"]
            }

            assert rows.keys() == expected

            for name in ("marginal", "joint"):
                row = rows[name, "stochastic beam", NUM_WARMUPS]

                assert row["grad_bias"] < 1e-6

            keep_rows = {
                (row["objective"], row["num_warmups"], row["keep"]): row
                for row in report["keep_rows"]
            }

            assert keep_rows.keys() == expected_keeps

            # The same draws as in the other table.
            for name in KEEP_ESTIMATORS:
                row = keep_rows[name, 16, "all"]

                assert row == rows[name, "on policy", 16]

                assert (
                    row["grad_variance"] < keep_rows[name, 16, "top 1"]["grad_variance"]
                )

            assert [check["proposal"] for check in report["samplers"]] == [*PROPOSALS]

            for check in report["samplers"]:
                assert check["log_prob_error"] < 1e-5
                assert check["frequency_error"] < 4.5

            assert report["backward_error"] < 1e-4

        # A line for each objective and proposal, three times a model.
        num_pairs = len({(name, proposal) for name, proposal, _ in expected})

        tables = [line for line in lines if line.startswith((*ESTIMATORS,))]

        num_models = len(PROBLEMS)

        assert len(tables) == num_models * (3 * num_pairs + len(expected_keeps))

        for name in PROBLEMS:
            assert any(line.startswith(f"{name}: 85 warmups") for line in lines)

    def test_seed_decides_draws_and_not_model(
        self, output: tuple[list[str], dict[str, Any]]
    ) -> None:
        _, result = output

        _, other_result = run("--model", "decoder-only", "--seed", "1")

        report, [other] = result["reports"][1], other_result["reports"]

        assert other["spread"] == report["spread"]

        for row, other_row in zip(report["rows"], other["rows"]):
            # With all of them drawn, there is nothing left to chance.
            if row["num_warmups"] <= 16:
                assert row["grad_bias"] != other_row["grad_bias"]

    def test_call_wants_enough_trials(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--num-trials", "99"]) == 2

        assert "`--num-trials` is 99" in capsys.readouterr().err
