# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TypeAlias, final

import numpy as np
import torch
from fairseq2.nn import BatchLayout
from torch import Tensor

from warmup_plugin.data.batching import sorted_batches
from warmup_plugin.data.corpus import TokenSeqsBuilder
from warmup_plugin.data.lines import Line, LineError
from warmup_plugin.generation.translator import to_json_line
from warmup_plugin.layout import ExcludedTokens, plain_rows
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.sampling.candidates import Candidates
from warmup_plugin.sampling.draw import draw_line_candidates
from warmup_plugin.scoring import score_candidates
from warmup_plugin.tokenizers.codec import TextCodec


@final
@dataclass(frozen=True)
class ScoredWarmup:
    """Holds what a warmup makes of a target."""

    warmup: str

    tokens: list[int]
    """Its token ids without the separator: different ones may read the same."""

    warmup_log_prob: float
    """log P(c|x)."""

    target_log_prob: float
    """log P(y|c,x)."""

    weight: float
    """Its posterior weight, that of equal draws added up."""

    count: int
    """How often it was drawn."""


@final
@dataclass(frozen=True)
class PairScore:
    """Holds how likely a model finds a target."""

    source: str

    target: str

    num_target_tokens: int | None
    """EOS included; ``None`` for a pair with an empty side, of which nothing is known."""

    log_prob: float | None
    """log P(y|x) without warmup."""

    marginal_log_prob: float | None
    """log (1/K) Σ P(y|c,x) over K warmups that were drawn from the model: an estimate of
    log P(y|x) that is too small on average, and approaches it with K."""

    effective_sample_size: float | None
    """1 / Σ w² of the posterior weights w of the K warmups: from 1 to K."""

    warmups: list[ScoredWarmup]
    """The distinct warmups, most weight first."""

    was_cut: bool = False
    """Whether a side was longer than the model reads, and was cut."""

    @property
    def gain(self) -> float | None:
        """What the warmups add to log P(y|x)."""
        if self.marginal_log_prob is None or self.log_prob is None:
            return None

        return self.marginal_log_prob - self.log_prob

    def to_text(self) -> str:
        """Returns the log-probabilities as columns: without warmup, and with."""
        values = [self.log_prob, self.marginal_log_prob]

        if self.marginal_log_prob is None:
            values = values[:1]

        return "\t".join("" if v is None else f"{v:.6f}" for v in values)

    def to_json(self) -> str:
        was_cut = {"truncated": True} if self.was_cut else {}

        return to_json_line(
            {
                **was_cut,
                "source": self.source,
                "target": self.target,
                "num_target_tokens": self.num_target_tokens,
                "log_prob": self.log_prob,
                "marginal_log_prob": self.marginal_log_prob,
                "gain": self.gain,
                "effective_sample_size": self.effective_sample_size,
                "warmups": [asdict(warmup) for warmup in self.warmups],
            }
        )


def _cut(tokens: list[int], max_len: int) -> list[int]:
    """Cuts all but the last token, which is EOS."""
    if len(tokens) <= max_len or max_len < 2:
        return tokens

    return [*tokens[: max_len - 1], tokens[-1]]


# Marginal, effective sample size and warmups.
_Details: TypeAlias = tuple[float | None, float | None, list[ScoredWarmup]]


