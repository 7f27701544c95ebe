# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Final, cast, final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.metrics import Mean, MetricBag
from fairseq2.nn.data_parallel import get_data_parallel_facade
from torch import Tensor
from torch.profiler import record_function
from typing_extensions import override

from warmup_plugin.criteria.base import (
    Criterion,
    CriterionContext,
    WeighedWarmup,
    update_loss,
)
from warmup_plugin.criteria.health import (
    CollapseDetector,
    WarmupShares,
    repetition,
)
from warmup_plugin.criteria.look import CandidateFinder, Look, Pairs
from warmup_plugin.criteria.rows import RowBuilder
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.conditional import RowLosses, evaluation_mode
from warmup_plugin.objectives import (
    effective_sample_size,
    entropy_term,
    requires_distinct,
)
from warmup_plugin.sampling import enumerates_empty, is_distinct

_WARMUP_LOSS: Final = "warmup_loss"

_PLAIN_LOSS: Final = "plain_loss"


@final
class WarmupCriterion(Criterion):
    """
    Minimises the objective of K warmups that the model itself draws.

    One step: draw K warmups a source, weigh them, both in evaluation mode and without
    gradient; keep all or a few; one differentiable pass over those, in which the
    source is encoded once. The pairs of plain directions have a row in that pass, no
    warmup.
    """

    def __init__(self, context: CriterionContext) -> None:
        self._context = context
        self._config = context.warmup
        self._find_candidates = CandidateFinder(context)
        self._build_rows = RowBuilder(context)
        self._detector = CollapseDetector(
            context.warmup.num_warmups, context.warmup.max_warmup_len
        )

        # The losses of the two kinds of pairs, if there may be both.
        self._parts = (_WARMUP_LOSS, _PLAIN_LOSS) if context.plain_directions else ()

    @override
    def add_metrics(self, metric_bag: MetricBag) -> None:
        for name in (
            "warmup_k",
            "warmup_ess",
            "warmup_len",
            "warmup_entropy",
            "warmup_empty",
            "warmup_cut",
            "warmup_duplicate",
            "warmup_repetition",
            "warmup_gain",
            *self._parts,
        ):
            metric_bag.add(name, Mean())

    @override
    def compute_loss(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, step_nr: int
    ) -> Tensor:
        context = self._context

        dp_model = context.dp_model

        every = context.publish_every_n_steps

        pairs = Pairs.of(batch)

        warmed_idx, plain_idx = self._divide_paths(batch)

        look = None

        source = None

        if self._config.share_encoder:
            with record_function("warmup::encode"):
                source = context.model.encode(pairs.source_seqs, pairs.source_layout())

            pairs = replace(pairs, encoded=source.detach())

        # Under FSDP the parameters are gathered for the whole time: ranks whose warmups
        # differ in length would gather at different times and wait for each other.
        with get_data_parallel_facade(dp_model).summon_full_parameters():
            with (
                evaluation_mode(context.model.module),
                record_function("warmup::look"),
                self._look_precision(),
            ):
                if warmed_idx.size(0) > 0:
                    look = self._find_candidates(
                        pairs.select(warmed_idx),
                        step_nr,
                        with_plain=every is not None and step_nr % every == 0,
                        is_draft=step_nr <= self._config.draft_steps,
                    )

        # Passes without gradient leave casts of the parameters in the cache of
        # `autocast`; the pass below would find them and silently train nothing.
        torch.clear_autocast_cache()

        # Before candidates are kept by their weights: it finds a loss that is no number.
        if look is not None:
            warmed = pairs.select(warmed_idx)

            update_loss(
                self._get_losses(look).sum(),
                warmed.num_targets,
                metric_bag,
                part=_WARMUP_LOSS if self._parts else None,
            )

            shares = self._update_metrics(look, metric_bag)

            if (
                not look.is_draft
                and self._find_candidates.get_max_warmup_len(step_nr) > 0
            ):
                self._detector.update(step_nr, shares)

        with record_function("warmup::keep"):
            rows, coefs = self._build_rows(pairs, look, warmed_idx, plain_idx)

        losses = RowLosses() if plain_idx.size(0) > 0 else None

        with record_function("warmup::differentiate"):
            # Linear in a and b: its gradient is the objective's by the chain rule. Its
            # value means nothing; that of the objective is logged.
            loss: Tensor = dp_model(
                pairs.source_seqs,
                pairs.source_layout(),
                rows=rows,
                coefs=coefs,
                excluded=context.layout.excluded_tokens(
                    context.model.num_logits, pairs.target_seqs.device
                ),
                label_smoothing=context.label_smoothing,
                passes=self._build_rows.divide(rows),
                source=source,
                losses=losses,
            )

        if losses is not None and losses.target is not None:
            # Of these it is that of `sft`.
            is_plain = torch.isin(rows.source_idx, plain_idx)

            update_loss(
                losses.target[is_plain].sum(),
                pairs.select(plain_idx).num_targets,
                metric_bag,
                part=_PLAIN_LOSS,
            )

        return loss

    def _look_precision(self) -> AbstractContextManager[object]:
        """Sets the precision of what has no gradient."""
        if not self._config.draw_in_bf16:
            return nullcontext()

        return torch.autocast(self._context.gangs.device.type, dtype=torch.bfloat16)

    def _divide_paths(self, batch: Seq2SeqBatch) -> tuple[Tensor, Tensor]:
        """
        Tells the examples with warmups from those of plain directions.

        :returns: Their numbers. *Shape:* :math:`(N')` each.
        """
        plain = self._context.plain_directions

        if not plain:
            idx = torch.arange(batch.num_examples, device=batch.target_seqs.device)

            return idx, idx[:0]

        example = cast("dict[str, Any]", batch.example)

        is_plain = [name in plain for name in example["directions"]]

        mask = torch.tensor(is_plain, device=batch.target_seqs.device)

        return (~mask).nonzero().squeeze(1), mask.nonzero().squeeze(1)

    @torch.no_grad()
    def _get_losses(self, look: Look) -> Tensor:
        """Computes what is reported: the objective itself, neither tempered nor with a
        bonus. *Shape:* :math:`(N)`."""
        scores = look.scores

        if look.is_draft:
            return -scores.target_log_probs.squeeze(1)

        return self._context.objective(
            scores.warmup_log_probs,
            scores.target_log_probs,
            look.candidates.proposal_log_probs,
        )

    @torch.no_grad()
    def _update_metrics(self, look: Look, metric_bag: MetricBag) -> WarmupShares:
        """Logs the health of the warmups."""
        candidates, scores = look.candidates, look.scores

        num_sources, num_warmups = candidates.proposal_log_probs.shape

        num_rows = num_sources * num_warmups

        values = {
            "warmup_ess": effective_sample_size(look.log_weights()).mean(),
            "warmup_len": candidates.seq_lens.float().mean(),
            "warmup_entropy": -entropy_term(
                scores.warmup_log_probs,
                candidates.proposal_log_probs,
                with_empty=look.with_empty,
            ).mean(),
            "warmup_empty": (
                # One candidate of each source is, so that a share would tell nothing.
                scores.warmup_log_probs[:, 0].exp().mean()
                if look.with_empty
                else candidates.seq_lens.eq(0).float().mean()
            ),
            "warmup_cut": candidates.cut.float().mean(),
            "warmup_duplicate": candidates.duplicates().float().mean(),
            "warmup_repetition": repetition(candidates).mean(),
        }

        if look.plain_log_probs is not None:
            gains = scores.target_log_probs - look.plain_log_probs.unsqueeze(1)

            values["warmup_gain"] = gains.mean()

        # One look at the device for all of them.
        stats = dict(zip(values, torch.stack(list(values.values())).tolist()))

        for name, value in stats.items():
            metric_bag.get(name, Mean).update(value, weight=num_rows)

        metric_bag.get("warmup_k", Mean).update(num_warmups, weight=num_sources)

        return WarmupShares(
            empty=stats["warmup_empty"],
            cut=stats["warmup_cut"],
            duplicate=stats["warmup_duplicate"],
            repetition=stats["warmup_repetition"],
        )

    @override
    def evaluate(
        self,
        batch: Seq2SeqBatch,
        metric_bag: MetricBag,
        *,
        step_nr: int,
        shown: Sequence[int],
    ) -> list[list[WeighedWarmup]]:
        pairs = Pairs.of(batch)

        warmed_idx, plain_idx = self._divide_paths(batch)

        warmups: list[list[WeighedWarmup]] = [[] for _ in shown]

        if plain_idx.size(0) > 0:
            plain = pairs.select(plain_idx)

            source = self._context.model.encode(
                plain.source_seqs, plain.source_layout()
            )

            log_probs = self._find_candidates.score_plain(
                source, plain, with_separator=False
            )

            update_loss(
                -log_probs.sum(), plain.num_targets, metric_bag, part=_PLAIN_LOSS
            )

        if warmed_idx.size(0) > 0:
            warmed = pairs.select(warmed_idx)

            look = self._find_candidates(
                warmed, step_nr, with_plain=True, is_draft=False
            )

            # Only the draws of training are to be timed.
            self._find_candidates.draw_time.reset()

            self._update_metrics(look, metric_bag)

            update_loss(
                self._get_losses(look).sum(),
                warmed.num_targets,
                metric_bag,
                part=_WARMUP_LOSS if self._parts else None,
            )

            places = {n: idx for idx, n in enumerate(warmed_idx.tolist())}

            warmups = [
                self._describe(look, places[n]) if n in places else [] for n in shown
            ]

        return warmups

    @staticmethod
    def _describe(look: Look, n: int) -> list[WeighedWarmup]:
        """Describes the warmups of a source."""
        candidates, scores = look.candidates, look.scores

        weights = look.log_weights()[n].softmax(dim=0)

        begin = n * candidates.num_warmups

        return [
            WeighedWarmup(
                candidates.seqs[
                    begin + k, : int(candidates.seq_lens[begin + k])
                ].tolist(),
                float(weights[k]),
                float(scores.warmup_log_probs[n, k]),
                float(scores.target_log_probs[n, k]),
            )
            for k in range(candidates.num_warmups)
        ]

    @property
    @override
    def max_warmup_len(self) -> int | None:
        return self._config.max_warmup_len

    @override
    def get_max_warmup_len(self, step_nr: int, direction: str | None) -> int | None:
        if direction in self._context.plain_directions:
            return None

        return self._find_candidates.get_max_warmup_len(step_nr)

    @property
    @override
    def smooths_loss(self) -> bool:
        # That of warmups is reported without; that of plain directions with.
        context = self._context

        return context.label_smoothing > 0.0 and bool(context.plain_directions)

    @override
    def process_metric_values(
        self, values: MutableMapping[str, object], step_time: float
    ) -> None:
        # The mean of nothing: fairseq2 also publishes at a stop or at the end, where the
        # gain may not have been measured.
        if values.get("warmup_gain") == 0.0:
            del values["warmup_gain"]

        # Steps without such pairs.
        for name in self._parts:
            if values.get(name) == 0.0:
                del values[name]

        # A curve of it would not meet that of the validations.
        if self.smooths_loss and _PLAIN_LOSS in values:
            values["smoothed_plain_loss"] = values.pop(_PLAIN_LOSS)

        draw_time = self._find_candidates.draw_time

        if step_time > 0.0:
            values["draw_share"] = draw_time.get_elapsed_time() / step_time

        draw_time.reset()


