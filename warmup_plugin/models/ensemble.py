# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, final

import torch
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderRows, ExcludedTokens
from warmup_plugin.models.conditional import (
    ConditionalModel,
    EncodedSource,
    RowDecoder,
    RowScores,
)


def create_ensemble(members: Sequence[ConditionalModel]) -> ConditionalModel:
    """Returns the only model, or several as one."""
    return members[0] if len(members) == 1 else EnsembleModel(members)


@final
class EnsembleModel(ConditionalModel):
    r"""
    Predicts each token by several models of one tokenizer.

    The probability of a token is the mean of theirs, as in fairseq 1 and Marian:
    :math:`P(y_t|y_{<t},x) = \frac{1}{M} \sum_m P_m(y_t|y_{<t},x)`.

    It translates and scores; nothing is trained with it.
    """

    def __init__(self, members: Sequence[ConditionalModel]) -> None:
        """
        :raises WarmupError: If the models do not go together.
        """
        first = members[0]

        for nr, member in enumerate(members[1:], start=2):
            if member.reads_prompts != first.reads_prompts:
                raise WarmupError(
                    f"Model {nr} of the ensemble is {_describe_kind(member)}, but the first is {_describe_kind(first)}; take models of one kind."
                )

            if member.num_logits != first.num_logits:
                raise WarmupError(
                    f"Model {nr} of the ensemble has {member.num_logits} output tokens, but the first {first.num_logits}; take models of one tokenizer."
                )

        self._members = members

    @override
    def encode(self, source_seqs: Tensor, source_layout: BatchLayout) -> EncodedSource:
        first, *others = [m.encode(source_seqs, source_layout) for m in self._members]

        return replace(first, others=tuple(others))

    @override
    def start(
        self, source: EncodedSource, source_idx: Tensor, max_len: int
    ) -> RowDecoder:
        sources = [source, *source.others]

        return _EnsembleDecoder(
            [m.start(s, source_idx, max_len) for m, s in zip(self._members, sources)]
        )

    @override
    def score(
        self, source: EncodedSource, rows: DecoderRows, excluded: ExcludedTokens
    ) -> RowScores:
        with torch.no_grad():
            decoder = self.start(source, rows.source_idx, rows.seqs.size(1))

            return _score_by_steps(
                decoder, rows, torch.zeros_like(rows.source_idx), excluded
            )

    @override
    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
        raise RuntimeError("An ensemble is not trained.")

    @property
    @override
    def num_logits(self) -> int:
        return self._members[0].num_logits

    @property
    @override
    def reads_prompts(self) -> bool:
        return self._members[0].reads_prompts

    @property
    @override
    def max_source_len(self) -> int:
        return min(m.max_source_len for m in self._members)

    @override
    def get_max_target_len(self, source_len: int) -> int:
        return min(m.get_max_target_len(source_len) for m in self._members)

    @property
    @override
    def module(self) -> Module:
        return self._members[0].module


class _JointDecoder(RowDecoder):
    """Feeds the same tokens to several decoders, whose predictions become one."""

    # It feeds them step by step.
    scores_any_length: ClassVar[bool] = False

    def __init__(self, decoders: Sequence[RowDecoder]) -> None:
        self._decoders = decoders

    @abstractmethod
    def join(self, logits: Sequence[Tensor]) -> Tensor:
        """
        :param logits: Of each decoder. *Shape:* :math:`(A,V)`.

        :returns: The logits of the token that follows. *Shape:* :math:`(A,V)`.
        """

    @override
    def step(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.join([decoder.step(tokens, rows) for decoder in self._decoders])

    @override
    def select(self, rows: Tensor) -> None:
        for decoder in self._decoders:
            decoder.select(rows)

    @override
    def select_beams(
        self, beams: Tensor, groups: Tensor | None, max_beams: int
    ) -> None:
        for decoder in self._decoders:
            decoder.select_beams(beams, groups, max_beams)

    @override
    def fork(self, rows: Tensor) -> None:
        for decoder in self._decoders:
            decoder.fork(rows)

    @override
    def rewind(self, past_lens: Tensor) -> None:
        for decoder in self._decoders:
            decoder.rewind(past_lens)

    @override
    def score(
        self, rows: DecoderRows, past_lens: Tensor, excluded: ExcludedTokens
    ) -> Tensor:
        self.rewind(past_lens)

        return _score_by_steps(self, rows, past_lens, excluded).target_log_probs


@final
class _EnsembleDecoder(_JointDecoder):
    @override
    def join(self, logits: Sequence[Tensor]) -> Tensor:
        # (M, A, V)
        log_probs = torch.stack([x.float().log_softmax(dim=-1) for x in logits])

        return log_probs.logsumexp(dim=0) - math.log(len(logits))


@final
class PathsDecoder(_JointDecoder):
    r"""
    Predicts each token of an output by several ways that lead to it, such as a warmup and
    none, each with a weight:
    :math:`P(y_t|y_{<t}) \propto \prod_p P_p(y_t|y_{<t})^{w_p}`.

    A product, since a way that does not know a token is to leave it to the others, and
    one that excludes it is to be heard.
    """

    def __init__(
        self,
        decoders: Sequence[RowDecoder],
        weights: Sequence[float],
        excluded: Tensor,
    ) -> None:
        """
        :param decoders: One for each way, which has been fed all that stands before the
            output, with the same rows each.
        :param weights: Positive, one for each way.
        :param excluded: The tokens without probability in an output. *Shape:*
            :math:`(X)`.
        """
        super().__init__(decoders)

        self._weights = weights
        self._excluded = excluded

    @override
    def join(self, logits: Sequence[Tensor]) -> Tensor:
        joined = torch.zeros_like(logits[0], dtype=torch.float32)

        for weight, path_logits in zip(self._weights, logits):
            path_logits = path_logits.float().index_fill(-1, self._excluded, -math.inf)

            joined += weight * path_logits.log_softmax(dim=-1)

        return joined


def _score_by_steps(
    decoder: RowDecoder, rows: DecoderRows, past_lens: Tensor, excluded: ExcludedTokens
) -> RowScores:
    """
    Scores rows token by token, since what models give to whole rows cannot be averaged.

    :param past_lens: The number of tokens that each row has been fed. *Shape:*
        :math:`(B)`.
    """
    sums = torch.zeros((2, past_lens.size(0)), device=rows.seqs.device)

    parts = (
        (rows.warmup_mask, excluded.in_warmup),
        (rows.target_mask, excluded.in_target),
    )

    width = rows.seqs.size(1)

    for n in range(width - int(past_lens.min())):
        # Beyond the end of a row nothing counts.
        at = (past_lens + n).clamp(max=width - 1).unsqueeze(1)

        is_inside = past_lens + n < width

        logits = decoder.step(rows.seqs.gather(1, at))

        targets = rows.targets.gather(1, at)

        for part, (mask, tokens) in enumerate(parts):
            counts = mask.gather(1, at).squeeze(1) & is_inside

            log_probs = logits.index_fill(1, tokens, -math.inf).log_softmax(dim=1)

            picked = log_probs.gather(1, targets).squeeze(1)

            sums[part] += torch.where(counts, picked, 0.0)

    return RowScores(sums[0], sums[1])


def _describe_kind(model: ConditionalModel) -> str:
    return "decoder-only" if model.reads_prompts else "an encoder-decoder"
