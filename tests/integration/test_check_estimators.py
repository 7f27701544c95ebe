# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from itertools import product
from typing import Any

import pytest

from scripts.check_estimators import (
    KEEP_NUMS_WARMUPS,
    KEEP_PROPOSALS,
    NUMS_WARMUPS,
    main,
)
from scripts.check_risk import NUMS_SAMPLES, RISK_ESTIMATORS, is_defined
from scripts.enumerable import PROBLEMS
from scripts.estimators import (
    ESTIMATORS,
    IN_BF16,
    KEEP_ESTIMATORS,
    KEEPS,
    PROPOSALS,
    WITH_EMPTY,
)

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
            (name, proposal, num_warmups, keep)
            for name in KEEP_ESTIMATORS
            for proposal in KEEP_PROPOSALS
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
                (
                    *(row["objective"], row["proposal"]),
                    *(row["num_warmups"], row["keep"]),
                ): row
                for row in report["keep_rows"]
            }

            assert keep_rows.keys() == expected_keeps

            # The same draws as in the other table.
            for name, proposal in product(KEEP_ESTIMATORS, KEEP_PROPOSALS):
                row = keep_rows[name, proposal, 16, "all"]

                assert row == rows[name, proposal, 16]

                top = keep_rows[name, proposal, 16, "top 1"]

                assert row["grad_variance"] < top["grad_variance"]

            assert [check["proposal"] for check in report["samplers"]] == [*PROPOSALS]

            for check in report["samplers"]:
                if check["proposal"] in IN_BF16:
                    assert 1e-4 < check["log_prob_error"] < 0.3
                else:
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

    def test_call_measures_minimum_risk_training(
        self, output: tuple[list[str], dict[str, Any]]
    ) -> None:
        lines, result = output

        expected = [
            (name, num_samples)
            for num_samples in NUMS_SAMPLES
            for name, estimator in RISK_ESTIMATORS.items()
            if is_defined(estimator, num_samples)
        ]

        # One draw is compared with nothing.
        assert [e for e in expected if e[1] == 1] == [("reinforce, no baseline", 1)]

        for model_report in result["reports"]:
            plain, with_warmups = model_report["risks"]

            # All outputs of at most three of four words; at most two behind at most one.
            assert plain["num_outputs"] == NUM_WARMUPS
            assert with_warmups["num_outputs"] == (1 + 4) * (1 + 4 + 16)

            assert plain["warmup_grad_share"] == 0.0
            assert with_warmups["warmup_grad_share"] > 0.05

            for report in (plain, with_warmups):
                assert report["total_prob"] == pytest.approx(1.0, abs=1e-5)
                assert report["risk_std"] > 0.1
                assert report["frequency_error"] < 4.5
                assert report["backward_error"] < 1e-4

                rows = {(r["estimator"], r["num_samples"]): r for r in report["rows"]}

                assert [*rows] == expected

                few, many = (rows["risk, alpha = 1", n] for n in (2, 16))

                # One bar for both: 100 trials are noisy.
                assert few["grad_bias"] > 2 * few["grad_bias_noise"]

                for (name, _), row in rows.items():
                    if name.startswith("reinforce"):
                        assert row["grad_bias"] < 2 * row["grad_bias_noise"]

                assert many["grad_variance"] < few["grad_variance"]

                for num_samples in (2, 4, 16):
                    row = rows["reinforce", num_samples]

                    other = rows["reinforce, no baseline", num_samples]

                    assert row["grad_variance"] < 0.5 * other["grad_variance"]

        tables = [line for line in lines if line.startswith((*RISK_ESTIMATORS,))]

        # Bias, variance and cosine.
        assert len(tables) == len(PROBLEMS) * 2 * 3 * len(RISK_ESTIMATORS)

    def test_seed_decides_draws_and_not_model(
        self, output: tuple[list[str], dict[str, Any]]
    ) -> None:
        _, result = output

        _, other_result = run("--model", "decoder-only", "--seed", "1")

        report, [other] = result["reports"][1], other_result["reports"]

        assert other["spread"] == report["spread"]

        for risk, other_risk in zip(report["risks"], other["risks"]):
            assert risk["expected_risk"] == other_risk["expected_risk"]

            for row, other_row in zip(risk["rows"], other_risk["rows"]):
                assert row["grad_bias"] != other_row["grad_bias"]

        for row, other_row in zip(report["rows"], other["rows"]):
            # With all of them drawn, there is nothing left to chance.
            if row["num_warmups"] <= 16:
                assert row["grad_bias"] != other_row["grad_bias"]

    def test_call_wants_enough_trials(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["--num-trials", "99"]) == 2

        assert "`--num-trials` is 99" in capsys.readouterr().err
