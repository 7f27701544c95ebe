# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The generator ``warmup`` as fairseq2 knows generators, of both kinds of model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast, final

import torch
from fairseq2.generation import Hypothesis as Fairseq2Hypothesis
from fairseq2.generation import (
    Seq2SeqGenerator,
    SequenceGenerator,
    SequenceGeneratorOutput,
    StepHook,
)
from fairseq2.generation.generator import GenerationCounters
from fairseq2.models.clm import CausalLM
from fairseq2.models.seq2seq import Seq2SeqModel
from fairseq2.nn import BatchLayout
from fairseq2.utils.stopwatch import Stopwatch
from torch import Tensor
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.generator import WarmupGenerator
from warmup_plugin.generation.hypothesis import Hypothesis


@final
@dataclass
class WarmupHypothesis(Fairseq2Hypothesis):
    """A hypothesis of fairseq2 whose warmup and output are known apart: ``seq`` is
    ``warmup SEP output EOS``, without what the model was given."""

    parts: Hypothesis


class _Adapter:
    """What both kinds of generator have in common."""

    def __init__(self, core: WarmupGenerator) -> None:
        self.core = core

        self._layout = core.layout

        self._hooks: dict[int, StepHook] = OrderedDict()

    def register_step_hook(self, hook: StepHook) -> RemovableHandle:
        """Registers a hook that is called after every step of a search; the steps of a
        warmup that is written before its output is searched have none."""
        handle = RemovableHandle(self._hooks)

        self._hooks[handle.id] = hook

        self.core.on_step = self._call_hooks

        return handle

    def _call_hooks(self, sources: Tensor, seqs: Tensor, log_probs: Tensor) -> None:
        for hook in self._hooks.values():
            hook(sources, seqs, log_probs, False)

    def generate(
        self,
        source_seqs: Tensor,
        source_layout: BatchLayout,
        prefixes: Tensor,
        forced: Sequence[Sequence[int]] | None,
    ) -> SequenceGeneratorOutput:
        watch = Stopwatch(device=source_seqs.device)

        with watch:
            groups = self.core(
                source_seqs, source_layout.seq_lens, prefixes, forced=forced
            )

        counters = GenerationCounters(
            prefill_size=prefixes.numel(),
            num_generated_elements=sum(
                len(h.token_log_probs) for group in groups for h in group
            ),
            generation_time=watch.get_elapsed_time(),
        )

        device = source_seqs.device

        hypotheses: list[list[Fairseq2Hypothesis]] = [
            [self._convert(h, device) for h in group] for group in groups
        ]

        return SequenceGeneratorOutput(hypotheses, counters)

    def _convert(self, h: Hypothesis, device: torch.device) -> WarmupHypothesis:
        tokens = h.tokens(self._layout, has_warmup=self.core.has_warmup)

        return WarmupHypothesis(
            torch.tensor(tokens, device=device),
            torch.tensor(h.score, device=device),
            torch.tensor(h.token_log_probs, device=device),
            h,
        )


@final
class WarmupSeq2SeqGenerator(_Adapter, Seq2SeqGenerator):
    """
    Generates for encoder-decoders; a prompt is the prefix of the decoder sequence and,
    behind it, what the output begins with.
    """

    @override
    def __call__(
        self,
        source_seqs: Tensor,
        source_seqs_layout: BatchLayout,
        prompt_seqs: Tensor,
        prompt_seqs_layout: BatchLayout,
    ) -> SequenceGeneratorOutput:
        """
        :raises WarmupError: If a prompt is shorter than the prefix.
        """
        prefix_len = self._layout.prefix_len

        lens = prompt_seqs_layout.seq_lens

        if min(lens) < prefix_len:
            raise WarmupError(
                f"A prompt has {min(lens)} tokens, but each decoder sequence begins with {prefix_len} (BOS, language); give them all."
            )

        forced = [seq[prefix_len:n] for seq, n in zip(prompt_seqs.tolist(), lens)]

        return self.generate(
            source_seqs, source_seqs_layout, prompt_seqs[:, :prefix_len], forced
        )

    @property
    @override
    def model(self) -> Seq2SeqModel:
        return cast(Seq2SeqModel, self.core.model.module)


@final
class WarmupSequenceGenerator(_Adapter, SequenceGenerator):
    """Generates for decoder-only models, whose source is a prompt."""

    @override
    def __call__(
        self, prompt_seqs: Tensor, prompt_seqs_layout: BatchLayout
    ) -> SequenceGeneratorOutput:
        """
        :raises WarmupError: If a prompt has one token only.
        """
        lens = prompt_seqs_layout.seq_lens

        if min(lens) < 2:
            raise WarmupError(
                "A prompt has only one token, but a decoder-only model needs two; give a longer one."
            )

        last = torch.tensor(lens, device=prompt_seqs.device).unsqueeze(1) - 1

        # The last token begins the rows that continue a prompt.
        source_lens = [n - 1 for n in lens]

        source_seqs = prompt_seqs[:, : max(source_lens)]

        return self.generate(
            source_seqs,
            BatchLayout.of(source_seqs, source_lens),
            prompt_seqs.gather(1, last),
            None,
        )

    @property
    @override
    def model(self) -> CausalLM:
        return cast(CausalLM, self.core.model.module)
