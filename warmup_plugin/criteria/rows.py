# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from fairseq2.gang import ReduceOperation
from torch import Tensor
from torch.nn.functional import pad

from warmup_plugin.criteria.base import CriterionContext
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.criteria.look import Look, Pairs, divide_sizes
from warmup_plugin.layout import DecoderRows, join_rows
from warmup_plugin.models.conditional import RowCoefs
from warmup_plugin.objectives import (
    TemperedObjective,
    entropy_term,
    reference_kl_term,
)
from warmup_plugin.scoring import (
    KeptCandidates,
    differentiate_objective,
    keep_all,
    keep_mass,
    keep_resampled,
    keep_top,
)

Keep = Callable[[Tensor, Tensor], KeptCandidates]


def create_keep(section: KeepSection, num_warmups: int) -> Keep:
    """Creates what chooses the candidates that are learned from."""
    if section.name == "mass":
        return partial(keep_mass, mass=section.mass)

    if section.name == "all" or section.num >= num_warmups:
        return keep_all

    keep = keep_resampled if section.name == "resample" else keep_top

    return partial(keep, num_kept=section.num)


@final
class RowBuilder:
    """Builds the rows of the differentiable pass and what multiplies them."""

    def __init__(self, context: CriterionContext) -> None:
        self._context = context
        self._config = context.warmup
        self._keep = create_keep(context.warmup.keep, context.warmup.num_warmups)

    def __call__(
        self, pairs: Pairs, look: Look | None, warmed_idx: Tensor, plain_idx: Tensor
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
            given_lens=pairs.given_lens,
        )

        return rows, RowCoefs(
            torch.cat([part.warmup_coefs for part in parts]),
            torch.cat([part.target_coefs for part in parts]),
        )

    def divide(self, rows: DecoderRows) -> list[Tensor] | None:
        """Divides rows into passes that fit into memory; ``None`` for one pass."""
        budget = self._config.max_num_tokens

        if budget is None:
            return None

        # Rows of a source together: they share its keys and values.
        order = rows.source_idx.argsort(stable=True)

        seq_lens = [rows.seq_lens[i] for i in order.tolist()]

        passes = [order[begin:end] for begin, end in divide_sizes(seq_lens, budget)]

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

    def _differentiate(
        self, look: Look, target_seq_lens: Tensor
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
