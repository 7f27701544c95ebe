# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Sequence

import pytest

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.translation import (
    MetricScore,
    compare_translations,
    format_table,
    score_translations,
    to_json,
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
        target_lang=target_lang,
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
        with pytest.raises(WarmupError, match="2 hypotheses but 3 references"):
            _score(["a", "b"], ["a", "b", "c"])

    def test_call_raises_when_there_is_nothing_to_score(self) -> None:
        with pytest.raises(WarmupError, match="0 hypotheses and 0 references"):
            _score([], [])

    @pytest.mark.parametrize(
        "hypotheses,references,name",
        [("a b", "a b", "hypotheses"), (["a", "b"], "ab", "references")],
    )
    def test_call_raises_when_lines_are_one_string(
        self, hypotheses: Sequence[str], references: Sequence[str], name: str
    ) -> None:
        with pytest.raises(WarmupError, match=f"The {name} must be a flat list"):
            _score(hypotheses, references)

    def test_call_raises_when_references_are_nested(self) -> None:
        with pytest.raises(WarmupError, match="The references must be a flat list"):
            score_translations(["a"], [["a"]])  # type: ignore[list-item]

    def test_call_raises_when_num_bootstrap_is_negative(self) -> None:
        with pytest.raises(WarmupError, match="`num_bootstrap` must be"):
            _score(["a"], ["a"], num_bootstrap=-1)


class TestCompareTranslations:
    def test_p_value_is_one_when_systems_are_the_same(self) -> None:
        comparisons = compare_translations(
            _HALF, {"same": list(_HALF)}, _REFERENCES, num_samples=50
        )

        assert [c.p_value for c in comparisons] == [1.0, 1.0]

    def test_p_value_is_small_when_system_is_much_better(self) -> None:
        bleu, chrf = compare_translations(
            _WRONG, {"right": _REFERENCES}, _REFERENCES, num_samples=100
        )

        assert (bleu.system, bleu.metric) == ("right", "BLEU")
        assert bleu.score == pytest.approx(100.0)
        assert bleu.baseline_score < 5
        assert "bs:100" in bleu.signature and "seed:12345" in bleu.signature

        # No resample deviates by as much: 1 / (100 + 1).
        assert bleu.p_value == chrf.p_value == pytest.approx(1 / 101)

    def test_p_value_is_large_when_systems_differ_by_chance(self) -> None:
        # Each is right where the other is wrong, but for one sentence.
        other = [
            b if a != b else "a dog stood there" for a, b in zip(_HALF, _REFERENCES)
        ]
        other[0] = _REFERENCES[0]

        bleu, _ = compare_translations(
            _HALF, {"other": other}, _REFERENCES, num_samples=100
        )

        assert bleu.score != bleu.baseline_score
        assert bleu.p_value > 0.2

    def test_call_is_repeatable_whatever_the_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        systems = {"a": _REFERENCES[:20] + _HALF[20:]}

        monkeypatch.delenv("SACREBLEU_SEED", raising=False)

        first = compare_translations(_HALF, systems, _REFERENCES, num_samples=50)

        assert "SACREBLEU_SEED" not in os.environ

        monkeypatch.setenv("SACREBLEU_SEED", "None")

        second = compare_translations(_HALF, systems, _REFERENCES, num_samples=50)

        assert os.environ["SACREBLEU_SEED"] == "None"

        assert first == second

    def test_call_raises_when_numbers_of_lines_differ(self) -> None:
        with pytest.raises(WarmupError, match="39 hypotheses of a but 40 references"):
            compare_translations(_HALF, {"a": _HALF[1:]}, _REFERENCES)

        with pytest.raises(WarmupError, match="39 hypotheses of the baseline but 40"):
            compare_translations(_HALF[1:], {"a": _HALF}, _REFERENCES)

    @pytest.mark.parametrize("argument", ["num_samples", "seed"])
    def test_call_raises_when_argument_is_zero(self, argument: str) -> None:
        kwargs = {argument: 0}

        with pytest.raises(WarmupError, match=f"`{argument}` must be"):
            compare_translations(_HALF, {"a": _HALF}, _REFERENCES, **kwargs)  # type: ignore[arg-type]


class TestFormatTable:
    def test_call_aligns_columns(self) -> None:
        scores = {
            "base": [MetricScore("BLEU", 30.0, "s", 28.5, 31.25, 2)],
            "a longer name": [MetricScore("BLEU", 5.125, "s", None, None, 2)],
        }

        text = format_table(scores, extra_columns={"seconds": ["7", "12"]})

        assert text.splitlines() == [
            "system                         BLEU  seconds",
            "--------------------------------------------",
            "base           30.00 [28.50, 31.25]        7",
            "a longer name                  5.12       12",
        ]

    def test_call_adds_p_values(self) -> None:
        systems = {"right": _REFERENCES}

        scores = {
            "base": score_translations(_WRONG, _REFERENCES, num_bootstrap=0),
            "right": score_translations(_REFERENCES, _REFERENCES, num_bootstrap=0),
        }

        comparisons = compare_translations(
            _WRONG, systems, _REFERENCES, num_samples=100
        )

        header, _, base, right = format_table(scores, comparisons).splitlines()

        assert header.split() == ["system", "BLEU", "p", "chrF2++", "p"]
        assert base.split()[2] == base.split()[4] == "-"
        assert right.split() == ["right", "100.00", "0.010", "100.00", "0.010"]


class TestToJson:
    def test_call_returns_plain_data(self) -> None:
        scores = {"a": score_translations(_HALF, _REFERENCES, num_bootstrap=20)}

        comparisons = compare_translations(
            _WRONG, {"a": _HALF}, _REFERENCES, num_samples=20
        )

        data = to_json(scores, comparisons)

        assert json.loads(json.dumps(data, allow_nan=False)) == data

        assert data["systems"]["a"][0]["score"] == scores["a"][0].score  # type: ignore[index]
