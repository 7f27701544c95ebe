# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.metrics import Mean, MetricBag
from fairseq2.nn.data_parallel import get_data_parallel_facade
from fairseq2.utils.stopwatch import Stopwatch
from torch import Tensor
from torch.profiler import record_function
from typing_extensions import override

from warmup_plugin.criteria.base import (
    Criterion,
    CriterionContext,
    WeighedWarmup,
    check_loss,
)
from warmup_plugin.criteria.config import WarmupSection
from warmup_plugin.criteria.look import Pairs, divide_sizes
from warmup_plugin.criteria.mrt_config import MrtConfig
from warmup_plugin.criteria.outputs import Output, OutputSampler, build_output_rows
from warmup_plugin.criteria.rows import divide_rows
from warmup_plugin.criteria.sft import create_sft_criterion
from warmup_plugin.criteria.warmup import create_warmup_criterion
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import GenerationConfig
from warmup_plugin.layout import DecoderRows, ExcludedTokens
from warmup_plugin.metrics.base import SentenceMetric
from warmup_plugin.models.conditional import RowCoefs, evaluation_mode
from warmup_plugin.objectives import expected_risk_loss, score_function_loss
from warmup_plugin.scoring import differentiate_objective

# What a validation and `mrt` itself read of the section `warmup`.
_WARMUP_FIELDS: Final = (
    "num_warmups",
    "max_warmup_len",
    "sampler",
    "objective",
    "keep",
    "plain_path",
    "separator_init",
    "max_num_tokens",
)


@final
@dataclass(frozen=True)
class _Samples:
    """Holds what was drawn for N sources, K distinct outputs each at most."""

    outputs: list[Output]

    places: Tensor
    """Where each of them stands in the :math:`(N,K)` below, flattened. *Shape:*
    :math:`(R)`."""

    counts: Tensor
    """How often each was drawn; 0 for the reference, and where a source has fewer.
    *Shape:* :math:`(N,K)`."""

    mask: Tensor
    """``False`` where a source has fewer. *Shape:* :math:`(N,K)`."""

    scores: Tensor
    """*Shape:* :math:`(N,K)`."""

    def spread(self, values: Tensor) -> Tensor:
        """Puts a value of each output in its place. *Shape:* :math:`(N,K)`."""
        spread = values.new_zeros(self.mask.numel())

        return spread.index_copy_(0, self.places, values).view_as(self.mask)


