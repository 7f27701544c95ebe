# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from typing_extensions import override

from tests.unit.data.words import (
    PAD_IDX,
    WordCodec,
    make_pairs,
)
from warmup_plugin import cores
from warmup_plugin.cores import count_cores
from warmup_plugin.data import tokenizing
from warmup_plugin.data.corpus import (
    Corpus,
    CorpusReport,
    TokenSeqs,
)
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.data.tokenizing import (
    count_processes,
    encode_sources,
    tokenize_pairs,
)
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


LONG_SECONDS: Final = 300.0
"""Only a test that fails waits for so long."""


class Stop(Exception):
    pass


class TestTokenizeInProcesses:
    @pytest.fixture(autouse=True)
    def share_small_splits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tokenizing, "_LEAST_PAIRS", 2)

    def test_equals_one_process(self, tmp_path: Path) -> None:
        rows = [("a" * (n % 5), "b " * (n % 7)) for n in range(23)]

        pairs = make_pairs(tmp_path, rows)

        codec = _PidCodec()

        def tokenize(num_processes: int) -> Corpus:
            return tokenize_pairs(
                pairs,
                codec,
                max_source_len=9,
                max_target_len=6,
                max_pairs=21,
                num_processes=num_processes,
            )

        one, several = tokenize(1), tokenize(4)

        assert several.report == one.report

        assert one.report.num_empty > 0 and one.report.num_too_long > 0

        np.testing.assert_array_equal(several.indices, one.indices)

        # The first token is the process; its number stands in for all that a target is.
        pids = {int(several.targets[row][1]) for row in range(len(several))}

        # One of the four has nothing that is kept.
        assert len(pids) == 3 and os.getpid() % 100_000 not in pids

        for row in range(len(one)):
            assert several.sources[row].tolist() == one.sources[row].tolist()

            assert several.targets[row][2:].tolist() == one.targets[row][2:].tolist()

    def test_raises_error_of_process(self, tmp_path: Path) -> None:
        def fail(text: str) -> None:
            if text == "bad":
                raise WarmupError("`bad` cannot be read.")

        with pytest.raises(WarmupError, match=r"^`bad` cannot be read\.$"):
            self._tokenize(tmp_path, fail)

        assert not multiprocessing.active_children()

    def test_raises_error_that_cannot_be_sent(self, tmp_path: Path) -> None:
        class LocalError(Exception):
            pass

        def fail(text: str) -> None:
            raise LocalError(text)

        with pytest.raises(RuntimeError, match="LocalError"):
            self._tokenize(tmp_path, fail)

    def test_raises_error_when_process_is_killed(self, tmp_path: Path) -> None:
        def fail(text: str) -> None:
            if text == "bad":
                os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(WarmupError, match="was ended from outside"):
            self._tokenize(tmp_path, fail)

    def test_ends_when_first_process_is_gone(self) -> None:
        receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)

        class Job:
            def encode(self, begin: int, end: int) -> bytes:
                return bytes(1 << 20)

        # As in a copy of the first process: nobody else would read.
        tokenizing._encode_and_send(Job(), 0, 1, sender, [receiver])  # type: ignore[arg-type]

        assert receiver.closed

    def test_raises_error_when_no_process_can_be_started(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fork() -> int:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        monkeypatch.setattr(os, "fork", fork)

        with pytest.raises(WarmupError, match="No process .* temporarily unavailable"):
            self._tokenize(tmp_path, lambda text: None)

    def test_process_ends_soon_when_first_process_is_killed(
        self, tmp_path: Path
    ) -> None:
        def wait(text: str) -> None:
            if text == "bad":
                os.kill(os.getppid(), signal.SIGKILL)

                time.sleep(60)

        # Until all are gone somebody could write.
        receiver, sender = os.pipe()

        first = multiprocessing.get_context("fork").Process(
            target=self._tokenize, args=(tmp_path, wait)
        )

        first.start()

        os.close(sender)

        begin = time.monotonic()

        with open(receiver, "rb") as stream:
            assert stream.read() == b""

        first.join()

        assert first.exitcode == -signal.SIGKILL

        assert time.monotonic() - begin < 30

    def test_processes_leave_signals_to_first_one(self, tmp_path: Path) -> None:
        def send(text: str) -> None:
            if text == "bad":
                for signum in (signal.SIGINT, signal.SIGTERM):
                    os.kill(os.getpid(), signum)

        self._tokenize(tmp_path, send)

    def test_raises_error_when_process_is_killed_while_it_sends(self) -> None:
        receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)

        # The length of what is to follow, and too little of it.
        os.write(sender.fileno(), bytes([0, 0, 0, 16, 1]))

        sender.close()

        with receiver:
            result = tokenizing._receive(receiver)

        assert isinstance(result, WarmupError)

    def test_stops_between_pairs_when_told_to(self, tmp_path: Path) -> None:
        pairs = make_pairs(tmp_path, [("a", "b")] * 9)

        texts: list[str] = []

        def check_stop() -> None:
            if len(texts) == 3:
                raise Stop()

        with pytest.raises(Stop):
            tokenize_pairs(
                pairs,
                _PidCodec(texts.append),
                max_source_len=9,
                max_target_len=9,
                check_stop=check_stop,
            )

        assert len(texts) == 3

    def test_stops_and_ends_processes_when_told_to(self, tmp_path: Path) -> None:
        def wait(text: str) -> None:
            # For ever, were it not ended.
            threading.Event().wait(LONG_SECONDS)

        num_checks = 0

        def check_stop() -> None:
            nonlocal num_checks

            num_checks += 1

            # It looks again and again.
            if num_checks == 3:
                raise Stop()

        with pytest.raises(Stop):
            self._tokenize(tmp_path, wait, check_stop)

        assert not multiprocessing.active_children()

    def _tokenize(
        self,
        tmp_path: Path,
        act: Callable[[str], None],
        check_stop: Callable[[], None] = lambda: None,
    ) -> None:
        pairs = make_pairs(tmp_path, [("a", "b"), ("a", "b"), ("a", "b"), ("bad", "b")])

        tokenize_pairs(
            pairs,
            _PidCodec(act),
            max_source_len=9,
            max_target_len=9,
            num_processes=2,
            check_stop=check_stop,
        )


class _PidCodec(WordCodec):
    """Begins targets with the number of the process; also does what it is told to."""

    def __init__(self, act: Callable[[str], None] = lambda text: None) -> None:
        super().__init__()

        self._act = act

    @override
    def encode_source(self, source: str) -> EncodedText:
        self._act(source)

        return super().encode_source(source)

    @override
    def encode_target(self, target: str) -> list[int]:
        return [os.getpid() % 100_000, *super().encode_target(target)]


def test_count_processes_shares_cores() -> None:
    num_cores = count_cores()

    assert count_processes() == num_cores
    assert count_processes(num_cores) == 1
    assert count_processes(10 * num_cores) == 1


def test_count_processes_knows_limit_of_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(cores, "find_cpu_quota", lambda root: 6.0)

    assert count_processes() == 6
    assert count_processes(2) == 3
