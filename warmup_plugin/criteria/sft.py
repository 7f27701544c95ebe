# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.metrics import MetricBag
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.criteria.base import (
    Criterion,
    CriterionContext,
    WeighedWarmup,
    num_target_tokens,
    update_loss,
)
from warmup_plugin.layout import DecoderRows, ExcludedTokens, plain_rows
from warmup_plugin.models.conditional import RowCoefs


@final
class SftCriterion(Criterion):
    """Minimises -log P(y|x) without warmup: the baseline."""

    def __init__(self, context: CriterionContext) -> None:
        self._context = context

    @override
    def compute_loss(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, step_nr: int
    ) -> Tensor:
        context = self._context

        if context.model.reads_prompts:
            loss = self._continue_prompts(batch)
        else:
            loss = self._forward(context.dp_model, batch, context.label_smoothing)

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

        if model.reads_prompts:
            loss = -model.score(
                model.encode(*batch.as_source_input()),
                self._build_rows(batch),
                ExcludedTokens.none(batch.target_seqs.device),
            ).target_log_probs.sum()
        else:
            loss = self._forward(model.module, batch, 0.0)

        update_loss(loss, num_target_tokens(batch), metric_bag)

        return []

    def _forward(
        self, model: Module, batch: Seq2SeqBatch, label_smoothing: float
    ) -> Tensor:
        inputs, targets = batch.as_auto_regressive()

        source_seqs, source_layout = batch.as_source_input()

        loss: Tensor = model(
            source_seqs,
            source_layout,
            *inputs.as_target_input(),
            targets=targets.seqs,
            label_smoothing=label_smoothing,
            reduction="sum",
        )

        return loss

    def _continue_prompts(self, batch: Seq2SeqBatch) -> Tensor:
        """
        Computes the loss of targets behind prompts.

        fairseq2's decoder-only models know no prompt: their own loss would count it.
        """
        context = self._context

        rows = self._build_rows(batch)

        # (N)
        ones = batch.target_seqs.new_ones(batch.num_examples, dtype=torch.float32)

        loss: Tensor = context.dp_model(
            *batch.as_source_input(),
            rows=rows,
            coefs=RowCoefs(warmup=torch.zeros_like(ones), target=-ones),
            excluded=ExcludedTokens.none(batch.target_seqs.device),
            label_smoothing=context.label_smoothing,
        )

        return loss

    def _build_rows(self, batch: Seq2SeqBatch) -> DecoderRows:
        target_seqs, target_layout = batch.as_target_input()

        return plain_rows(
            self._context.layout,
            target_seqs,
            target_layout.seq_lens_pt.long(),
            with_separator=False,
        )

    @property
    @override
    def smooths_loss(self) -> bool:
        return self._context.label_smoothing > 0.0


def create_sft_criterion(context: CriterionContext) -> Criterion:
    """Creates the criterion ``sft``."""
    return SftCriterion(context)
