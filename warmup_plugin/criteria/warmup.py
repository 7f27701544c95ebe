# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast, final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import ReduceOperation
from fairseq2.metrics import Mean, MetricBag
from fairseq2.nn import BatchLayout
from fairseq2.nn.data_parallel import get_data_parallel_facade
from fairseq2.utils.stopwatch import Stopwatch
from torch import Tensor
from torch.nn.functional import pad
from torch.profiler import record_function
from typing_extensions import override

from warmup_plugin.criteria.base import (
    Criterion,
    CriterionContext,
    WeighedWarmup,
    update_loss,
)
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.health import (
    CollapseDetector,
    WarmupShares,
    repetition,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import (
    DecoderRows,
    ExcludedTokens,
    join_rows,
    plain_rows,
)
from warmup_plugin.models.conditional import (
    EncodedSource,
    RowCoefs,
    evaluation_mode,
)
from warmup_plugin.objectives import (
    TemperedObjective,
    effective_sample_size,
    entropy_term,
    reference_kl_term,
    requires_distinct,
)
from warmup_plugin.sampling import (
    Candidates,
    concat_candidates,
    draw_candidates,
    empty_candidates,
    enumerates_empty,
    is_distinct,
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
    score_warmups,
)
from warmup_plugin.warmup_lens import interpolate_len


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
class _Pairs:
    """Holds the sources and targets of a batch, or of some of its examples."""

    source_seqs: Tensor
    """*Shape:* :math:`(N,S_{src})`."""

    source_seq_lens: list[int]

    target_seqs: Tensor
    """``[prefix] y EOS``, padded. *Shape:* :math:`(N,S_{tgt})`."""

    target_seq_lens: Tensor
    """*Shape:* :math:`(N)`."""

    @staticmethod
    def of(batch: Seq2SeqBatch) -> _Pairs:
        source_seqs, source_layout = batch.as_source_input()

        target_seqs, target_layout = batch.as_target_input()

        return _Pairs(
            source_seqs,
            list(source_layout.seq_lens),
            target_seqs,
            target_layout.seq_lens_pt.long(),
        )

    @property
    def num_targets(self) -> int:
        """The number of tokens to predict."""
        return int(self.target_seq_lens.sum()) - self.target_seq_lens.size(0)

    def source_layout(self) -> BatchLayout:
        return BatchLayout.of(self.source_seqs, self.source_seq_lens)

    def slice(self, begin: int, end: int) -> _Pairs:
        source_seq_lens = self.source_seq_lens[begin:end]

        return _Pairs(
            self.source_seqs[begin:end, : max(source_seq_lens)],
            source_seq_lens,
            self.target_seqs[begin:end],
            self.target_seq_lens[begin:end],
        )

    def select(self, idx: Tensor) -> _Pairs:
        """
        :param idx: The examples to take, at least one. *Shape:* :math:`(N')`.
        """
        if idx.size(0) == self.target_seq_lens.size(0):
            return self

        source_seq_lens = [self.source_seq_lens[n] for n in idx.tolist()]

        return _Pairs(
            self.source_seqs.index_select(0, idx)[:, : max(source_seq_lens)],
            source_seq_lens,
            self.target_seqs.index_select(0, idx),
            self.target_seq_lens.index_select(0, idx),
        )


@final
class WarmupCriterion(Criterion):
    """
    Minimises the objective of K warmups that the model itself draws.

    One step: draw K warmups a source, weigh them, both in evaluation mode and without
    gradient; keep all or a few; one differentiable pass over those, in which the
    source is encoded once. The pairs of plain directions have a row in that pass, no
    warmup.
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

        pairs = _Pairs.of(batch)

        warmed_idx, plain_idx = self._divide_paths(batch)

        look = None

        # Under FSDP the parameters are gathered for the whole time: ranks whose warmups
        # differ in length would gather at different times and wait for each other.
        with get_data_parallel_facade(dp_model).summon_full_parameters():
            with evaluation_mode(context.model.module), record_function("warmup::look"):
                if warmed_idx.size(0) > 0:
                    look = self._look(
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

            update_loss(self._get_losses(look).sum(), warmed.num_targets, metric_bag)

            shares = self._update_metrics(look, metric_bag)

            if not look.is_draft and self._get_max_warmup_len(step_nr) > 0:
                self._detector.update(step_nr, shares)

        with record_function("warmup::keep"):
            rows, coefs = self._build_rows(pairs, look, warmed_idx, plain_idx)

        with record_function("warmup::differentiate"):
            # Linear in a and b: its gradient is the objective's by the chain rule. Its
            # value means nothing; that of the objective is logged.
            loss: Tensor = dp_model(
                pairs.source_seqs,
                pairs.source_layout(),
                rows=rows,
                coefs=coefs,
                excluded=self._get_excluded(pairs),
                label_smoothing=context.label_smoothing,
                passes=self._divide_rows(rows),
            )

        if look is None:
            # Of plain directions alone it is that of `sft`.
            update_loss(loss, pairs.num_targets, metric_bag)

        return loss

    def _get_excluded(self, pairs: _Pairs) -> ExcludedTokens:
        return self._context.layout.excluded_tokens(
            self._context.model.num_logits, pairs.target_seqs.device
        )

    def _get_max_warmup_len(self, step_nr: int) -> int:
        return interpolate_len(
            self._config.max_warmup_len, self._config.len_schedule, step_nr
        )

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

    def _look(
        self, pairs: _Pairs, step_nr: int, *, with_plain: bool, is_draft: bool
    ) -> _Look:
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

        return _divide(lens.tolist(), config.max_num_tokens)

    def _look_at(
        self, pairs: _Pairs, step_nr: int, *, with_plain: bool, is_draft: bool
    ) -> _Look:
        context, config = self._context, self._config

        layout, model = context.layout, context.model

        prefixes = pairs.target_seqs[:, : layout.prefix_len]

        source_layout = pairs.source_layout()

        max_warmup_len = self._get_max_warmup_len(step_nr)

        # None of the two is drawn.
        with_empty = config.with_empty and max_warmup_len > 0 and not is_draft

        with self._draw_time, record_function("warmup::draw"):
            source = model.encode(pairs.source_seqs, source_layout)

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
            reference_log_probs = score_warmups(
                context.reference,
                context.reference.encode(pairs.source_seqs, source_layout),
                layout,
                candidates,
                prefixes,
            )

        plain_log_probs = None

        if with_plain:
            plain_log_probs = self._score_plain(
                source, pairs, with_separator=config.plain_path == "empty"
            )

        return _Look(
            candidates,
            scores,
            reference_log_probs,
            plain_log_probs,
            is_draft=is_draft,
            with_empty=with_empty,
        )

    def _score_plain(
        self, source: EncodedSource, pairs: _Pairs, *, with_separator: bool
    ) -> Tensor:
        """Computes log P(y|x) without warmup. *Shape:* :math:`(N)`."""
        rows = plain_rows(
            self._context.layout,
            pairs.target_seqs,
            pairs.target_seq_lens,
            with_separator=with_separator,
        )

        scores = self._context.model.score(source, rows, self._get_excluded(pairs))

        return scores.target_log_probs

    def _differentiate(
        self, look: _Look, target_seq_lens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Computes the derivatives of the training loss with respect to a and b.

        *Shape:* :math:`(N,K)` each.
        """
        config = self._config

        if look.is_draft:
            target_log_probs = look.scores.target_log_probs

            return torch.zeros_like(target_log_probs), -torch.ones_like(
                target_log_probs
            )

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
                entropy = entropy_term(
                    warmup_log_probs, proposal_log_probs, with_empty=look.with_empty
                )

                losses = losses + config.entropy_weight * entropy

            if look.reference_log_probs is not None:
                kl = reference_kl_term(
                    warmup_log_probs,
                    look.reference_log_probs,
                    proposal_log_probs,
                    with_empty=look.with_empty,
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
        self, pairs: _Pairs, look: _Look | None, warmed_idx: Tensor, plain_idx: Tensor
    ) -> tuple[DecoderRows, RowCoefs]:
        """
        Builds the rows of the differentiable pass: those of the candidates that are
        kept, those of ``sft_weight`` and those of plain directions.

        :param look: What was found for the examples ``warmed_idx``.
        """
        config = self._config

        parts: list[_Rows] = []

        if look is not None:
            candidates = look.candidates

            target_seq_lens = pairs.target_seq_lens.index_select(0, warmed_idx)

            keep = keep_all if candidates.num_warmups == 1 else self._keep

            kept = keep(*self._differentiate(look, target_seq_lens))

            parts.append(
                _Rows(
                    candidates.seqs.index_select(0, kept.rows),
                    candidates.seq_lens.index_select(0, kept.rows),
                    candidates.cut.index_select(0, kept.rows),
                    torch.ones_like(kept.rows, dtype=torch.bool),
                    warmed_idx.index_select(0, kept.rows // candidates.num_warmups),
                    kept.warmup_coefs,
                    kept.target_coefs,
                )
            )

        def add_plain(idx: Tensor, weight: float, *, with_separator: bool) -> None:
            if idx.size(0) == 0:
                return

            separators = torch.full_like(idx, with_separator, dtype=torch.bool)

            zeros = torch.zeros_like(idx, dtype=torch.float32)

            # The separator of the empty warmup is given.
            parts.append(
                _Rows(
                    idx.new_zeros((idx.size(0), 0)),
                    torch.zeros_like(idx),
                    separators,
                    separators,
                    idx,
                    zeros,
                    zeros - weight,
                )
            )

        if config.sft_weight > 0.0:
            add_plain(
                warmed_idx,
                config.sft_weight,
                with_separator=config.plain_path == "empty",
            )

        add_plain(plain_idx, 1.0, with_separator=False)

        width = max(part.warmups.size(1) for part in parts)

        warmups = [
            pad(part.warmups, (0, width - part.warmups.size(1))) for part in parts
        ]

        rows = join_rows(
            self._context.layout,
            pairs.target_seqs,
            pairs.target_seq_lens,
            torch.cat(warmups),
            torch.cat([part.warmup_lens for part in parts]),
            torch.cat([part.warmup_cut for part in parts]),
            torch.cat([part.with_separator for part in parts]),
            torch.cat([part.source_idx for part in parts]),
        )

        return rows, RowCoefs(
            torch.cat([part.warmup_coefs for part in parts]),
            torch.cat([part.target_coefs for part in parts]),
        )

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

    @torch.no_grad()
    def _get_losses(self, look: _Look) -> Tensor:
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
    def _update_metrics(self, look: _Look, metric_bag: MetricBag) -> WarmupShares:
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
        pairs = _Pairs.of(batch)

        warmed_idx, plain_idx = self._divide_paths(batch)

        warmups: list[list[WeighedWarmup]] = [[] for _ in shown]

        loss = torch.zeros((), device=pairs.target_seqs.device)

        if plain_idx.size(0) > 0:
            plain = pairs.select(plain_idx)

            source = self._context.model.encode(
                plain.source_seqs, plain.source_layout()
            )

            loss = loss - self._score_plain(source, plain, with_separator=False).sum()

        if warmed_idx.size(0) > 0:
            look = self._look(
                pairs.select(warmed_idx), step_nr, with_plain=True, is_draft=False
            )

            # Only the draws of training are to be timed.
            self._draw_time.reset()

            self._update_metrics(look, metric_bag)

            loss = loss + self._get_losses(look).sum()

            places = {n: idx for idx, n in enumerate(warmed_idx.tolist())}

            warmups = [
                self._describe(look, places[n]) if n in places else [] for n in shown
            ]

        update_loss(loss, pairs.num_targets, metric_bag)

        return warmups

    @staticmethod
    def _describe(look: _Look, n: int) -> list[WeighedWarmup]:
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

        return self._get_max_warmup_len(step_nr)

    @property
    @override
    def draw_time(self) -> Stopwatch:
        return self._draw_time


@dataclass(frozen=True)
class _Rows:
    """Holds what some rows of the differentiable pass are made of."""

    # (R, C)
    warmups: Tensor

    # (R) each
    warmup_lens: Tensor
    warmup_cut: Tensor
    with_separator: Tensor
    source_idx: Tensor
    warmup_coefs: Tensor
    target_coefs: Tensor


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

    if context.warmup.with_empty and not enumerates_empty(context.sampler):
        raise WarmupError(
            f"`warmup.with_empty` is set, but the sampler `{context.warmup.sampler.name}` cannot leave the empty warmup out of its draws; set `warmup.sampler.name` to `independent`."
        )

    keep = _create_keep(context.warmup.keep, context.warmup.num_warmups)

    return WarmupCriterion(context, keep)
