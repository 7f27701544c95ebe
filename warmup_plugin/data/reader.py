# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from fairseq2.data.tokenizers import TokenEncoder, Tokenizer
from fairseq2.datasets import DataReader, Seq2SeqBatch
from fairseq2.gang import Gangs
from numpy.typing import NDArray
from typing_extensions import Self, override

from warmup_plugin.data.text_pairs import TextPairs
from warmup_plugin.errors import WarmupError

SORT_WINDOW: Final = 65_536
"""The number of shuffled pairs that are sorted by length together."""


@dataclass(frozen=True, kw_only=True)
class CorpusReport:
    """Says what became of the pairs of a split when they were tokenised."""

    split: str
    """The name of the split."""

    num_pairs: int
    """The number of pairs read."""

    num_empty: int
    """The number of pairs with at least one empty side."""

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

    def describe(self) -> str:
        """Returns the counts and shares in one sentence for the log."""
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
            return f"{self.split}: all {self.num_pairs:,} pairs kept."

        text = ", ".join(parts)

        return f"{self.split}: {self.num_kept:,} of {self.num_pairs:,} pairs kept; dropped: {text}."


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
        self._indices = indices
        self._offsets = offsets
        self._lens = np.diff(offsets)

    def __len__(self) -> int:
        return len(self._lens)

    def __getitem__(self, row: int) -> NDArray[np.int32]:
        return self._indices[self._offsets[row] : self._offsets[row + 1]]

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
        lens = self._lens[rows]

        # (S)
        steps = np.arange(lens.max())

        # (N, S)
        mask = steps < lens[:, None]

        # (N, S)
        places = self._offsets[rows][:, None] + steps

        # (N, S)
        seqs = np.full(mask.shape, pad_idx, dtype=np.int64)

        seqs[mask] = self._indices[places[mask]]

        return torch.from_numpy(seqs), lens.tolist()

    def truncate(self, max_len: int) -> TokenSeqs:
        """Cuts longer sequences, keeping their last token, which is EOS."""
        builder = _TokenSeqsBuilder()

        for row in range(len(self)):
            indices = self[row].tolist()

            if len(indices) > max_len:
                indices = [*indices[: max_len - 1], indices[-1]]

            builder.append(indices)

        return builder.build()

    def digest(self) -> int:
        """Returns a checksum that tells sequences from changed ones."""
        checksum = zlib.crc32(self._offsets.data)

        return zlib.crc32(self._indices.data, checksum)

    @property
    def lens(self) -> NDArray[np.int64]:
        """The length of each sequence. *Shape:* :math:`(N)`."""
        return self._lens


@final
class _TokenSeqsBuilder:
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


