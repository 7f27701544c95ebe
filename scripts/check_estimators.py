# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

r"""
Do the objectives estimate what they claim to, and how noisy are they?

A warmup of at most three of four words is one of 85, so that
:math:`P(y|x) = \sum_c P(c|x) P(y|c,x)` and its gradient are known exactly: a and b of
every warmup, and the gradients of both with respect to all parameters. By the chain
rule the gradient that a trial of K draws would train with is a sum of these, weighted by
the derivatives of the objective. So the samplers draw for thousands of trials at once,
and no trial needs a backward pass; that the sum is what a backward pass computes is
checked beside it.

The bias is the length of the difference between the mean gradient of the trials and the
gradient of what is claimed, the variance their mean squared distance from their mean,
both relative to the length of the exact gradient. An unbiased estimator shows a bias of
about the noise that follows it.

The models are tiny, random and on a CPU; b differs by several nats among warmups. With
long targets it differs by more, and in a model that ignores its warmups hardly at all. ::

    python scripts/check_estimators.py
    python scripts/check_estimators.py --model decoder-only --num-trials 10000
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, final

import torch

if not __package__:
    # Started as a file: the folder of the package is not on the path then.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_common import BenchParser, format_table
from scripts.check_risk import RiskReport, check_risk, format_risk_report
from scripts.enumerable import (
    PROBLEMS,
    SETTING,
    Problem,
    flatten_grad,
    measure_frequencies,
    measure_grads,
)
from scripts.estimators import (
    ESTIMATORS,
    IN_BF16,
    KEEP_ESTIMATORS,
    KEEPS,
    ON_POLICY,
    PROPOSALS,
    WITH_EMPTY,
    Draws,
    Enumeration,
    Exact,
    Trials,
    compute_exact,
    compute_nll,
    draw,
    enumerate_warmups,
    is_distinct,
    run_trials,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.conditional import RowCoefs
from warmup_plugin.objectives import marginal_loss, requires_distinct
from warmup_plugin.scoring import differentiate_objective, keep_all, score_candidates

NUMS_WARMUPS: Final = (1, 2, 4, 16, 64)

# One draw of each of this many trials tells something about the frequencies.
_MIN_NUM_TRIALS: Final = 100

# The two gradients must be equal, whatever was drawn.
_NUM_BACKWARD_TRIALS: Final = 200

_NOT_WITH_EMPTY: Final = ("elbo", "joint")
"""The estimators that take it for one that was drawn."""

KEEP_NUMS_WARMUPS: Final = (4, 16)

KEEP_PROPOSALS: Final = (ON_POLICY, *IN_BF16)


@final
@dataclass(frozen=True)
class Row:
    """Holds what was measured of an estimator, relative to the exact value."""

    model: str

    objective: str

    proposal: str

    num_warmups: int

    keep: str

    num_rows: float
    """The mean number of rows in the differentiable pass of a trial."""

    grad_bias: float

    grad_bias_noise: float
    """The length that ``grad_bias`` is expected to have without any bias."""

    grad_variance: float

    value_bias: float

    value_bias_noise: float
    """The standard error of ``value_bias``."""


def measure(trials: Trials, enumeration: Enumeration, exact: Exact) -> dict[str, float]:
    """Measures bias and variance; see :class:`Row`."""
    num_trials = trials.losses.size(0)

    values = trials.losses / abs(exact.value)

    return {
        "num_rows": trials.num_rows,
        **measure_grads(trials.coefs @ enumeration.coordinates, exact.grad),
        "value_bias": float(values.mean()) - exact.value / abs(exact.value),
        "value_bias_noise": float(values.std()) / math.sqrt(num_trials),
    }


@final
@dataclass(frozen=True)
class SamplerCheck:
    """Holds how far a sampler is from the enumeration."""

    proposal: str

    log_prob_error: float
    """The largest difference of log P(c|x), in nats."""

    frequency_error: float
    """The largest difference between how often a warmup was drawn and how often it
    should be, in standard deviations. Of draws that depend on each other the first."""


def check_sampler(
    proposal: str, enumeration: Enumeration, draws: Draws
) -> SamplerCheck:
    """Compares probabilities and frequencies of what a sampler has drawn."""
    exact_log_probs = enumeration.warmup_log_probs

    candidates, idx = draws.candidates, draws.idx

    assert candidates.warmup_log_probs is not None

    log_prob_errors = candidates.warmup_log_probs - exact_log_probs[idx]

    if is_distinct(PROPOSALS[proposal]):
        idx, log_probs = idx[:, 0], exact_log_probs
    else:
        log_probs = torch.full_like(exact_log_probs, -torch.inf)

        log_probs[idx] = candidates.proposal_log_probs.double()

    # (C)
    counts = torch.bincount(idx.flatten(), minlength=enumeration.num_warmups)

    return SamplerCheck(
        proposal,
        log_prob_error=float(log_prob_errors.abs().max()),
        frequency_error=measure_frequencies(counts, log_probs.exp()),
    )


def check_backward(
    problem: Problem, enumeration: Enumeration, num_trials: int
) -> float:
    """
    Compares a sum over the enumeration with what a training step does.

    Draws, weighs and differentiates as the criterion does, with ``marginal`` and K = 4.

    :returns: The difference of the mean gradients, relative to their length.
    """
    model = problem.model

    draws = draw(problem, enumeration, PROPOSALS[ON_POLICY], num_trials, 4)

    source_seqs, source_layout = problem.repeat_source(num_trials)

    with torch.no_grad():
        source = model.encode(source_seqs, source_layout)

    scores = score_candidates(
        model,
        source,
        problem.layout,
        draws.candidates,
        *problem.repeat_target(num_trials),
    )

    _, warmup_coefs, target_coefs = differentiate_objective(
        marginal_loss,
        scores.warmup_log_probs,
        scores.target_log_probs,
        draws.candidates.proposal_log_probs,
    )

    loss = model.compute_loss(
        source_seqs,
        source_layout,
        problem.join(draws.candidates),
        RowCoefs(warmup_coefs.flatten(), target_coefs.flatten()),
        problem.excluded(),
    )

    grad = flatten_grad(loss / num_trials, model).double()

    trials = run_trials(enumeration, draws, marginal_loss, keep_all)

    expected = trials.coefs.mean(dim=0) @ enumeration.grads

    return float((grad - expected).norm() / expected.norm())


@final
@dataclass(frozen=True)
class Spread:
    """Describes how different the warmups of a problem are."""

    model: str

    num_warmups: int

    total_prob: float
    """The sum of P(c|x), which is 1."""

    entropy: float
    """Of P(c|x), in nats."""

    target_log_prob_min: float

    target_log_prob_max: float

    target_log_prob_std: float
    """The standard deviation of b under P(c|x)."""

    nll: float

    bound: float

    ess_share: float
    """What the effective sample size of many draws is a share of their number."""

    warmup_grad_share: float
    """The length of what log P(c|x) contributes to the exact gradient."""


def describe_spread(model_name: str, enumeration: Enumeration) -> Spread:
    """Describes the warmups of a problem exactly."""
    a, b = enumeration.warmup_log_probs, enumeration.target_log_probs

    probs = a.exp()

    mean = (probs * b).sum()

    nll = compute_exact(enumeration, compute_nll)

    num_warmups = enumeration.num_warmups

    warmup_grad = nll.coefs[:num_warmups] @ enumeration.coordinates[:num_warmups]

    return Spread(
        model=model_name,
        num_warmups=num_warmups,
        total_prob=float(probs.sum()),
        entropy=-float((probs * a).sum()),
        target_log_prob_min=float(b.min()),
        target_log_prob_max=float(b.max()),
        target_log_prob_std=float((probs * (b - mean).square()).sum().sqrt()),
        nll=nll.value,
        bound=-float(mean),
        ess_share=1.0 / float((probs * (b + nll.value).exp().square()).sum()),
        warmup_grad_share=float(warmup_grad.norm() / nll.grad.norm()),
    )


@final
@dataclass(frozen=True)
class Report:
    """Holds everything that was measured with one model."""

    spread: Spread

    backward_error: float
    """See :func:`check_backward`."""

    samplers: Sequence[SamplerCheck]

    rows: Sequence[Row]
    """Of every objective, proposal and K; all candidates are kept."""

    keep_rows: Sequence[Row]
    """Of every way to keep candidates, on policy and drawn in bf16."""

    risks: Sequence[RiskReport]
    """Of minimum risk training, without warmups and with them."""


def check_model(model_name: str, num_trials: int, seed: int) -> Report:
    """Measures every estimator with one model, which does not depend on the seed."""
    problem = PROBLEMS[model_name](SETTING.warmup_len)

    enumeration = enumerate_warmups(problem)

    torch.manual_seed(seed)

    exacts = {
        name: compute_exact(enumeration, estimator.claim)
        for name, estimator in ESTIMATORS.items()
    }

    def measure_row(objective: str, proposal: str, draws: Draws, keep: str) -> Row:
        trials = run_trials(
            enumeration, draws, ESTIMATORS[objective].objective, KEEPS[keep]
        )

        return Row(
            model_name,
            objective,
            proposal,
            draws.idx.size(1),
            keep,
            **measure(trials, enumeration, exacts[objective]),
        )

    samplers, rows, keep_rows = [], [], []

    for proposal, sampler in PROPOSALS.items():
        nums_warmups = [*NUMS_WARMUPS]

        if is_distinct(sampler):
            nums_warmups.append(enumeration.num_warmups)

        if proposal in WITH_EMPTY:
            nums_warmups.remove(1)

        for num_warmups in nums_warmups:
            draws = draw(
                problem,
                enumeration,
                sampler,
                num_trials,
                num_warmups,
                in_bf16=proposal in IN_BF16,
            )

            if num_warmups == NUMS_WARMUPS[-1]:
                samplers.append(check_sampler(proposal, enumeration, draws))

            for name, estimator in ESTIMATORS.items():
                if requires_distinct(estimator.objective) and not is_distinct(sampler):
                    continue

                if proposal in WITH_EMPTY and name in _NOT_WITH_EMPTY:
                    continue

                rows.append(measure_row(name, proposal, draws, "all"))

            if proposal in KEEP_PROPOSALS and num_warmups in KEEP_NUMS_WARMUPS:
                keep_rows += [
                    measure_row(name, proposal, draws, keep)
                    for name in KEEP_ESTIMATORS
                    for keep in KEEPS
                ]

    return Report(
        describe_spread(model_name, enumeration),
        check_backward(problem, enumeration, _NUM_BACKWARD_TRIALS),
        samplers,
        rows,
        keep_rows,
        [check_risk(model_name, w, num_trials, seed) for w in (False, True)],
    )


def format_report(report: Report) -> str:
    """Formats the tables of one model."""
    return "\n\n".join(
        [
            _format_spread(report.spread),
            _format_samplers(report),
            _format_rows(report.rows, "bias of gradient (noise), %", _format_grad_bias),
            _format_rows(
                report.rows, "variance of gradient", lambda r: f"{r.grad_variance:.3g}"
            ),
            _format_rows(
                report.rows,
                "bias of value (noise), %",
                lambda r: f"{100 * r.value_bias:.2f} ({100 * r.value_bias_noise:.2f})",
            ),
            "Compared with Jensen's bound: `elbo`; with -log P(y|x) tempered: the tempered objective;\nwith -log P(y|x): all others, though `best` estimates nothing, and `joint` only if it sees all warmups.",
            _format_keep_rows(report.keep_rows),
            *map(format_risk_report, report.risks),
        ]
    )


def _format_spread(spread: Spread) -> str:
    return (
        f"{spread.model}: {spread.num_warmups} warmups, whose P(c|x) sums to {spread.total_prob:.6f}, entropy {spread.entropy:.2f} nats\n"
        f"log P(y|c,x) from {spread.target_log_prob_min:.2f} to {spread.target_log_prob_max:.2f}, standard deviation {spread.target_log_prob_std:.2f}\n"
        f"-log P(y|x) = {spread.nll:.3f}, Jensen's bound {spread.bound:.3f}; effective sample size of many draws {100 * spread.ess_share:.0f} %\n"
        f"log P(c|x) contributes {100 * spread.warmup_grad_share:.0f} % of the length of the gradient"
    )


def _format_samplers(report: Report) -> str:
    table = format_table(
        ["sampler", "error of log P(c|x)", "error of frequencies, sigma"],
        [
            [
                check.proposal,
                f"{check.log_prob_error:.1e}",
                f"{check.frequency_error:.1f}",
            ]
            for check in report.samplers
        ],
    )

    return f"{table}\n\nA backward pass differs from the sum over the enumeration by {report.backward_error:.1e} of its length."


def _format_grad_bias(row: Row) -> str:
    return f"{100 * row.grad_bias:.1f} ({100 * row.grad_bias_noise:.1f})"


def _format_rows(
    rows: Sequence[Row], title: str, format_cell: Callable[[Row], str]
) -> str:
    """Formats one number of each row, a line for each objective and proposal."""
    nums_warmups = sorted({row.num_warmups for row in rows})

    cells = {
        (row.objective, row.proposal, row.num_warmups): format_cell(row) for row in rows
    }

    lines = [
        [name, proposal]
        + [cells.get((name, proposal, num_warmups), "") for num_warmups in nums_warmups]
        for name, proposal in dict.fromkeys((r.objective, r.proposal) for r in rows)
    ]

    header = [title, "proposal", *(f"K = {k}" for k in nums_warmups)]

    return format_table(
        header, sorted(lines, key=lambda line: [*ESTIMATORS].index(line[0]))
    )


def _format_keep_rows(rows: Sequence[Row]) -> str:
    lines = [
        [
            row.objective,
            row.proposal,
            str(row.num_warmups),
            row.keep,
            f"{row.num_rows:.2f}",
            _format_grad_bias(row),
            f"{row.grad_variance:.3g}",
        ]
        for row in sorted(rows, key=lambda r: KEEP_ESTIMATORS.index(r.objective))
    ]

    return format_table(
        [
            *("objective", "proposal", "K", "keep", "rows"),
            *("bias of gradient (noise), %", "variance"),
        ],
        lines,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = BenchParser(
        prog="check_estimators.py",
        description="Compares the objectives' gradients with exact sums over all warmups, on tiny models.",
    )

    parser.add_argument(
        "--model",
        choices=[*PROBLEMS, "both"],
        default="both",
        help="the kind of model (default: %(default)s)",
    )

    parser.add_count("--num-trials", 2000, "trials of each estimator")

    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="the seed of the draws; the models are always the same (default: %(default)s)",
    )

    return parser.run(argv, _run)


def _run(args: argparse.Namespace) -> None:
    if args.num_trials < _MIN_NUM_TRIALS:
        raise WarmupError(
            f"`--num-trials` is {args.num_trials}, from which no frequency can be told; use at least {_MIN_NUM_TRIALS}."
        )

    names = [*PROBLEMS] if args.model == "both" else [args.model]

    reports = []

    for name in names:
        report = check_model(name, args.num_trials, args.seed)

        print(format_report(report), end="\n\n")

        reports.append(asdict(report))

    print(
        json.dumps(
            {
                "check": "estimators",
                "num_trials": args.num_trials,
                "seed": args.seed,
                "reports": reports,
            }
        )
    )


if __name__ == "__main__":
    sys.exit(main())
