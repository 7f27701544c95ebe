# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence

import pytest

from warmup_plugin.data.preparation import filters
from warmup_plugin.data.preparation.filters import FilterConfig, PairFilter
from warmup_plugin.data.preparation.text import HeldOutText
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.language_id import LanguageIdentifier


def make_identifier(seen: list[str]) -> LanguageIdentifier:
    """Takes the first word of a text for the code of its language."""

    def identify(text: str) -> str:
        seen.append(text)

        return text.split()[0]

    return LanguageIdentifier("first word", identify)


def run(
    pairs: Sequence[tuple[str, str]],
    config: FilterConfig | None = None,
    *,
    held_out: Sequence[str] = (),
    identifier: LanguageIdentifier | None = None,
) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """Returns the pairs kept and, of the counts, those that are not zero."""
    held_out_text = HeldOutText()

    pair_filter = PairFilter(
        config or FilterConfig(),
        "en",
        "de",
        held_out=held_out_text,
        identifier=identifier,
    )

    # As in use: what is held out is read after the filter was made.
    for text in held_out:
        held_out_text.add(text)

    kept = list(pair_filter.filter(pairs))

    return kept, {name: num for name, num in pair_filter.counts().items() if num}


class TestPairFilter:
    def test_filter_cleans_and_keeps_good_pairs(self) -> None:
        kept, counts = run([(" a \u2028b", "x  y\t"), ("c", "z")])

        assert kept == [("a b", "x y"), ("c", "z")]
        assert counts == {"pairs read": 2, "pairs kept": 2}

    @pytest.mark.parametrize(
        ("pair", "reason"),
        [
            (("", "x"), "an empty side"),
            (("a", " \t"), "an empty side"),
            (("a " * 251, "x " * 251), "too short or too long"),
            (("a a a a", "x"), "sides of very different length"),
            (("a", "x x x x"), "sides of very different length"),
            (("a b", "a  b"), "target is a copy of the source"),
        ],
    )
    def test_filter_drops_bad_pair(self, pair: tuple[str, str], reason: str) -> None:
        kept, counts = run([pair])

        assert kept == []
        assert counts == {"pairs read": 1, f"dropped: {reason}": 1}

    @pytest.mark.parametrize("blank", ["\u200b", "\ufeff\u200b", "\u200e", "\x01"])
    def test_filter_drops_side_that_shows_nothing(self, blank: str) -> None:
        filter_ = PairFilter(FilterConfig(), "en", "de")

        pairs = [(blank, "drei Worte hier"), ("three words here", blank)]

        assert list(filter_.filter(pairs)) == []

        assert filter_.counts()["dropped: an empty side"] == 2

    def test_filter_keeps_pairs_at_the_limits(self) -> None:
        pairs = [("a " * 250, "x " * 250), ("a a a", "x")]

        assert run(pairs)[1] == {"pairs read": 2, "pairs kept": 2}

    def test_filter_follows_config(self) -> None:
        config = FilterConfig(
            min_len=2, max_len=3, max_ratio=1.0, keep_identical=True, duplicates="none"
        )

        kept, _ = run(
            [
                ("a b", "a b"),
                ("a b", "a b"),
                ("a", "x"),
                ("a b c d", "w x y z"),
                ("a b", "x y z"),
            ],
            config,
        )

        assert kept == [("a b", "a b"), ("a b", "a b")]

    def test_filter_drops_held_out_sentences_of_either_side(self) -> None:
        kept, counts = run(
            [
                ("This is a test.", "Das hier"),
                ("Something", "EIN TEST!"),
                ("this is a test", "ein Test"),
                ("This is another test.", "Noch ein Test"),
            ],
            held_out=["This is a test", "Ein Test."],
        )

        assert kept == [("This is another test.", "Noch ein Test")]
        assert counts == {
            "pairs read": 4,
            "dropped: occurs in a held-out set": 3,
            "- by its source": 2,
            "- by its target": 2,
            "pairs kept": 1,
        }

    @pytest.mark.parametrize(
        ("duplicates", "expected"),
        [
            ("pair", [0, 1, 2, 4]),
            ("source", [0, 2, 4]),
            ("target", [0, 1]),
            ("either", [0]),
            ("none", [0, 1, 2, 3, 4]),
        ],
    )
    @pytest.mark.parametrize("batch_size", [1, 2, 100])
    def test_filter_drops_duplicates(
        self,
        monkeypatch: pytest.MonkeyPatch,
        duplicates: str,
        expected: list[int],
        batch_size: int,
    ) -> None:
        monkeypatch.setattr(filters, "_BATCH_SIZE", batch_size)

        pairs = [("a", "x"), ("a", "y"), ("b", "x"), ("a", " x "), ("c", "y")]

        kept, counts = run(pairs, FilterConfig(duplicates=duplicates))

        stripped = [(source, target.strip()) for source, target in pairs]

        assert kept == [stripped[idx] for idx in expected]
        assert counts.get("dropped: duplicate", 0) == 5 - len(expected)

    def test_filter_remembers_earlier_calls(self) -> None:
        pair_filter = PairFilter(FilterConfig(), "en", "de")

        assert list(pair_filter.filter([("a", "x")])) == [("a", "x")]
        assert list(pair_filter.filter([("a", "x"), ("b", "y")])) == [("b", "y")]

    def test_filter_drops_other_languages(self) -> None:
        seen: list[str] = []

        identifier = make_identifier(seen)

        config = FilterConfig(language_id_min_len=2)

        pairs = [
            ("en a", "de x"),
            ("de b", "de y"),
            ("en c", "fr z"),
            # Too short to tell.
            ("fr", "fr"),
            ("fr", "de w"),
        ]

        kept, counts = run(pairs, config, identifier=identifier)

        assert kept == [("en a", "de x"), ("fr", "de w")]
        assert counts["dropped: another language"] == 2
        assert len(seen) == 6

    def test_filter_identifies_only_what_is_left(self) -> None:
        seen: list[str] = []

        identifier = make_identifier(seen)

        config = FilterConfig(language_id_min_len=1)

        run([("en a", "de x")] * 3, config, identifier=identifier)

        assert len(seen) == 2

    def test_describe_tells_all_settings(self) -> None:
        pair_filter = PairFilter(
            FilterConfig(max_len=9), "en", "de", identifier=make_identifier([])
        )

        assert pair_filter.describe() == {
            "source_lang": "en",
            "target_lang": "de",
            "min_len": 1.0,
            "max_len": 9,
            "max_ratio": 3.0,
            "keep_identical": False,
            "duplicates": "pair",
            "language_id_min_len": 6.0,
            "language_id": "first word",
        }


class TestFilterConfig:
    @pytest.mark.parametrize(
        ("config", "text"),
        [
            (FilterConfig(min_len=5, max_len=4), "`--min-len` 5 and `--max-len` 4"),
            (FilterConfig(max_len=0.5), "`--max-len` 0.5"),
            (FilterConfig(max_ratio=0.5), "`--max-ratio` must be at least 1"),
            (FilterConfig(duplicates="both"), "`--duplicates` must be one of `pair`"),
        ],
    )
    def test_check_refuses_nonsense(self, config: FilterConfig, text: str) -> None:
        with pytest.raises(WarmupError, match=text):
            config.check()
