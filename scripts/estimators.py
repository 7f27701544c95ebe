# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The estimators that ``check_estimators.py`` checks, and what they are by exact sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from scripts.bench_common import PAD_IDX
from scripts.enumerable import (
    SETTING,
    Problem,
    flatten_grad,
    list_texts,
    to_coordinates,
)
from warmup_plugin.objectives import (
    Objective,
    TemperedObjective,
    best_loss,
    elbo_loss,
    joint_loss,
    marginal_loss,
)
from warmup_plugin.sampling import Candidates, WarmupSampler
from warmup_plugin.sampling.samplers import (
    IndependentConfig,
    IndependentSampler,
    StochasticBeamSampler,
)
from warmup_plugin.scoring import (
    CandidateScores,
    KeptCandidates,
    differentiate_objective,
    keep_all,
    keep_mass,
    keep_resampled,
    keep_top,
    score_candidates,
)

_TEMPERATURE: Final = 3.0


@final
@dataclass(frozen=True)
class Enumeration:
    """Holds all C warmups that there are, and what the exact sum is made of, fp64."""

    warmups: Candidates
    """The candidates of one source."""

    warmup_log_probs: Tensor
    """a = log P(c|x). *Shape:* :math:`(C)`."""

    target_log_probs: Tensor
    """b = log P(y|c,x). *Shape:* :math:`(C)`."""

    grads: Tensor
    """The gradients of a, then those of b, with respect to all W parameters. *Shape:*
    :math:`(2 \\times C,W)`."""

    coordinates: Tensor
    """See :func:`to_coordinates`. *Shape:* :math:`(2 \\times C,2 \\times C)`."""

    @property
    def num_warmups(self) -> int:
        """The number C of all warmups."""
        return self.warmups.num_warmups

    def find(self, candidates: Candidates) -> Tensor:
        """
        Finds the numbers of warmups that were drawn.

        *Shape:* :math:`(N,K)`.
        """
        idx = torch.empty(
            SETTING.vocab_size ** self.warmups.seqs.size(1), dtype=torch.long
        )

        idx[self._encode(self.warmups)] = torch.arange(self.num_warmups)

        return idx[self._encode(candidates)].view_as(candidates.proposal_log_probs)

    def _encode(self, candidates: Candidates) -> Tensor:
        """Reads warmups as numbers whose digits are tokens. *Shape:* :math:`(B)`."""
        max_len = self.warmups.seqs.size(1)

        seqs = candidates.seqs

        seqs = pad(seqs, (0, max_len - seqs.size(1)), value=PAD_IDX)

        return (seqs * SETTING.vocab_size ** torch.arange(max_len)).sum(dim=1)


def list_warmups(problem: Problem) -> Candidates:
    """Lists all warmups of the problem's source, the empty one first."""
    max_len = problem.max_warmup_len

    warmups = list_texts(max_len)

    seqs = [[*warmup, *[PAD_IDX] * (max_len - len(warmup))] for warmup in warmups]

    seq_lens = torch.tensor([len(warmup) for warmup in warmups])

    return Candidates(
        seqs=torch.tensor(seqs),
        seq_lens=seq_lens,
        cut=seq_lens == max_len,
        proposal_log_probs=torch.zeros((1, len(warmups))),
    )


def enumerate_warmups(problem: Problem) -> Enumeration:
    """Scores and differentiates every warmup, one backward pass each."""
    warmups = list_warmups(problem)

    model = problem.model

    # (C), (C)
    scores = model.score(
        model.encode(*problem.repeat_source(1)),
        problem.join(warmups),
        problem.excluded(),
    )

    grads = [flatten_grad(log_prob, model) for part in scores for log_prob in part]

    # (2 x C, W)
    all_grads = torch.stack(grads).double()

    a, b = (part.detach().double() for part in scores)

    return Enumeration(warmups, a, b, all_grads, to_coordinates(all_grads))


def compute_nll(a: Tensor, b: Tensor) -> Tensor:
    """Computes -log P(y|x)."""
    return -torch.logsumexp(a + b, dim=0)


def compute_jensen_bound(a: Tensor, b: Tensor) -> Tensor:
    """Computes the bound of -log P(y|x) that Jensen's inequality gives."""
    return -(a.exp() * b).sum()


def compute_tempered_nll(a: Tensor, b: Tensor) -> Tensor:
    r"""Computes :math:`-\tau \log E_c[P(y|c,x)^{1/\tau}]`."""
    return -_TEMPERATURE * torch.logsumexp(a + b / _TEMPERATURE, dim=0)


Claim = Callable[[Tensor, Tensor], Tensor]
"""Computes from a and b of all warmups what an objective estimates from a few."""


@final
@dataclass(frozen=True)
class Estimator:
    """Holds an objective and what its mean is compared with."""

    objective: Objective

    claim: Claim


_TEMPERED: Final = f"marginal, tau = {_TEMPERATURE:g}"

ESTIMATORS: Final[Mapping[str, Estimator]] = {
    "marginal": Estimator(marginal_loss, compute_nll),
    "marginal, no baseline": Estimator(
        partial(marginal_loss, control_variate=False), compute_nll
    ),
    _TEMPERED: Estimator(
        TemperedObjective(marginal_loss, _TEMPERATURE), compute_tempered_nll
    ),
    "elbo": Estimator(elbo_loss, compute_jensen_bound),
    # Claims nothing.
    "best": Estimator(best_loss, compute_nll),
    # Claims it only where the candidates are all the warmups there are.
    "joint": Estimator(joint_loss, compute_nll),
}


