# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from warmup_plugin.data.text_pairs import TextPairs
from warmup_plugin.tokenizers.codec import TextCodec


@dataclass(frozen=True, kw_only=True)
class CorpusReport:
    """Says what became of the pairs of a split when they were tokenised."""

    split: str
    """The name of the split."""

    num_pairs: int
    """The number of pairs read."""

    num_empty: int
    """The number of pairs with a side without text, or without tokens."""

    num_too_long: int
    """The number of other pairs with a side over its limit."""

    num_kept: int
    """The number of pairs in the corpus."""

    max_source_len: int
    """The limit of the sources in tokens, special tokens included."""

    max_target_len: int
    """The limit of the targets in tokens, special tokens included."""

    longest_source_len: int
    """The length of the longest source, dropped ones included."""

    longest_target_len: int
    """The length of the longest target, dropped ones included."""

    num_left_out: int = 0
    """The number of pairs behind the first ``num_pairs``, which were not asked for."""

    def describe(self) -> str:
        """Returns the counts and shares in one sentence for the log."""
        split = self.split

        if self.num_left_out > 0:
            total = self.num_pairs + self.num_left_out

            split += f" (the first {self.num_pairs:,} of {total:,} pairs)"

        if self.max_source_len == self.max_target_len:
            limit = f"the length limit of {self.max_source_len} tokens"
        else:
            limit = f"the length limits of {self.max_source_len} source and {self.max_target_len} target tokens"

        parts = []

        if self.num_too_long > 0:
            share = _format_share(self.num_too_long, self.num_pairs)

            parts.append(f"{self.num_too_long:,} over {limit} ({share})")

        if self.num_empty > 0:
            share = _format_share(self.num_empty, self.num_pairs)

            parts.append(f"{self.num_empty:,} with an empty side ({share})")

        if not parts:
            return f"{split}: all {self.num_pairs:,} pairs kept."

        text = ", ".join(parts)

        return f"{split}: {self.num_kept:,} of {self.num_pairs:,} pairs kept; dropped: {text}."


def join_reports(reports: Sequence[CorpusReport]) -> CorpusReport:
    """Adds up what became of parts of a split."""
    sums = {
        name: sum(getattr(report, name) for report in reports)
        for name in (
            "num_pairs",
            "num_empty",
            "num_too_long",
            "num_kept",
            "num_left_out",
        )
    }

    return replace(
        reports[0],
        **sums,
        longest_source_len=max(report.longest_source_len for report in reports),
        longest_target_len=max(report.longest_target_len for report in reports),
    )


def _format_share(num: int, total: int) -> str:
    percent = 100.0 * num / total

    return f"{percent:.2f}%" if percent >= 0.005 else "<0.01%"


@final
class TokenSeqs:
    """Holds token sequences of different lengths in one buffer."""

    def __init__(self, indices: NDArray[np.int32], offsets: NDArray[np.int64]) -> None:
        """
        :param indices: The tokens of all sequences, one after another.
        :param offsets: Where each sequence starts, and the end of the last.
        """
        self.indices = indices

        self.offsets = offsets

        self.lens = np.diff(offsets)
        """The length of each sequence. *Shape:* :math:`(N)`."""

    def __len__(self) -> int:
        return len(self.lens)

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self.indices[self.offsets[row] : self.offsets[row + 1]]

    def pad(
        self, rows: NDArray[np.int64], pad_idx: int
    ) -> tuple[torch.Tensor, list[int]]:
        """
        Collates sequences.

        :param rows: The sequences to collate. *Shape:* :math:`(N)`.
        :param pad_idx: The index to fill the end of shorter sequences with.

        :returns: The padded sequences, *Shape:* :math:`(N,S)`, and their lengths.
        """
        # (N)
        lens = self.lens[rows]

        # (S)
        steps = np.arange(lens.max())

        # (N, S)
        mask = steps < lens[:, None]

        # (N, S)
        places = self.offsets[rows][:, None] + steps

        # (N, S)
        seqs = np.full(mask.shape, pad_idx, dtype=np.int64)

        seqs[mask] = self.indices[places[mask]]

        return torch.from_numpy(seqs), lens.tolist()

    def truncate(self, max_len: int) -> TokenSeqs:
        """Cuts longer sequences, keeping their last token, which is EOS."""
        builder = TokenSeqsBuilder()

        for row in range(len(self)):
            indices = self[row].tolist()

            if len(indices) > max_len:
                indices = [*indices[: max_len - 1], indices[-1]]

            builder.append(indices)

        return builder.build()

    @staticmethod
    def concat(parts: Sequence[TokenSeqs]) -> TokenSeqs:
        """Puts sequences behind each other."""
        lens = np.concatenate([part.lens for part in parts])

        offsets = np.zeros(len(lens) + 1, dtype=np.int64)

        np.cumsum(lens, out=offsets[1:])

        return TokenSeqs(np.concatenate([part.indices for part in parts]), offsets)

    def count(self, idx: int) -> int:
        """Counts a token in all sequences."""
        return int(np.count_nonzero(self.indices == idx))

    def digest(self) -> int:
        """Returns a checksum that tells sequences from changed ones."""
        checksum = zlib.crc32(self.offsets.data)

        return zlib.crc32(self.indices.data, checksum)


