# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Outputs that a model draws while it is trained, as texts and as decoder rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from warmup_plugin.criteria.base import CriterionContext
from warmup_plugin.criteria.look import Pairs, divide_sizes
from warmup_plugin.generation import GenerationConfig, WarmupGenerator
from warmup_plugin.layout import DecoderLayout, DecoderRows, join_rows


@final
@dataclass(frozen=True)
class Output:
    """Holds an output of a source, with its warmup if there is one."""

    source: int
    """The number of its source in the batch."""

    target: list[int]
    """Without EOS."""

    target_cut: bool = False
    """``True`` if EOS was forced at the length limit: its probability is 1 and not the
    model's to learn."""

    warmup: list[int] | None = None
    """Without separator; ``None`` for a row without warmup and separator."""

    warmup_cut: bool = False
    """``True`` if the separator was forced."""

    count: int = 1
    """How often it was drawn."""


@final
class OutputSampler:
    """
    Draws outputs from the model, with a warmup each or without.

    What is drawn for a pair depends on the model, the seed, the step and the number of
    the pair, neither on the rest of the batch nor on the number of ranks.
    """

    def __init__(
        self, context: CriterionContext, config: GenerationConfig, seed: int
    ) -> None:
        """
        :param context: Its model must be in evaluation mode when this is called.
        :param config: All but its seed.
        """
        self._context = context
        self._config = config
        self._seed = seed

    @torch.no_grad()
    def __call__(
        self,
        pairs: Pairs,
        line_numbers: Sequence[int],
        step_nr: int,
        directions: Sequence[str] | None = None,
    ) -> list[Output]:
        """
        :param line_numbers: The number of each pair in its text.
        :param directions: The direction of each pair, if there are several.

        :returns: The distinct outputs, those of a source one after the other.

        :raises WarmupError: If the model gives a probability that is not a number.
        """
        context, config = self._context, self._config

        # Philox takes 64 bits.
        seed = (self._seed << 32 | step_nr) & (2**63 - 1)

        generator = WarmupGenerator(
            context.model,
            context.layout,
            replace(config, seed=seed),
        )

        num_sources = len(pairs.source_seq_lens)

        counts = context.num_template_tokens

        first = next(iter(counts.values()), 0)

        num_template_tokens = [
            counts.get(name, first) for name in directions or [""] * num_sources
        ]

        limits = generator.get_limits(
            pairs.source_seq_lens, [()] * num_sources, num_template_tokens
        )

        num_before = context.layout.prefix_len

        if generator.has_warmup:
            num_before += config.max_warmup_len + 1

        sizes = [config.num_best * (num_before + limit) for limit in limits]

        budget = context.warmup.max_num_tokens

        groups = [(0, num_sources)] if budget is None else divide_sizes(sizes, budget)

        outputs: list[Output] = []

        for begin, end in groups:
            group = pairs.slice(begin, end)

            hypotheses = generator(
                group.source_seqs,
                group.source_seq_lens,
                group.target_seqs[:, : context.layout.prefix_len],
                line_numbers=line_numbers[begin:end],
                num_template_tokens=num_template_tokens[begin:end],
            )

            for source, drawn in enumerate(hypotheses, begin):
                distinct: dict[tuple[tuple[int, ...], ...], Output] = {}

                for h in drawn:
                    key = (tuple(h.warmup), tuple(h.target))

                    known = distinct.get(key)

                    if known is not None:
                        distinct[key] = replace(known, count=known.count + 1)

                        continue

                    distinct[key] = Output(
                        source,
                        h.target,
                        len(h.target) >= limits[source],
                        h.warmup if generator.has_warmup else None,
                        len(h.warmup) >= config.max_warmup_len,
                    )

                outputs += distinct.values()

        return outputs


def build_output_rows(
    layout: DecoderLayout, outputs: Sequence[Output], prefixes: Tensor
) -> DecoderRows:
    """
    Builds the decoder rows of outputs, one each.

    :param prefixes: The tokens before a warmup. *Shape:* :math:`(N,P)`.
    """
    device = prefixes.device

    def pad(seqs: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        width = max(map(len, seqs))

        rows = [[*seq, *[layout.pad_idx] * (width - len(seq))] for seq in seqs]

        return (
            torch.tensor(rows, dtype=torch.long, device=device),
            torch.tensor(list(map(len, seqs)), device=device),
        )

    all_prefixes = prefixes.tolist()

    target_seqs, target_seq_lens = pad(
        [[*all_prefixes[o.source], *o.target, layout.eos_idx] for o in outputs]
    )

    warmups, warmup_lens = pad([o.warmup or [] for o in outputs])

    def to_mask(values: Sequence[bool]) -> Tensor:
        return torch.tensor(values, dtype=torch.bool, device=device)

    rows = join_rows(
        layout,
        target_seqs,
        target_seq_lens,
        warmups,
        warmup_lens,
        to_mask([o.warmup_cut for o in outputs]),
        to_mask([o.warmup is not None for o in outputs]),
        torch.arange(len(outputs), device=device),
        torch.tensor([o.source for o in outputs], device=device),
    )

    # (B, 1)
    target_cut = to_mask([o.target_cut for o in outputs]).unsqueeze(1)

    is_forced = target_cut & (rows.targets == layout.eos_idx)

    return replace(rows, target_mask=rows.target_mask & ~is_forced)
