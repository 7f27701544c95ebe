# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.metrics import MetricBag
from torch import Tensor
from typing_extensions import override

from warmup_plugin.criteria.base import (
    Criterion,
    CriterionContext,
    WeighedWarmup,
    get_given_lens,
    num_target_tokens,
    update_loss,
)
from warmup_plugin.layout import DecoderRows, ExcludedTokens, plain_rows
from warmup_plugin.models.conditional import RowCoefs


@final
class SftCriterion(Criterion):
    """
    Minimises -log P(y|x) without warmup: the baseline.

    Its loss is that of decoder rows, as with warmups, one a source and without separator.
    """

    def __init__(self, context: CriterionContext) -> None:
        self._context = context

    @override
    def compute_loss(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, step_nr: int
    ) -> Tensor:
        context = self._context

        rows = self._build_rows(batch)

        # (N)
        ones = torch.ones(batch.num_examples, device=rows.seqs.device)

        loss: Tensor = context.dp_model(
            *batch.as_source_input(),
            rows=rows,
            coefs=RowCoefs(warmup=torch.zeros_like(ones), target=-ones),
            excluded=ExcludedTokens.none(rows.seqs.device),
            label_smoothing=context.label_smoothing,
        )

        update_loss(loss, num_target_tokens(batch), metric_bag)

        return loss

    @override
    def evaluate(
        self,
        batch: Seq2SeqBatch,
        metric_bag: MetricBag,
        *,
        step_nr: int,
        shown: Sequence[int],
    ) -> list[list[WeighedWarmup]]:
        # The bare model: ranks may have different numbers of validation batches.
        model = self._context.model

        rows = self._build_rows(batch)

        scores = model.score(
            model.encode(*batch.as_source_input()),
            rows,
            ExcludedTokens.none(rows.seqs.device),
        )

        loss = -scores.target_log_probs.sum()

        update_loss(loss, num_target_tokens(batch), metric_bag)

        return []

    def _build_rows(self, batch: Seq2SeqBatch) -> DecoderRows:
        target_seqs, target_layout = batch.as_target_input()

        return plain_rows(
            self._context.layout,
            target_seqs,
            target_layout.seq_lens_pt.long(),
            with_separator=False,
            given_lens=get_given_lens(batch),
        )

    @property
    @override
    def smooths_loss(self) -> bool:
        return self._context.label_smoothing > 0.0


def create_sft_criterion(context: CriterionContext) -> Criterion:
    """Creates the criterion ``sft``."""
    return SftCriterion(context)
