# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.labels import (
    AccuracyMetric,
    MacroF1Metric,
    read_label,
)
from warmup_plugin.metrics.registry import METRICS, MetricOptions
from warmup_plugin.metrics.resampling import resample_scores

_LABELS = ["A", "B", "C", "D"]

_GOLD = ["A", "A", "B", "C", "C"]

# Three right, one wrong, one invalid.
_ANSWERS = ["A", "B", "B", "C", "E"]


class TestReadLabel:
    @pytest.mark.parametrize(
        "text,label",
        [
            ("B", "B"),
            (" B\n", "B"),
            ("(B)", "B"),
            ("B. Because", "B"),
            ("[C] it", "C"),
            ("The answer is D.", "D"),
            ("Answer: A", "A"),
            ("the correct option is B", "B"),
            ("A man", None),
            ("b", None),
            ("BC", None),
            ("E", None),
            ("", None),
            ("Answer:", None),
            ("It is B", None),
            ("B。", "B"),
            ("B。因为甲不对", "B"),
            ("（B）", "B"),
            ("B：乙", "B"),
            ("答案是B", "B"),
            ("答案：B", "B"),
            ("正确答案为 B。", "B"),
            ("故选B", "B"),
            ("Ｂ", "B"),
            ("【B】", "B"),
            ("(B) A man.", "B"),
            ("B. A man", "B"),
            ("B. As A is wrong", "B"),
            ("B. B", "B"),
            # Several are no answer.
            ("A, B", None),
            ("A,B,C,D", None),
            ("A. B", None),
            ("A、B", None),
            ("A、B都对", None),
            ("A，B", None),
            ("A. B. C. D.", None),
            ("A, B and C", None),
            ("A and B", None),
            ("A和B", None),
            ("(A) (B)", None),
            ("(A), or (B)", None),
            ("A\nB", None),
            ("A: A, B", None),
            ("答案是A、C", None),
        ],
    )
    def test_label_stands_at_the_beginning(self, text: str, label: str | None) -> None:
        assert read_label(text, _LABELS) == label

    def test_longer_label_goes_before_its_beginning(self) -> None:
        assert read_label("yes, but: no", ["yes", "yes, but"]) == "yes, but"

    def test_word_that_is_a_label_may_go_on(self) -> None:
        assert read_label("yes, no doubt", ["yes", "no"]) == "yes"
        assert read_label("yes, no", ["yes", "no"]) is None

    def test_labels_of_full_width_are_themselves(self) -> None:
        assert read_label("（Ａ）", ["Ａ", "Ｂ"]) == "Ａ"


class TestAccuracyMetric:
    def test_score_is_share_of_right_answers(self) -> None:
        [measurement] = AccuracyMetric(_LABELS).measure_one(
            _ANSWERS, [[g] for g in _GOLD]
        )

        assert measurement.score == 60.0
        assert measurement.score == 100 * accuracy_score(_GOLD, _ANSWERS)
        assert (
            measurement.signature
            == "nrefs:1|labels:A,B,C,D|answer:leading|invalid:wrong"
        )

        scores = measurement.sentence_scores()

        assert scores is not None and scores.tolist() == [100, 0, 100, 100, 0]

    def test_invalid_answers_are_counted(self) -> None:
        answers = ["a", "A man", "AB", "", "A man"]

        [measurement] = AccuracyMetric(_LABELS).measure_one(
            answers, [[g] for g in _GOLD]
        )

        assert measurement.score == 0.0
        assert measurement.details["num_invalid"] == 5

        # The most frequent one first.
        assert measurement.details["invalid_examples"] == ["A man", "a", "AB"]

    def test_space_around_answers_is_no_part_of_them(self) -> None:
        [measurement] = AccuracyMetric(["A", " B"]).measure_one([" A\t"], [["A "]])

        assert measurement.score == 100.0
        assert measurement.details["num_invalid"] == 0

    @pytest.mark.parametrize("gold", ["E", "", "a"])
    def test_call_raises_error_when_reference_is_no_label(self, gold: str) -> None:
        with pytest.raises(
            WarmupError, match=f"Reference 2 is `{gold}`, .* labels A, B, C, D; correct"
        ):
            AccuracyMetric(_LABELS).measure_one(["A", "A"], [["A"], [gold]])

    @pytest.mark.parametrize("labels", [["A"], ["A", ""], ["A", "B", "A "]])
    def test_init_raises_error_when_labels_are_wrong(
        self, labels: Sequence[str]
    ) -> None:
        with pytest.raises(WarmupError, match="The labels must be two or more"):
            AccuracyMetric(labels)


class TestMacroF1Metric:
    def test_score_is_worked_by_hand(self) -> None:
        [measurement] = MacroF1Metric(_LABELS).measure_one(
            _ANSWERS, [[g] for g in _GOLD]
        )

        # 2 TP / (gold + answers): A 2/3, B 2/3, C 2/3, and D, which nobody has, 0.
        assert measurement.score == pytest.approx(100 * (3 * 2 / 3) / 4)
        assert measurement.details["num_invalid"] == 1
        assert measurement.sentence_scores() is None
        assert measurement.signature == (
            "nrefs:1|labels:A,B,C,D|answer:leading|invalid:wrong"
        )

    def test_label_set_is_fixed(self) -> None:
        [measurement] = MacroF1Metric(_LABELS[:3]).measure_one(
            _ANSWERS, [[g] for g in _GOLD]
        )

        assert measurement.score == pytest.approx(100 * 2 / 3)

    def test_scores_of_resamples_are_those_of_scikit_learn(self) -> None:
        rng = random.Random(0)

        # Small enough for labels without gold and without answers.
        gold = rng.choices(_LABELS, k=5)
        answers = rng.choices([*_LABELS, "?"], k=5)

        [measurement] = MacroF1Metric(_LABELS).measure_one(answers, [[g] for g in gold])

        [scores] = resample_scores([measurement], 20, seed=1)

        for score, drawn in zip(scores, _draw(20, 5, seed=1), strict=True):
            expected = f1_score(
                [gold[n] for n in drawn],
                [answers[n] for n in drawn],
                labels=_LABELS,
                average="macro",
                zero_division=0,
            )

            assert score == pytest.approx(100 * expected)

        assert len(set(scores)) > 5


def _draw(num_samples: int, num_sentences: int, *, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)

    drawn: list[list[int]] = rng.choice(
        num_sentences, size=(num_samples, num_sentences)
    ).tolist()

    return drawn


@pytest.mark.parametrize("name", ["accuracy", "macro_f1"])
def test_labels_have_to_be_told(name: str) -> None:
    with pytest.raises(WarmupError, match="need all labels; .*`--labels A,B,C,D`"):
        METRICS[name].create(MetricOptions())
