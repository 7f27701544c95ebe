# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.data.words import (
    PAD_IDX,
    WordCodec,
    make_pairs,
)
from warmup_plugin.data.corpus import (
    Corpus,
    CorpusReport,
    TokenSeqs,
    encode_sources,
    join_corpora,
    put_behind,
    put_into_decoder,
    tokenize_pairs,
)
from warmup_plugin.data.text_pairs import TextPairsConfig, read_split
from warmup_plugin.errors import WarmupError
from warmup_plugin.tokenizers.codec import EncodedText


class TestTokenizePairs:
    def test_call_encodes_pairs(self, tmp_path: Path) -> None:
        pairs = make_pairs(tmp_path, [("a bb", "ccc"), ("d", "e f")])

        corpus = tokenize_pairs(pairs, WordCodec(), max_source_len=4, max_target_len=4)

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
            WordCodec(),
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
        report = CorpusReport(
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

    def test_call_drops_pairs_without_tokens(self, tmp_path: Path) -> None:
        class Codec(WordCodec):
            """Has tokens for what shows nothing, and none for a dot."""

            def encode_source(self, source: str) -> EncodedText:
                return super().encode_source(source.replace(".", ""))

            def encode_target(self, target: str) -> list[int]:
                return super().encode_target(target.replace(".", ""))

        rows = [("a", "b"), (".", "b"), ("a", "."), ("\u200b", "b"), ("a", "\u200b")]

        corpus = tokenize_pairs(
            make_pairs(tmp_path, rows), Codec(), max_source_len=4, max_target_len=4
        )

        assert corpus.indices.tolist() == [0]
        assert corpus.report.num_empty == 4

    def test_call_counts_pair_once_when_it_is_empty_and_too_long(
        self, tmp_path: Path
    ) -> None:
        rows = [("a", "b"), ("a a a", "")]

        report = tokenize_pairs(
            make_pairs(tmp_path, rows),
            WordCodec(),
            max_source_len=3,
            max_target_len=3,
        ).report

        assert (report.num_empty, report.num_too_long) == (1, 0)

    def test_call_drops_and_counts_blank_lines(self, tmp_path: Path) -> None:
        tmp_path.joinpath("train.tsv").write_text("a\tb\n\na\tb\n")

        pairs = read_split(TextPairsConfig(path=tmp_path), "train")

        corpus = tokenize_pairs(pairs, WordCodec(), max_source_len=3, max_target_len=3)

        assert corpus.indices.tolist() == [0, 2]
        assert corpus.report.num_empty == 1

    def test_call_takes_first_pairs_and_counts_what_it_drops_of_them(
        self, tmp_path: Path
    ) -> None:
        rows = [("a", "b"), ("", "b"), ("a a a a", "b"), ("a", "c"), ("a", "d")]

        pairs = make_pairs(tmp_path, rows)

        corpus = tokenize_pairs(
            pairs, WordCodec(), max_source_len=4, max_target_len=4, max_pairs=3
        )

        assert corpus.indices.tolist() == [0]

        assert corpus.report.describe() == (
            "train (the first 3 of 5 pairs): 1 of 3 pairs kept; dropped: 1 over the "
            "length limit of 4 tokens (33.33%), 1 with an empty side (33.33%)."
        )

        # More than there are.
        corpus = tokenize_pairs(
            pairs, WordCodec(), max_source_len=9, max_target_len=9, max_pairs=6
        )

        assert corpus.indices.tolist() == [0, 2, 3, 4]
        assert corpus.report.describe().startswith("train: 4 of 5 pairs kept;")

    def test_call_raises_error_when_all_pairs_are_too_long(
        self, tmp_path: Path
    ) -> None:
        pairs = make_pairs(tmp_path, [("a a", "b"), ("a", "b b b"), ("", "")])

        with pytest.raises(
            WarmupError,
            match=r"`train` split.*2 of 3 are longer than `max_source_len` 2 or `max_target_len` 4 and 1 have an empty side; raise.*source has 3 tokens, the longest target 5\)\.$",
        ):
            tokenize_pairs(pairs, WordCodec(), max_source_len=2, max_target_len=4)

    def test_call_raises_error_when_all_pairs_are_empty(self, tmp_path: Path) -> None:
        pairs = make_pairs(tmp_path, [("a", ""), ("", "b")])

        with pytest.raises(
            WarmupError, match=r"each of its 2 has an empty side: check"
        ):
            tokenize_pairs(pairs, WordCodec(), max_source_len=9, max_target_len=9)


class TestPutBehind:
    def test_call_puts_every_second_source_behind_another(self, tmp_path: Path) -> None:
        def tokenize(name: str, rows: list[tuple[str, str]]) -> Corpus:
            folder = tmp_path / name

            folder.mkdir()

            return tokenize_pairs(
                make_pairs(folder, rows),
                WordCodec(),
                max_source_len=9,
                max_target_len=9,
            )

        rows = [("a", "bb"), ("a a", "bb"), ("a", "bb"), ("a a a a", "bb")]

        corpus = tokenize("one", rows)

        other = tokenize("other", [("ccc", "d"), ("dddd", "d")])

        behind = put_behind(corpus, [other], max_source_len=6, seed=1)

        a, c, d, eos, begin = 11, 13, 14, 3, 2

        assert behind.sources[0].tolist() == [a, eos]
        # The other source and what begins its target.
        assert behind.sources[1].tolist() in (
            [c, eos, begin, a, a, eos],
            [d, eos, begin, a, a, eos],
        )
        assert behind.sources[2].tolist() == [a, eos]
        # It would be too long.
        assert behind.sources[3].tolist() == [a, a, a, a, eos]

        for row in range(4):
            assert behind.targets[row].tolist() == corpus.targets[row].tolist()

        # A run that resumes reads the same.
        again = put_behind(corpus, [other], max_source_len=6, seed=1)

        assert again.digest() == behind.digest() != corpus.digest()


class TestPutIntoDecoder:
    def test_call_puts_every_second_source_before_its_target(
        self, tmp_path: Path
    ) -> None:
        def tokenize(name: str, rows: list[tuple[str, str]]) -> Corpus:
            folder = tmp_path / name

            folder.mkdir()

            return tokenize_pairs(
                make_pairs(folder, rows),
                WordCodec(),
                max_source_len=9,
                max_target_len=9,
            )

        rows = [("a", "bb"), ("a a", "bb"), ("a", "bb"), ("a a a a", "bb")]

        corpus = tokenize("one", rows)

        other = tokenize("other", [("ccc", "d"), ("dddd", "d")])

        def put(seed: int) -> Corpus:
            return put_into_decoder(
                corpus,
                [other],
                [WordCodec()],
                prefix_len=1,
                begin_idx=7,
                max_target_len=6,
                seed=seed,
            )

        joined = put(1)

        a, b, c, d, eos, begin = 11, 12, 13, 14, 3, 2

        assert joined.sources[0].tolist() == [a, eos]
        assert joined.targets[0].tolist() == [begin, b, eos]

        # The encoder reads the other source.
        assert joined.sources[1].tolist() in ([c, eos], [d, eos])
        assert joined.targets[1].tolist() == [begin, a, a, 7, b, eos]

        # It would be too long.
        assert joined.sources[3].tolist() == [a, a, a, a, eos]
        assert joined.targets[3].tolist() == [begin, b, eos]

        assert joined.given_lens is not None
        assert joined.given_lens.tolist() == [0, 3, 0, 0]

        # A run that resumes reads the same.
        assert put(1).digest() == joined.digest() != corpus.digest()

        # Another direction learns all of its targets.
        both = join_corpora({"a-b": joined, "c-d": other})

        assert both.given_lens is not None
        assert both.given_lens.tolist() == [0, 3, 0, 0, 0, 0]


class TestEncodeSources:
    def test_call_keeps_all_but_empty_ones(self) -> None:
        places, seqs, prefixes = encode_sources(["a", "", "a bb", " "], WordCodec())

        assert places == [0, 2]
        assert seqs.lens.tolist() == [2, 3]
        assert [prefixes[row].tolist() for row in range(2)] == [[2]] * 2

        padded, lens = seqs.pad(np.array([1, 0]), PAD_IDX)

        assert padded.tolist() == [[11, 12, 3], [11, 3, 0]]
        assert padded.dtype == torch.int64
        assert lens == [3, 2]

    def test_digest_changes_with_tokens_and_with_lengths(self) -> None:
        digests = {
            encode_sources(texts, WordCodec())[1].digest()
            for texts in (["a", "bb"], ["bb", "a"], ["a", "bbb"])
        }

        assert len(digests) == 3

        seqs = TokenSeqs(np.array([5, 6, 7], np.int32), np.array([0, 1, 3]))

        other_seqs = TokenSeqs(np.array([5, 6, 7], np.int32), np.array([0, 2, 3]))

        assert seqs.digest() != other_seqs.digest()