def _create_independent(
    temperature: float, *, with_empty: bool = False
) -> WarmupSampler:
    sampler = IndependentSampler(IndependentConfig(temperature=temperature))

    return partial(sampler, with_empty=with_empty)


ON_POLICY: Final = "on policy"

PROPOSALS: Final[Mapping[str, WarmupSampler]] = {
    ON_POLICY: _create_independent(1.0),
    "temperature 0.7": _create_independent(0.7),
    "temperature 1.5": _create_independent(1.5),
    "stochastic beam": StochasticBeamSampler(),
    "with empty": _create_independent(1.0, with_empty=True),
    "with empty, temperature 1.5": _create_independent(1.5, with_empty=True),
    "in bf16": _create_independent(1.0),
}

WITH_EMPTY: Final = ("with empty", "with empty, temperature 1.5")
"""The proposals whose first candidate is the empty warmup, enumerated."""

IN_BF16: Final = ("in bf16",)
"""The proposals that draw and weigh in bf16; the gradients of what is drawn, and the claims,
stay as they are."""


def is_distinct(sampler: WarmupSampler) -> bool:
    """Tells whether the draws of a trial all differ, hence depend on each other."""
    return bool(getattr(sampler, "distinct", False))


Keep = Callable[[Tensor, Tensor], KeptCandidates]

KEEPS: Final[Mapping[str, Keep]] = {
    "all": keep_all,
    "resample 1": partial(keep_resampled, num_kept=1),
    "resample 2": partial(keep_resampled, num_kept=2),
    "top 1": partial(keep_top, num_kept=1),
    "top 2": partial(keep_top, num_kept=2),
    "mass 0.5": partial(keep_mass, mass=0.5),
    "mass 0.9": partial(keep_mass, mass=0.9),
}

KEEP_ESTIMATORS: Final = ("marginal", _TEMPERED, "elbo")


@final
@dataclass(frozen=True)
class Exact:
    """Holds the value and the gradient of a claim."""

    value: float

    coefs: Tensor
    """What multiplies the gradients of a and b. *Shape:* :math:`(2 \\times C)`."""

    grad: Tensor
    """In the coordinates of the enumeration. *Shape:* :math:`(2 \\times C)`."""


def compute_exact(enumeration: Enumeration, claim: Claim) -> Exact:
    """Computes the value and the gradient of a claim."""
    a = enumeration.warmup_log_probs.clone().requires_grad_()
    b = enumeration.target_log_probs.clone().requires_grad_()

    value = claim(a, b)

    coefs = torch.cat(torch.autograd.grad(value, [a, b]))

    return Exact(value.item(), coefs, coefs @ enumeration.coordinates)


@final
@dataclass(frozen=True)
class Draws:
    """Holds the candidates of N trials."""

    candidates: Candidates

    idx: Tensor
    """Their numbers in the enumeration. *Shape:* :math:`(N,K)`."""

    scores: CandidateScores | None = None
    """a and b as they are weighed; ``None`` for those of the enumeration."""


def draw(
    problem: Problem,
    enumeration: Enumeration,
    sampler: WarmupSampler,
    num_trials: int,
    num_warmups: int,
    *,
    in_bf16: bool = False,
) -> Draws:
    """
    Draws K warmups in each of N trials, each of which is a source of one batch.

    :param in_bf16: If ``True``, draws them in bf16, and weighs them so as well.
    """
    target_seqs, target_seq_lens = problem.repeat_target(num_trials)

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=in_bf16):
        source = problem.model.encode(*problem.repeat_source(num_trials))

        candidates = sampler(
            problem.model,
            source,
            problem.layout,
            target_seqs[:, : problem.layout.prefix_len],
            num_warmups=num_warmups,
            max_warmup_len=problem.max_warmup_len,
        )

        scores = None

        if in_bf16:
            scores = score_candidates(
                problem.model,
                source,
                problem.layout,
                candidates,
                target_seqs,
                target_seq_lens,
            )

    return Draws(candidates, enumeration.find(candidates), scores)


@final
@dataclass(frozen=True)
class Trials:
    """Holds what many trials would train with."""

    losses: Tensor
    """*Shape:* :math:`(N)`."""

    coefs: Tensor
    """What multiplies the gradients of a and b of all warmups. *Shape:* :math:`(N,2
    \\times C)`."""

    num_rows: float
    """The mean number of rows that a trial keeps."""


def run_trials(
    enumeration: Enumeration, draws: Draws, objective: Objective, keep: Keep
) -> Trials:
    """Computes the loss of each trial and its gradient as a sum over all warmups."""
    num_trials, num_warmups = draws.idx.shape

    scores = draws.scores or CandidateScores(
        enumeration.warmup_log_probs[draws.idx], enumeration.target_log_probs[draws.idx]
    )

    losses, warmup_coefs, target_coefs = differentiate_objective(
        objective,
        scores.warmup_log_probs.double(),
        scores.target_log_probs.double(),
        draws.candidates.proposal_log_probs.double(),
    )

    kept = keep(warmup_coefs, target_coefs)

    num_columns = 2 * enumeration.num_warmups

    # Where a of a row that is kept stands; its b stands C further.
    at = num_columns * (kept.rows // num_warmups) + draws.idx.flatten()[kept.rows]

    coefs = losses.new_zeros(num_trials * num_columns)

    coefs.index_add_(0, at, kept.warmup_coefs)
    coefs.index_add_(0, at + enumeration.num_warmups, kept.target_coefs)

    return Trials(
        losses, coefs.view(num_trials, num_columns), kept.rows.size(0) / num_trials
    )
