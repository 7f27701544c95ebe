# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from warmup_plugin.data.batching import sorted_batches
from warmup_plugin.data.corpus import TokenSeqs
from warmup_plugin.data.lines import Line, LineError
from warmup_plugin.data.text_files import flatten
from warmup_plugin.data.tokenizing import encode_sources
from warmup_plugin.generation.ctranslate2_generator import CTranslate2Generator
from warmup_plugin.generation.generator import WarmupGenerator
from warmup_plugin.generation.hypothesis import Hypothesis
from warmup_plugin.generation.reranking import RankedOutput
from warmup_plugin.models.conditional import ConditionalModel
from warmup_plugin.tokenizers.codec import TextCodec


@final
@dataclass(frozen=True)
class Translation:
    """Holds what is written for one line of input."""

    source: str

    hypotheses: list[dict[str, object]]
    """Best first; none for an empty line."""

    has_warmup: bool

    was_cut: bool = False
    """Whether the source was longer than the model reads, and was cut."""

    @property
    def output(self) -> str:
        """The best output on one line, whatever the model writes."""
        return flatten(str(self._best("output") or ""))

    def list_outputs(self, num: int) -> str:
        """Returns as many outputs, one a line, empty ones where there are fewer."""
        outputs = [flatten(str(h["output"] or "")) for h in self.hypotheses[:num]]

        return "\n".join([*outputs, *[""] * (num - len(outputs))])

    def to_json(self) -> str:
        """Returns the best hypothesis and all of them as one line of JSON."""
        empty_warmup = "" if self.has_warmup else None

        record = {
            "source": self.source,
            "warmup": self._best("warmup") if self.hypotheses else empty_warmup,
            "output": self._best("output") or "",
        }

        for name in ("score", "log_prob", "warmup_log_prob", "target_log_prob"):
            record[name] = self._best(name)

        record["hypotheses"] = self.hypotheses

        if self.was_cut:
            record["truncated"] = True

        return to_json_line(record)

    def _best(self, name: str) -> object:
        return self.hypotheses[0][name] if self.hypotheses else None


def to_json_line(record: object) -> str:
    """
    Writes JSON that no reader takes for several lines.

    JSON allows U+2028 and its like in text, but Python's ``splitlines()`` and others
    end a line there.
    """
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)

    for char in ("\x85", "\u2028", "\u2029"):
        text = text.replace(char, f"\\u{ord(char):04x}")

    return text


Ranker = Callable[[Sequence[str], Sequence[Sequence[str]]], list[list[RankedOutput]]]
"""Orders the outputs of each source."""


