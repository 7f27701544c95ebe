# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.nn import BatchLayout
from fairseq2.utils.stopwatch import Stopwatch
from torch import Tensor
from torch.profiler import record_function

from warmup_plugin.criteria.base import CriterionContext, get_given_lens
from warmup_plugin.layout import plain_rows
from warmup_plugin.models.conditional import EncodedSource
from warmup_plugin.models.lora import without_adapter
from warmup_plugin.sampling import (
    Candidates,
    concat_candidates,
    draw_candidates,
    empty_candidates,
)
from warmup_plugin.scoring import (
    CandidateScores,
    score_candidates,
    score_warmups,
)
from warmup_plugin.warmup_lens import interpolate_len


@final
@dataclass(frozen=True)
class Look:
    """Holds what drawing and weighing have found, without gradient."""

    candidates: Candidates

    scores: CandidateScores

    reference_log_probs: Tensor | None
    """log P(c|x) under the frozen reference model. *Shape:* :math:`(N,K)`."""

    plain_log_probs: Tensor | None
    """log P(y|x) without warmup. *Shape:* :math:`(N)`."""

    is_draft: bool = False
    """``True`` if the only candidate is a draft, of which nothing is learned."""

    with_empty: bool = False
    """``True`` if the first candidate is the empty warmup, enumerated."""

    def log_weights(self) -> Tensor:
        """Returns the logarithms of the posterior weights. *Shape:* :math:`(N,K)`."""
        scores = self.scores

        return (
            scores.target_log_probs
            + scores.warmup_log_probs
            - self.candidates.proposal_log_probs
        )


@final
@dataclass(frozen=True)
class Pairs:
    """Holds the sources and targets of a batch, or of some of its examples."""

    source_seqs: Tensor
    """*Shape:* :math:`(N,S_{src})`."""

    source_seq_lens: list[int]

    target_seqs: Tensor
    """``[prefix] y EOS``, padded. *Shape:* :math:`(N,S_{tgt})`."""

    target_seq_lens: Tensor
    """*Shape:* :math:`(N)`."""

    given_lens: Tensor | None = None
    """See :func:`~warmup_plugin.criteria.base.get_given_lens`. *Shape:* :math:`(N)`."""

    encoded: EncodedSource | None = None
    """The sources, without gradient, if they have been encoded already."""

    @staticmethod
    def of(batch: Seq2SeqBatch) -> Pairs:
        source_seqs, source_layout = batch.as_source_input()

        target_seqs, target_layout = batch.as_target_input()

        return Pairs(
            source_seqs,
            list(source_layout.seq_lens),
            target_seqs,
            target_layout.seq_lens_pt.long(),
            get_given_lens(batch),
        )

    @property
    def num_targets(self) -> int:
        """The number of tokens to predict."""
        num_targets = int(self.target_seq_lens.sum()) - self.target_seq_lens.size(0)

        if self.given_lens is not None:
            num_targets -= int(self.given_lens.sum())

        return num_targets

    def source_layout(self) -> BatchLayout:
        return BatchLayout.of(self.source_seqs, self.source_seq_lens)

    def slice(self, begin: int, end: int) -> Pairs:
        return self.select(torch.arange(begin, end, device=self.target_seqs.device))

    def select(self, idx: Tensor) -> Pairs:
        """
        :param idx: The examples to take, at least one. *Shape:* :math:`(N')`.
        """
        if idx.size(0) == self.target_seq_lens.size(0):
            return self

        source_seq_lens = [self.source_seq_lens[n] for n in idx.tolist()]

        return Pairs(
            self.source_seqs.index_select(0, idx)[:, : max(source_seq_lens)],
            source_seq_lens,
            self.target_seqs.index_select(0, idx),
            self.target_seq_lens.index_select(0, idx),
            None if self.given_lens is None else self.given_lens.index_select(0, idx),
            None if self.encoded is None else self.encoded.select(idx),
        )


