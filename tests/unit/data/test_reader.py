# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from fairseq2.data.tokenizers import (
    TokenDecoder,
    TokenEncoder,
    Tokenizer,
    VocabularyInfo,
)
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.device import Device
from fairseq2.gang import FakeGang, Gangs
from torch import Tensor
from typing_extensions import override

from warmup_plugin.data import reader as reader_module
from warmup_plugin.data.reader import (
    Corpus,
    TextPairReader,
    TokenSeqs,
    encode_texts,
    shuffled_batches,
    sorted_batches,
    tokenize_pairs,
)
from warmup_plugin.data.text_pairs import TextPairs, TextPairsConfig, read_split
from warmup_plugin.errors import WarmupError

PAD_IDX, BOS_IDX, EOS_IDX = 0, 2, 3


class WordEncoder(TokenEncoder):
    """Encodes a word as 10 plus its length."""

    def __init__(self, prefix: list[int]) -> None:
        self._prefix = prefix

    @override
    def __call__(self, text: str) -> Tensor:
        words = [10 + len(word) for word in text.split()]

        return torch.tensor(self._prefix + words + [EOS_IDX], device="cpu")

    @override
    def encode_as_tokens(self, text: str) -> list[str]:
        raise NotImplementedError()

    @property
    @override
    def prefix_indices(self) -> Tensor | None:
        return None

    @property
    @override
    def suffix_indices(self) -> Tensor | None:
        return None


class WordTokenizer(Tokenizer):
    @override
    def create_encoder(
        self,
        *,
        task: str | None = None,
        lang: str | None = None,
        mode: str | None = None,
        device: Device | None = None,
        pin_memory: bool = False,
    ) -> TokenEncoder:
        return WordEncoder({"source": [], "target": [BOS_IDX]}[mode or "source"])

    @override
    def create_raw_encoder(
        self, *, device: Device | None = None, pin_memory: bool = False
    ) -> TokenEncoder:
        raise NotImplementedError()

    @override
    def create_decoder(self, *, skip_special_tokens: bool = False) -> TokenDecoder:
        raise NotImplementedError()

    @property
    @override
    def vocab_info(self) -> VocabularyInfo:
        return VocabularyInfo(100, 1, BOS_IDX, EOS_IDX, PAD_IDX)


def make_pairs(folder: Path, rows: Sequence[tuple[str, str]]) -> TextPairs:
    text = "".join(f"{source}\t{target}\n" for source, target in rows)

    folder.joinpath("train.tsv").write_text(text, encoding="utf-8")

    return read_split(TextPairsConfig(path=folder), "train")


def make_corpus(folder: Path, num_pairs: int = 200, seed: int = 1) -> Corpus:
    """Makes pairs of 1 to 20 words a side whose text tells them apart."""
    rng = np.random.default_rng(seed)

    def make_text() -> str:
        return " ".join("x" * rng.integers(1, 50) for _ in range(rng.integers(1, 21)))

    rows = [(make_text(), make_text()) for _ in range(num_pairs)]

    return tokenize_pairs(
        make_pairs(folder, rows), WordTokenizer(), max_source_len=99, max_target_len=99
    )


def make_gangs(rank: int = 0, size: int = 1) -> Gangs:
    gang = FakeGang(torch.device("cpu"))

    dp_gang = FakeGang(torch.device("cpu"), rank=rank, size=size)

    return Gangs(root=dp_gang, dp=dp_gang, rdp=dp_gang, sdp=gang, tp=gang, pp=gang)


def make_reader(
    corpus: Corpus,
    *,
    rank: int = 0,
    size: int = 1,
    max_num_tokens: int = 100,
    shuffle: bool = True,
    seed: int = 2,
    num_accumulate: int = 1,
    **options: Any,
) -> TextPairReader:
    return TextPairReader(
        corpus,
        make_gangs(rank, size),
        max_num_tokens=max_num_tokens,
        shuffle=shuffle,
        seed=seed,
        pad_idx=PAD_IDX,
        num_accumulate=num_accumulate,
        **options,
    )


def get_example(batch: Seq2SeqBatch) -> dict[str, list[object]]:
    return cast("dict[str, list[object]]", batch.example)


def read_epoch(reader: TextPairReader) -> list[list[list[int]]]:
    """Reads to the end and returns, for each step, the indices of its batches."""
    epoch = [
        [cast("list[int]", get_example(batch)["indices"]) for batch in step]
        for step in reader
    ]

    reader.reset()

    return epoch