@final
class MrtCriterion(Criterion):
    """
    Minimises the expected risk of outputs that the model itself draws: 1 minus the score
    that a metric of sentences gives them.

    One step: draw N outputs a source, with a warmup each or without; score their texts;
    one differentiable pass over the distinct ones, in which the source is encoded once.
    What is drawn has the probability that is learned: tokens that are never written have
    none.
    """

    def __init__(
        self,
        context: CriterionContext,
        config: MrtConfig,
        metric: SentenceMetric,
        *,
        seed: int,
    ) -> None:
        """
        :param seed: The seed of the draws.

        See :func:`create_mrt_criterion`.
        """
        self._context = context
        self._config = config
        self._metric = metric

        self._sample = create_output_sampler(context, config, seed)

        # What measures the likelihood of references.
        self._likelihood = (
            create_warmup_criterion(context)
            if config.with_warmups
            else create_sft_criterion(context)
        )

        self._draw_time = Stopwatch(device=context.gangs.device)

    @override
    def add_metrics(self, metric_bag: MetricBag) -> None:
        for name in ("sample_score", "sample_best", "sample_distinct"):
            metric_bag.add(name, Mean())

        self._likelihood.add_metrics(metric_bag)

    @override
    def compute_loss(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, step_nr: int
    ) -> Tensor:
        context, config = self._context, self._config

        pairs = Pairs.of(batch)

        excluded = context.layout.unwritten_tokens(
            context.model.num_logits, pairs.target_seqs.device
        )

        log_probs = None

        # Under FSDP the parameters are gathered for the whole time: ranks whose outputs
        # differ in length would gather at different times and wait for each other.
        with get_data_parallel_facade(context.dp_model).summon_full_parameters():
            with evaluation_mode(context.model.module):
                samples = self._draw(batch, pairs, step_nr)

                rows = self._build_rows(pairs, samples.outputs)

                if config.estimator == "risk":
                    log_probs = samples.spread(self._score_rows(pairs, rows, excluded))

        # Passes without gradient leave casts of the parameters in the cache of
        # `autocast`; the pass below would find them and silently train nothing.
        torch.clear_autocast_cache()

        # (R)
        coefs = self._differentiate(samples, log_probs).flatten()[samples.places]

        warmup_coefs = target_coefs = coefs

        if config.sft_weight > 0.0:
            references = self._list_references(pairs)

            rows = self._build_rows(pairs, [*samples.outputs, *references])

            zeros = coefs.new_zeros(len(references))

            warmup_coefs = torch.cat([coefs, zeros])
            target_coefs = torch.cat([coefs, zeros - config.sft_weight])

        with record_function("mrt::differentiate"):
            # Linear in the log-probabilities: its gradient is that of the risk by the
            # chain rule. Its value means nothing.
            loss: Tensor = context.dp_model(
                pairs.source_seqs,
                pairs.source_layout(),
                rows=rows,
                coefs=RowCoefs(warmup_coefs, target_coefs),
                excluded=excluded,
                passes=divide_rows(
                    rows, context.warmup.max_num_tokens, context.gangs.dp
                ),
            )

        check_loss(float(loss.detach()))

        self._update_metrics(samples, metric_bag)

        if config.with_warmups:
            self._update_warmup_metrics(samples.outputs, metric_bag)

        return loss

    def _draw(self, batch: Seq2SeqBatch, pairs: Pairs, step_nr: int) -> _Samples:
        """
        Draws outputs and scores them.

        :raises WarmupError: If the batch has no texts, or a score is no finite number.
        """
        config = self._config

        example = batch.example

        names = ("indices", "sources", "references")

        if not isinstance(example, Mapping) or any(n not in example for n in names):
            raise WarmupError(
                f"The criterion `mrt` scores texts, but the batches that are read hold none; let the reader put the lists {', '.join(f'`{n}`' for n in names)} into their `example`."
            )

        if pairs.given_lens is not None:
            raise WarmupError(
                "The criterion `mrt` draws whole outputs, but those of `dataset.directions.NAME.behind` begin with a text that is given; leave `behind` out."
            )

        with self._draw_time, record_function("mrt::draw"):
            outputs = self._sample(
                pairs, example["indices"], step_nr, example.get("directions")
            )

        if config.with_reference:
            outputs = self._add_references(pairs, outputs)

        assert self._context.decode is not None

        with record_function("mrt::score"):
            scores = self._metric(
                [self._context.decode(o.target) for o in outputs],
                [example["references"][o.source] for o in outputs],
                [example["sources"][o.source] for o in outputs],
            )

        for score in scores:
            if not math.isfinite(score):
                raise WarmupError(
                    f"The metric `{config.metric.name}` has given an output the score {score}, which is no finite number; correct it, or set `criterion.config.metric.name` to another one."
                )

        return _arrange(outputs, scores, pairs.source_seqs.device)

    def _list_references(self, pairs: Pairs) -> list[Output]:
        """Lists the references as outputs without warmup, one of each source."""
        config, context = self._config, self._context

        has_separator = config.with_warmups and context.warmup.plain_path == "empty"

        seqs = pairs.target_seqs.tolist()

        return [
            Output(
                source,
                # Between the prefix and EOS.
                seqs[source][context.layout.prefix_len : seq_len - 1],
                warmup=[] if has_separator else None,
                # That of the empty warmup is given.
                warmup_cut=has_separator,
                count=0,
            )
            for source, seq_len in enumerate(pairs.target_seq_lens.tolist())
        ]

    def _add_references(self, pairs: Pairs, outputs: Sequence[Output]) -> list[Output]:
        """Adds the reference of each source, if it was not drawn, to its outputs."""
        added = []

        for reference in self._list_references(pairs):
            drawn = [o for o in outputs if o.source == reference.source]

            # Its warmup, if there is one, is a draw as well.
            reference = replace(
                drawn[0], target=reference.target, target_cut=False, count=0
            )

            added += drawn

            if not any(
                (o.warmup, o.target) == (reference.warmup, reference.target)
                for o in drawn
            ):
                added.append(reference)

        return added

    def _build_rows(self, pairs: Pairs, outputs: Sequence[Output]) -> DecoderRows:
        layout = self._context.layout

        return build_output_rows(
            layout, outputs, pairs.target_seqs[:, : layout.prefix_len]
        )

    @torch.no_grad()
    def _score_rows(
        self, pairs: Pairs, rows: DecoderRows, excluded: ExcludedTokens
    ) -> Tensor:
        """Computes log P(c,y|x) of each row. *Shape:* :math:`(R)`."""
        context = self._context

        source = context.model.encode(pairs.source_seqs, pairs.source_layout())

        num_rows = len(rows.seq_lens)

        budget = context.warmup.max_num_tokens

        groups = (
            [(0, num_rows)] if budget is None else divide_sizes(rows.seq_lens, budget)
        )

        parts = []

        for begin, end in groups:
            idx = torch.arange(begin, end, device=rows.seqs.device)

            a, b = context.model.score(source, rows.select(idx), excluded)

            parts.append(a + b)

        return torch.cat(parts)

    def _differentiate(self, samples: _Samples, log_probs: Tensor | None) -> Tensor:
        """
        Computes the derivatives of the risk with respect to log P of each sample.

        :param log_probs: ``None`` where the estimator needs none. *Shape:*
            :math:`(N,K)`.

        :returns: *Shape:* :math:`(N,K)`.
        """
        config = self._config

        risks = 1.0 - samples.scores

        def compute_losses(
            warmup_log_probs: Tensor,
            target_log_probs: Tensor,
            proposal_log_probs: Tensor,
        ) -> Tensor:
            # Of both parts together, which have the same derivative.
            if config.estimator == "risk":
                return expected_risk_loss(
                    target_log_probs, risks, samples.mask, alpha=config.alpha
                )

            return score_function_loss(
                target_log_probs, risks, samples.counts, baseline=config.baseline
            )

        zeros = torch.zeros_like(risks)

        _, _, coefs = differentiate_objective(
            compute_losses, zeros, zeros if log_probs is None else log_probs, zeros
        )

        return coefs

    @torch.no_grad()
    def _update_metrics(self, samples: _Samples, metric_bag: MetricBag) -> None:
        counts, scores = samples.counts, samples.scores

        is_drawn = counts > 0.0

        # (N)
        num_draws = counts.sum(dim=1)

        values = {
            "sample_score": (counts * scores).sum(dim=1) / num_draws,
            "sample_best": scores.masked_fill(~is_drawn, -torch.inf).amax(dim=1),
            "sample_distinct": is_drawn.sum(dim=1) / num_draws,
        }

        # One look at the device for all of them.
        means = torch.stack([v.mean() for v in values.values()]).tolist()

        for name, mean in zip(values, means):
            metric_bag.get(name, Mean).update(mean, weight=counts.size(0))

    @staticmethod
    def _update_warmup_metrics(
        outputs: Sequence[Output], metric_bag: MetricBag
    ) -> None:
        for o in outputs:
            if o.count == 0 or o.warmup is None:
                continue

            for name, value in (
                ("warmup_len", len(o.warmup)),
                ("warmup_empty", not o.warmup),
                ("warmup_cut", o.warmup_cut),
            ):
                metric_bag.get(name, Mean).update(float(value), weight=o.count)

    @override
    def evaluate(
        self,
        batch: Seq2SeqBatch,
        metric_bag: MetricBag,
        *,
        step_nr: int,
        shown: Sequence[int],
    ) -> list[list[WeighedWarmup]]:
        warmups = self._likelihood.evaluate(
            batch, metric_bag, step_nr=step_nr, shown=shown
        )

        # By the same numbers at each validation.
        samples = self._draw(batch, Pairs.of(batch), step_nr=0)

        # Only the draws of training are to be timed.
        self._draw_time.reset()

        self._update_metrics(samples, metric_bag)

        return warmups

    @property
    @override
    def max_warmup_len(self) -> int | None:
        return (
            self._context.warmup.max_warmup_len if self._config.with_warmups else None
        )

    @override
    def process_metric_values(
        self, values: MutableMapping[str, object], step_time: float
    ) -> None:
        # What only validations measure.
        for name in [*values]:
            if name == "nll_loss" or (
                name.startswith("warmup_")
                and name not in ("warmup_len", "warmup_empty", "warmup_cut")
            ):
                del values[name]

        if step_time > 0.0:
            values["draw_share"] = self._draw_time.get_elapsed_time() / step_time

        self._draw_time.reset()


