# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import pytest

from warmup_plugin.report.sentences import build_sentence, mark_by_run, mark_words
from warmup_plugin.runs.records import Draw, Hypothesis, ScoredPair, Translation


class TestMarkWords:
    @pytest.mark.parametrize(
        "text,known,parts",
        [
            ("", {"a"}, []),
            ("nothing here", {"a"}, ["nothing here"]),
            ("Ein Mann", {"ein"}, ["", "Ein", " Mann"]),
            ("Der Mann, der geht.", {"der"}, ["", "Der", " Mann, ", "der", " geht."]),
            # Punctuation between marked words is not marked, white space is.
            ("ein Mann, geht", {"ein", "mann", "geht"}, ["", "ein Mann", ", ", "geht"]),
            ("你好吗", {"好"}, ["你", "好", "吗"]),
            ("a <b> c", {"b"}, ["a <", "b", "> c"]),
        ],
    )
    def test_call_marks_every_second_part(
        self, text: str, known: set[str], parts: list[str]
    ) -> None:
        assert mark_words(text, known) == parts
        assert "".join(parts) == text

    def test_call_by_run_sets_one_bit_a_run(self) -> None:
        parts = mark_by_run("Ein Mann schläft.", [{"ein"}, {"ein", "mann"}, set()])

        assert parts == [("Ein", 3), (" ", 0), ("Mann", 2), (" schläft.", 0)]


class TestBuildSentence:
    def test_call_keeps_what_the_browser_shows(self) -> None:
        best = Hypothesis("Der Mann", "Der Mann.", -0.5, -3.0, -1.0, -2.0, None)
        other = Hypothesis("Ein", "Ein Mann.", -0.6, -4.0, None, None, 0.25)

        pair = ScoredPair(
            "A man.",
            4,
            -9.0,
            -8.1234567,
            0.8765433,
            1.6,
            [Draw("x", -1.0, -9.0, 0.25, 1), Draw("Mann", -2.0, None, 0.75, 3)],
        )

        sentence = build_sentence(
            7,
            "Ein Mann.",
            [None, Translation("A man.", best, [best, other])],
            [None, 12.3456],
            [None, pair],
        )

        output = {
            "t": "Der Mann.",
            "c": ["Der ", "Mann"],
            "s": -0.5,
            "p": -3.0,
            "a": -1.0,
            "b": -2.0,
        }

        assert sentence == {
            "n": 7,
            "s": "A man.",
            "l": 2,
            "r": [("Ein ", 0), ("Mann", 2), (".", 0)],
            "o": [
                None,
                {
                    **output,
                    "f": 12.35,
                    "h": [
                        output,
                        {
                            "t": "Ein Mann.",
                            "c": ["", "Ein"],
                            "s": -0.6,
                            "p": -4.0,
                            "w": 0.25,
                        },
                    ],
                    "k": {
                        "y": -9.0,
                        "m": -8.123,
                        "g": 0.877,
                        "e": 1.6,
                        # By weight.
                        "d": [
                            {
                                "c": ["", "Mann"],
                                "a": -2.0,
                                "b": None,
                                "w": 0.75,
                                "n": 3,
                            },
                            {"c": ["x"], "a": -1.0, "b": -9.0, "w": 0.25, "n": 1},
                        ],
                    },
                },
            ],
        }

    def test_call_leaves_out_what_is_not_there(self) -> None:
        best = Hypothesis(None, "out", None, None, None, None, None)

        sentence = build_sentence(
            1, "ref", [Translation("in", best, [best])], [1.0], [None]
        )

        assert sentence["o"] == [{"t": "out", "f": 1.0}]
