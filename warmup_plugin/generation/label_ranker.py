# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from warmup_plugin.data.batching import sorted_batches
from warmup_plugin.data.lines import Line, LineError
from warmup_plugin.data.tokenizing import encode_sources
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.translator import Translation
from warmup_plugin.layout import DecoderRows, ExcludedTokens, join_rows
from warmup_plugin.models.conditional import ConditionalModel, EncodedSource
from warmup_plugin.sampling.candidates import Candidates
from warmup_plugin.sampling.draw import draw_line_candidates
from warmup_plugin.tokenizers.codec import TextCodec, encode_labels


@final
class LabelRanker:
    r"""
    Answers each line with the likeliest of a few labels, instead of writing one.

    Without warmups by :math:`\log P(y|x)`; with them by the estimate
    :math:`\log \frac{1}{K} \sum_k P(y|c_k,x)` over warmups :math:`c_k` that are drawn
    from the model, the same ones for all labels. The source is encoded once and its
    warmups are drawn once for all labels.
    """

    def __init__(
        self,
        model: ConditionalModel,
        codec: TextCodec,
        device: torch.device,
        labels: Sequence[str],
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
        :param labels: The answers to choose from.
        :param num_warmups: The number K of warmups to draw for each line; 0 for none.
        :param has_empty_warmup: If ``True``, none means the empty warmup; else plain
            fine-tuning.
        :param seed: Of the draws, which depend on it and on the number of the line.
        :param max_num_tokens: The size of a batch: rows times the longer side; each
            label of each warmup is a row.
        :param truncate: If ``True``, a source longer than the model reads is cut;
            encoder-decoders only.
        :param leaves_separator_out: If ``True``, the separator has no probability in an
            output, also where none stands before it.

        :raises WarmupError: If there are not at least two labels, or two that differ by
            nothing that the tokenizer sees.
        """
        if len(labels) < 2:
            raise WarmupError(
                f"Labels can be ranked only if there are at least two, but there are {len(labels)}; set `validation.labels` in the run, or `--config labels=[A,B]`."
            )

        self._model = model
        self._codec = codec
        self._device = device
        self._labels = labels
        self._num_warmups = num_warmups
        self._max_warmup_len = max_warmup_len
        self._has_separator = has_empty_warmup or num_warmups > 0
        self._leaves_separator_out = leaves_separator_out or self._has_separator
        self._seed = seed
        self._truncate = truncate

        self._label_tokens = encode_labels(codec, labels)

        num_rows = len(labels) * max(1, num_warmups)

        self._max_num_tokens = max(1, max_num_tokens // num_rows)

    @torch.no_grad()
    def __call__(
        self, lines: Sequence[Line], on_batch: Callable[[int], None] | None = None
    ) -> list[Translation]:
        """
        :param on_batch: Called with the number of lines that are done.

        :returns: The labels as hypotheses, the likeliest first.

        :raises LineError: If a line is longer than the model reads.
        """
        has_warmup = self._num_warmups > 0

        answers = [Translation(line.source, [], has_warmup) for line in lines]

        # An empty line stays one.
        todo, sources, prefixes = encode_sources(
            (line.source for line in lines), self._codec
        )

        full_lens = sources.lens.tolist()

        if self._truncate:
            sources = sources.truncate(self._model.max_source_len)

        was_cut = [a > b for a, b in zip(full_lens, sources.lens.tolist())]

        for n, source_len in zip(todo, sources.lens.tolist()):
            self._check_len(lines[n], source_len)

        if on_batch is not None:
            on_batch(len(lines) - len(todo))

        plan = sorted_batches(sources.lens, self._max_num_tokens) if todo else []

        for rows in plan:
            seqs, seq_lens = sources.pad(rows, self._codec.layout.pad_idx)

            batch = [lines[todo[row]] for row in rows]

            hypotheses = self._rank(
                batch, seqs, seq_lens, [prefixes[row].tolist() for row in rows]
            )

            for row, line_hypotheses in zip(rows, hypotheses):
                line = lines[todo[row]]

                answers[todo[row]] = Translation(
                    line.source, line_hypotheses, has_warmup, was_cut[row]
                )

            if on_batch is not None:
                on_batch(len(batch))

        return answers

    def _check_len(self, line: Line, source_len: int) -> None:
        max_len = self._model.max_source_len

        if source_len > max_len:
            raise LineError(
                line,
                f"has {source_len} tokens, but the model reads at most {max_len}; shorten it.",
            )

        num_left = self._model.get_max_target_len(source_len)

        max_warmup_len = 0 if self._has_separator else None

        if self._num_warmups > 0:
            max_warmup_len = self._max_warmup_len

        room = self._codec.layout.room(num_left, max_warmup_len)

        longest = max(len(tokens) for tokens in self._label_tokens)

        if longest > room:
            raise LineError(
                line,
                f"has {source_len} tokens, which leaves {num_left} of those that the model reads, but warmup and label need {num_left + longest - room}; shorten it.",
            )

    def _rank(
        self,
        lines: Sequence[Line],
        seqs: Tensor,
        seq_lens: list[int],
        prefixes: list[list[int]],
    ) -> list[list[dict[str, object]]]:
        source_seqs = seqs.to(self._device)

        source = self._model.encode(source_seqs, BatchLayout.of(source_seqs, seq_lens))

        num_labels = len(self._labels)

        # [prefix] y EOS, the labels of a source one after the other: (N x L, S)
        target_seqs = pad_sequence(
            [
                torch.tensor([*prefix, *tokens], device=self._device)
                for prefix in prefixes
                for tokens in self._label_tokens
            ],
            batch_first=True,
            padding_value=self._codec.layout.pad_idx,
        )

        # (N x L)
        target_lens = torch.tensor(
            [
                len(prefix) + len(tokens)
                for prefix in prefixes
                for tokens in self._label_tokens
            ],
            device=self._device,
        )

        candidates = self._draw(lines, source, torch.tensor(prefixes))

        rows = self._join_rows(candidates, target_seqs, target_lens)

        excluded = ExcludedTokens.none(self._device)

        if self._leaves_separator_out:
            excluded = self._codec.layout.excluded_tokens(
                self._model.num_logits, self._device
            )

        scores = self._model.score(source, rows, excluded)

        # (N, K, L)
        log_probs = scores.target_log_probs.view(len(lines), -1, num_labels)

        # (N, L)
        means = log_probs.logsumexp(dim=1) - math.log(log_probs.size(1))

        means = means.double()

        # Which share of the probability of all labels each has.
        shares = means.softmax(dim=1)

        # The warmup that speaks most for a label: (N, L)
        best = log_probs.argmax(dim=1)

        return [
            self._describe(n, candidates, *values)
            for n, values in enumerate(
                zip(means.tolist(), shares.tolist(), best.tolist())
            )
        ]

    def _draw(
        self, lines: Sequence[Line], source: EncodedSource, prefixes: Tensor
    ) -> Candidates | None:
        if self._num_warmups == 0:
            return None

        return draw_line_candidates(
            self._model,
            source,
            self._codec.layout,
            prefixes.to(self._device),
            [line.number for line in lines],
            seed=self._seed,
            num_warmups=self._num_warmups,
            max_warmup_len=self._max_warmup_len,
        )

    def _join_rows(
        self, candidates: Candidates | None, target_seqs: Tensor, target_lens: Tensor
    ) -> DecoderRows:
        """Builds the rows of each label behind each warmup: ``(n * K + k) * L + l``."""
        num_labels, device = len(self._labels), self._device

        num_targets = target_seqs.size(0)

        # (N x L)
        targets = torch.arange(num_targets, device=device)

        if candidates is None:
            with_separator = cut = torch.full(
                (num_targets,), self._has_separator, device=device
            )

            warmups = target_seqs.new_zeros((num_targets, 0))

            warmup_lens = target_lens.new_zeros(num_targets)
        else:
            num_warmups = candidates.num_warmups

            # (N x K x L)
            targets = targets.view(-1, 1, num_labels)
            targets = targets.expand(-1, num_warmups, -1).flatten()

            warmups = candidates.seqs.repeat_interleave(num_labels, dim=0)

            warmup_lens = candidates.seq_lens.repeat_interleave(num_labels)

            cut = candidates.cut.repeat_interleave(num_labels)

            with_separator = torch.ones_like(cut)

        return join_rows(
            self._codec.layout,
            target_seqs,
            target_lens,
            warmups,
            warmup_lens,
            cut,
            with_separator,
            targets,
            targets // num_labels,
        )

    def _describe(
        self,
        n: int,
        candidates: Candidates | None,
        log_probs: list[float],
        shares: list[float],
        best: list[int],
    ) -> list[dict[str, object]]:
        # Of equal ones the first; rounding may differ by the batch, the order not.
        order = sorted(range(len(log_probs)), key=lambda idx: -log_probs[idx])

        return [
            {
                "warmup": self._get_warmup(n, candidates, best[idx]),
                "output": self._labels[idx],
                "score": log_probs[idx],
                "log_prob": log_probs[idx],
                "warmup_log_prob": None,
                "target_log_prob": log_probs[idx],
                "weight": shares[idx],
                "tokens": [],
                "token_log_probs": [],
            }
            for idx in order
        ]

    def _get_warmup(self, n: int, candidates: Candidates | None, k: int) -> str | None:
        if candidates is None:
            return None

        row = n * candidates.num_warmups + k

        length = int(candidates.seq_lens[row])

        return self._codec.decode(candidates.seqs[row, :length].tolist())