def flatten(epoch: list[list[list[int]]]) -> list[int]:
    return [idx for step in epoch for batch in step for idx in batch]


class TestTokenizePairs:
    def test_call_encodes_pairs(self, tmp_path: Path) -> None:
        pairs = make_pairs(tmp_path, [("a bb", "ccc"), ("d", "e f")])

        corpus = tokenize_pairs(
            pairs, WordTokenizer(), max_source_len=4, max_target_len=4
        )

        assert corpus.sources[0].tolist() == [11, 12, 3]
        assert corpus.targets[0].tolist() == [2, 13, 3]
        assert corpus.sources[1].tolist() == [11, 3]
        assert corpus.targets[1].tolist() == [2, 11, 11, 3]
        assert corpus.lens().tolist() == [3, 4]
        assert corpus.sources[0].dtype == np.int32

        assert corpus.report.describe() == "train: all 2 pairs kept."

    def test_call_drops_and_counts_pairs(self, tmp_path: Path) -> None:
        rows = [("a", "b"), ("", "b"), ("a", " "), ("a a a a", "b"), ("a", "b b"), ("a a a", "b")]  # fmt: skip

        corpus = tokenize_pairs(
            make_pairs(tmp_path, rows),
            WordTokenizer(),
            max_source_len=4,
            max_target_len=3,
        )

        assert corpus.indices.tolist() == [0, 5]

        report = corpus.report

        assert report.num_pairs == 6
        assert report.num_empty == 2
        assert report.num_too_long == 2
        assert report.num_kept == 2
        assert report.longest_source_len == 5
        assert report.longest_target_len == 4

        assert report.describe() == (
            "train: 2 of 6 pairs kept; dropped: 2 over the length limits of 4 source "
            "and 3 target tokens (33.33%), 2 with an empty side (33.33%)."
        )

    def test_describe_works_when_shares_are_small(self) -> None:
        report = reader_module.CorpusReport(
            split="train",
            num_pairs=29_000,
            num_empty=1,
            num_too_long=8,
            num_kept=28_991,
            max_source_len=128,
            max_target_len=128,
            longest_source_len=200,
            longest_target_len=100,
        )

        assert report.describe() == (
            "train: 28,991 of 29,000 pairs kept; dropped: 8 over the length limit of "
            "128 tokens (0.03%), 1 with an empty side (<0.01%)."
        )

    def test_call_counts_pair_once_when_it_is_empty_and_too_long(
        self, tmp_path: Path
    ) -> None:
        rows = [("a", "b"), ("a a a", "")]

        report = tokenize_pairs(
            make_pairs(tmp_path, rows),
            WordTokenizer(),
            max_source_len=3,
            max_target_len=3,
        ).report

        assert (report.num_empty, report.num_too_long) == (1, 0)

    def test_call_drops_and_counts_blank_lines(self, tmp_path: Path) -> None:
        tmp_path.joinpath("train.tsv").write_text("a\tb\n\na\tb\n")

        pairs = read_split(TextPairsConfig(path=tmp_path), "train")

        corpus = tokenize_pairs(
            pairs, WordTokenizer(), max_source_len=3, max_target_len=3
        )

        assert corpus.indices.tolist() == [0, 2]
        assert corpus.report.num_empty == 1

    def test_call_raises_error_when_all_pairs_are_too_long(
        self, tmp_path: Path
    ) -> None:
        pairs = make_pairs(tmp_path, [("a a", "b"), ("a", "b b b"), ("", "")])

        with pytest.raises(
            WarmupError,
            match=r"`train` split.*2 of 3 are longer than `max_source_len` 2 or `max_target_len` 4 and 1 have an empty side; raise.*source has 3 tokens, the longest target 5\)\.$",
        ):
            tokenize_pairs(pairs, WordTokenizer(), max_source_len=2, max_target_len=4)

    def test_call_raises_error_when_all_pairs_are_empty(self, tmp_path: Path) -> None:
        pairs = make_pairs(tmp_path, [("a", ""), ("", "b")])

        with pytest.raises(
            WarmupError, match=r"each of its 2 has an empty side: check"
        ):
            tokenize_pairs(pairs, WordTokenizer(), max_source_len=9, max_target_len=9)


