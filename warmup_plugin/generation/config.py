# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Final

from fairseq2.utils.validation import Validatable, ValidationResult
from typing_extensions import override

from warmup_plugin.sampling.truncation import MIN_TEMPERATURE

WARMUP_CHOICES: Final = (
    *("none", "bare", "empty"),
    *("single", "greedy_then_beam", "beam_then_beam", "sample"),
)

# The ways in which a warmup is written before the output is searched.
WRITTEN_FIRST: Final = ("beam_then_beam", "greedy_then_beam", "sample")

RANKINGS: Final = ("log_prob", "marginal", "mbr")


@dataclass(kw_only=True)
class GenerationConfig(Validatable):
    """Configures the generator ``warmup``: how warmup and output are found."""

    warmup: str = "single"
    """How the warmup is chosen. `single`: one search through warmup and output; `greedy_then_beam`: the likeliest tokens as the warmup, then a search for the output; `beam_then_beam`: a search for the warmup, then one for the output; `sample`: ``num_warmups`` warmups are drawn, each with an output of its own, and ``rank_by`` chooses; `empty`: the warmup is empty, so that the output follows the separator at once; `none`: there is no separator either (plain fine-tuning); `bare`: the same, but the separator has no probability (plain directions, and ``warmup.plain_path`` `bare`). ``generate`` and ``translate`` take `none` for `empty` or `bare` where a run has learned it so."""

    max_warmup_len: int = 8
    """The most tokens of a warmup; then the separator is forced. That of training, if a run translates."""

    num_warmups: int = 8
    """The number K of warmups that `sample` draws."""

    rank_by: str = "log_prob"
    """What chooses among the outputs of `sample`. `log_prob`: log P(c,y|x); `marginal`: the mean of P(y|c,x) over the K warmups; `mbr`: the expected chrF++ against the outputs of the K warmups (minimum Bayes risk). The first two are divided by the length as ``length_penalty`` says. The commands also take `mbr_comet` and `cometkiwi`, with or without warmups: the expected COMET against all outputs, and the score of CometKiwi."""

    plain_weight: float = 0.0
    """The weight w, less than 1, of the way without a warmup in each token of an output: log P(y_t|c,x) counts 1 - w and log P(y_t|x), behind the empty warmup, w. What a draft has lost the source may still say. It needs a warmup that is written first, as by `beam_then_beam`, which is then the default."""

    beam_size: int = 5
    """The number of partial sequences kept a source; 1 is greedy search."""

    sampling: bool = False
    """If ``True``, outputs are drawn from the model instead of searched, and so is the warmup of `single`."""

    temperature: float = 1.0
    """Divides the logits of all draws; a search ignores it."""

    top_k: int | None = None
    """The most tokens to draw from, the likeliest ones."""

    top_p: float | None = None
    """The share of the probability to draw from, the likeliest tokens first."""

    seed: int = 2
    """The seed of all draws. A line's draws depend on the seed and its number alone."""

    num_best: int = 1
    """The number of hypotheses to return for a source: at most ``beam_size`` if they are searched; the number of draws if they are drawn. `sample` returns at most one for each warmup."""

    length_penalty: float = 1.0
    """The exponent of the length that divides a sequence's log-probability; 0.0 favours short output, larger values long output."""

    early_stopping: bool = False
    """If ``True``, a search ends as soon as ``beam_size`` sequences have ended; else once nothing open can become one of those that are asked for."""

    max_len_a: float = 1.5
    """The output is at most ``max_len_a * source length + max_len_b`` tokens long; a prompt's own words do not count as source."""

    max_len_b: int = 20
    """See ``max_len_a``."""

    min_len_a: float = 0.0
    """The output is at least ``min_len_a * source length + min_len_b`` tokens long, if ``max_len_a`` lets it."""

    min_len_b: int = 0
    """See ``min_len_a``."""

    no_repeat_ngram_size: int = 0
    """The size of the n-grams that no output holds twice; 0 for no limit. Warmups are not looked at."""

    ban_unk: bool = True
    """If ``True``, the unknown token is never written."""

    @override
    def validate(self) -> ValidationResult:
        result = ValidationResult()

        if self.warmup not in WARMUP_CHOICES:
            result.add_error(
                f"`warmup` must be one of {', '.join(WARMUP_CHOICES)}, but is `{self.warmup}`."
            )

        if self.rank_by not in RANKINGS:
            result.add_error(
                f"`rank_by` must be one of {', '.join(RANKINGS)}, but is `{self.rank_by}`."
            )

        if not 0.0 <= self.plain_weight < 1.0:
            result.add_error(
                "`plain_weight` must be greater than or equal to 0 and less than 1."
            )
        elif self.plain_weight > 0.0 and self.warmup not in WRITTEN_FIRST:
            result.add_error(
                f"`plain_weight` is {self.plain_weight}, but only an output behind a warmup that is written first has two ways; set `warmup` to `beam_then_beam`, or leave `plain_weight` out."
            )

        for name in ("max_warmup_len", "num_warmups", "beam_size", "num_best"):
            if getattr(self, name) < 1:
                result.add_error(f"`{name}` must be greater than or equal to 1.")

        for name in ("length_penalty", "max_len_a", "min_len_a"):
            if not math.isfinite(getattr(self, name)):
                result.add_error(f"`{name}` must be a finite number.")

        for name in ("max_len_a", "min_len_a", "min_len_b", "no_repeat_ngram_size"):
            if getattr(self, name) < 0:
                result.add_error(f"`{name}` must be greater than or equal to 0.")

        if self.max_len_b < 1:
            result.add_error("`max_len_b` must be greater than or equal to 1.")

        if not MIN_TEMPERATURE <= self.temperature < math.inf:
            result.add_error(
                f"`temperature` must be greater than or equal to {MIN_TEMPERATURE}, with which nearly all draws are the likeliest token."
            )

        if self.top_k is not None and self.top_k < 1:
            result.add_error("`top_k` must be greater than or equal to 1.")

        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            result.add_error(
                "`top_p` must be greater than 0 and less than or equal to 1."
            )

        if self.seed < 0:
            result.add_error("`seed` must be greater than or equal to 0.")

        # Each of these would silently have no effect.
        searches = not self.sampling and self.warmup != "sample"

        if searches and self.num_best > self.beam_size:
            result.add_error(
                f"`num_best` must be at most `beam_size` ({self.beam_size}), but is {self.num_best}."
            )

        if self.warmup == "sample" and self.num_best > self.num_warmups:
            result.add_error(
                f"`num_best` must be at most `num_warmups` ({self.num_warmups}), but is {self.num_best}."
            )

        if self.warmup != "sample" and self.rank_by != "log_prob":
            result.add_error(
                f"`rank_by` is `{self.rank_by}`, but only `warmup=sample` has several warmups to rank."
            )

        if self.warmup != "sample" and self.num_warmups != _default("num_warmups"):
            result.add_error(
                f"`num_warmups` is {self.num_warmups}, but only `warmup=sample` draws several warmups; set `warmup` to `sample` or leave `num_warmups` out."
            )

        for name in ("temperature", "top_k", "top_p"):
            value = getattr(self, name)

            if searches and value != _default(name):
                result.add_error(
                    f"`{name}` is {value}, but nothing is drawn; set `sampling`, or `warmup` to `sample`, or leave `{name}` out."
                )

        return result


