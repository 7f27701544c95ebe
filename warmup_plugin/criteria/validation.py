# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast, final

import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.metrics import Mean, MetricBag
from fairseq2.metrics.common import add_seq2seq_batch_metrics
from fairseq2.recipe.evaluator import EvalUnit
from typing_extensions import override

from warmup_plugin.criteria.base import (
    Criterion,
    WeighedWarmup,
    update_batch_metrics,
)
from warmup_plugin.gathering import gather_objects
from warmup_plugin.generation import WarmupGenerator
from warmup_plugin.metrics.base import DEFAULT_METRICS, References
from warmup_plugin.metrics.registry import MetricOptions
from warmup_plugin.metrics.translation import (
    check_validation_metrics,
    score_translations,
)
from warmup_plugin.tokenizers.codec import TextCodec


@final
@dataclass(frozen=True, kw_only=True)
class ValidDirection:
    """Says what a validation needs to know of one of several directions."""

    target_lang: str
    """The language that chooses tokenizers."""

    num_template_tokens: int
    """The number of tokens of its prompt; see :class:`WarmupGenerator`."""


@final
class TranslationValidUnit(EvalUnit[Seq2SeqBatch]):
    """
    Measures the loss of a development set, decodes it and reports BLEU and chrF++, or
    other metrics.

    A few sources are logged with what was decoded and, if the criterion draws some, the
    warmups drawn for them.

    Of several directions each is scored by itself, as ``bleu_en-de`` and so on;
    ``bleu`` is then the mean over directions.
    """

    def __init__(
        self,
        name: str,
        criterion: Criterion,
        create_generator: Callable[[int | None], WarmupGenerator],
        codec: TextCodec,
        gangs: Gangs,
        *,
        num_shown: int,
        metrics: Sequence[str] = DEFAULT_METRICS,
        options: MetricOptions = MetricOptions(),
        directions: Mapping[str, ValidDirection] | None = None,
        references: References = (),
    ) -> None:
        """
        :param create_generator: Creates what decodes with warmups of at most so many
            tokens; see :meth:`Criterion.get_max_warmup_len`.
        :param codec: Decodes; with several directions, that of any.
        :param num_shown: The number of sources, from the first line of the file, to
            log with their outputs; with several directions, of each.
        :param metrics: The names of the metrics; see ``warmup_plugin.metrics.registry``.
        :param options: What they need to know; models that they keep belong to the one
            process that scores, that of rank 0.
        :param directions: The directions of a run with several, by name; the batches
            say of which they are. Then ``options.target_lang`` is not used.
        :param references: Those of all sentences, to be checked before training.

        :raises WarmupError: What a metric needs is not installed, or it cannot score by
            one of the references.
        """
        # The first validation may come hours after the start.
        self._options = {"": options}

        if directions is not None:
            self._options = {
                name: replace(options, target_lang=direction.target_lang)
                for name, direction in directions.items()
            }

        for direction_options in self._options.values():
            check_validation_metrics(metrics, direction_options, references)

            # Those of all directions.
            references = ()

        self._name = name
        self._criterion = criterion
        self._create_generator = cache(create_generator)
        self._codec = codec
        self._gangs = gangs
        self._directions = directions
        self._num_shown = num_shown
        self._metrics = metrics
        self._step_nr = 0

        # (direction, index in its text, hypothesis, references, source)
        self._outputs: list[tuple[str, int, str, list[str], str]] = []

        self._scores: dict[str, float] = {}

        # How scores are computed.
        self._signatures: list[str] = []

        self._told_signatures = ""

        # (direction, index in its text, what to log)
        self._shown: list[tuple[str, int, str]] = []

    @override
    def prepare_metric_bag(self, metric_bag: MetricBag) -> None:
        add_seq2seq_batch_metrics(metric_bag)

        metric_bag.add("nll_loss", Mean())

        self._criterion.add_metrics(metric_bag)

        self._outputs.clear()

        self._shown.clear()

        self._signatures.clear()

    @override
    def set_train_step_nr(self, step_nr: int) -> None:
        self._step_nr = step_nr

    @override
    def process_batch(self, batch: Seq2SeqBatch, metric_bag: MetricBag) -> None:
        example = cast(dict[str, Any], batch.example)

        indices = example["indices"]

        # The first lines of the file: the same ones at each validation, and unlike the
        # first batch not the longest.
        shown = [n for n, idx in enumerate(indices) if idx < self._num_shown]

        warmups = self._criterion.evaluate(
            batch, metric_bag, step_nr=self._step_nr, shown=shown
        )

        update_batch_metrics(batch, metric_bag)

        names = [""] * len(indices)

        if self._directions is not None:
            names = example["directions"]

        texts = self._decode(batch, names)

        self._outputs.extend(
            zip(names, indices, texts, example["references"], example["sources"])
        )

        for n, source_warmups in zip(shown, warmups or [[] for _ in shown]):
            text = self._describe(
                example["sources"][n],
                example["references"][n],
                texts[n],
                source_warmups,
            )

            if names[n]:
                text = f"direction: {names[n]}\n{text}"

            self._shown.append((names[n], indices[n], text))

    def _decode(self, batch: Seq2SeqBatch, names: Sequence[str]) -> list[str]:
        """
        Decodes the sources of a batch.

        :param names: The direction of each.
        """
        texts = [""] * len(names)

        # Those that are decoded alike together.
        groups: dict[int | None, list[int]] = {}

        for n, name in enumerate(names):
            max_warmup_len = self._criterion.get_max_warmup_len(
                self._step_nr, name or None
            )

            groups.setdefault(max_warmup_len, []).append(n)

        for max_warmup_len, rows in groups.items():
            idx = torch.tensor(rows, device=batch.source_seqs.device)

            seq_lens = [batch.source_seq_lens[n] for n in rows]

            options: dict[str, Any] = {}

            if self._directions is not None:
                options["num_template_tokens"] = [
                    self._directions[names[n]].num_template_tokens for n in rows
                ]

            hypotheses = self._create_generator(max_warmup_len)(
                batch.source_seqs.index_select(0, idx)[:, : max(seq_lens)],
                seq_lens,
                batch.target_seqs.index_select(0, idx)[
                    :, : self._codec.layout.prefix_len
                ],
                **options,
            )

            for n, group in zip(rows, hypotheses):
                texts[n] = self._codec.decode(group[0].target)

        return texts

    def _describe(
        self,
        source: str,
        references: Sequence[str],
        output: str,
        warmups: list[WeighedWarmup],
    ) -> str:
        lines = [f"source:    {source}"]

        lines += [f"reference: {reference}" for reference in references]

        for warmup in sorted(warmups, key=lambda w: -w.weight):
            text = self._codec.decode(warmup.tokens)

            lines.append(
                f"warmup:    {text!r} (weight {warmup.weight:.3f}, log P(c|x) {warmup.warmup_log_prob:.2f}, log P(y|c,x) {warmup.target_log_prob:.2f})"
            )

        lines.append(f"output:    {output}")

        return "\n".join(lines)

    @override
    def finalize(self, metric_bag: MetricBag) -> None:
        gathered = gather_objects(self._gangs.dp, (self._outputs, self._shown))

        if self._gangs.root.rank != 0:
            return

        outputs = sorted(o for rank_outputs, _ in gathered for o in rank_outputs)

        shown = sorted(s for _, rank_shown in gathered for s in rank_shown)

        if shown:
            text = "\n\n".join(text for _, _, text in shown)

            log.info("Sample outputs of {} at step {}:\n{}", self._name, self._step_nr, text)  # fmt: skip

        by_direction = {
            name: self._score(name, [o[2:] for o in outputs if o[0] == name])
            for name in self._options
        }

        signatures = ", ".join(self._signatures)

        # The scores themselves are among the metrics.
        if signatures != self._told_signatures:
            log.info("Scores of {}: {}.", self._name, signatures)

            self._told_signatures = signatures

        if self._directions is None:
            self._scores = by_direction[""]

            return

        self._scores = {}

        for key in next(iter(by_direction.values())):
            values = {name: scores[key] for name, scores in by_direction.items()}

            # What the best checkpoint is picked by.
            self._scores[key] = sum(values.values()) / len(values)

            for name, value in values.items():
                # fairseq2 does not know how to shorten what it does not know.
                self._scores[f"{key}_{name}"] = round(value, 4)

    def _score(
        self, name: str, outputs: Sequence[tuple[str, list[str], str]]
    ) -> dict[str, float]:
        """
        Scores the outputs of a direction.

        :param outputs: Hypotheses, references and sources.

        :returns: The scores by their keys.
        """
        scores = score_translations(
            [hypothesis for hypothesis, _, _ in outputs],
            [references for _, references, _ in outputs],
            sources=[source for _, _, source in outputs],
            num_bootstrap=0,
            metrics=self._metrics,
            options=self._options[name],
        )

        self._signatures += [
            f"{name} {score.name} ({'; '.join(score.notes)})".strip()
            for score in scores
        ]

        return {s.key: s.score for s in scores if s.score is not None}

    @override
    def process_metric_values(self, values: MutableMapping[str, object]) -> None:
        values.update(self._scores)

    @property
    @override
    def name(self) -> str | None:
        return self._name
