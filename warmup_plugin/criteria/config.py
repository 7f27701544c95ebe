# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fairseq2.runtime.dependency import DependencyResolver
from typing_extensions import override

from warmup_plugin.components import Checked, ComponentSection, find_too_small
from warmup_plugin.criteria.registry import CriterionFactory
from warmup_plugin.objectives import Objective
from warmup_plugin.sampling import WarmupSampler
from warmup_plugin.sampling.truncation import MIN_TEMPERATURE

# Whether they write warmups needs no look at their settings.
_KNOWN_BY_NAME: Final = ("sft", "warmup")


@dataclass(kw_only=True)
class CriterionSection(ComponentSection[CriterionFactory], Checked):
    """Chooses what a training step minimises."""

    kls = CriterionFactory
    key = "criterion"
    known = ("sft", "warmup", "mrt")

    name: str = "sft"
    """The registered name: `sft` (plain fine-tuning), `warmup`, `mrt` (minimum risk training) or one of your own package."""

    config: object = None
    """The settings of `mrt` or a criterion of your own; `sft` has none, those of `warmup` are the section `warmup`. ``None`` for its defaults."""

    label_smoothing: float = 0.1
    """The share of label smoothing on the target's tokens, the same for all."""

    writes_warmups: bool | None = None
    """Whether the model learns to write warmups, which the commands that translate with it need to know; ``None`` for what the criterion says."""

    @property
    def has_warmups(self) -> bool:
        """``True`` if the model learns to write warmups, of a structured config."""
        return (
            self.name != "sft" if self.writes_warmups is None else self.writes_warmups
        )

    @override
    def structure(self, resolver: DependencyResolver) -> None:
        super().structure(resolver)

        # Of ours the name says it, in runs of earlier versions too.
        if self.writes_warmups is None and self.name not in _KNOWN_BY_NAME:
            self.writes_warmups = self.create(resolver).writes_warmups

    @override
    def find_errors(self) -> Iterator[str]:
        if not 0.0 <= self.label_smoothing < 1.0:
            yield "`label_smoothing` must be greater than or equal to 0 and less than 1."

        if self.writes_warmups is not None and self.name in _KNOWN_BY_NAME:
            yield f"`writes_warmups` is known of `{self.name}`; leave it out."


@dataclass(kw_only=True)
class ObjectiveSection(ComponentSection[Objective]):
    """Chooses how the log-probabilities of the candidates become a loss."""

    kls = Objective
    key = "warmup.objective"
    known = ("marginal", "elbo", "best", "joint")

    name: str = "marginal"
    """The registered name: `marginal`, `elbo`, `best` or `joint`."""

    config: object = None
    """The settings of the objective; ``None`` for its defaults."""


@dataclass(kw_only=True)
class SamplerSection(ComponentSection[WarmupSampler]):
    """Chooses how the candidates of a source are drawn."""

    kls = WarmupSampler
    key = "warmup.sampler"
    known = ("independent", "stochastic_beam")

    name: str = "independent"
    """The registered name: `independent` draws, or `stochastic_beam` for warmups that all differ."""

    config: object = None
    """The settings of the sampler; ``None`` for its defaults."""


@dataclass(kw_only=True)
class KeepSection(Checked):
    """Chooses the candidates that the differentiable pass sees."""

    name: str = "resample"
    """`resample` keeps ``num`` of them at random without bias, `top` the ``num`` that matter most, `mass` as many as make up a share of the posterior weight, `all` every one."""

    num: int = 2
    """The number of candidates a source that `resample` and `top` keep; from K on it is all of them. Fewer are faster; with `resample` also noisier, with `top` more biased."""

    mass: float = 0.9
    """The share of the posterior weight, of what y is learned from, that `mass` keeps."""

    @override
    def find_errors(self) -> Iterator[str]:
        if self.name not in ("resample", "top", "mass", "all"):
            yield f"`name` must be `resample`, `top`, `mass` or `all`, but is `{self.name}` instead."

        yield from find_too_small(self, num=1)

        if not 0.0 < self.mass <= 1.0:
            yield "`mass` must be greater than 0 and less than or equal to 1."


