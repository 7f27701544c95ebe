# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import ReduceOperation
from fairseq2.metrics import Mean, MetricBag
from fairseq2.nn import BatchLayout
from fairseq2.nn.data_parallel import get_data_parallel_facade
from fairseq2.utils.stopwatch import Stopwatch
from torch import Tensor
from torch.profiler import record_function
from typing_extensions import override

from warmup_plugin.criteria.base import (
    Criterion,
    CriterionContext,
    WeighedWarmup,
)
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.health import (
    CollapseDetector,
    WarmupShares,
    repetition,
)
from warmup_plugin.criteria.sft import update_loss
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderRows, join_rows, plain_rows
from warmup_plugin.models.conditional import RowCoefs, evaluation_mode
from warmup_plugin.objectives import (
    TemperedObjective,
    effective_sample_size,
    entropy_term,
    reference_kl_term,
    requires_distinct,
)
from warmup_plugin.sampling import Candidates, concat_candidates, is_distinct
from warmup_plugin.scoring import (
    CandidateScores,
    KeptCandidates,
    differentiate_objective,
    keep_all,
    keep_mass,
    keep_resampled,
    keep_top,
    score_candidates,
    score_warmups,
)


@final
@dataclass(frozen=True)
class _Look:
    """Holds what drawing and weighing have found, without gradient."""

    candidates: Candidates

    scores: CandidateScores

    reference_log_probs: Tensor | None
    """log P(c|x) under the frozen reference model. *Shape:* :math:`(N,K)`."""

    plain_log_probs: Tensor | None
    """log P(y|x) without warmup. *Shape:* :math:`(N)`."""

    def log_weights(self) -> Tensor:
        """Returns the logarithms of the posterior weights. *Shape:* :math:`(N,K)`."""
        scores = self.scores

        return (
            scores.target_log_probs
            + scores.warmup_log_probs
            - self.candidates.proposal_log_probs
        )