@final
class TokenSeqsBuilder:
    def __init__(self) -> None:
        self._indices = array("i")
        self._offsets = array("q", [0])

    def append(self, indices: list[int]) -> None:
        self._indices.extend(indices)
        self._offsets.append(len(self._indices))

    def build(self) -> TokenSeqs:
        return TokenSeqs(
            np.array(self._indices, dtype=np.int32),
            np.array(self._offsets, dtype=np.int64),
        )


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Holds the tokenised pairs of a split, of one direction or several."""

    parts: Sequence[TextPairs]
    """The text of each direction, dropped pairs included."""

    part_indices: NDArray[np.int16]
    """The place in ``parts`` of the text of each row. *Shape:* :math:`(N)`."""

    indices: NDArray[np.int64]
    """The place in that text of each row. *Shape:* :math:`(N)`."""

    sources: TokenSeqs
    """The sources, row by row."""

    targets: TokenSeqs
    """The targets, row by row, with their prefix (BOS, language token) and EOS."""

    report: CorpusReport
    """What became of the pairs."""

    directions: Sequence[str] = ()
    """The names of the directions, as many as ``parts``; none for a run with one."""

    given_lens: NDArray[np.int32] | None = None
    """The number of tokens that each target begins with, behind its prefix, which are read
    and not learned; ``None`` for none. *Shape:* :math:`(N)`."""

    def __len__(self) -> int:
        return len(self.indices)

    def source(self, row: int) -> str:
        return self.parts[int(self.part_indices[row])].source(int(self.indices[row]))

    def target(self, row: int) -> str:
        return self.parts[int(self.part_indices[row])].target(int(self.indices[row]))

    def references(self, row: int) -> list[str]:
        part = self.parts[int(self.part_indices[row])]

        return part.references(int(self.indices[row]))

    @cached_property
    def digest(self) -> str:
        """A checksum that tells a corpus from one with other rows."""
        # Several ask for it at a start, and it reads all tokens.
        digest = f"{self.sources.digest():08x}{self.targets.digest():08x}"

        if self.given_lens is not None:
            digest += f"{zlib.crc32(self.given_lens.data):08x}"

        return digest

    def sizes(self) -> NDArray[np.int64]:
        """Returns the number of rows of each part. *Shape:* :math:`(D)`."""
        return np.bincount(self.part_indices, minlength=len(self.parts))

    @property
    def origin(self) -> str:
        """The split as a message calls it."""
        first = self.parts[0]

        if not self.directions:
            return first.origin

        return f"the `{first.split}` split of {', '.join(f'`{d}`' for d in self.directions)}"

    def lens(self) -> NDArray[np.int64]:
        """Returns the length of the longer side of each row. *Shape:* :math:`(N)`."""
        return np.maximum(self.sources.lens, self.targets.lens)


def put_behind(
    corpus: Corpus, others: Sequence[Corpus], *, max_source_len: int, seed: int
) -> Corpus:
    """
    Puts every second source behind a source of another direction, drawn at random, as a
    decoder-only model reads a warmup.

    A model that was trained so reads the last of several texts, as it has to where an
    output follows a warmup that follows a source.

    :param others: The other directions, whose sources are prompts.
    :param max_source_len: The limit of a source in tokens; one that would be longer stays
        alone.
    """
    rng = np.random.default_rng(seed)

    builder = TokenSeqsBuilder()

    for row in range(len(corpus)):
        source = corpus.sources[row].tolist()

        if row % 2 == 1:
            _, other, other_row = _draw_row(others, rng)

            # The last token of a prompt begins the decoder sequence.
            prompt_end = other.targets[other_row][:1].tolist()

            joined = [*other.sources[other_row].tolist(), *prompt_end, *source]

            if len(joined) <= max_source_len:
                source = joined

        builder.append(source)

    return replace(corpus, sources=builder.build())


def put_into_decoder(
    corpus: Corpus,
    others: Sequence[Corpus],
    codecs: Sequence[TextCodec],
    *,
    prefix_len: int,
    begin_idx: int,
    max_target_len: int,
    seed: int,
) -> Corpus:
    """
    Puts every second source into the decoder, before its target, and a source of another
    direction, drawn at random, in its place: as an encoder-decoder model reads a warmup.

    What the decoder is given is not learned.

    :param others: The other directions.
    :param codecs: What turns their text into tokens, which the sources are targets to.
    :param prefix_len: The number of tokens that a target begins with.
    :param begin_idx: The token that stands between a source and its target.
    :param max_target_len: The limit of a target in tokens; one that would be longer stays
        alone.
    """
    rng = np.random.default_rng(seed)

    sources, targets = TokenSeqsBuilder(), TokenSeqsBuilder()

    given_lens = np.zeros(len(corpus), dtype=np.int32)

    for row in range(len(corpus)):
        source, target = corpus.sources[row].tolist(), corpus.targets[row].tolist()

        if row % 2 == 1:
            n, other, other_row = _draw_row(others, rng)

            other_prefix = other.targets[other_row][:prefix_len].tolist()

            # Without EOS.
            draft = codecs[n].encode_target(corpus.source(row))[:-1]

            given = [*draft, begin_idx]

            joined = [*other_prefix, *given, *target[prefix_len:]]

            if len(joined) <= max_target_len:
                source, target = other.sources[other_row].tolist(), joined

                given_lens[row] = len(given)

        sources.append(source)
        targets.append(target)

    return replace(
        corpus,
        sources=sources.build(),
        targets=targets.build(),
        given_lens=given_lens,
    )


def _draw_row(
    others: Sequence[Corpus], rng: np.random.Generator
) -> tuple[int, Corpus, int]:
    n = int(rng.integers(len(others)))

    return n, others[n], int(rng.integers(len(others[n])))


def join_corpora(corpora: Mapping[str, Corpus]) -> Corpus:
    """
    Joins the corpora of the directions of a run.

    :param corpora: Those of one split by the name of the direction.
    """
    parts = list(corpora.values())

    given_lens = None

    if any(part.given_lens is not None for part in parts):
        given_lens = np.concatenate(
            [
                (
                    np.zeros(len(part), dtype=np.int32)
                    if part.given_lens is None
                    else part.given_lens
                )
                for part in parts
            ]
        )

    return Corpus(
        parts=[pairs for part in parts for pairs in part.parts],
        part_indices=np.repeat(
            np.arange(len(parts), dtype=np.int16), [len(part) for part in parts]
        ),
        indices=np.concatenate([part.indices for part in parts]),
        sources=TokenSeqs.concat([part.sources for part in parts]),
        targets=TokenSeqs.concat([part.targets for part in parts]),
        given_lens=given_lens,
        report=join_reports([part.report for part in parts]),
        directions=list(corpora),
    )
