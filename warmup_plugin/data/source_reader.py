# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from fairseq2.datasets import DataReader, SequenceBatch
from fairseq2.gang import Gangs
from typing_extensions import Self, override

from warmup_plugin.data.batching import sorted_batches
from warmup_plugin.data.corpus import TokenSeqs


@final
class SourceReader(DataReader[SequenceBatch]):
    """
    Reads batches of sources to be translated, each source once over all ranks.

    ``example`` of a batch is the list of the sources' indices. Ranks need not have
    the same number of batches; they make no collective call.
    """

    def __init__(
        self,
        sources: TokenSeqs,
        indices: Sequence[int],
        gangs: Gangs,
        *,
        max_num_tokens: int,
        pad_idx: int,
    ) -> None:
        """
        :param sources: The tokenised sources.
        :param indices: What to call each of them.
        :param max_num_tokens: The limit of rows times longest source of a batch.
        """
        self._sources = sources
        self._indices = indices
        self._pad_idx = pad_idx

        plan = sorted_batches(sources.lens, max_num_tokens) if len(sources) else []

        self._plan = plan[gangs.dp.rank :: gangs.dp.size]

        self._position = 0

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> list[SequenceBatch]:
        if self._position >= len(self._plan):
            raise StopIteration()

        rows = self._plan[self._position]

        self._position += 1

        seqs, seq_lens = self._sources.pad(rows, self._pad_idx)

        indices = [self._indices[row] for row in rows]

        return [SequenceBatch(seqs, seq_lens, example=indices)]

    @override
    def reset(self) -> None:
        self._position = 0

    @override
    def state_dict(self) -> dict[str, object]:
        return {"position": self._position}

    @override
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        position = state_dict["position"]

        if not isinstance(position, int):
            raise TypeError("`state_dict['position']` must be of type `int`.")

        self._position = position

    @property
    @override
    def num_accumulate(self) -> int:
        return 1