@final
class Translator:
    """
    Translates lines of text, some at a time and in no batch that shows in the output.
    """

    def __init__(
        self,
        model: ConditionalModel,
        generator: WarmupGenerator | CTranslate2Generator,
        codec: TextCodec,
        device: torch.device,
        *,
        max_num_tokens: int,
        truncate: bool = False,
        rank: Ranker | None = None,
        num_best: int | None = None,
    ) -> None:
        """
        :param max_num_tokens: The size of a batch: rows times the longest source among
            them. Each beam of each warmup is a row.
        :param truncate: If ``True``, a source longer than the model reads is cut;
            encoder-decoders only.
        :param rank: Orders the outputs of sources; see ``reranking.py``.
        :param num_best: The number of outputs to keep of what it orders; ``None`` for all.
        """
        self._model = model
        self._generator = generator
        self._codec = codec
        self._device = device
        self._truncate = truncate
        self._rank = rank
        self._num_best = num_best

        self._max_num_tokens = max(1, max_num_tokens // generator.num_rows)

    @torch.no_grad()
    def __call__(
        self,
        lines: Sequence[Line],
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Translation]:
        """
        :param on_batch: Called with the number of lines that are done.

        :raises LineError: If a line is longer than the model reads or leaves no room
            for an output, or if what its output begins with is longer than that.
        :raises WarmupError: If the longest warmup leaves no room for any output, or if
            the model gives a probability that is not a number.
        """
        has_warmup = self._generator.has_warmup

        translations = [Translation(line.source, [], has_warmup) for line in lines]

        # An empty line stays one.
        todo, sources, prefixes = encode_sources(
            (line.source for line in lines), self._codec
        )

        forced = [self._encode_beginning(lines[n]) for n in todo]

        full_lens = sources.lens.tolist()

        sources = self._fit(sources, forced, [lines[n] for n in todo])

        was_cut = [a > b for a, b in zip(full_lens, sources.lens.tolist())]

        if on_batch is not None:
            on_batch(len(lines) - len(todo))

        plan = sorted_batches(sources.lens, self._max_num_tokens) if todo else []

        for rows in plan:
            seqs, seq_lens = sources.pad(rows, self._codec.layout.pad_idx)

            batch = [lines[todo[row]] for row in rows]

            groups = self._generator(
                seqs.to(self._device),
                seq_lens,
                torch.tensor(
                    [prefixes[row].tolist() for row in rows], device=self._device
                ),
                forced=[forced[row] for row in rows],
                line_numbers=[line.number for line in batch],
            )

            for row, line, group in zip(rows, batch, groups):
                translations[todo[row]] = Translation(
                    line.source,
                    [self._describe(h) for h in group],
                    has_warmup,
                    was_cut[row],
                )

            if on_batch is not None:
                on_batch(len(batch))

        # A model that reads references refuses to score nothing.
        if self._rank is not None and todo:
            self._rerank(translations, todo)

        return translations

    def _rerank(self, translations: list[Translation], todo: Sequence[int]) -> None:
        """
        Orders the hypotheses of some translations by their outputs.

        Of equal outputs the first is kept, which the generator liked best.
        """
        assert self._rank is not None

        ranked = self._rank(
            [translations[n].source for n in todo],
            [[str(h["output"]) for h in translations[n].hypotheses] for n in todo],
        )

        for n, outputs in zip(todo, ranked):
            first: dict[object, dict[str, object]] = {}

            for hypothesis in translations[n].hypotheses:
                first.setdefault(hypothesis["output"], hypothesis)

            hypotheses = [
                {**first[o.text], "score": o.score, "weight": o.weight}
                for o in outputs[: self._num_best]
            ]

            translations[n] = replace(translations[n], hypotheses=hypotheses)

    def _fit(
        self,
        sources: TokenSeqs,
        forced: Sequence[Sequence[int]],
        lines: Sequence[Line],
    ) -> TokenSeqs:
        if self._truncate:
            sources = sources.truncate(self._model.max_source_len)

        # Line by line, so that the first line at fault is the one that is named.
        for line, source_len, beginning in zip(lines, sources.lens.tolist(), forced):
            self._check_source(line, source_len)

            self._check_beginning(line, source_len, beginning)

        return sources

    def _check_source(self, line: Line, source_len: int) -> None:
        model = self._model

        if source_len > model.max_source_len:
            remedy = "split it into sentences"

            if not model.reads_prompts:
                remedy += ", or cut it with `--truncate`"

            raise LineError(
                line,
                f"has {source_len} tokens, but the model reads at most {model.max_source_len}; {remedy}.",
            )

        # Only of a prompt does the room depend; else the generator finds fault with
        # the settings, not with a line.
        if not model.reads_prompts:
            return

        if self._generator.get_room(source_len) < 2:
            prefix_len = self._codec.layout.prefix_len

            num_left = max(model.get_max_target_len(source_len) - prefix_len, 0)

            what, remedy = "an output", "split it into sentences"

            if self._generator.has_warmup:
                what = f"a warmup of up to {self._generator.config.max_warmup_len} tokens and an output"

                remedy += ", or lower `--max-warmup-len`"

            raise LineError(
                line,
                f"has a prompt of {source_len + prefix_len} tokens, which leaves {num_left} of those that the model reads, too few for {what}; {remedy}.",
            )

    def _check_beginning(
        self, line: Line, source_len: int, beginning: Sequence[int]
    ) -> None:
        # EOS takes one.
        max_len = self._generator.get_room(source_len) - 1

        # Without any room, the generator says so.
        if max_len > 0 and len(beginning) > max_len:
            raise LineError(
                line,
                f"has a translation that is to begin with {len(beginning)} tokens, but the model can write at most {max_len}; shorten the beginning.",
            )

    def _encode_beginning(self, line: Line) -> list[int]:
        if not line.target:
            return []

        # Without EOS.
        return self._codec.encode_target(line.target)[:-1]

    def _describe(self, hypothesis: Hypothesis) -> dict[str, object]:
        has_warmup = self._generator.has_warmup

        tokens = hypothesis.tokens(self._codec.layout, has_warmup=has_warmup)

        return {
            "warmup": self._codec.decode(hypothesis.warmup) if has_warmup else None,
            "output": self._codec.decode(hypothesis.target),
            "score": _to_number(hypothesis.score),
            "log_prob": _to_number(hypothesis.log_prob),
            "warmup_log_prob": (
                _to_number(hypothesis.warmup_log_prob) if has_warmup else None
            ),
            "target_log_prob": _to_number(hypothesis.target_log_prob),
            "weight": hypothesis.weight,
            "tokens": self._codec.to_tokens(tokens),
            "token_log_probs": hypothesis.token_log_probs,
        }


def _to_number(value: float) -> float | None:
    # Of a library that tells no probability.
    return None if math.isnan(value) else value
