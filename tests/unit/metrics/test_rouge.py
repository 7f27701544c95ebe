# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import importlib.util
import sys

import pytest

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import Measurement, MetricUnavailable
from warmup_plugin.metrics.registry import METRICS, MetricOptions
from warmup_plugin.metrics.rouge import RougeMetric, split_words

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")


def _measure(
    lang: str, hypotheses: list[str], references: list[str]
) -> dict[str, Measurement]:
    measurements = RougeMetric(lang).measure_one(hypotheses, [[r] for r in references])

    return {measurement.key: measurement for measurement in measurements}


class TestRougeMetric:
    def test_english_is_scored_as_by_rouge_score(self) -> None:
        hypotheses = ["The cats sat on the mat.", "", "Dogs barking loudly"]
        references = ["A cat sits on a mat", "A dog", "the dog barked loudly, twice"]

        scorer = rouge_scorer.RougeScorer(
            ["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True
        )

        expected = [scorer.score(r, h) for h, r in zip(hypotheses, references)]

        measurements = _measure("en-GB", hypotheses, references)

        assert list(measurements) == ["rouge1", "rouge2", "rougeL", "rougeLsum"]

        for key, measurement in measurements.items():
            scores = [100 * result[key].fmeasure for result in expected]

            assert measurement.sentence_scores() == pytest.approx(scores)
            assert measurement.score == pytest.approx(sum(scores) / 3)
            assert measurement.signature.startswith(
                "nrefs:1|f:1|tok:default|stem:porter|version:rouge-score-"
            )

        assert measurements["rouge1"].score > 0

    def test_scores_are_worked_by_hand(self) -> None:
        # Three words of four in common, of them "a b" as a pair; the order differs.
        measurements = _measure("de", ["a b x c"], ["c a b d"])

        scores = {key: m.score for key, m in measurements.items()}

        assert scores == {
            "rouge1": pytest.approx(75.0),
            "rouge2": pytest.approx(100 / 3),
            "rougeL": pytest.approx(50.0),
            "rougeLsum": pytest.approx(50.0),
        }

        assert "tok:words|stem:no" in measurements["rouge1"].signature

    def test_lsum_is_l_unless_there_are_line_feeds(self) -> None:
        one_line = _measure("en", ["b c a"], ["a b c"])

        assert one_line["rougeLsum"].score == one_line["rougeL"].score

        two_lines = _measure("en", ["b c\na"], ["a\nb c"])

        assert two_lines["rougeL"].score == one_line["rougeL"].score
        assert two_lines["rougeLsum"].score == pytest.approx(100.0)

    def test_lsum_joins_what_it_finds_of_each_line_of_the_reference(self) -> None:
        # 50 the other way around, the one of the four that is not symmetric.
        assert _measure("de", ["b b"], ["b\nb"])["rougeLsum"].score == 100.0

    @pytest.mark.parametrize(
        "lang,hypothesis,reference,rouge1",
        [
            # Characters: 4 of 6.
            ("zh-CN", "我喜欢吃苹果", "我喜欢吃香蕉", 100 * 4 / 6),
            # The default tokenizer would cut the word at its umlaut.
            ("de", "Größe Über", "große über", 50.0),
            # A vowel sign is a mark.
            ("hi", "हिन्दी भाषा", "हिन्दी", 100 * 2 / 3),
            # No spaces, so by letters.
            ("tha_Thai", "กขค", "กขง", 100 * 2 / 3),
        ],
    )
    def test_tokenizer_is_chosen_by_language(
        self, lang: str, hypothesis: str, reference: str, rouge1: float
    ) -> None:
        measurements = _measure(lang, [hypothesis], [reference])

        assert measurements["rouge1"].score == pytest.approx(rouge1)

    @pytest.mark.parametrize("lang,module", [("ja", "MeCab"), ("ko", "mecab_ko")])
    def test_init_names_extra_when_tokenizer_is_not_installed(
        self, lang: str, module: str
    ) -> None:
        if importlib.util.find_spec(module) is not None:
            pytest.skip(f"{module} is installed.")

        with pytest.raises(MetricUnavailable, match=rf"ROUGE .*'sacrebleu\[{lang}\]'"):
            RougeMetric(lang)

    def test_init_names_extra_when_package_is_not_installed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Makes the import raise `ImportError`.
        monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)

        with pytest.raises(MetricUnavailable, match=r"'warmup_plugin\[metrics\]'"):
            RougeMetric("en")

    def test_language_has_to_be_told(self) -> None:
        with pytest.raises(WarmupError, match="`rouge` needs `--target-lang`"):
            METRICS["rouge"].create(MetricOptions())


def test_split_words_keeps_words_of_any_script() -> None:
    assert split_words("L'été, «naïve»: 3,5 हिन्दी!\u2028x\ty") == [
        *("L", "été", "naïve", "3", "5", "हिन्दी", "x", "y")
    ]

    assert split_words("…") == []