def create_warmup_criterion(context: CriterionContext) -> Criterion:
    """
    Creates the criterion ``warmup``.

    :raises WarmupError: If the objective needs warmups that all differ, and the sampler
        does not promise them; or if it does and there is only one.
    """
    if requires_distinct(context.objective) and not is_distinct(context.sampler):
        raise WarmupError(
            f"`warmup.objective.name` is `{context.warmup.objective.name}`, which needs warmups that all differ; set `warmup.sampler.name` to `stochastic_beam`."
        )

    if is_distinct(context.sampler) and context.warmup.num_warmups == 1:
        raise WarmupError(
            f"`warmup.sampler.name` is `{context.warmup.sampler.name}`, which draws warmups that differ from each other, but `warmup.num_warmups` is 1; raise it, or set `warmup.sampler.name` to `independent`."
        )

    if context.warmup.share_encoder and context.model.reads_prompts:
        raise WarmupError(
            "`warmup.share_encoder` is set, but the model is decoder-only, which reads its prompts together with what follows; set it to false."
        )

    if context.warmup.with_empty and not enumerates_empty(context.sampler):
        raise WarmupError(
            f"`warmup.with_empty` is set, but the sampler `{context.warmup.sampler.name}` cannot leave the empty warmup out of its draws; set `warmup.sampler.name` to `independent`."
        )

    return WarmupCriterion(context)
