# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

from tests.unit.data.words import (
    WordCodec,
    make_pairs,
)
from warmup_plugin.data.corpus import (
    Corpus,
    join_corpora,
    put_behind,
    put_into_decoder,
)
from warmup_plugin.data.tokenizing import tokenize_pairs


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

        assert again.digest == behind.digest != corpus.digest


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
        assert put(1).digest == joined.digest != corpus.digest

        # Another direction learns all of its targets.
        both = join_corpora({"a-b": joined, "c-d": other})

        assert both.given_lens is not None
        assert both.given_lens.tolist() == [0, 3, 0, 0, 0, 0]
