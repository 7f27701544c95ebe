# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.data.words import (
    WordCodec,
    flatten,
    get_example,
    make_corpus,
    make_pairs,
    make_reader,
    read_epoch,
)
from warmup_plugin.data.corpus import Corpus, join_corpora
from warmup_plugin.data.reader import TextPairReader
from warmup_plugin.data.tokenizing import tokenize_pairs
from warmup_plugin.errors import WarmupError


class TestTextPairReader:
    def test_next_collates(self, tmp_path: Path) -> None:
        pairs = make_pairs(tmp_path, [("", "x"), ("a bb", "ccc"), ("d", "e f g")])

        corpus = tokenize_pairs(pairs, WordCodec(), max_source_len=9, max_target_len=9)

        reader = make_reader(corpus, shuffle=False)

        [batch] = next(reader)

        assert batch.source_seqs.tolist() == [[11, 3, 0], [11, 12, 3]]
        assert batch.source_seq_lens == [2, 3]
        assert batch.target_seqs.tolist() == [[2, 11, 11, 11, 3], [2, 13, 3, 0, 0]]
        assert batch.target_seq_lens == [5, 3]
        assert batch.source_seqs.dtype == batch.target_seqs.dtype == torch.int64

        # Indices count dropped pairs.
        assert batch.example == {
            "indices": [2, 1],
            "sources": ["d", "a bb"],
            "references": [["e f g"], ["ccc"]],
        }

        # The count that `Seq2SeqBatch` itself gets wrong.
        assert batch.as_auto_regressive()[1].num_target_elements == 4 + 2

        with pytest.raises(StopIteration):
            next(reader)

    @pytest.mark.parametrize("shuffle", [True, False])
    def test_next_keeps_budget(self, tmp_path: Path, shuffle: bool) -> None:
        reader = make_reader(make_corpus(tmp_path), shuffle=shuffle)

        for [batch] in reader:
            num_rows, source_width = batch.source_seqs.shape

            target_width = batch.target_seqs.size(1)

            assert num_rows * max(source_width, target_width) <= 100

    def test_next_reads_each_pair_once_when_one_rank(self, tmp_path: Path) -> None:
        for shuffle in (True, False):
            reader = make_reader(make_corpus(tmp_path), shuffle=shuffle)

            assert sorted(flatten(read_epoch(reader))) == list(range(200))

    @pytest.mark.parametrize("num_accumulate", [1, 2])
    def test_next_reads_each_pair_once_over_ranks(
        self, tmp_path: Path, num_accumulate: int
    ) -> None:
        corpus = make_corpus(tmp_path)

        epochs = [
            read_epoch(
                make_reader(
                    corpus,
                    rank=rank,
                    size=7,
                    shuffle=False,
                    num_accumulate=num_accumulate,
                )
            )
            for rank in range(7)
        ]

        assert len({len(epoch) for epoch in epochs}) == 1
        assert sorted(sum(map(flatten, epochs), [])) == list(range(200))

        # Otherwise the test would not see how an uneven end is dealt with.
        assert len({sum(map(len, epoch)) for epoch in epochs}) == 2

    def test_next_returns_empty_lists_when_other_ranks_have_batches(
        self, tmp_path: Path
    ) -> None:
        corpus = make_corpus(tmp_path, num_pairs=3)

        epochs = [
            read_epoch(
                make_reader(corpus, rank=rank, size=5, shuffle=False, max_num_tokens=40)
            )
            for rank in range(5)
        ]

        assert [len(epoch) for epoch in epochs] == [1] * 5
        assert epochs[4] == [[]]
        assert sorted(sum(map(flatten, epochs), [])) == [0, 1, 2]

    def test_next_gives_ranks_equal_and_disjoint_shares_in_training(
        self, tmp_path: Path
    ) -> None:
        corpus = make_corpus(tmp_path)

        readers = [make_reader(corpus, rank=rank, size=7) for rank in range(7)]

        num_batches = len(readers[0]._plan)

        assert num_batches % 7 != 0

        epochs = [read_epoch(reader) for reader in readers]

        assert [len(epoch) for epoch in epochs] == [num_batches // 7] * 7
        assert all(len(step) == 1 for epoch in epochs for step in epoch)

        indices = sum(map(flatten, epochs), [])

        assert len(indices) == len(set(indices))

    def test_next_accumulates(self, tmp_path: Path) -> None:
        reader = make_reader(make_corpus(tmp_path), num_accumulate=4)

        assert reader.num_accumulate == 4

        num_batches = reader.num_batches

        assert num_batches % 4 != 0

        sizes = [len(step) for step in read_epoch(reader)]

        assert sizes[:-1] == [4] * (num_batches // 4)
        assert sizes[-1] == num_batches % 4

    def test_reset_shuffles_again(self, tmp_path: Path) -> None:
        corpus = make_corpus(tmp_path)

        reader, twin = make_reader(corpus), make_reader(corpus)

        first, second = read_epoch(reader), read_epoch(reader)

        assert reader.state_dict()["epoch"] == 2

        assert first != second
        assert [first, second] == [read_epoch(twin), read_epoch(twin)]
        assert first != read_epoch(make_reader(corpus, seed=3))

    def test_reset_repeats_order_when_not_shuffled(self, tmp_path: Path) -> None:
        reader = make_reader(make_corpus(tmp_path), shuffle=False)

        assert read_epoch(reader) == read_epoch(reader)

    @pytest.mark.parametrize("num_accumulate", [1, 2])
    @pytest.mark.parametrize("num_steps", [0, 1, 7, None])
    def test_load_state_dict_continues_exactly(
        self, tmp_path: Path, num_steps: int | None, num_accumulate: int
    ) -> None:
        corpus = make_corpus(tmp_path)

        def make() -> TextPairReader:
            return make_reader(corpus, rank=1, size=2, num_accumulate=num_accumulate)

        reader = make()

        # From the second epoch on, the plan cannot be the one of a new reader.
        read_epoch(reader)

        if num_steps is None:
            num_steps = -(-reader.num_batches // num_accumulate)

        for _ in range(num_steps):
            next(reader)

        state_dict = reader.state_dict()

        resumed = make()

        resumed.load_state_dict(state_dict)

        assert resumed.state_dict() == state_dict

        for _ in range(2):
            expected, actual = list(reader), list(resumed)

            assert len(expected) == len(actual)

            for expected_step, actual_step in zip(expected, actual):
                for expected_batch, actual_batch in zip(expected_step, actual_step):
                    assert actual_batch.example == expected_batch.example
                    assert torch.equal(
                        actual_batch.source_seqs, expected_batch.source_seqs
                    )
                    assert torch.equal(
                        actual_batch.target_seqs, expected_batch.target_seqs
                    )

            # As the trainer does, the state is saved after the reset.
            reader.reset()
            resumed.reset()

            assert resumed.state_dict() == reader.state_dict()

    def test_state_dict_survives_torch_save(self, tmp_path: Path) -> None:
        reader = make_reader(make_corpus(tmp_path))

        next(reader)

        torch.save(reader.state_dict(), tmp_path / "state.pt")

        state_dict = torch.load(tmp_path / "state.pt", weights_only=True)

        assert state_dict == reader.state_dict()

    def test_load_state_dict_raises_error_when_world_size_differs(
        self, tmp_path: Path
    ) -> None:
        corpus = make_corpus(tmp_path)

        state_dict = make_reader(corpus, size=2).state_dict()

        with pytest.raises(WarmupError, match=r"2 process\(es\), but 1 would.*start 2"):
            make_reader(corpus).load_state_dict(state_dict)

    def test_load_state_dict_raises_error_when_data_differs(
        self, tmp_path: Path
    ) -> None:
        state_dict = make_reader(make_corpus(tmp_path)).state_dict()

        for seed, num_pairs in ((1, 199), (2, 200)):
            reader = make_reader(make_corpus(tmp_path, num_pairs, seed))

            with pytest.raises(
                WarmupError,
                match=rf"`train` split.*changed \(200 pairs then, {num_pairs} now\): restore",
            ):
                reader.load_state_dict(state_dict)

    def test_load_state_dict_raises_error_when_option_differs(
        self, tmp_path: Path
    ) -> None:
        corpus = make_corpus(tmp_path)

        state_dict = make_reader(corpus).state_dict()

        with pytest.raises(WarmupError, match="with the seed 2, but the seed is 3 now"):
            make_reader(corpus, seed=3).load_state_dict(state_dict)

        with pytest.raises(
            WarmupError, match="`dataset.max_num_tokens` 100, .* 101 now"
        ):
            make_reader(corpus, max_num_tokens=101).load_state_dict(state_dict)

    def test_load_state_dict_raises_error_when_state_is_foreign(
        self, tmp_path: Path
    ) -> None:
        reader = make_reader(make_corpus(tmp_path))

        state_dict = reader.state_dict()

        del state_dict["position"]

        with pytest.raises(WarmupError, match="no position"):
            reader.load_state_dict(state_dict)

        with pytest.raises(WarmupError, match="no position"):
            reader.load_state_dict({"iterator": 1})

    def test_init_raises_error_when_pair_exceeds_budget(self, tmp_path: Path) -> None:
        pairs = make_pairs(tmp_path, [("a", "b"), ("a " * 11, "b")])

        corpus = tokenize_pairs(
            pairs, WordCodec(), max_source_len=99, max_target_len=99
        )

        with pytest.raises(
            WarmupError, match="has 12 .* only 11: raise `dataset.max_num_tokens`"
        ):
            make_reader(corpus, max_num_tokens=11)

        make_reader(corpus, max_num_tokens=12)

    def test_init_names_given_key_when_budget_is_wrong(self, tmp_path: Path) -> None:
        corpus = make_corpus(tmp_path)

        key = "validation.max_num_tokens"

        with pytest.raises(WarmupError, match=f"raise `{key}` or lower `dataset.max_"):
            make_reader(corpus, max_num_tokens=5, budget_key=key)

        with pytest.raises(WarmupError, match=f"lower `{key}` or start fewer"):
            make_reader(corpus, size=2, max_num_tokens=90_000, budget_key=key)

    def test_init_raises_error_when_there_are_too_few_batches(
        self, tmp_path: Path
    ) -> None:
        corpus = make_corpus(tmp_path, num_pairs=2)

        with pytest.raises(WarmupError, match="only 1 batch of 900 tokens for 2 proc"):
            make_reader(corpus, size=2, max_num_tokens=900)

    def test_init_raises_error_when_num_accumulate_is_zero(
        self, tmp_path: Path
    ) -> None:
        corpus = make_corpus(tmp_path, num_pairs=2)

        with pytest.raises(ValueError, match="`num_accumulate`"):
            make_reader(corpus, num_accumulate=0)


def test_batch_tells_what_is_given(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, num_pairs=4)

    given_lens = np.array([0, 2, 0, 1], dtype=np.int32)

    [batch] = next(make_reader(replace(corpus, given_lens=given_lens), shuffle=False))

    example = get_example(batch)

    expected = {row: int(given_len) for row, given_len in enumerate(given_lens)}

    assert dict(zip(example["indices"], example["given_lens"])) == expected

    assert "given_lens" not in get_example(next(make_reader(corpus))[0])


def make_joined(folder: Path) -> Corpus:
    """Joins directions of 300 and of 20 pairs."""
    return join_corpora(
        {
            "a-b": make_corpus(folder, num_pairs=300, seed=1),
            "b-a": make_corpus(folder, num_pairs=20, seed=2),
        }
    )


def read_rows(reader: TextPairReader) -> list[tuple[object, object]]:
    """Reads an epoch and returns the direction and the index of each row."""
    rows = []

    for step in reader:
        for batch in step:
            example = get_example(batch)

            rows += list(zip(example["directions"], example["indices"]))

    reader.reset()

    return rows


class TestDirections:
    def test_rows_keep_text_and_tokens_of_their_direction(self, tmp_path: Path) -> None:
        corpus = make_joined(tmp_path)

        assert len(corpus) == 320
        assert corpus.sizes().tolist() == [300, 20]
        assert corpus.report.num_kept == 320

        part = make_corpus(tmp_path, num_pairs=20, seed=2)

        for row in range(20):
            assert corpus.source(300 + row) == part.source(row)
            assert corpus.target(300 + row) == part.target(row)
            assert corpus.sources[300 + row].tolist() == part.sources[row].tolist()
            assert corpus.targets[300 + row].tolist() == part.targets[row].tolist()

        for step in make_reader(corpus, shuffle=False):
            for batch in step:
                example: Any = batch.example

                for n, name in enumerate(example["directions"]):
                    row = example["indices"][n] + (300 if name == "b-a" else 0)

                    assert corpus.source(row) == example["sources"][n]

                    tokens = corpus.sources[row].tolist()

                    assert batch.source_seqs[n, : len(tokens)].tolist() == tokens

    def test_each_row_comes_once_without_temperature(self, tmp_path: Path) -> None:
        rows = read_rows(make_reader(make_joined(tmp_path)))

        assert len(rows) == len(set(rows)) == 320

    def test_temperature_shares_out_an_epoch(self, tmp_path: Path) -> None:
        reader = make_reader(make_joined(tmp_path), sampling_temperature=5.0)

        # 300^(1/5) : 20^(1/5)
        assert reader.describe_directions() == (
            "train, each epoch: a-b 63.1% (202 of its 300 pairs), "
            "b-a 36.9% (118 of its 20 pairs)"
        )

        first, second = read_rows(reader), read_rows(reader)

        for rows in (first, second):
            times = Counter(rows)

            large = [n for (name, _), n in times.items() if name == "a-b"]
            small = [n for (name, _), n in times.items() if name == "b-a"]

            assert (sum(large), max(large)) == (202, 1)
            assert (sum(small), len(small), set(small)) == (118, 20, {5, 6})

        # Other pairs of the large one.
        assert set(first) != set(second)

    def test_ranks_share_one_plan(self, tmp_path: Path) -> None:
        corpus = make_joined(tmp_path)

        def make(rank: int, size: int) -> TextPairReader:
            return make_reader(
                corpus, rank=rank, size=size, sampling_temperature=5.0, seed=7
            )

        whole = make(0, 1)

        readers = [make(rank, 3) for rank in range(3)]

        for _ in range(2):
            expected = Counter(read_rows(whole))

            rows = Counter(row for reader in readers for row in read_rows(reader))

            # But for the last batches, which do not go round.
            assert rows <= expected
            assert sum(rows.values()) > 0.8 * sum(expected.values())

    def test_load_state_dict_continues_exactly(self, tmp_path: Path) -> None:
        corpus = make_joined(tmp_path)

        reader = make_reader(corpus, sampling_temperature=5.0)

        read_rows(reader)

        next(reader)

        torch.save(reader.state_dict(), tmp_path / "state.pt")

        state_dict = torch.load(tmp_path / "state.pt", weights_only=True)

        resumed = make_reader(corpus, sampling_temperature=5.0)

        resumed.load_state_dict(state_dict)

        for _ in range(2):
            assert read_rows(resumed) == read_rows(reader)

    def test_load_state_dict_raises_error_when_sampling_differs(
        self, tmp_path: Path
    ) -> None:
        corpus = make_joined(tmp_path)

        state_dict = make_reader(corpus, sampling_temperature=5.0).state_dict()

        with pytest.raises(
            WarmupError, match="`dataset.sampling_temperature` 5.0, .* 2.0 now"
        ):
            make_reader(corpus, sampling_temperature=2.0).load_state_dict(state_dict)

        renamed = replace(corpus, directions=["a-b", "c-a"])

        with pytest.raises(WarmupError, match=r"`dataset.directions` \['a-b', 'b-a'\]"):
            make_reader(renamed, sampling_temperature=5.0).load_state_dict(state_dict)

    def test_state_of_one_direction_says_nothing_of_directions(
        self, tmp_path: Path
    ) -> None:
        reader = make_reader(make_corpus(tmp_path))

        assert reader.state_dict().keys() == {
            "epoch",
            "position",
            "num_pairs",
            "data_digest",
            "world_size",
            "max_num_tokens",
            "seed",
            "shuffle",
        }

        assert get_example(next(reader)[0]).keys() == {
            "indices",
            "sources",
            "references",
        }
