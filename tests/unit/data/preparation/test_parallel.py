# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

import pytest

from warmup_plugin.data.preparation.parallel import Corpus, write_pairs
from warmup_plugin.errors import WarmupError


class TestCorpus:
    def test_iter_reads_two_files(self, tmp_path: Path) -> None:
        source, target = tmp_path / "a.en", tmp_path / "a.de.gz"

        source.write_bytes("one\u2028two\r\nthree".encode())
        target.write_bytes(gzip.compress(b"x\n y \n"))

        corpus = Corpus([source, target])

        # Twice: it is read anew each time.
        for _ in range(2):
            assert list(corpus) == [("one\u2028two", "x"), ("three", "y")]

    @pytest.mark.parametrize("name", ["a.tsv", "a.tsv.gz"])
    def test_iter_reads_columns(self, tmp_path: Path, name: str) -> None:
        data = b"\t1\tx\n\t2\ty\tmore\n"

        file = tmp_path / name

        file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

        # The empty first column is one, too.
        assert list(Corpus([file], columns=[2, 1])) == [("x", "1"), ("y", "2")]

    @pytest.mark.parametrize(("sources", "targets"), [(b"a\nb\n", b"x\n"), (b"", b"x")])
    def test_iter_reports_unequal_length(
        self, tmp_path: Path, sources: bytes, targets: bytes
    ) -> None:
        source, target = tmp_path / "a.en", tmp_path / "a.de"

        source.write_bytes(sources)
        target.write_bytes(targets)

        shorter = "a.de" if sources else "a.en"

        with pytest.raises(WarmupError, match=f"`{shorter}` ends after . lines"):
            list(Corpus([source, target]))

    def test_iter_reads_blank_line_as_empty_pair(self, tmp_path: Path) -> None:
        file = tmp_path / "a.tsv"

        file.write_text("a\tb\n\n \nc\td\n")

        assert list(Corpus([file])) == [("a", "b"), ("", ""), ("", ""), ("c", "d")]

    def test_iter_reports_missing_column(self, tmp_path: Path) -> None:
        file = tmp_path / "a.tsv"

        file.write_text("a\tb\na\n")

        with pytest.raises(WarmupError, match=r"Line 2 of .* has 1 columns"):
            list(Corpus([file]))

    def test_iter_reports_cut_archive(self, tmp_path: Path) -> None:
        file = tmp_path / "a.tsv.gz"

        file.write_bytes(gzip.compress(b"a\tb\n" * 100)[:-12])

        with pytest.raises(WarmupError, match="is not a complete gzip file"):
            list(Corpus([file]))

    def test_init_refuses_wrong_files(self, tmp_path: Path) -> None:
        file = tmp_path / "a.en"

        file.touch()

        with pytest.raises(WarmupError, match=r"`.*a\.en` has no counterpart"):
            Corpus([file])

        with pytest.raises(WarmupError, match="3 files were given"):
            Corpus([file] * 3)

        with pytest.raises(WarmupError, match=r"`.*b\.en` is not a file"):
            Corpus([file, tmp_path / "b.en"])

    @pytest.mark.parametrize("columns", [(0, 0), (-1, 0), (0,)])
    def test_init_refuses_wrong_columns(
        self, tmp_path: Path, columns: tuple[int, ...]
    ) -> None:
        file = tmp_path / "a.tsv"

        file.touch()

        with pytest.raises(WarmupError, match="`--columns` must be two different"):
            Corpus([file], columns=columns)


class TestWritePairs:
    def test_call_writes_all(self, tmp_path: Path) -> None:
        files = tmp_path / "a.en", tmp_path / "a.de"

        assert write_pairs([("a\u2028", "x"), ("b", "ä")], *files) == 2

        assert files[0].read_bytes() == "a\u2028\nb\n".encode()
        assert files[1].read_bytes() == "x\nä\n".encode()

    def test_call_draws_in_order(self, tmp_path: Path) -> None:
        files = tmp_path / "a.en", tmp_path / "a.de"

        pairs = [(f"a{idx:02}", f"x{idx:02}") for idx in range(50)]

        assert write_pairs(pairs, *files, max_pairs=10, seed=3) == 10

        sources = files[0].read_text().split()

        assert len(set(sources)) == 10
        assert sources == sorted(sources)
        assert [f"x{s[1:]}" for s in sources] == files[1].read_text().split()

        # Nothing else is left.
        assert sorted(f.name for f in tmp_path.iterdir()) == ["a.de", "a.en"]

        text = files[0].read_text()

        write_pairs(pairs, *files, max_pairs=10, seed=3)
        assert files[0].read_text() == text

        write_pairs(pairs, *files, max_pairs=10, seed=4)
        assert files[0].read_text() != text

    def test_call_draws_each_pair_as_often(self, tmp_path: Path) -> None:
        files = tmp_path / "a.en", tmp_path / "a.de"

        pairs = [(str(idx), "x") for idx in range(5)]

        counts: Counter[str] = Counter()

        for seed in range(50):
            write_pairs(pairs, *files, max_pairs=2, seed=seed)

            counts.update(files[0].read_text().split())

        # 20 is expected, with a standard deviation of 3.5.
        assert sum(counts.values()) == 100
        assert all(8 < counts[str(idx)] < 32 for idx in range(5))

    def test_call_keeps_all_when_there_are_fewer(self, tmp_path: Path) -> None:
        files = tmp_path / "a.en", tmp_path / "a.de"

        assert write_pairs([("a", "x")], *files, max_pairs=10) == 1
        assert files[0].read_text() == "a\n"

    @pytest.mark.parametrize("max_pairs", [None, 1])
    def test_call_leaves_nothing_when_it_fails(
        self, tmp_path: Path, max_pairs: int | None
    ) -> None:
        files = tmp_path / "a.en", tmp_path / "a.de"

        files[0].write_text("old\n")

        def fail() -> object:
            raise WarmupError("bad line")

        pairs = (("a", "x") if idx < 3 else fail() for idx in range(5))

        with pytest.raises(WarmupError, match="bad line"):
            write_pairs(pairs, *files, max_pairs=max_pairs)  # type: ignore[arg-type]

        assert [f.name for f in tmp_path.iterdir()] == ["a.en"]
        assert files[0].read_text() == "old\n"
