# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import final

import numpy as np
from fairseq2.datasets import DataReader, Seq2SeqBatch
from fairseq2.gang import Gangs
from numpy.typing import NDArray
from typing_extensions import Self, override

from warmup_plugin.data.batching import (
    count_by_temperature,
    sample_rows,
    shuffled_batches,
    sorted_batches,
)
from warmup_plugin.data.corpus import Corpus
from warmup_plugin.errors import WarmupError


@final
class TextPairReader(DataReader[Seq2SeqBatch]):
    """
    Reads batches of text pairs.

    All ranks make the same plan of batches and each takes every n-th, so that they
    need no collective call. For training (``shuffle``) the plan is new every epoch and
    its last few batches are left out if they do not go round. Otherwise each pair is
    read exactly once; ranks that have no batch left return empty lists until all are
    done, as of :attr:`SyncMode.UNTIL_LAST`.

    Of several directions, ``sampling_temperature`` decides how many pairs of each an
    epoch of training has; in all there are as many as in the corpus.

    A target is ``<s> y </s>``. fairseq2 counts sources as well in
    ``Seq2SeqBatch.num_target_elements``; take it from the second part of
    ``as_auto_regressive()``. ``example`` of a batch holds lists: ``indices`` in the
    :class:`TextPairs`, ``sources`` as text, ``references``, a list of texts for each, and
    with several directions the names of these as ``directions``; and where a target begins
    with tokens that are read and not learned, their numbers as ``given_lens``.
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
        sampling_temperature: float = 1.0,
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
        :param sampling_temperature: See
            :func:`~warmup_plugin.data.batching.count_by_temperature`; 1 to read every
            pair once an epoch.
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
        self._sampling_temperature = sampling_temperature

        longest_len = int(corpus.lens().max())

        if longest_len > max_num_tokens:
            raise WarmupError(
                f"A pair of {corpus.origin} has {longest_len} tokens on one side, but a batch may hold only {max_num_tokens}: raise `{budget_key}` or lower `dataset.max_source_len` and `dataset.max_target_len`."
            )

        self._data_digest = corpus.digest

        self._epoch = 0
        self._position = 0
        self._plan = self._make_plan()

        if self.num_batches == 0:
            num = len(self._plan)

            raise WarmupError(
                f"The {len(corpus):,} pairs of {corpus.origin} make only {num} batch{'' if num == 1 else 'es'} of {max_num_tokens:,} tokens for {self._world_size} processes: lower `{budget_key}` or start fewer processes."
            )

    def _make_plan(self) -> list[NDArray[np.int64]]:
        corpus = self._corpus

        if not self._shuffle:
            return sorted_batches(corpus.lens(), self._max_num_tokens)

        source_lens, target_lens = corpus.sources.lens, corpus.targets.lens

        rows = None

        if self._samples():
            counts = count_by_temperature(corpus.sizes(), self._sampling_temperature)

            rows = sample_rows(
                corpus.part_indices, counts, seed=self._seed, epoch=self._epoch
            )

            source_lens, target_lens = source_lens[rows], target_lens[rows]

        batches = shuffled_batches(
            source_lens,
            target_lens,
            self._max_num_tokens,
            seed=self._seed,
            epoch=self._epoch,
        )

        return batches if rows is None else [rows[batch] for batch in batches]

    def _samples(self) -> bool:
        return self._shuffle and self._sampling_temperature != 1.0

    def describe_directions(self) -> str:
        """Returns the pairs and the share of each direction in one line for the log."""
        sizes = self._corpus.sizes()

        counts = sizes

        if self._samples():
            counts = count_by_temperature(sizes, self._sampling_temperature)

        parts = []

        for name, size, count in zip(self._corpus.directions, sizes, counts):
            share = 100.0 * count / counts.sum()

            parts.append(f"{name} {share:.1f}% ({count:,} of its {size:,} pairs)")

        return f"{self._corpus.report.split}, each epoch: {', '.join(parts)}"

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
            "sources": [corpus.source(row) for row in rows],
            "references": [corpus.references(row) for row in rows],
        }

        if corpus.given_lens is not None:
            example["given_lens"] = corpus.given_lens[rows].tolist()

        if corpus.directions:
            example["directions"] = [
                corpus.directions[part] for part in corpus.part_indices[rows]
            ]

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
        further: dict[str, object] = {}

        if self._corpus.directions:
            further = {
                "directions": list(self._corpus.directions),
                "direction_sizes": self._corpus.sizes().tolist(),
                "sampling_temperature": self._sampling_temperature,
            }

        return {
            "num_pairs": len(self._corpus),
            "data_digest": self._data_digest,
            "world_size": self._world_size,
            "max_num_tokens": self._max_num_tokens,
            "seed": self._seed,
            "shuffle": self._shuffle,
            **further,
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
            ("sampling_temperature", "`dataset.sampling_temperature`"),
            ("directions", "`dataset.directions`"),
        ):
            if saved.get(key) != current.get(key):
                raise WarmupError(
                    f"The checkpoint was saved with {text} {saved[key]}, but {text} is {current[key]} now: restore it or use a new output directory."
                )

        if saved != current:
            raise WarmupError(
                f"Since the checkpoint was saved, {self._corpus.origin}, its limits or its tokenizer has changed ({saved['num_pairs']} pairs then, {current['num_pairs']} now): restore them or use a new output directory."
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