def _arrange(
    outputs: list[Output], scores: Sequence[float], device: torch.device
) -> _Samples:
    """
    Arranges outputs by their sources.

    :param outputs: Those of a source one after the other, of every source at least one.
    """
    begins: dict[int, int] = {}

    for idx, output in enumerate(outputs):
        begins.setdefault(output.source, idx)

    slots = [idx - begins[output.source] for idx, output in enumerate(outputs)]

    # (N, K)
    shape = (len(begins), max(slots) + 1)

    places = [o.source * shape[1] + slot for o, slot in zip(outputs, slots)]

    def spread(values: Sequence[float]) -> Tensor:
        matrix = torch.zeros(shape)

        matrix.view(-1)[places] = torch.tensor(values, dtype=torch.float32)

        return matrix.to(device)

    return _Samples(
        outputs,
        torch.tensor(places, device=device),
        spread([o.count for o in outputs]),
        spread([1.0] * len(outputs)) > 0.0,
        spread(scores),
    )


def create_output_sampler(
    context: CriterionContext, config: MrtConfig, seed: int
) -> OutputSampler:
    """Creates what draws the outputs that the criterion ``mrt`` learns from."""
    return OutputSampler(
        context,
        GenerationConfig(
            warmup="single" if config.with_warmups else "none",
            max_warmup_len=context.warmup.max_warmup_len,
            sampling=True,
            temperature=config.temperature,
            num_best=config.num_samples,
            max_len_a=config.max_len_a,
            max_len_b=config.max_len_b,
            # References may hold it.
            ban_unk=False,
        ),
        seed,
    )


def create_mrt_criterion(
    context: CriterionContext,
    config: MrtConfig,
    metric: SentenceMetric,
    *,
    seed: int,
) -> Criterion:
    """
    Creates the criterion ``mrt``.

    :param metric: What ``config.metric`` chooses.
    :param seed: The seed of the draws.

    :raises WarmupError: If a setting of the section ``warmup`` would have no effect, or
        nothing turns outputs into texts.
    """
    if context.decode is None:
        raise WarmupError(
            "The criterion `mrt` scores texts, but it has no tokenizer to decode with; create it by `create_criterion()`."
        )

    if context.plain_directions:
        raise WarmupError(
            "The criterion `mrt` draws the outputs of all directions alike; leave out `dataset.directions.NAME.plain`."
        )

    default = WarmupSection()

    for info in fields(WarmupSection):
        value = getattr(context.warmup, info.name)

        if info.name not in _WARMUP_FIELDS and value != getattr(default, info.name):
            raise WarmupError(
                f"`warmup.{info.name}` is {value}, which has no effect on the criterion `mrt`; leave it out."
            )

    return MrtCriterion(context, config, metric, seed=seed)