def encode_texts(texts: Iterable[str], encoder: TokenEncoder) -> TokenSeqs:
    """Encodes texts as they are: none is cut and none is left out."""
    builder = _TokenSeqsBuilder()

    for text in texts:
        builder.append(encoder(text).tolist())

    return builder.build()


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Holds the tokenised pairs of a split."""

    pairs: TextPairs
    """The text of the split, dropped pairs included."""

    indices: NDArray[np.int64]
    """The place in ``pairs`` of each row. *Shape:* :math:`(N)`."""

    sources: TokenSeqs
    """The sources, row by row."""

    targets: TokenSeqs
    """The targets, row by row, with BOS and EOS."""

    report: CorpusReport
    """What became of the pairs."""

    def __len__(self) -> int:
        return len(self.indices)

    def lens(self) -> NDArray[np.int64]:
        """Returns the length of the longer side of each row. *Shape:* :math:`(N)`."""
        return np.maximum(self.sources.lens, self.targets.lens)


def tokenize_pairs(
    pairs: TextPairs,
    tokenizer: Tokenizer,
    *,
    max_source_len: int,
    max_target_len: int,
) -> Corpus:
    """
    Encodes each pair once, before training.

    Pairs that are too long are dropped, not cut: a cut target has another likelihood.
    What is dropped is counted in the report.

    :param pairs: The pairs.
    :param tokenizer: The tokenizer with the modes ``source`` and ``target``.
    :param max_source_len: The limit of a source in tokens, with its special tokens.
    :param max_target_len: The limit of a target in tokens, with its special tokens.
    """
    # A recipe runs under a default device, but the data stays in main memory.
    device = torch.device("cpu")

    source_encoder = tokenizer.create_encoder(mode="source", device=device)
    target_encoder = tokenizer.create_encoder(mode="target", device=device)

    sources, targets = _TokenSeqsBuilder(), _TokenSeqsBuilder()

    empty_mask = pairs.empty_mask()

    indices = array("q")

    num_too_long = 0

    longest_source_len = longest_target_len = 0

    for idx in range(len(pairs)):
        if empty_mask[idx]:
            continue

        source = source_encoder(pairs.source(idx)).tolist()
        target = target_encoder(pairs.target(idx)).tolist()

        longest_source_len = max(longest_source_len, len(source))
        longest_target_len = max(longest_target_len, len(target))

        if len(source) > max_source_len or len(target) > max_target_len:
            num_too_long += 1

            continue

        indices.append(idx)

        sources.append(source)
        targets.append(target)

    report = CorpusReport(
        split=pairs.split,
        num_pairs=len(pairs),
        num_empty=int(empty_mask.sum()),
        num_too_long=num_too_long,
        num_kept=len(indices),
        max_source_len=max_source_len,
        max_target_len=max_target_len,
        longest_source_len=longest_source_len,
        longest_target_len=longest_target_len,
    )

    if report.num_kept == 0:
        raise _make_nothing_left_error(pairs, report)

    return Corpus(
        pairs=pairs,
        indices=np.array(indices, dtype=np.int64),
        sources=sources.build(),
        targets=targets.build(),
        report=report,
    )


def _make_nothing_left_error(pairs: TextPairs, report: CorpusReport) -> WarmupError:
    if report.num_too_long == 0:
        return WarmupError(
            f"No pair is left of {pairs.origin}, since each of its {report.num_pairs:,} has an empty side: check the files, fields or columns it is read from."
        )

    return WarmupError(
        f"No pair is left of {pairs.origin}: {report.num_too_long:,} of {report.num_pairs:,} are longer than `max_source_len` {report.max_source_len} or `max_target_len` {report.max_target_len} and {report.num_empty:,} have an empty side; raise the limits (the longest source has {report.longest_source_len} tokens, the longest target {report.longest_target_len})."
    )


def sorted_batches(
    lens: NDArray[np.int64], max_num_tokens: int
) -> list[NDArray[np.int64]]:
    """
    Cuts rows, sorted by length, into batches within a token budget.

    The longest rows come first, so that a batch that does not fit in memory fails at
    the start.

    :param lens: The length of each row; that of its longer side, if it has two.
        *Shape:* :math:`(N)`.
    :param max_num_tokens: The limit of rows times the longest of them. A row that is
        longer than that is a batch of its own.

    :returns: The rows of each batch; each row is in one batch.
    """
    return _cut_batches(_sort_longest_first(lens), lens, max_num_tokens)


def shuffled_batches(
    source_lens: NDArray[np.int64],
    target_lens: NDArray[np.int64],
    max_num_tokens: int,
    *,
    seed: int,
    epoch: int,
) -> list[NDArray[np.int64]]:
    """
    Cuts rows into batches of similar lengths, in a new random order every epoch.

    Rows are shuffled, sorted by length within windows of ``SORT_WINDOW``, cut, and the
    batches shuffled. The result depends on the arguments only, so that ranks agree on
    it without talking to each other.

    :param source_lens: The length of each source. *Shape:* :math:`(N)`.
    :param target_lens: The length of each target. *Shape:* :math:`(N)`.
    :param max_num_tokens: The token budget as of :func:`sorted_batches`.
    :param seed: The seed of the run.
    :param epoch: The pass over the data, counted from 0.
    """
    bit_generator = np.random.PCG64(np.random.SeedSequence([seed, epoch]))

    lens = np.maximum(source_lens, target_lens)

    order = _permute(len(lens), bit_generator)

    batches = []

    for start in range(0, len(order), SORT_WINDOW):
        window = order[start : start + SORT_WINDOW]

        # Among rows of one length those with similar sources go together; the rest
        # stays as shuffled, since the sort is stable.
        window = window[_sort_longest_first(lens[window], source_lens[window])]

        batches.extend(_cut_batches(window, lens, max_num_tokens))

    return [batches[idx] for idx in _permute(len(batches), bit_generator)]


def _permute(size: int, bit_generator: np.random.PCG64) -> NDArray[np.int64]:
    # NumPy keeps the raw stream of a bit generator stable over versions, but not what
    # `Generator.permutation` makes of it; a resumed run needs the same order.
    keys = bit_generator.random_raw(size)

    return np.argsort(keys, kind="stable")


def _sort_longest_first(
    lens: NDArray[np.int64], tie_lens: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    keys = (-lens,) if tie_lens is None else (-tie_lens, -lens)

    return np.lexsort(keys)


def _cut_batches(
    order: NDArray[np.int64], lens: NDArray[np.int64], max_num_tokens: int
) -> list[NDArray[np.int64]]:
    batches = []

    start = 0

    while start < len(order):
        # The first row is the longest and decides the width.
        num_rows = max(1, max_num_tokens // int(lens[order[start]]))

        batches.append(order[start : start + num_rows])

        start += num_rows

    return batches


@final
class TextPairReader(DataReader[Seq2SeqBatch]):
    """
    Reads batches of text pairs.

    All ranks make the same plan of batches and each takes every n-th, so that they
    need no collective call. For training (``shuffle``) the plan is new every epoch and
    its last few batches are left out if they do not go round. Otherwise each pair is
    read exactly once; ranks that have no batch left return empty lists until all are
    done, as of :attr:`SyncMode.UNTIL_LAST`.

    A target is ``<s> y </s>``. fairseq2 counts sources as well in
    ``Seq2SeqBatch.num_target_elements``; take it from the second part of
    ``as_auto_regressive()``. ``example`` of a batch holds lists: ``indices`` in the
    :class:`TextPairs`, ``sources`` and ``targets`` as text.
    """

    def __init__(
        self,
        corpus: Corpus,
        gangs: Gangs,
        *,
        max_num_tokens: int,
        shuffle: bool,
        seed: int,
        pad_idx: int,
        num_accumulate: int = 1,
        budget_key: str = "dataset.max_num_tokens",
    ) -> None:
        """
        :param corpus: The tokenised pairs.
        :param gangs: The gangs; the batches are shared out over ``gangs.dp``.
        :param max_num_tokens: The limit of rows times the longest source or target of
            a batch.
        :param shuffle: ``True`` for training.
        :param seed: The seed of the order. It must be the same on all ranks.
        :param pad_idx: The index to pad with.
        :param num_accumulate: The number of batches of one step.
        :param budget_key: Where the user has set ``max_num_tokens``, for messages.
        """
        if num_accumulate < 1:
            raise ValueError(
                f"`num_accumulate` must be greater than or equal to 1, but is {num_accumulate} instead."
            )

        self._corpus = corpus
        self._rank = gangs.dp.rank
        self._world_size = gangs.dp.size
        self._max_num_tokens = max_num_tokens
        self._shuffle = shuffle
        self._seed = seed
        self._pad_idx = pad_idx
        self._num_accumulate = num_accumulate
        self._budget_key = budget_key

        self._check_budget()

        self._data_digest = (
            f"{corpus.sources.digest():08x}{corpus.targets.digest():08x}"
        )

        self._epoch = 0
        self._position = 0
        self._plan = self._make_plan()

        self._check_plan()

    def _check_budget(self) -> None:
        longest_len = int(self._corpus.lens().max())

        if longest_len <= self._max_num_tokens:
            return

        raise WarmupError(
            f"A pair of {self._corpus.pairs.origin} has {longest_len} tokens on one side, but a batch may hold only {self._max_num_tokens}: raise `{self._budget_key}` or lower `dataset.max_source_len` and `dataset.max_target_len`."
        )

    def _check_plan(self) -> None:
        if self.num_batches > 0:
            return

        raise WarmupError(
            f"The {len(self._corpus):,} pairs of {self._corpus.pairs.origin} make only {_count_batches(len(self._plan))} of {self._max_num_tokens:,} tokens for {self._world_size} processes: lower `{self._budget_key}` or start fewer processes."
        )

    def _make_plan(self) -> list[NDArray[np.int64]]:
        corpus = self._corpus

        if not self._shuffle:
            return sorted_batches(corpus.lens(), self._max_num_tokens)

        return shuffled_batches(
            corpus.sources.lens,
            corpus.targets.lens,
            self._max_num_tokens,
            seed=self._seed,
            epoch=self._epoch,
        )

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[Seq2SeqBatch]:
        if self._position >= self.num_batches:
            raise StopIteration()

        end = min(self._position + self._num_accumulate, self.num_batches)

        batches = []

        for position in range(self._position, end):
            plan_idx = position * self._world_size + self._rank

            # Validation: this rank has read its share, others have not.
            if plan_idx < len(self._plan):
                batches.append(self._collate(self._plan[plan_idx]))

        self._position = end

        return batches

    def _collate(self, rows: NDArray[np.int64]) -> Seq2SeqBatch:
        corpus = self._corpus

        source_seqs, source_seq_lens = corpus.sources.pad(rows, self._pad_idx)
        target_seqs, target_seq_lens = corpus.targets.pad(rows, self._pad_idx)

        indices = corpus.indices[rows].tolist()

        example = {
            "indices": indices,
            "sources": [corpus.pairs.source(idx) for idx in indices],
            "targets": [corpus.pairs.target(idx) for idx in indices],
        }

        return Seq2SeqBatch(
            source_seqs, source_seq_lens, target_seqs, target_seq_lens, example=example
        )

    @override
    def reset(self) -> None:
        """Starts the next epoch; without ``shuffle`` it is like the one before."""
        self._move_to(self._epoch + 1, 0)

    def _move_to(self, epoch: int, position: int) -> None:
        has_new_plan = self._shuffle and epoch != self._epoch

        self._epoch = epoch
        self._position = position

        if has_new_plan:
            self._plan = self._make_plan()

    @override
    def state_dict(self) -> dict[str, object]:
        # The trainer saves the state after the end of data only once it has called
        # `reset()`; then this is the start of the next epoch.
        return {
            "epoch": self._epoch,
            "position": self._position,
            **self._get_fingerprint(),
        }

    def _get_fingerprint(self) -> dict[str, object]:
        """Returns all that the plan of an epoch depends on."""
        return {
            "num_pairs": len(self._corpus),
            "data_digest": self._data_digest,
            "world_size": self._world_size,
            "max_num_tokens": self._max_num_tokens,
            "seed": self._seed,
            "shuffle": self._shuffle,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """
        Continues where a state was saved.

        fairseq2 resumes with another number of processes as well, but only with the
        share of data of some ranks, and says nothing; this raises instead.
        """
        epoch, position = state_dict.get("epoch"), state_dict.get("position")

        if not isinstance(epoch, int) or not isinstance(position, int):
            raise WarmupError(
                "The checkpoint has no position in the training data: it is not of this program, so start in a new output directory."
            )

        self._check_fingerprint(state_dict)

        self._move_to(epoch, position)

    def _check_fingerprint(self, state_dict: dict[str, object]) -> None:
        current = self._get_fingerprint()

        saved = {key: state_dict.get(key) for key in current}

        if saved["world_size"] != current["world_size"]:
            raise WarmupError(
                f"The run was started with {saved['world_size']} process(es), but {current['world_size']} would resume it: start {saved['world_size']} again or use a new output directory."
            )

        for key, text in (
            ("max_num_tokens", f"`{self._budget_key}`"),
            ("seed", "the seed"),
            ("shuffle", "`shuffle`"),
        ):
            if saved[key] != current[key]:
                raise WarmupError(
                    f"The checkpoint was saved with {text} {saved[key]}, but {text} is {current[key]} now: restore it or use a new output directory."
                )

        if saved != current:
            raise WarmupError(
                f"Since the checkpoint was saved, {self._corpus.pairs.origin}, its limits or its tokenizer has changed ({saved['num_pairs']} pairs then, {current['num_pairs']} now): restore them or use a new output directory."
            )

    @property
    @override
    def num_accumulate(self) -> int:
        return self._num_accumulate

    @property
    def num_batches(self) -> int:
        """The number of batches a rank goes through in this epoch."""
        if self._shuffle:
            return len(self._plan) // self._world_size

        return -(-len(self._plan) // self._world_size)


def _count_batches(num: int) -> str:
    return f"{num} batch" if num == 1 else f"{num} batches"
