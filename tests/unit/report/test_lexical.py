# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import pytest

from warmup_plugin.report.lexical import (
    WarmupText,
    analyze_draws,
    analyze_warmups,
    count_overlap,
    count_repeated,
    find_words,
    locate_shared_words,
    measure_longest_copy,
    split_words,
)
from warmup_plugin.runs.records import Draw


class TestFindWords:
    @pytest.mark.parametrize(
        "text,words",
        [
            ("", []),
            ("  .  – \u200b ", []),
            ("Ein Mann, schläft!", ["ein", "mann", "schläft"]),
            ("“It's” (over-done)", ["it's", "over-done"]),
            ("STRASSE Straße", ["strasse", "strasse"]),
            # The same letter, composed and not.
            ("\u00e4 a\u0308", ["\u00e4", "\u00e4"]),
            # A vowel sign of Devanagari is no punctuation.
            ("हिन्दी।", ["हिन्दी"]),
            ("我爱北京。", ["我", "爱", "北", "京"]),
            ("用GPT-4翻译，好", ["用", "gpt-4", "翻", "译", "好"]),
            ("カタカナ と", ["カ", "タ", "カ", "ナ", "と"]),
            ("한국어 문장", ["한국어", "문장"]),
            ("a\u2028b\tc", ["a", "b", "c"]),
        ],
    )
    def test_call_splits_text(self, text: str, words: list[str]) -> None:
        assert split_words(text) == words

    def test_call_tells_where_words_stand(self) -> None:
        text = "(Straße) 好吗"

        found = [text[word.begin : word.end] for word in find_words(text)]

        assert found == ["Straße", "好", "吗"]


class TestCounts:
    def test_overlap_counts_repeated_ngrams(self) -> None:
        warmup = ["a", "b", "a", "b", "x"]

        assert count_overlap(warmup, ["b", "a", "c"], 1) == (4, 5)

        # ab, ba, ab, bx
        assert count_overlap(warmup, ["b", "a", "c"], 2) == (1, 4)
        assert count_overlap(["a"], ["a"], 2) == (0, 0)

    def test_longest_copy_has_no_gap(self) -> None:
        assert measure_longest_copy(["a", "b", "c", "d"], ["x", "b", "c", "a"]) == 2
        assert measure_longest_copy(["a", "b", "c"], ["a", "x", "b", "x", "c"]) == 1
        assert measure_longest_copy(["a", "a"], ["a"]) == 1
        assert measure_longest_copy([], ["a"]) == 0
        assert measure_longest_copy(["a"], []) == 0

    def test_repeated_words_are_those_after_the_first(self) -> None:
        assert count_repeated(["eine", "gruppe", "eine", "gruppe"]) == 2
        assert count_repeated([]) == 0

    def test_shared_words_are_divided_among_their_places(self) -> None:
        places = locate_shared_words(["a", "a", "c", "z"], ["a", "b", "a", "c"])

        # The middles of four words; `a` counts once, at two places.
        assert places == [(0.125, 0.5), (0.625, 0.5), (0.875, 1.0)]


class TestAnalyzeWarmups:
    def test_call_matches_counts_by_hand(self) -> None:
        texts = [
            WarmupText("Ein Hund", "A dog", "Ein Hund rennt", "Ein Hund läuft weg"),
            WarmupText("dog a", "a dog", "", "Hund"),
            WarmupText("Ein Hund", "x", "Hund Ein", "Ein"),
            WarmupText(" ", "x", "y", "z"),
        ]

        analysis = analyze_warmups(texts)

        assert analysis.num_warmups == 4
        assert analysis.num_empty == 1
        assert analysis.empty == 0.25
        # `Ein Hund`, `dog a` and the empty one
        assert analysis.num_distinct == 3
        assert analysis.distinct == 0.75
        assert analysis.most_frequent == [("Ein Hund", 2)]
        assert analysis.lengths == [2, 2, 2, 0]
        assert analysis.mean_length == 1.5
        assert analysis.repeated == 0.0

        # Of six words: `dog a`
        assert analysis.overlaps["source", 1] == pytest.approx(2 / 6)
        # `Ein Hund` and `Ein Hund`
        assert analysis.overlaps["output", 1] == pytest.approx(4 / 6)
        # `Ein Hund` and `Ein`
        assert analysis.overlaps["reference", 1] == pytest.approx(3 / 6)
        # Two lines on: `Ein` in the first line, `Ein Hund` in the third
        assert analysis.overlaps["other reference", 1] == pytest.approx(3 / 6)

        # Of three bigrams
        assert analysis.overlaps["source", 2] == 0.0
        assert analysis.overlaps["output", 2] == pytest.approx(1 / 3)
        assert analysis.overlaps["reference", 2] == pytest.approx(1 / 3)
        assert analysis.overlaps["other reference", 2] == pytest.approx(1 / 3)

        # (0/2 + 1/2 + 0/2) / 3
        assert analysis.copied["source"] == pytest.approx(1 / 6)
        # (2/2 + 0 + 1/2) / 3
        assert analysis.copied["output"] == pytest.approx(1 / 2)
        assert analysis.copied["reference"] == pytest.approx(1 / 2)

        # Of four words the first two; of one word the only one: 1/8, 3/8, 1/2
        assert analysis.mean_position == pytest.approx((0.125 + 0.375 + 0.5) / 3)

        expected = [0.0] * 10
        expected[1] = expected[3] = expected[5] = 1 / 3

        assert analysis.positions == pytest.approx(expected)

    def test_call_leaves_out_what_cannot_be_divided(self) -> None:
        for texts in ([], [WarmupText("", "", "", "")]):
            analysis = analyze_warmups(texts)

            assert analysis.num_warmups == len(texts)
            assert analysis.repeated is None
            assert analysis.overlaps["reference", 1] is None
            assert analysis.copied["output"] is None
            assert analysis.positions == []
            assert analysis.mean_position is None

    def test_call_knows_no_other_line_of_one(self) -> None:
        analysis = analyze_warmups([WarmupText("a", "a", "a", "a")])

        assert analysis.overlaps["reference", 1] == 1.0
        assert analysis.overlaps["other reference", 1] is None


def make_draw(warmup: str, weight: float, count: int = 1) -> Draw:
    return Draw(warmup, None, None, weight, count)


class TestAnalyzeDraws:
    def test_call_matches_counts_by_hand(self) -> None:
        lines = [
            (
                [
                    make_draw("a b", 0.2, 2),
                    make_draw("x", 0.6),
                    make_draw("a  B", 0.1),
                    make_draw("", 0.1),
                ],
                "A c",
            ),
            ([make_draw("c", 1.0)], "c"),
            ([], "c"),
        ]

        analysis = analyze_draws(lines)

        assert analysis.num_draws == 6
        # (4/5 + 1) / 2
        assert analysis.distinct == pytest.approx(0.9)
        # Those with words: 1/2 twice, 0, 1/2; then the second line
        assert analysis.overlap == pytest.approx((1.5 / 4 + 1) / 2)
        # (0.2 / 2 + 0.1 / 2) / (0.2 + 0.6 + 0.1)
        assert analysis.weighted_overlap == pytest.approx((0.15 / 0.9 + 1) / 2)

    def test_call_leaves_out_lines_without_words(self) -> None:
        analysis = analyze_draws([([make_draw("", 0.5), make_draw(" ", 0.5)], "a")])

        assert analysis.distinct == 0.5
        assert analysis.overlap is None
        assert analysis.weighted_overlap is None