@dataclass(kw_only=True)
class WarmupSection(Checked):
    """Configures warmups; read by the criterion `warmup`, and by yours if it likes."""

    num_warmups: int = 4
    """The number K of warmups drawn a source."""

    max_warmup_len: int = 8
    """The most tokens of a warmup, in training and at inference."""

    len_schedule: list[list[int]] | None = None
    """The most tokens of a warmup as pairs of step and length, between which it changes evenly, such as `[[200, 24], [600, 0]]`; 0 makes all warmups empty, so that the model is decoded without them. None of them exceeds ``max_warmup_len``; ``None`` for that all the time."""

    draft_steps: int = 0
    """For so many first steps the warmup is the one that the model finds likeliest, token by token, and nothing is learned of it: y learns to be read behind drafts before P(c|x) is moved."""

    with_empty: bool = False
    """If ``True``, one of the K candidates is the empty warmup, with its exact probability, and the others are drawn from those that are not empty. With the sampler `independent` and the objectives `marginal` and `best`."""

    sampler: SamplerSection = field(default_factory=lambda: SamplerSection())
    """How they are drawn."""

    objective: ObjectiveSection = field(default_factory=lambda: ObjectiveSection())
    """How the candidates' log-probabilities become a loss."""

    keep: KeepSection = field(default_factory=lambda: KeepSection())
    """Which candidates the differentiable pass sees."""

    sft_weight: float = 0.0
    """The weight of -log P(y|x) without warmup (see ``plain_path``), added to the objective. It keeps y readable without c."""

    plain_path: str = "empty"
    """What stands for y without warmup in ``sft_weight``, in `Gain over No Warmup` and in ``--warmup none``: `empty`, the empty warmup, prefix, separator and y; or `bare`, prefix and y, whose first token competes with that of a warmup (runs of versions before this setting)."""

    separator_init: str = "eos"
    """How the separator begins where the model that training starts from has never written one (an SFT run, an imported model): `eos` copies the rows of EOS and of the token before a target, so that a warmup ends where a sentence would; `none` leaves it as it is."""

    reference_separator_init: str | None = None
    """The same for the model of ``reference_model``. ``None`` for `none` if its path, or that in its card, is that of a run which writes warmups with this separator, else for what ``separator_init`` says."""

    weight_temperature: float = 1.0
    """Divides log P(y|c,x) in the weights of the candidates: above 1.0 they are more even, and the objective lies between itself and `elbo`."""

    length_normalized: bool = False
    """If ``True``, the weights come from the mean log-probability of a target token instead of their sum."""

    entropy_weight: float = 0.0
    """The weight of a bonus, in nats, for the entropy of P(c|x)."""

    kl_weight: float = 0.0
    """The weight of KL(P(c|x) || P_ref(c|x)), in nats, which holds the warmups near those of the frozen `reference_model`."""

    draw_in_bf16: bool = False
    """If ``True``, training draws and weighs warmups in bf16 (`autocast`), and learns in the precision that it has; validations are not changed. Faster where the device has bf16 in hardware and training is in fp32. The proposal probabilities are those of what was drawn, the weights rounded as bf16 rounds."""

    share_encoder: bool = False
    """If ``True``, the encoder reads a source once a step, with dropout and gradient, and what it writes serves to draw, to weigh and to learn; if ``False``, once without dropout, to draw and to weigh, and once more to learn. The longer the sources, the more is saved. Without dropout in the encoder the gradient is the same. With encoder-decoder models, not under `fsdp`."""

    max_num_tokens: int | None = None
    """The most tokens of decoder rows in memory at once, prompts not counted, but never less than the K rows of one source while drawing. More than that are read in several passes, which costs time; ``None`` reads all of a batch at once, however large K is."""

    @override
    def find_errors(self) -> Iterator[str]:
        yield from find_too_small(self, num_warmups=1, max_warmup_len=1, draft_steps=0)

        yield from self._find_schedule_errors()

        if self.with_empty:
            if self.num_warmups < 2:
                yield "`num_warmups` must be at least 2 with `with_empty`, which takes one of them."

            if self.objective.name in ("elbo", "joint"):
                yield f"`with_empty` enumerates one warmup and draws the others, which `objective.name` `{self.objective.name}` does not know; use `marginal` or `best`."

        if self.plain_path not in ("empty", "bare"):
            yield f"`plain_path` must be `empty` or `bare`, but is `{self.plain_path}`."

        for name in ("separator_init", "reference_separator_init"):
            value = getattr(self, name)

            if value not in ("eos", "none") and (
                value is not None or name == "separator_init"
            ):
                yield f"`{name}` must be `eos` or `none`, but is `{value}`."

        yield from find_too_small(self, sft_weight=0)

        # Less would turn log-probabilities into infinities.
        if not MIN_TEMPERATURE <= self.weight_temperature < math.inf:
            yield f"`weight_temperature` must be greater than or equal to {MIN_TEMPERATURE}, with which the likeliest candidate has all the weight."

        yield from find_too_small(self, entropy_weight=0, kl_weight=0, max_num_tokens=1)

    def _find_schedule_errors(self) -> Iterator[str]:
        if self.len_schedule is None:
            return

        if not self.len_schedule or any(len(pair) != 2 for pair in self.len_schedule):
            yield "`len_schedule` must be a list of pairs of step and length, such as `[[200, 24], [600, 0]]`."

            return

        steps = [step for step, _ in self.len_schedule]

        if steps[0] < 0 or any(a >= b for a, b in zip(steps, steps[1:])):
            yield "The steps of `len_schedule` must be ascending."

        if not all(0 <= n <= self.max_warmup_len for _, n in self.len_schedule):
            yield f"The lengths of `len_schedule` must be from 0 to `max_warmup_len` ({self.max_warmup_len})."