class TestEncodeTexts:
    def test_call_keeps_all(self) -> None:
        encoder = WordTokenizer().create_encoder(mode="source")

        seqs = encode_texts(["a", "", "a bb"], encoder)

        assert seqs.lens.tolist() == [2, 1, 3]

        padded, lens = seqs.pad(np.array([2, 1]), PAD_IDX)

        assert padded.tolist() == [[11, 12, 3], [3, 0, 0]]
        assert padded.dtype == torch.int64
        assert lens == [3, 1]

    def test_digest_changes_with_tokens_and_with_lengths(self) -> None:
        encoder = WordTokenizer().create_encoder(mode="source")

        digests = {
            encode_texts(texts, encoder).digest()
            for texts in (["a", "bb"], ["bb", "a"], ["a", "bbb"])
        }

        assert len(digests) == 3

        seqs = TokenSeqs(np.array([5, 6, 7], np.int32), np.array([0, 1, 3]))

        other_seqs = TokenSeqs(np.array([5, 6, 7], np.int32), np.array([0, 2, 3]))

        assert seqs.digest() != other_seqs.digest()


class TestSortedBatches:
    def test_call_sorts_and_cuts(self) -> None:
        lens = np.array([2, 5, 3, 3, 1, 30])

        batches = sorted_batches(lens, 9)

        # 30 > 9 goes alone; 1 x 5; 3 x 3; 1 is left over.
        assert [b.tolist() for b in batches] == [[5], [1], [2, 3, 0], [4]]

    def test_call_keeps_budget_and_each_row_once(self) -> None:
        lens = np.random.default_rng(1).integers(1, 60, size=5000)

        batches = sorted_batches(lens, 500)

        assert all(len(b) * lens[b].max() <= 500 for b in batches)
        assert sorted(np.concatenate(batches).tolist()) == list(range(5000))

        # Similar lengths, hence hardly any padding.
        num_padded = sum(len(b) * int(lens[b].max()) for b in batches)

        assert num_padded < 1.05 * lens.sum()

    def test_call_returns_nothing_when_there_are_no_rows(self) -> None:
        assert sorted_batches(np.array([], dtype=np.int64), 10) == []


class TestShuffledBatches:
    def test_call_keeps_budget_and_each_row_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reader_module, "SORT_WINDOW", 1000)

        rng = np.random.default_rng(1)

        source_lens, target_lens = rng.integers(1, 60, size=(2, 3500))

        batches = shuffled_batches(source_lens, target_lens, 900, seed=1, epoch=0)

        lens = np.maximum(source_lens, target_lens)

        assert all(len(b) * lens[b].max() <= 900 for b in batches)
        assert sorted(np.concatenate(batches).tolist()) == list(range(3500))

        # Similar lengths go together, long and short batches take turns.
        assert sum(len(b) * int(lens[b].max()) for b in batches) < 1.1 * lens.sum()

        widths = [int(lens[b].max()) for b in batches]

        assert widths != sorted(widths) and widths != sorted(widths, reverse=True)

    def test_call_depends_on_seed_and_epoch_only(self) -> None:
        lens = np.full(100, 5)

        def call(seed: int, epoch: int) -> list[list[int]]:
            batches = shuffled_batches(lens, lens, 20, seed=seed, epoch=epoch)

            return [b.tolist() for b in batches]

        assert call(1, 0) == call(1, 0)

        # Not only the batches are in another order, their rows are others.
        assert {frozenset(b) for b in call(1, 0)} != {frozenset(b) for b in call(1, 1)}
        assert call(1, 1) != call(2, 1)
        assert call(1, 2) != call(2, 1)

    def test_call_puts_similar_sources_together(self) -> None:
        source_lens = np.array([1, 9] * 8)

        batches = shuffled_batches(source_lens, np.full(16, 9), 36, seed=1, epoch=0)

        assert [len(set(source_lens[b])) for b in batches] == [1] * 4

    def test_call_is_stable_over_versions(self) -> None:
        lens = np.array([1, 1, 1, 1, 1, 2, 2, 2])

        batches = shuffled_batches(lens, lens, 4, seed=7, epoch=3)

        assert [b.tolist() for b in batches] == [[4, 3, 1, 0], [7, 5], [6, 2]]


class TestTextPairReader:
    def test_next_collates(self, tmp_path: Path) -> None:
        pairs = make_pairs(tmp_path, [("", "x"), ("a bb", "ccc"), ("d", "e f g")])

        corpus = tokenize_pairs(
            pairs, WordTokenizer(), max_source_len=9, max_target_len=9
        )

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
            "targets": ["e f g", "ccc"],
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
            pairs, WordTokenizer(), max_source_len=99, max_target_len=99
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