@final
class WarmupCriterion(Criterion):
    """
    Minimises the objective of K warmups that the model itself draws.

    One step: draw K warmups a source, weigh them, both in evaluation mode and without
    gradient; keep all or a few; one differentiable pass over those, in which the
    source is encoded once.
    """

    def __init__(self, context: CriterionContext, keep: Keep) -> None:
        self._context = context
        self._config = context.warmup
        self._keep = keep
        self._draw_time = Stopwatch(device=context.gangs.device)
        self._detector = CollapseDetector(
            context.warmup.num_warmups, context.warmup.max_warmup_len
        )

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
        ):
            metric_bag.add(name, Mean())

    @override
    def compute_loss(
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, step_nr: int
    ) -> Tensor:
        context = self._context

        dp_model = context.dp_model

        every = context.publish_every_n_steps

        # Under FSDP the parameters are gathered for the whole time: ranks whose warmups
        # differ in length would gather at different times and wait for each other.
        with get_data_parallel_facade(dp_model).summon_full_parameters():
            with evaluation_mode(context.model.module), record_function("warmup::look"):
                look = self._look(
                    batch, with_plain=every is not None and step_nr % every == 0
                )

        # Passes without gradient leave casts of the parameters in the cache of
        # `autocast`; the pass below would find them and silently train nothing.
        torch.clear_autocast_cache()

        # Before candidates are kept by their weights: it finds a loss that is no number.
        shares = self._update_metrics(batch, look, metric_bag)

        self._detector.update(step_nr, shares)

        with record_function("warmup::keep"):
            rows, coefs = self._build_rows(batch, look)

        with record_function("warmup::differentiate"):
            source_seqs, source_layout = batch.as_source_input()

            # Linear in a and b: its gradient is the objective's by the chain rule. Its
            # value means nothing; that of the objective is logged.
            loss: Tensor = dp_model(
                source_seqs,
                source_layout,
                rows=rows,
                coefs=coefs,
                warmup_ban_mask=context.layout.warmup_ban_mask(
                    context.model.num_logits, source_seqs.device
                ),
                label_smoothing=context.label_smoothing,
                passes=self._divide_rows(rows),
            )

        return loss

    def _look(self, batch: Seq2SeqBatch, *, with_plain: bool) -> _Look:
        """
        Draws and weighs candidates.

        :param with_plain: If ``True``, also scores the targets without warmup.
        """
        source_seqs, source_layout = batch.as_source_input()

        target_seqs, target_seq_lens = self._get_targets(batch)

        # The validator is in inference mode; there `no_grad` changes nothing.
        with torch.no_grad():
            looks = []

            for begin, end in self._divide_sources(target_seq_lens):
                part = slice(begin, end)

                seq_lens = list(source_layout.seq_lens[part])

                part_seqs = source_seqs[part, : max(seq_lens)]

                looks.append(
                    self._look_at(
                        part_seqs,
                        BatchLayout.of(part_seqs, seq_lens),
                        target_seqs[part],
                        target_seq_lens[part],
                        with_plain=with_plain,
                    )
                )

        if len(looks) == 1:
            # Without the keys and values, which nobody needs from here on.
            return replace(looks[0], candidates=replace(looks[0].candidates, past=None))

        def concat(parts: list[Tensor | None]) -> Tensor | None:
            known = [part for part in parts if part is not None]

            return torch.cat(known) if known else None

        return _Look(
            concat_candidates(
                [look.candidates for look in looks], self._context.layout.pad_idx
            ),
            CandidateScores(
                torch.cat([look.scores.warmup_log_probs for look in looks]),
                torch.cat([look.scores.target_log_probs for look in looks]),
            ),
            concat([look.reference_log_probs for look in looks]),
            concat([look.plain_log_probs for look in looks]),
        )

    def _divide_sources(self, target_seq_lens: Tensor) -> list[tuple[int, int]]:
        """Divides sources into groups whose rows fit into memory at once."""
        config = self._config

        if config.max_num_tokens is None:
            return [(0, target_seq_lens.size(0))]

        # The longest rows that these sources can get.
        lens = (target_seq_lens + config.max_warmup_len + 1) * config.num_warmups

        return _divide(lens.tolist(), config.max_num_tokens)

    def _look_at(
        self,
        source_seqs: Tensor,
        source_layout: BatchLayout,
        target_seqs: Tensor,
        target_seq_lens: Tensor,
        *,
        with_plain: bool,
    ) -> _Look:
        context, config = self._context, self._config

        layout, model = context.layout, context.model

        prefixes = target_seqs[:, : layout.prefix_len]

        with self._draw_time, record_function("warmup::draw"):
            source = model.encode(source_seqs, source_layout)

            candidates = context.sampler(
                model,
                source,
                layout,
                prefixes,
                num_warmups=config.num_warmups,
                max_warmup_len=config.max_warmup_len,
            )

        with record_function("warmup::weigh"):
            scores = score_candidates(
                model, source, layout, candidates, target_seqs, target_seq_lens
            )

        reference_log_probs = None

        if context.reference is not None:
            reference_log_probs = score_warmups(
                context.reference,
                context.reference.encode(source_seqs, source_layout),
                layout,
                candidates,
                prefixes,
            )

        plain_log_probs = None

        if with_plain:
            rows = plain_rows(layout, target_seqs, target_seq_lens)

            ban_mask = layout.warmup_ban_mask(model.num_logits, target_seqs.device)

            plain_log_probs = model.score(source, rows, ban_mask).target_log_probs

        return _Look(candidates, scores, reference_log_probs, plain_log_probs)

    def _differentiate(
        self, look: _Look, target_seq_lens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Computes the derivatives of the training loss with respect to a and b.

        *Shape:* :math:`(N,K)` each.
        """
        config = self._config

        objective = self._context.objective

        temperatures: Tensor | float = config.weight_temperature

        if config.length_normalized:
            num_tokens = target_seq_lens - self._context.layout.prefix_len

            temperatures = temperatures * num_tokens

        if config.weight_temperature != 1.0 or config.length_normalized:
            objective = TemperedObjective(objective, temperatures)

        def compute_losses(
            warmup_log_probs: Tensor,
            target_log_probs: Tensor,
            proposal_log_probs: Tensor,
        ) -> Tensor:
            losses = objective(warmup_log_probs, target_log_probs, proposal_log_probs)

            if config.entropy_weight > 0.0:
                entropy = entropy_term(warmup_log_probs, proposal_log_probs)

                losses = losses + config.entropy_weight * entropy

            if look.reference_log_probs is not None:
                kl = reference_kl_term(
                    warmup_log_probs, look.reference_log_probs, proposal_log_probs
                )

                losses = losses + config.kl_weight * kl

            return losses

        _, warmup_coefs, target_coefs = differentiate_objective(
            compute_losses,
            look.scores.warmup_log_probs,
            look.scores.target_log_probs,
            look.candidates.proposal_log_probs,
        )

        return warmup_coefs, target_coefs

    def _build_rows(
        self, batch: Seq2SeqBatch, look: _Look
    ) -> tuple[DecoderRows, RowCoefs]:
        """Builds the rows of the differentiable pass; plain rows come last."""
        target_seqs, target_seq_lens = self._get_targets(batch)

        candidates = look.candidates

        kept = self._keep(*self._differentiate(look, target_seq_lens))

        warmups = candidates.seqs.index_select(0, kept.rows)
        warmup_lens = candidates.seq_lens.index_select(0, kept.rows)
        warmup_cut = candidates.cut.index_select(0, kept.rows)
        source_idx = kept.rows // candidates.num_warmups

        with_separator = torch.ones_like(warmup_cut)

        warmup_coefs, target_coefs = kept.warmup_coefs, kept.target_coefs

        if self._config.sft_weight > 0.0:
            num_sources = target_seqs.size(0)

            def append(values: Tensor, value: float = 0.0) -> Tensor:
                plain = values.new_full((num_sources, *values.shape[1:]), value)

                return torch.cat([values, plain])

            warmups, warmup_lens = append(warmups), append(warmup_lens)
            warmup_cut, with_separator = append(warmup_cut), append(with_separator)
            warmup_coefs = append(warmup_coefs)
            target_coefs = append(target_coefs, -self._config.sft_weight)

            source_idx = torch.cat(
                [source_idx, torch.arange(num_sources, device=source_idx.device)]
            )

        rows = join_rows(
            self._context.layout,
            target_seqs,
            target_seq_lens,
            warmups,
            warmup_lens,
            warmup_cut,
            with_separator,
            source_idx,
        )

        return rows, RowCoefs(warmup_coefs, target_coefs)

    def _divide_rows(self, rows: DecoderRows) -> list[Tensor] | None:
        """Divides rows into passes that fit into memory; ``None`` for one pass."""
        budget = self._config.max_num_tokens

        if budget is None:
            return None

        # Rows of a source together: they share its keys and values.
        order = rows.source_idx.argsort(stable=True)

        seq_lens = [rows.seq_lens[i] for i in order.tolist()]

        passes = [order[begin:end] for begin, end in _divide(seq_lens, budget)]

        num_passes = len(passes)

        gang = self._context.gangs.dp

        if gang.size > 1:
            # Under FSDP every pass gathers parameters, so all ranks make as many.
            most = torch.tensor(num_passes, device=order.device)

            gang.all_reduce(most, ReduceOperation.MAX)

            num_passes = int(most)

        if num_passes == 1:
            return None

        return passes + [order[:0]] * (num_passes - len(passes))

    @staticmethod
    def _get_targets(batch: Seq2SeqBatch) -> tuple[Tensor, Tensor]:
        target_seqs, target_layout = batch.as_target_input()

        return target_seqs, target_layout.seq_lens_pt.long()

    @torch.no_grad()
    def _update_metrics(
        self, batch: Seq2SeqBatch, look: _Look, metric_bag: MetricBag
    ) -> WarmupShares:
        """Logs the objective and the health of the warmups."""
        candidates, scores = look.candidates, look.scores

        # What is reported is the objective itself, neither tempered nor with a bonus.
        losses = self._context.objective(
            scores.warmup_log_probs,
            scores.target_log_probs,
            candidates.proposal_log_probs,
        )

        update_loss(losses.sum(), batch, metric_bag)

        num_sources, num_warmups = candidates.proposal_log_probs.shape

        num_rows = num_sources * num_warmups

        values = {
            "warmup_ess": effective_sample_size(look.log_weights()).mean(),
            "warmup_len": candidates.seq_lens.float().mean(),
            "warmup_entropy": -entropy_term(
                scores.warmup_log_probs, candidates.proposal_log_probs
            ).mean(),
            "warmup_empty": candidates.seq_lens.eq(0).float().mean(),
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
        self, batch: Seq2SeqBatch, metric_bag: MetricBag, *, shown: Sequence[int]
    ) -> list[list[WeighedWarmup]]:
        look = self._look(batch, with_plain=True)

        # Only the draws of training are to be timed.
        self._draw_time.reset()

        self._update_metrics(batch, look, metric_bag)

        candidates, scores = look.candidates, look.scores

        weights = look.log_weights().softmax(dim=1)

        num_warmups = candidates.num_warmups

        def describe(n: int, k: int) -> WeighedWarmup:
            row = n * num_warmups + k

            return WeighedWarmup(
                candidates.seqs[row, : int(candidates.seq_lens[row])].tolist(),
                float(weights[n, k]),
                float(scores.warmup_log_probs[n, k]),
                float(scores.target_log_probs[n, k]),
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


def _divide(sizes: Sequence[int], budget: int) -> list[tuple[int, int]]:
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


Keep = Callable[[Tensor, Tensor], KeptCandidates]


def _create_keep(section: KeepSection, num_warmups: int) -> Keep:
    if section.name == "mass":
        return partial(keep_mass, mass=section.mass)

    if section.name == "all" or section.num >= num_warmups:
        return keep_all

    keep = keep_resampled if section.name == "resample" else keep_top

    return partial(keep, num_kept=section.num)


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

    keep = _create_keep(context.warmup.keep, context.warmup.num_warmups)

    return WarmupCriterion(context, keep)
