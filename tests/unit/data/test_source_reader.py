# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from fairseq2.datasets import SequenceBatch
from fairseq2.gang import FakeGang, Gangs

from tests.common import assert_equal, device
from warmup_plugin.data.corpus import TokenSeqs
from warmup_plugin.data.source_reader import SourceReader

PAD_IDX = 0


def create_sources(lens: Sequence[int]) -> TokenSeqs:
    """Creates sequences that repeat their number, counted from 5."""
    indices = [5 + n for n, length in enumerate(lens) for _ in range(length)]

    offsets = np.cumsum([0, *lens], dtype=np.int64)

    return TokenSeqs(np.array(indices, dtype=np.int32), offsets)


def create_reader(
    lens: Sequence[int], *, rank: int = 0, size: int = 1, max_num_tokens: int = 6
) -> SourceReader:
    gang, dp_gang = FakeGang(device), FakeGang(device, rank=rank, size=size)

    gangs = Gangs(root=dp_gang, dp=dp_gang, rdp=dp_gang, sdp=gang, tp=gang, pp=gang)

    # As if every second line was empty.
    indices = [2 * n for n in range(len(lens))]

    return SourceReader(
        create_sources(lens),
        indices,
        gangs,
        max_num_tokens=max_num_tokens,
        pad_idx=PAD_IDX,
    )


def read(reader: SourceReader) -> list[SequenceBatch]:
    batches = []

    for step in reader:
        # One batch a step.
        [batch] = step

        batches.append(batch)

    return batches


class TestSourceReader:
    def test_call_pads_sorted_sources_within_budget(self) -> None:
        first, second, third = read(create_reader([2, 4, 1, 3]))

        # The longest first: 1 x 4, then 2 x 3 tokens, then 1 x 1.
        assert first.example == [2]
        assert second.example == [6, 0]
        assert third.example == [4]

        assert_equal(second.seqs, [[8, 8, 8], [5, 5, PAD_IDX]])
        assert list(second.seq_lens) == [3, 2]
        assert second.seqs.dtype == torch.int64

    def test_ranks_read_each_source_once(self) -> None:
        lens = [3, 1, 4, 1, 5, 9, 2, 6]

        seen = []

        for rank in range(3):
            for batch in read(create_reader(lens, rank=rank, size=3)):
                assert isinstance(batch.example, list)

                seen.extend(batch.example)

        assert sorted(seen) == [2 * n for n in range(len(lens))]

    def test_source_over_budget_is_batch_of_its_own(self) -> None:
        [batch, _] = read(create_reader([9, 1]))

        assert batch.example == [0]
        assert batch.seqs.shape == (1, 9)

    def test_reader_without_sources_is_empty(self) -> None:
        assert read(create_reader([])) == []

    def test_rank_without_batch_is_empty(self) -> None:
        assert read(create_reader([1], rank=1, size=2)) == []

    def test_reset_starts_again(self) -> None:
        reader = create_reader([2, 4])

        assert len(read(reader)) == 1 + 1
        assert read(reader) == []

        reader.reset()

        assert len(read(reader)) == 2

    def test_state_continues(self) -> None:
        reader, other = create_reader([2, 4, 6]), create_reader([2, 4, 6])

        next(reader)

        other.load_state_dict(reader.state_dict())

        assert [b.example for b in read(other)] == [b.example for b in read(reader)]

    def test_bad_state_raises_error(self) -> None:
        with pytest.raises(TypeError, match="position"):
            create_reader([1]).load_state_dict({"position": "1"})

    def test_step_is_one_batch(self) -> None:
        assert create_reader([1]).num_accumulate == 1
