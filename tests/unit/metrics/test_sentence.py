# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.sentence import sentence_scores

_HYPOTHESES = ["the cat sat", "", "a b c d e", "a b c d f", "the cat sat", "foo"]

# The second one twice.
_REFERENCES = ["the cat sat down", "foo", "a b c d f", "", "the cat", "foo"]


class TestSentenceScores:
    def test_chrf_is_that_of_sacrebleu(self) -> None:
        chrf = CHRF(word_order=2)

        expected = [
            chrf.sentence_score(h, [r]).score for h, r in zip(_HYPOTHESES, _REFERENCES)
        ]

        assert (
            sentence_scores("chrf", _HYPOTHESES, [[r] for r in _REFERENCES]) == expected
        )

    def test_bleu_is_that_of_sacrebleu(self) -> None:
        bleu = BLEU(effective_order=True)

        expected = [
            bleu.sentence_score(h, [r]).score for h, r in zip(_HYPOTHESES, _REFERENCES)
        ]

        assert (
            sentence_scores("bleu", _HYPOTHESES, [[r] for r in _REFERENCES]) == expected
        )

        # Without the effective order three words would score 0.
        assert expected[0] > 50

    def test_reference_is_the_second_argument(self) -> None:
        # Recall counts more.
        [short] = sentence_scores("chrf", ["the cat"], [["the cat sat down"]])
        [long] = sentence_scores("chrf", ["the cat sat down"], [["the cat"]])

        assert short < long

    def test_bleu_tokenizes_by_language(self) -> None:
        texts = ["我喜欢吃苹果"], [["我喜欢吃香蕉"]]

        # Characters: precisions 4/6, 3/5, 2/4, 1/3.
        assert sentence_scores("bleu", *texts, target_lang="zho_Hans") == [
            pytest.approx(100 * (4 / 6 * 3 / 5 * 2 / 4 / 3) ** 0.25)
        ]

        assert sentence_scores("bleu", *texts, target_lang="de") == [0.0]

    def test_best_of_several_references_counts(self) -> None:
        texts = ["a cat sat"], [["no", "the cat sat", "a dog sat"]]

        for name, metric in (
            ("chrf", CHRF(word_order=2)),
            ("bleu", BLEU(effective_order=True)),
        ):
            [score] = sentence_scores(name, *texts)

            assert score == metric.sentence_score(texts[0][0], texts[1][0]).score

    def test_no_sentences_have_no_scores(self) -> None:
        assert sentence_scores("chrf", [], []) == []

    def test_call_raises_error_when_metric_is_unknown(self) -> None:
        with pytest.raises(WarmupError, match="`ter` .* use `bleu` or `chrf`"):
            sentence_scores("ter", ["a"], [["a"]])

    def test_call_raises_error_when_numbers_differ(self) -> None:
        with pytest.raises(WarmupError, match="1 hypotheses but the references of 2"):
            sentence_scores("chrf", ["a"], [["a"], ["b"]])