@final
class PairScorer:
    """Scores pairs of source and target, some at a time."""

    def __init__(
        self,
        model: ConditionalModel,
        codec: TextCodec,
        device: torch.device,
        *,
        num_warmups: int,
        max_warmup_len: int,
        has_empty_warmup: bool,
        seed: int,
        max_num_tokens: int,
        truncate: bool = False,
        leaves_separator_out: bool = False,
    ) -> None:
        """
        :param model: In evaluation mode.
        :param num_warmups: The number K of warmups to draw for each pair; 0 for none.
        :param has_empty_warmup: If ``True``, what log P(y|x) without warmup stands for
            is the empty one; else that of plain fine-tuning.
        :param seed: Of the draws, which depend on it and on the number of the line.
        :param max_num_tokens: The size of a batch: rows times the longer side of the
            longest pair; each warmup is a row.
        :param truncate: If ``True``, sources and targets longer than the model reads are
            cut; encoder-decoders only.
        :param leaves_separator_out: If ``True``, the separator has no probability in an
            output, also where none stands before it.
        """
        self._truncate = truncate
        self._leaves_separator_out = leaves_separator_out or has_empty_warmup
        self._model = model
        self._codec = codec
        self._device = device
        self._num_warmups = num_warmups
        self._max_warmup_len = max_warmup_len
        self._has_empty_warmup = has_empty_warmup
        self._seed = seed
        self._max_num_tokens = max(1, max_num_tokens // max(1, num_warmups))

    @torch.no_grad()
    def __call__(
        self, lines: Sequence[Line], on_batch: Callable[[int], None] | None = None
    ) -> list[PairScore]:
        """
        :param on_batch: Called with the number of lines that are done.

        :raises LineError: If a pair is longer than the model reads.
        """
        scores = [
            PairScore(line.source, line.target or "", None, None, None, None, [])
            for line in lines
        ]

        model, codec = self._model, self._codec

        todo = []

        sources, targets = TokenSeqsBuilder(), TokenSeqsBuilder()

        for n, line in enumerate(lines):
            if not line.source or not line.target:
                continue

            encoded = codec.encode_source(line.source)

            tokens = codec.encode_target(line.target)

            if codec.is_empty_source(line.source, encoded):
                continue

            if codec.is_empty_target(line.target, tokens):
                continue

            todo.append(n)

            source, target = encoded.source, [*encoded.prefix, *tokens]

            if self._truncate:
                full_len = len(source) + len(target)

                source = _cut(source, model.max_source_len)

                target = _cut(target, self._get_max_target_len(len(source)))

                if len(source) + len(target) < full_len:
                    scores[n] = replace(scores[n], was_cut=True)

            self._check_lengths(line, len(source), len(target))

            sources.append(source)
            targets.append(target)

        if on_batch is not None:
            on_batch(len(lines) - len(todo))

        if not todo:
            return scores

        source_seqs, target_seqs = sources.build(), targets.build()

        lens = np.maximum(source_seqs.lens, target_seqs.lens + self._max_warmup_len)

        pad_idx = self._codec.layout.pad_idx

        for rows in sorted_batches(lens, self._max_num_tokens):
            batch = [lines[todo[row]] for row in rows]

            batch_scores = self._score(
                batch, source_seqs.pad(rows, pad_idx), target_seqs.pad(rows, pad_idx)
            )

            for row, score in zip(rows, batch_scores):
                was_cut = scores[todo[row]].was_cut

                scores[todo[row]] = replace(score, was_cut=was_cut)

            if on_batch is not None:
                on_batch(len(batch))

        return scores

    def _check_lengths(self, line: Line, source_len: int, target_len: int) -> None:
        max_len = self._model.max_source_len

        if source_len > max_len:
            raise LineError(
                line,
                f"has a source of {source_len} tokens, but the model reads at most {max_len}; split it into sentences.",
            )

        max_len = self._get_max_target_len(source_len)

        if target_len > max_len:
            raise LineError(
                line,
                f"has a target of {target_len} tokens, but beside its warmup the model reads at most {max_len}; split it into sentences.",
            )

    def _get_max_target_len(self, source_len: int) -> int:
        """Returns the most tokens of a target, prefix and EOS included."""
        layout = self._codec.layout

        max_warmup_len = 0 if self._has_empty_warmup else None

        if self._num_warmups > 0:
            max_warmup_len = self._max_warmup_len

        max_row_len = self._model.get_max_target_len(source_len)

        return layout.prefix_len + layout.room(max_row_len, max_warmup_len)

    def _score(
        self,
        lines: Sequence[Line],
        sources: tuple[Tensor, list[int]],
        targets: tuple[Tensor, list[int]],
    ) -> list[PairScore]:
        model, layout, device = self._model, self._codec.layout, self._device

        source_seqs, target_seqs = sources[0].to(device), targets[0].to(device)

        source = model.encode(source_seqs, BatchLayout.of(source_seqs, sources[1]))

        target_lens = torch.tensor(targets[1], device=device)

        excluded = ExcludedTokens.none(device)

        if self._leaves_separator_out:
            excluded = layout.excluded_tokens(model.num_logits, device)

        # (N)
        plain_log_probs = model.score(
            source,
            plain_rows(
                layout,
                target_seqs,
                target_lens,
                with_separator=self._has_empty_warmup,
            ),
            excluded,
        ).target_log_probs.tolist()

        if self._num_warmups == 0:
            details: list[_Details] = [(None, None, [])] * len(lines)
        else:
            candidates = draw_line_candidates(
                model,
                source,
                layout,
                target_seqs[:, : layout.prefix_len],
                [line.number for line in lines],
                seed=self._seed,
                num_warmups=self._num_warmups,
                max_warmup_len=self._max_warmup_len,
            )

            candidate_scores = score_candidates(
                model, source, layout, candidates, target_seqs, target_lens
            )

            details = self._weigh(
                candidates,
                candidate_scores.warmup_log_probs,
                candidate_scores.target_log_probs,
            )

        return [
            PairScore(
                line.source,
                line.target or "",
                length - layout.prefix_len,
                log_prob,
                *line_details,
            )
            for line, length, log_prob, line_details in zip(
                lines, targets[1], plain_log_probs, details
            )
        ]

    def _weigh(self, candidates: Candidates, a: Tensor, b: Tensor) -> list[_Details]:
        """Computes marginal, effective sample size and warmups of each source."""
        num_warmups = self._num_warmups

        # (N)
        marginals = b.logsumexp(dim=1) - torch.tensor(float(num_warmups)).log()

        # Drawn from the model itself, so that the draws have weights of P(y|c,x).
        weights = b.softmax(dim=1)

        sizes = 1.0 / weights.square().sum(dim=1)

        seqs = candidates.seqs.tolist()

        seq_lens = candidates.seq_lens.tolist()

        details: list[_Details] = []

        for n, (marginal, size, row_weights, row_a, row_b) in enumerate(
            zip(
                marginals.tolist(),
                sizes.tolist(),
                weights.tolist(),
                a.tolist(),
                b.tolist(),
            )
        ):
            # The draws of each distinct warmup.
            draws: dict[tuple[int, ...], list[int]] = {}

            for k in range(num_warmups):
                row = n * num_warmups + k

                tokens = tuple(seqs[row][: seq_lens[row]])

                draws.setdefault(tokens, []).append(k)

            warmups = [
                ScoredWarmup(
                    self._codec.decode(tokens),
                    list(tokens),
                    row_a[ks[0]],
                    row_b[ks[0]],
                    sum(row_weights[k] for k in ks),
                    len(ks),
                )
                for tokens, ks in draws.items()
            ]

            warmups.sort(key=lambda warmup: -warmup.weight)

            details.append((marginal, size, warmups))

        return details
