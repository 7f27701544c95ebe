# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.metrics import Mean, MetricBag
from fairseq2.nn.data_parallel import get_data_parallel_facade
from fairseq2.utils.stopwatch import Stopwatch
from torch import Tensor
from typing_extensions import override

from warmup_plugin.criteria.base import (
    Criterion,
    CriterionContext,
    WeighedWarmup,
)
from warmup_plugin.criteria.sft import update_loss
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderRows, join_rows, plain_rows
from warmup_plugin.models.conditional import (
    EncodedSource,
    RowScores,
    evaluation_mode,
)
from warmup_plugin.objectives import effective_sample_size
from warmup_plugin.sampling import Candidates, draw_candidates
from warmup_plugin.scoring import (
    KeptCandidates,
    WeighedCandidates,
    keep_candidates,
    weigh_candidates,
)


@final
class WarmupCriterion(Criterion):
    """
    Minimises the objective of K warmups that the model itself draws.

    One step: draw K warmups a source, weigh them, both in evaluation mode and without
    gradient; keep all or a few; one differentiable pass over those, in which the
    source is encoded once.
    """

    def __init__(self, context: CriterionContext) -> None:
        self._context = context
        self._config = context.warmup
        self._draw_time = Stopwatch(device=context.gangs.device)

    @override
    def add_metrics(self, metric_bag: MetricBag) -> None:
        for name in (
            "warmup_k",
            "warmup_ess",
            "warmup_len",
            "warmup_empty",
            "warmup_cut",
            "warmup_duplicate",
            "warmup_gain",
        ):
            metric_bag.add(name, Mean())

    @override
    def compute_loss(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, step_nr: int
    ) -> Tensor:
        context, config = self._context, self._config

        dp_model = context.dp_model

        every = context.publish_every_n_steps

        # Under FSDP the parameters are gathered for the whole time: ranks whose warmups
        # differ in length would gather at different times and wait for each other.
        with get_data_parallel_facade(dp_model).summon_full_parameters():
            with evaluation_mode(context.model.module):
                candidates, weighed, plain_log_probs = self._look(
                    batch, with_plain=every is not None and step_nr % every == 0
                )

        # Passes without gradient leave casts of the parameters in the cache of
        # `autocast`; the pass below would find them and silently train nothing.
        torch.clear_autocast_cache()

        # Before candidates are kept by their weights: it finds a loss that is no number.
        self._update_metrics(batch, candidates, weighed, plain_log_probs, metric_bag)

        kept = keep_candidates(
            weighed.warmup_coefs, weighed.target_coefs, config.num_kept
        )

        rows = self._build_rows(batch, candidates, kept)

        source_seqs, source_layout = batch.as_source_input()

        scores: RowScores = dp_model(
            source_seqs,
            source_layout,
            *batch.as_target_input(),
            rows=rows,
            warmup_ban_mask=context.layout.warmup_ban_mask(
                context.model.num_logits, source_seqs.device
            ),
            label_smoothing=context.label_smoothing,
        )

        num_kept = kept.rows.size(0)

        # Linear in a and b: its gradient is the objective's by the chain rule.
        loss = (kept.warmup_coefs * scores.warmup_log_probs[:num_kept]).sum()

        loss = loss + (kept.target_coefs * scores.target_log_probs[:num_kept]).sum()

        if config.sft_weight > 0.0:
            loss = loss - config.sft_weight * scores.target_log_probs[num_kept:].sum()

        # Its value means nothing; that of the objective is logged.
        return loss

    def _look(
        self, batch: Seq2SeqBatch, *, with_plain: bool
    ) -> tuple[Candidates, WeighedCandidates, Tensor | None]:
        """
        Draws and weighs candidates.

        :returns: Also log P(y|x) without warmup if asked for. *Shape:* :math:`(N)`.
        """
        context, config = self._context, self._config

        layout, model = context.layout, context.model

        target_seqs, target_seq_lens = self._get_targets(batch)

        # The validator is in inference mode; there `no_grad` changes nothing.
        with torch.no_grad():
            with self._draw_time:
                source = model.encode(*batch.as_source_input())

                candidates = draw_candidates(
                    model,
                    source,
                    layout,
                    target_seqs[:, : layout.prefix_len],
                    num_warmups=config.num_warmups,
                    max_warmup_len=config.max_warmup_len,
                    temperature=config.temperature,
                )

            weighed = weigh_candidates(
                model,
                source,
                layout,
                candidates,
                target_seqs,
                target_seq_lens,
                context.objective,
            )

            plain_log_probs = None

            if with_plain:
                plain_log_probs = self._score_plain(
                    source, target_seqs, target_seq_lens
                )

        return candidates, weighed, plain_log_probs

    def _score_plain(
        self, source: EncodedSource, target_seqs: Tensor, target_seq_lens: Tensor
    ) -> Tensor:
        layout, model = self._context.layout, self._context.model

        rows = plain_rows(layout, target_seqs, target_seq_lens)

        ban_mask = layout.warmup_ban_mask(model.num_logits, target_seqs.device)

        return model.score(source, rows, ban_mask).target_log_probs

    def _build_rows(
        self, batch: Seq2SeqBatch, candidates: Candidates, kept: KeptCandidates
    ) -> DecoderRows:
        """Builds the rows of the differentiable pass; plain rows come last."""
        target_seqs, target_seq_lens = self._get_targets(batch)

        warmups = candidates.seqs.index_select(0, kept.rows)
        warmup_lens = candidates.seq_lens.index_select(0, kept.rows)
        warmup_cut = candidates.cut.index_select(0, kept.rows)
        source_idx = kept.rows // candidates.num_warmups

        with_separator = torch.ones_like(warmup_cut)

        if self._config.sft_weight > 0.0:
            num_sources = target_seqs.size(0)

            warmups = torch.cat(
                [warmups, warmups.new_zeros((num_sources, warmups.size(1)))]
            )

            warmup_lens = torch.cat([warmup_lens, warmup_lens.new_zeros(num_sources)])
            warmup_cut = torch.cat([warmup_cut, warmup_cut.new_zeros(num_sources)])

            with_separator = torch.cat(
                [with_separator, with_separator.new_zeros(num_sources)]
            )

            source_idx = torch.cat(
                [source_idx, torch.arange(num_sources, device=source_idx.device)]
            )

        return join_rows(
            self._context.layout,
            target_seqs,
            target_seq_lens,
            warmups,
            warmup_lens,
            warmup_cut,
            with_separator,
            source_idx,
        )

    @staticmethod
    def _get_targets(batch: Seq2SeqBatch) -> tuple[Tensor, Tensor]:
        target_seqs, target_layout = batch.as_target_input()

        return target_seqs, target_layout.seq_lens_pt.long()

    @torch.no_grad()
    def _update_metrics(
        self,
        batch: Seq2SeqBatch,
        candidates: Candidates,
        weighed: WeighedCandidates,
        plain_log_probs: Tensor | None,
        metric_bag: MetricBag,
    ) -> None:
        update_loss(weighed.losses.sum(), batch, metric_bag)

        log_weights = _log_weights(candidates, weighed)

        num_sources, num_warmups = log_weights.shape

        def update(name: str, value: Tensor | float, weight: int) -> None:
            metric_bag.get(name, Mean).update(float(value), weight=weight)

        num_rows = num_sources * num_warmups

        update("warmup_k", num_warmups, num_sources)
        update("warmup_ess", effective_sample_size(log_weights).mean(), num_sources)
        update("warmup_len", candidates.seq_lens.float().mean(), num_rows)
        update("warmup_empty", candidates.seq_lens.eq(0).float().mean(), num_rows)
        update("warmup_cut", candidates.cut.float().mean(), num_rows)
        update("warmup_duplicate", candidates.duplicates().float().mean(), num_rows)

        if plain_log_probs is not None:
            gains = weighed.target_log_probs - plain_log_probs.unsqueeze(1)

            update("warmup_gain", gains.mean(), num_rows)

    @override
    def evaluate(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, shown: Sequence[int]
    ) -> list[list[WeighedWarmup]]:
        candidates, weighed, plain_log_probs = self._look(batch, with_plain=True)

        # Only the draws of training are to be timed.
        self._draw_time.reset()

        self._update_metrics(batch, candidates, weighed, plain_log_probs, metric_bag)

        weights = _log_weights(candidates, weighed).softmax(dim=1)

        num_warmups = candidates.num_warmups

        def describe(n: int, k: int) -> WeighedWarmup:
            row = n * num_warmups + k

            return WeighedWarmup(
                candidates.seqs[row, : int(candidates.seq_lens[row])].tolist(),
                float(weights[n, k]),
                float(weighed.warmup_log_probs[n, k]),
                float(weighed.target_log_probs[n, k]),
            )

        return [[describe(n, k) for k in range(num_warmups)] for n in shown]

    @property
    @override
    def max_warmup_len(self) -> int | None:
        return self._config.max_warmup_len

    @property
    @override
    def draw_time(self) -> Stopwatch:
        return self._draw_time


def _log_weights(candidates: Candidates, weighed: WeighedCandidates) -> Tensor:
    return (
        weighed.target_log_probs
        + weighed.warmup_log_probs
        - candidates.proposal_log_probs
    )


def create_warmup_criterion(context: CriterionContext) -> Criterion:
    """
    Creates the criterion ``warmup``.

    :raises WarmupError: If more candidates are to be kept than are drawn.
    """
    if context.warmup.num_kept is not None:
        if context.warmup.num_kept > context.warmup.num_warmups:
            raise WarmupError(
                f"`warmup.num_kept` is {context.warmup.num_kept}, more than `warmup.num_warmups` ({context.warmup.num_warmups}); lower it or leave it out to keep all."
            )

    return WarmupCriterion(context)
