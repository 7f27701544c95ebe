# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.small_disk import full_disk
from tests.unit.data.words import WordCodec, make_pairs
from warmup_plugin.data.corpus import Corpus, join_corpora
from warmup_plugin.data.corpus_cache import (
    Note,
    load_corpus,
    make_cache_name,
    save_corpus,
)
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.data.tokenizing import tokenize_pairs
from warmup_plugin.errors import WarmupError

NOTES = [Note("train: all kept."), Note("much is unknown", is_warning=True)]

ORIGINS = ["a", "b"]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Two directions; one has an empty pair, the other several references."""
    tmp_path.joinpath("json").mkdir()

    tmp_path.joinpath("json", "train.jsonl").write_text(
        '{"source": "größer 好", "target": "b", "targets": ["b", "cc"]}\n'
        '{"source": "d", "target": "e"}\n',
        encoding="utf-8",
    )

    parts = [
        make_pairs(tmp_path, [("a bb", "ccc"), ("", ""), ("d", "e f"), ("ü", "ßß")]),
        read_split(TextPairsConfig(path=tmp_path / "json"), "train"),
    ]

    corpora = [
        tokenize_pairs(part, WordCodec(), max_source_len=9, max_target_len=9)
        for part in parts
    ]

    return join_corpora({"x-y": corpora[0], "z-y": corpora[1]})


class TestSaveCorpus:
    def test_call_writes_what_load_reads(self, tmp_path: Path, corpus: Corpus) -> None:
        save_corpus(tmp_path / "cache" / "train-1", corpus, NOTES)

        loaded = load_corpus(tmp_path / "cache" / "train-1", ORIGINS)

        assert loaded is not None

        other, notes = loaded

        assert notes == NOTES
        assert other.report == corpus.report
        assert other.directions == ["x-y", "z-y"]
        assert other.digest == corpus.digest
        assert other.sizes().tolist() == [3, 2]

        rows = np.array([4, 0, 2])

        for seqs, other_seqs in (
            (corpus.sources, other.sources),
            (corpus.targets, other.targets),
        ):
            assert other_seqs.lens.tolist() == seqs.lens.tolist()

            padded, lens = seqs.pad(rows, 0)

            assert other_seqs.pad(rows, 0)[0].tolist() == padded.tolist()
            assert other_seqs.pad(rows, 0)[1] == lens

        for row in range(5):
            assert other.source(row) == corpus.source(row)
            assert other.target(row) == corpus.target(row)
            assert other.references(row) == corpus.references(row)

        assert other.references(3) == ["b", "cc"]
        assert [part.origin for part in other.parts] == ORIGINS

    def test_given_tokens_are_kept(self, tmp_path: Path, corpus: Corpus) -> None:
        given_lens = np.array([0, 2, 0, 0, 1], dtype=np.int32)

        save_corpus(tmp_path / "given", replace(corpus, given_lens=given_lens), [])
        save_corpus(tmp_path / "none", corpus, [])

        given, none = (load_corpus(tmp_path / n, ORIGINS) for n in ("given", "none"))

        assert given is not None and given[0].given_lens is not None
        assert given[0].given_lens.tolist() == given_lens.tolist()
        assert given[0].digest != corpus.digest

        assert none is not None and none[0].given_lens is None

    def test_files_may_be_deleted_while_they_are_used(
        self, tmp_path: Path, corpus: Corpus
    ) -> None:
        save_corpus(tmp_path / "cache" / "train-1", corpus, [])

        loaded = load_corpus(tmp_path / "cache" / "train-1", ORIGINS)

        shutil.rmtree(tmp_path / "cache")

        assert loaded is not None
        assert loaded[0].source(2) == "ü"
        assert loaded[0].digest == corpus.digest

    def test_tokens_are_mapped(self, tmp_path: Path, corpus: Corpus) -> None:
        save_corpus(tmp_path / "train-1", corpus, [])

        loaded = load_corpus(tmp_path / "train-1", ORIGINS)

        assert loaded is not None

        for array in (loaded[0].sources.indices, loaded[0].targets.offsets):
            assert isinstance(array.base, np.memmap)

    def test_first_of_two_processes_wins(self, tmp_path: Path, corpus: Corpus) -> None:
        for _ in range(2):
            save_corpus(tmp_path / "cache" / "train-1", corpus, [])

        assert [f.name for f in tmp_path.joinpath("cache").iterdir()] == ["train-1"]

    def test_failure_leaves_nothing(self, tmp_path: Path, corpus: Corpus) -> None:
        with full_disk(), pytest.raises(OSError):
            save_corpus(tmp_path / "cache" / "train-1", corpus, [])

        assert list(tmp_path.joinpath("cache").iterdir()) == []


class TestLoadCorpus:
    def test_call_returns_nothing_if_nothing_is_there(self, tmp_path: Path) -> None:
        assert load_corpus(tmp_path / "train-1", ORIGINS) is None

    @pytest.mark.parametrize(
        "file", ["sources", "targets", "part_1_target_text", "part_0_source_offsets"]
    )
    def test_call_returns_nothing_if_file_is_cut(
        self, tmp_path: Path, corpus: Corpus, file: str
    ) -> None:
        save_corpus(tmp_path / "train-1", corpus, [])

        path = tmp_path / "train-1" / f"{file}.npy"

        path.write_bytes(path.read_bytes()[:-1])

        assert load_corpus(tmp_path / "train-1", ORIGINS) is None

    def test_call_returns_nothing_if_tokens_are_changed(
        self, tmp_path: Path, corpus: Corpus
    ) -> None:
        save_corpus(tmp_path / "train-1", corpus, [])

        path = tmp_path / "train-1" / "targets.npy"

        data = bytearray(path.read_bytes())

        data[-4] ^= 1

        path.write_bytes(data)

        assert load_corpus(tmp_path / "train-1", ORIGINS) is None

    @pytest.mark.parametrize("text", ["", "[]", '{"report": {}}'])
    def test_call_returns_nothing_if_record_is_broken(
        self, tmp_path: Path, corpus: Corpus, text: str
    ) -> None:
        save_corpus(tmp_path / "train-1", corpus, [])

        tmp_path.joinpath("train-1", "corpus.json").write_text(text)

        assert load_corpus(tmp_path / "train-1", ORIGINS) is None


class TestMakeCacheName:
    def test_name_depends_on_what_is_read_and_how(self, tmp_path: Path) -> None:
        def make(name: str, text: str, settings: object) -> str:
            file = tmp_path / name / "train.de"

            file.parent.mkdir(exist_ok=True)

            file.write_text(text)

            return make_cache_name("train", [file], settings)

        first = make("a", "text", {"max_len": 5, "path": Path("x")})

        assert first.startswith("train-")

        # The data has moved.
        assert make("b", "text", {"path": Path("x"), "max_len": 5}) == first

        assert make("a", "texT", {"max_len": 5, "path": Path("x")}) != first
        assert make("a", "text", {"max_len": 6, "path": Path("x")}) != first

    def test_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        file = tmp_path / "train.en"

        # Root may read all that can be read.
        file.symlink_to("/proc/self/mem")

        with pytest.raises(WarmupError, match="train.en` cannot be read"):
            make_cache_name("train", [file], None)
