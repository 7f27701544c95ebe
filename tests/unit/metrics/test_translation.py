# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import Comparison
from warmup_plugin.metrics.registry import MetricOptions
from warmup_plugin.metrics.tables import to_json
from warmup_plugin.metrics.translation import (
    MetricScore,
    check_validation_metrics,
    evaluate_systems,
    score_translations,
)

_REFERENCES = [f"the cat number {i} sits on the red mat" for i in range(40)]

# Every second sentence is wrong.
_HALF = [
    line if i % 2 == 0 else "a dog stood there" for i, line in enumerate(_REFERENCES)
]

_WRONG = ["a dog stood there"] * 40


def _score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    target_lang: str | None = None,
    num_bootstrap: int = 0,
    seed: int = 12345,
) -> tuple[MetricScore, MetricScore]:
    bleu, chrf = score_translations(
        hypotheses,
        references,
        options=MetricOptions(target_lang=target_lang),
        num_bootstrap=num_bootstrap,
        seed=seed,
    )

    return bleu, chrf


class TestScoreTranslations:
    def test_call_returns_100_when_hypotheses_are_references(self) -> None:
        bleu, chrf = _score(_REFERENCES, _REFERENCES)

        assert bleu.name == "BLEU"
        assert bleu.score == pytest.approx(100.0)
        assert chrf.name == "chrF2++"
        assert chrf.score == pytest.approx(100.0)
        assert bleu.num_sentences == chrf.num_sentences == 40

    def test_call_matches_bleu_worked_by_hand(self) -> None:
        bleu, _ = _score(["a b c d e"], ["a b c d f"])

        # Precisions 4/5, 3/4, 2/3, 1/2; no brevity penalty. Their product is 1/5.
        assert bleu.score == pytest.approx(100 * (1 / 5) ** 0.25)

    def test_call_penalises_brevity(self) -> None:
        bleu, _ = _score(["a b c d"], ["a b c d e"])

        assert bleu.score == pytest.approx(100 * math.exp(1 - 5 / 4))

    def test_call_keeps_signatures(self) -> None:
        bleu, chrf = _score(_REFERENCES, _REFERENCES)

        assert "nrefs:1" in bleu.signature
        assert "tok:13a|smooth:exp|version:" in bleu.signature
        assert "nc:6|nw:2|" in chrf.signature

    @pytest.mark.parametrize("lang", ["zh", "zh-CN", "zho_Hans"])
    def test_call_uses_chinese_tokenizer(self, lang: str) -> None:
        # Without spaces, 13a finds one wrong word.
        hypotheses, references = ["我喜欢吃苹果"], ["我喜欢吃香蕉"]

        bleu, _ = _score(hypotheses, references, lang)

        # Characters: precisions 4/6, 3/5, 2/4, 1/3.
        assert bleu.score == pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 / 3) ** 0.25)
        assert "tok:zh" in bleu.signature

        bleu, _ = _score(hypotheses, references, "de")

        assert bleu.score == 0.0

    @pytest.mark.parametrize("lang,extra", [("ja", "ja"), ("kor_Hang", "ko")])
    def test_call_names_extra_when_tokenizer_is_not_installed(
        self, lang: str, extra: str
    ) -> None:
        module = {"ja": "MeCab", "ko": "mecab_ko"}[extra]

        if importlib.util.find_spec(module) is not None:
            pytest.skip(f"{module} is installed.")

        with pytest.raises(WarmupError, match=rf"pip install 'sacrebleu\[{extra}\]'"):
            _score(["a"], ["a"], lang)

    def test_call_has_no_interval_when_num_bootstrap_is_zero(self) -> None:
        bleu, chrf = _score(_HALF, _REFERENCES)

        assert bleu.ci_low is bleu.ci_high is chrf.ci_low is chrf.ci_high is None

    def test_interval_contains_score(self) -> None:
        for score in _score(_HALF, _REFERENCES, num_bootstrap=200):
            assert score.ci_low is not None and score.ci_high is not None
            assert score.score is not None

            assert score.ci_low < score.score < score.ci_high

            # Half of 40 sentences are right: the interval is wide, but no guess.
            assert 5 < score.ci_high - score.ci_low < 60

    def test_interval_is_point_when_sentences_are_alike(self) -> None:
        bleu, _ = _score(["a b c d e"] * 8, ["a b c d f"] * 8, num_bootstrap=20)

        assert bleu.ci_low == pytest.approx(bleu.score)
        assert bleu.ci_high == pytest.approx(bleu.score)

    def test_interval_depends_on_seed_alone(self) -> None:
        first = _score(_HALF, _REFERENCES, num_bootstrap=50)

        assert _score(_HALF, _REFERENCES, num_bootstrap=50) == first

        assert _score(_HALF, _REFERENCES, num_bootstrap=50, seed=1) != first

    def test_call_raises_when_numbers_of_lines_differ(self) -> None:
        with pytest.raises(WarmupError, match="2 hypotheses but the references of 3"):
            _score(["a", "b"], ["a", "b", "c"])

    def test_call_raises_when_there_is_nothing_to_score(self) -> None:
        with pytest.raises(WarmupError, match="0 hypotheses and 0 references"):
            _score([], [])

    @pytest.mark.parametrize(
        "hypotheses,references,message",
        [
            ("a b", ["a", " ", "b"], "The hypotheses must be a flat list"),
            (["a", "b"], "ab", "The references must be a list"),
            (["a", "b"], ["a", []], "The references of sentence 2 must be"),
            (["a"], [[["a"]]], "The references of sentence 1 must be"),
        ],
    )
    def test_call_raises_when_lists_are_wrong(
        self, hypotheses: Any, references: Any, message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            score_translations(hypotheses, references)

    def test_call_raises_when_num_bootstrap_is_negative(self) -> None:
        with pytest.raises(WarmupError, match="`num_bootstrap` must be"):
            _score(["a"], ["a"], num_bootstrap=-1)

    def test_call_raises_error_when_a_score_would_be_missing(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Makes the import raise `ImportError`.
        monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)

        with pytest.raises(WarmupError, match="rouge-score, which is not installed"):
            score_translations(
                ["a"], ["a"], metrics=["rouge"], options=MetricOptions(target_lang="en")
            )

    def test_call_scores_by_other_metrics(self) -> None:
        ter, accuracy = score_translations(
            ["A", "B"],
            ["A", "A"],
            metrics=["ter", "accuracy"],
            options=MetricOptions(labels=["A", "B"]),
        )

        assert (ter.key, ter.score, ter.higher_is_better) == ("ter", 50.0, False)
        assert (accuracy.key, accuracy.score) == ("accuracy", 50.0)


def _compare(
    baseline: Sequence[str],
    systems: Mapping[str, Sequence[str]],
    num_bootstrap: int = 100,
    num_randomization: int = 200,
    paired_bootstrap: bool = False,
    metrics: Sequence[str] = ("bleu", "chrf"),
) -> Sequence[Comparison]:
    return evaluate_systems(
        {"base": baseline, **systems},
        _REFERENCES,
        metrics=metrics,
        num_bootstrap=num_bootstrap,
        num_randomization=num_randomization,
        paired_bootstrap=paired_bootstrap,
    ).comparisons


class TestEvaluateSystems:
    def test_p_value_is_one_when_systems_are_the_same(self) -> None:
        comparisons = _compare(
            _HALF,
            {"same": list(_HALF)},
            num_randomization=50,
            paired_bootstrap=True,
            metrics=["bleu", "chrf", "ter"],
        )

        assert [c.key for c in comparisons] == ["bleu", "chrf", "ter"]
        assert [c.p_value for c in comparisons] == [1.0] * 3
        assert [c.bootstrap_p_value for c in comparisons] == [1.0] * 3

    def test_p_value_is_small_when_system_is_much_better(self) -> None:
        bleu, chrf = _compare(_WRONG, {"right": _REFERENCES}, paired_bootstrap=True)

        assert (bleu.system, bleu.metric, bleu.key) == ("right", "BLEU", "bleu")
        assert bleu.score == pytest.approx(100.0)
        assert bleu.baseline_score < 5
        assert "ar:200" in bleu.signature and "seed:12345" in bleu.signature

        # No trial differs by as much: 1 / (200 + 1).
        assert bleu.p_value == chrf.p_value == pytest.approx(1 / 201)

        assert bleu.bootstrap_p_value == pytest.approx(1 / 101)

    def test_p_value_is_large_when_systems_differ_by_chance(self) -> None:
        # Each is right where the other is wrong, but for one sentence.
        other = [
            b if a != b else "a dog stood there" for a, b in zip(_HALF, _REFERENCES)
        ]
        other[0] = _REFERENCES[0]

        bleu, _ = _compare(_HALF, {"other": other}, num_randomization=100)

        assert bleu.score != bleu.baseline_score
        assert bleu.p_value > 0.2

    def test_every_system_is_tested_against_the_first(self) -> None:
        systems = {"right": _REFERENCES, "same": _WRONG}

        comparisons = _compare(_WRONG, systems, metrics=["chrf"])

        assert [(c.system, c.p_value < 0.05) for c in comparisons] == [
            ("right", True),
            ("same", False),
        ]

        assert {c.bootstrap_p_value for c in comparisons} == {None}

    def test_call_is_repeatable_whatever_the_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        systems = {"a": _REFERENCES[:20] + _HALF[20:]}

        first = _compare(_HALF, systems, num_randomization=50)

        # What sacreBLEU would read.
        monkeypatch.setenv("SACREBLEU_SEED", "None")

        second = _compare(_HALF, systems, num_randomization=50)

        assert os.environ["SACREBLEU_SEED"] == "None"

        assert first == second

    def test_there_are_no_tests_without_bootstrap(self) -> None:
        evaluation = evaluate_systems(
            {"a": _HALF, "b": _WRONG}, _REFERENCES, num_bootstrap=0
        )

        assert evaluation.comparisons == []
        assert evaluation.scores["a"][0].ci_low is None

    def test_missing_part_leaves_the_other_metrics(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Makes the import raise `ImportError`.
        monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)

        monkeypatch.setenv("WARMUP_COMET_PYTHON", "/nope/python")

        evaluation = evaluate_systems(
            {"a": _HALF, "b": _REFERENCES},
            _REFERENCES,
            sources=_REFERENCES,
            # An existing folder.
            metrics=["comet", "rouge", "bleu"],
            options=MetricOptions(target_lang="en", comet_model=os.getcwd()),
            num_bootstrap=10,
            num_randomization=10,
        )

        for row in evaluation.scores.values():
            assert [score.name for score in row] == [
                *("COMET", "ROUGE-1", "ROUGE-2", "ROUGE-L", "ROUGE-Lsum", "BLEU")
            ]

            comet, rouge, *_, bleu = row

            assert comet.score is rouge.score is None
            assert comet.reason is not None and "/nope/python" in comet.reason
            assert rouge.reason is not None and "rouge-score" in rouge.reason
            assert bleu.score is not None and bleu.reason is None

        assert [c.key for c in evaluation.comparisons] == ["bleu"]

        assert list(evaluation.measurements["a"]) == ["bleu"]

        # All of it may be missing.
        evaluation = evaluate_systems(
            {"a": _HALF, "b": _REFERENCES},
            _REFERENCES,
            metrics=["rouge"],
            options=MetricOptions(target_lang="en"),
        )

        assert evaluation.comparisons == []

    def test_resamples_of_all_metrics_are_the_same(self) -> None:
        # Half of the answers are right: BERTScore, ROUGE, ... are means as well.
        evaluation = evaluate_systems(
            {"a": ["A", "B"] * 20},
            ["A"] * 40,
            metrics=["accuracy", "rouge"],
            options=MetricOptions(target_lang="de", labels=["A", "B"]),
            num_bootstrap=50,
        )

        accuracy, rouge, *_ = evaluation.scores["a"]

        assert accuracy.ci_low == pytest.approx(rouge.ci_low)
        assert accuracy.ci_high == pytest.approx(rouge.ci_high)

    def test_call_raises_error_when_numbers_of_lines_differ(self) -> None:
        with pytest.raises(
            WarmupError, match="39 hypotheses of a but the references of 40"
        ):
            _compare(_HALF, {"a": _HALF[1:]})

        with pytest.raises(
            WarmupError, match="39 hypotheses of base but the references of 40"
        ):
            _compare(_HALF[1:], {"a": _HALF})

        with pytest.raises(WarmupError, match="39 sources but the references of 40"):
            evaluate_systems({"a": _HALF}, _REFERENCES, sources=_HALF[1:])

    @pytest.mark.parametrize("argument", ["num_bootstrap", "num_randomization"])
    def test_call_raises_error_when_number_is_negative(self, argument: str) -> None:
        kwargs = {argument: -1}

        with pytest.raises(WarmupError, match=f"`{argument}` must be"):
            evaluate_systems({"a": _HALF}, _REFERENCES, **kwargs)  # type: ignore[arg-type]

    def test_call_raises_error_when_sources_are_missing(self) -> None:
        with pytest.raises(WarmupError, match="`comet` needs the sources"):
            evaluate_systems({"a": _HALF}, _REFERENCES, metrics=["comet"])

    def test_call_raises_error_when_metric_is_unknown(self) -> None:
        with pytest.raises(WarmupError, match="`meteor` is not known"):
            evaluate_systems({"a": _HALF}, _REFERENCES, metrics=["meteor"])

    def test_evaluation_can_be_written_as_json(self) -> None:
        evaluation = evaluate_systems(
            {"a": _HALF, "b": _WRONG}, _REFERENCES, num_bootstrap=20
        )

        data = to_json(evaluation.scores, evaluation.comparisons)

        assert json.loads(json.dumps(data, allow_nan=False)) == data


class TestNotes:
    def test_direction_is_told_where_lower_is_better(self) -> None:
        bleu, ter = score_translations(["a"], ["a"], metrics=["bleu", "ter"])

        assert bleu.notes == [bleu.signature]
        assert ter.notes == [ter.signature, "lower is better"]


class TestCheckValidationMetrics:
    def test_cheap_metrics_pass(self) -> None:
        check_validation_metrics(
            ["bleu", "chrf", "ter", "accuracy", "macro_f1"],
            options=MetricOptions(labels=["A", "B"]),
        )

    @pytest.mark.parametrize(
        "metrics,message",
        [
            (["bertscore"], "`bertscore` runs a model of its own"),
            (["accuracy"], "need all labels"),
            (["nope"], "`nope` is not known"),
            ([], "No metric is given"),
        ],
    )
    def test_call_raises_error_when_validation_could_not_score(
        self, metrics: Sequence[str], message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            check_validation_metrics(metrics)

    def test_call_names_what_is_not_installed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Makes the import raise `ImportError`.
        monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)

        with pytest.raises(WarmupError, match="rouge-score, which is not installed"):
            check_validation_metrics(["rouge"], MetricOptions(target_lang="en"))


class TestSeveralReferences:
    HYPOTHESES: Final = ["The cat sat down.", "A dog!", "Nothing at all"]

    REFERENCES: Final = [
        ["The cat sat.", "A cat sits down.", "The cat lay down."],
        ["A dog!"],
        ["Nothing", "All of it at once"],
    ]

    # What sacreBLEU reads: the first ones, the second ones and so on.
    STREAMS: Final[Any] = [
        ["The cat sat.", "A dog!", "Nothing"],
        ["A cat sits down.", None, "All of it at once"],
        ["The cat lay down.", None, None],
    ]

    def test_scores_are_those_of_sacrebleu(self) -> None:
        scores = score_translations(
            self.HYPOTHESES,
            self.REFERENCES,
            options=MetricOptions(target_lang="en"),
            metrics=["bleu", "chrf", "ter"],
            num_bootstrap=0,
        )

        for score, metric in zip(
            scores, (BLEU(), CHRF(word_order=2), TER()), strict=True
        ):
            expected: Any = metric.corpus_score(self.HYPOTHESES, self.STREAMS)

            assert score.score == expected.score
            assert score.signature == str(metric.get_signature())
            assert "nrefs:var" in score.signature

    def test_rouge_is_that_of_rouge_score(self) -> None:
        scores = score_translations(
            self.HYPOTHESES,
            self.REFERENCES,
            options=MetricOptions(target_lang="en"),
            metrics=["rouge"],
            num_bootstrap=0,
        )

        scorer = RougeScorer([s.key for s in scores], use_stemmer=True)

        rows = [
            scorer.score_multi(texts, hypothesis)
            for texts, hypothesis in zip(self.REFERENCES, self.HYPOTHESES)
        ]

        for score in scores:
            expected = 100 * sum(row[score.key].fmeasure for row in rows) / len(rows)

            assert score.score == pytest.approx(expected, abs=1e-12)
            assert score.signature.startswith("nrefs:var|f:1|")

    def test_any_label_is_right_but_macro_f1_wants_one(self) -> None:
        references = [["A"], ["B", "C"], ["C"]]

        [accuracy] = score_translations(
            ["A", "C", "A"],
            references,
            metrics=["accuracy"],
            options=MetricOptions(labels=["A", "B", "C"]),
        )

        assert accuracy.score == pytest.approx(200 / 3)

        with pytest.raises(WarmupError, match="Reference 2 is one of B, C, but macro"):
            score_translations(
                ["A"] * 3,
                references,
                metrics=["macro_f1"],
                options=MetricOptions(labels=["A", "B", "C"]),
            )

    def test_systems_are_compared(self) -> None:
        evaluation = evaluate_systems(
            {"a": self.HYPOTHESES, "b": ["x"] * 3}, self.REFERENCES, num_bootstrap=20
        )

        chrf = evaluation.comparisons[1]

        assert chrf.key == "chrf" and chrf.score < chrf.baseline_score