@dataclass(kw_only=True)
class GenerationSection(Validatable):
    """Configures what a run writes unless a command says otherwise; ``None`` for what the task says, else for the default of the generator."""

    beam_size: int | None = None
    """The beam of ``generate`` and ``translate``; that of validations is ``validation.beam_size``."""

    length_penalty: float | None = None
    """The exponent of the length that divides a sequence's log-probability."""

    early_stopping: bool | None = None
    """If ``True``, a search ends as soon as ``beam_size`` sequences have ended."""

    plain_weight: float | None = None
    """The weight, less than 1, of the way without a warmup in each token of an output, in validations too; warmups are then written first, by `beam_then_beam`. That way has to be learned, see ``warmup.sft_weight``."""

    max_len_a: float | None = None
    """The output is at most ``max_len_a * source length + max_len_b`` tokens long, in validations too."""

    max_len_b: int | None = None
    """See ``max_len_a``."""

    min_len_a: float | None = None
    """The output is at least ``min_len_a * source length + min_len_b`` tokens long."""

    min_len_b: int | None = None
    """See ``min_len_a``."""

    no_repeat_ngram_size: int | None = None
    """The size of the n-grams that no output holds twice; 0 for no limit."""

    truncate: bool | None = None
    """If ``True``, a text that is longer than the model reads is cut, and counted, by ``generate``, ``evaluate`` and ``score``, instead of refused, as ``--truncate`` does; encoder-decoders only."""

    rank_labels: bool | None = None
    """If ``True``, ``generate`` and ``evaluate`` do not search for an output but give the likeliest of ``validation.labels``: by log P(y|x), or with warmups by the mean of P(y|c,x) over warmups that are drawn. Validations search."""

    def to_options(self) -> dict[str, object]:
        """Returns what is set of the settings of :class:`GenerationConfig`."""
        return {
            name: value
            for name, value in asdict(self).items()
            if value is not None and name not in ("rank_labels", "truncate")
        }

    @override
    def validate(self) -> ValidationResult:
        options = self.to_options()

        if self.plain_weight:
            options["warmup"] = "beam_then_beam"

        return GenerationConfig(**options).validate()  # type: ignore[arg-type]


def _default(name: str) -> object:
    return GenerationConfig.__dataclass_fields__[name].default


def create_generation_config(
    max_warmup_len: int | None,
    *,
    beam_size: int,
    section: GenerationSection | None = None,
    leaves_separator_out: bool = False,
) -> GenerationConfig:
    """
    Creates the settings of one search through all that a model writes.

    :param max_warmup_len: ``None`` for a model without warmup, 0 for the empty one.
    :param section: Further settings; its beam is not looked at.
    :param leaves_separator_out: If ``True``, outputs without separator are learned beside
        others with one, whose softmax leaves it out.
    """
    options = {} if section is None else section.to_options()

    options["beam_size"] = beam_size

    if not max_warmup_len:
        # There is no other way.
        options.pop("plain_weight", None)

    if max_warmup_len is None:
        options["warmup"] = "bare" if leaves_separator_out else "none"
    elif max_warmup_len == 0:
        options["warmup"] = "empty"
    else:
        warmup = "beam_then_beam" if options.get("plain_weight") else "single"

        options.update(warmup=warmup, max_warmup_len=max_warmup_len)

    return GenerationConfig(**options)  # type: ignore[arg-type]