@final
class CandidateFinder:
    """Draws candidates and weighs them, both without gradient."""

    def __init__(self, context: CriterionContext) -> None:
        """
        :param context: Its model must be in evaluation mode when this is called.
        """
        self._context = context
        self._config = context.warmup
        self._draw_time = Stopwatch(device=context.gangs.device)

    def __call__(
        self, pairs: Pairs, step_nr: int, *, with_plain: bool, is_draft: bool
    ) -> Look:
        """
        Draws and weighs candidates.

        :param with_plain: If ``True``, also scores the targets without warmup.
        :param is_draft: If ``True``, the only candidate is the likeliest one, token by
            token.
        """
        # The validator is in inference mode; there `no_grad` changes nothing.
        with torch.no_grad():
            looks = [
                self._look_at(
                    pairs.slice(begin, end),
                    step_nr,
                    with_plain=with_plain,
                    is_draft=is_draft,
                )
                for begin, end in self._divide_sources(pairs.target_seq_lens)
            ]

        if len(looks) == 1:
            # Without the keys and values, which nobody needs from here on.
            return replace(looks[0], candidates=replace(looks[0].candidates, past=None))

        def concat(parts: list[Tensor | None]) -> Tensor | None:
            known = [part for part in parts if part is not None]

            return torch.cat(known) if known else None

        return replace(
            looks[0],
            candidates=concat_candidates(
                [look.candidates for look in looks], self._context.layout.pad_idx
            ),
            scores=CandidateScores(
                torch.cat([look.scores.warmup_log_probs for look in looks]),
                torch.cat([look.scores.target_log_probs for look in looks]),
            ),
            reference_log_probs=concat([look.reference_log_probs for look in looks]),
            plain_log_probs=concat([look.plain_log_probs for look in looks]),
        )

    def _divide_sources(self, target_seq_lens: Tensor) -> list[tuple[int, int]]:
        """Divides sources into groups whose rows fit into memory at once."""
        config = self._config

        if config.max_num_tokens is None:
            return [(0, target_seq_lens.size(0))]

        # The longest rows that these sources can get.
        lens = (target_seq_lens + config.max_warmup_len + 1) * config.num_warmups

        return divide_sizes(lens.tolist(), config.max_num_tokens)

    def _look_at(
        self, pairs: Pairs, step_nr: int, *, with_plain: bool, is_draft: bool
    ) -> Look:
        context, config = self._context, self._config

        layout, model = context.layout, context.model

        prefixes = pairs.target_seqs[:, : layout.prefix_len]

        source_layout = pairs.source_layout()

        max_warmup_len = self.get_max_warmup_len(step_nr)

        # None of the two is drawn.
        with_empty = config.with_empty and max_warmup_len > 0 and not is_draft

        with self._draw_time, record_function("warmup::draw"):
            source = pairs.encoded or model.encode(pairs.source_seqs, source_layout)

            if max_warmup_len == 0:
                candidates = empty_candidates(layout, prefixes.size(0), prefixes.device)
            elif is_draft:
                candidates = draw_candidates(
                    model,
                    source,
                    layout,
                    prefixes,
                    num_warmups=1,
                    max_warmup_len=max_warmup_len,
                    greedy=True,
                )
            else:
                options = {"with_empty": True} if with_empty else {}

                candidates = context.sampler(
                    model,
                    source,
                    layout,
                    prefixes,
                    num_warmups=config.num_warmups,
                    max_warmup_len=max_warmup_len,
                    **options,
                )

        with record_function("warmup::weigh"):
            scores = score_candidates(
                model,
                source,
                layout,
                candidates,
                pairs.target_seqs,
                pairs.target_seq_lens,
            )

        reference_log_probs = None

        if context.reference is not None and not is_draft:
            # With LoRA it may be the model itself, as it was before training.
            with without_adapter(context.reference.module):
                reference_log_probs = score_warmups(
                    context.reference,
                    context.reference.encode(pairs.source_seqs, source_layout),
                    layout,
                    candidates,
                    prefixes,
                )

        plain_log_probs = None

        if with_plain:
            plain_log_probs = self.score_plain(
                source, pairs, with_separator=config.plain_path == "empty"
            )

        return Look(
            candidates,
            scores,
            reference_log_probs,
            plain_log_probs,
            is_draft=is_draft,
            with_empty=with_empty,
        )

    def score_plain(
        self, source: EncodedSource, pairs: Pairs, *, with_separator: bool
    ) -> Tensor:
        """Computes log P(y|x) without warmup. *Shape:* :math:`(N)`."""
        rows = plain_rows(
            self._context.layout,
            pairs.target_seqs,
            pairs.target_seq_lens,
            with_separator=with_separator,
        )

        context = self._context

        excluded = context.layout.excluded_tokens(
            context.model.num_logits, pairs.target_seqs.device
        )

        scores = context.model.score(source, rows, excluded)

        return scores.target_log_probs

    def get_max_warmup_len(self, step_nr: int) -> int:
        """Returns the most tokens of a warmup at a step; 0 if all are empty."""
        return interpolate_len(
            self._config.max_warmup_len, self._config.len_schedule, step_nr
        )

    @property
    def draw_time(self) -> Stopwatch:
        """The time spent drawing since the last reset."""
        return self._draw_time


def divide_sizes(sizes: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """
    Divides items into groups, in their order, each as large as the budget allows.

    :returns: Begin and end of each; an item that exceeds the budget is alone.
    """
    groups, begin, total = [], 0, 0

    for idx, size in enumerate(sizes):
        if idx > begin and total + size > budget:
            groups.append((begin, idx))

            begin, total = idx, 0

        total += size

    return [*groups, (begin, len(sizes))]
