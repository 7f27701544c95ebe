# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import sacrebleu.metrics.base
import sentencepiece
from sacrebleu import utils
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.metrics.ter import TER
from sacrebleu.tokenizers import tokenizer_spm

from tests.unit.metrics.texts import make_hypotheses, make_references
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import Measurement, MetricUnavailable
from warmup_plugin.metrics.overlap import create_bleu
from warmup_plugin.metrics.registry import METRICS, MetricOptions
from warmup_plugin.metrics.translation import evaluate_systems

_REFERENCES = make_references()

_SYSTEMS = [
    make_hypotheses(_REFERENCES, rate, seed) for rate, seed in ((0.3, 2), (0.2, 3))
]


def _measure(
    name: str,
    systems: list[list[str]],
    references: list[str],
    options: MetricOptions = MetricOptions(),
) -> list[Measurement]:
    rows = (
        METRICS[name].create(options).measure(systems, [[r] for r in references], None)
    )

    return [measurement for [measurement] in rows]


class TestOverlapMetric:
    @pytest.mark.parametrize(
        "name,metric",
        [("bleu", BLEU()), ("chrf", CHRF(word_order=2)), ("ter", TER())],
    )
    def test_scores_are_those_of_sacrebleu(
        self, name: str, metric: sacrebleu.metrics.base.Metric
    ) -> None:
        measurements = _measure(name, _SYSTEMS, _REFERENCES)

        for measurement, hypotheses in zip(measurements, _SYSTEMS, strict=True):
            expected = metric.corpus_score(hypotheses, [_REFERENCES])

            assert measurement.key == name
            assert measurement.name == expected.name
            assert measurement.score == expected.score
            assert measurement.signature == str(metric.get_signature())

            # The same from the sums that resampling starts from.
            sums = measurement.stats.sum(axis=0, keepdims=True)

            assert measurement.score_sums(sums) == pytest.approx(expected.score)

        assert measurements[0].score != measurements[1].score

    @pytest.mark.parametrize(
        "name,metric",
        [
            ("bleu", BLEU(effective_order=True)),
            ("chrf", CHRF(word_order=2)),
            ("ter", TER()),
        ],
    )
    def test_sentence_scores_are_those_of_sacrebleu(
        self, name: str, metric: sacrebleu.metrics.base.Metric
    ) -> None:
        [measurement] = _measure(name, _SYSTEMS[:1], _REFERENCES)

        scores = measurement.sentence_scores()

        assert scores is not None
        assert scores.tolist() == [
            metric.sentence_score(h, [r]).score
            for h, r in zip(_SYSTEMS[0], _REFERENCES)
        ]

    def test_only_ter_is_better_when_lower(self) -> None:
        better = {
            name: _measure(name, _SYSTEMS[:1], _REFERENCES)[0].higher_is_better
            for name in ("bleu", "chrf", "ter")
        }

        assert better == {"bleu": True, "chrf": True, "ter": False}

    def test_ter_matches_edits_counted_by_hand(self) -> None:
        # One substitution and one shift of a block in 4 + 4 words.
        [ter] = _measure("ter", [["a b c x", "c d a b"]], ["a b c d", "a b c d"])

        assert ter.score == pytest.approx(100 * 2 / 8)

    @pytest.mark.parametrize("lang", ["zh-CN", "ja"])
    def test_ter_reads_characters_when_writing_has_no_spaces(self, lang: str) -> None:
        options = MetricOptions(target_lang=lang)

        # One of five characters.
        [ter] = _measure("ter", [["我喜欢苹果"]], ["我喜欢苹实"], options)

        assert ter.score == pytest.approx(20.0)
        assert "norm:yes" in ter.signature and "asian:yes" in ter.signature

        [ter] = _measure("ter", [["我喜欢苹果"]], ["我喜欢苹实"])

        assert ter.score == 100.0


class TestCreateBleu:
    @pytest.mark.parametrize("lang", ["zh", "zh-CN", "zho_Hans", "yue_Hant", "wuu", "lzh_Hani", "xx_Hant"])  # fmt: skip
    def test_chinese_is_tokenized_by_characters(self, lang: str) -> None:
        assert create_bleu(lang).tokenizer_signature == "zh"

    @pytest.mark.parametrize("lang", ["th", "lao_Laoo", "shn_Mymr", "bod_Tibt"])
    def test_unspaced_scripts_are_tokenized_by_characters(self, lang: str) -> None:
        assert create_bleu(lang).tokenizer_signature == "char"

    @pytest.mark.parametrize("lang", [None, "de", "deu_Latn", "fr-CA", "zho_Latn"])
    def test_other_languages_are_tokenized_by_13a(self, lang: str | None) -> None:
        assert create_bleu(lang).tokenizer_signature == "13a"

    @pytest.mark.parametrize(
        "lang,module,extra", [("ja", "MeCab", "ja"), ("kor_Hang", "mecab_ko", "ko")]
    )
    def test_call_names_extra_when_tokenizer_is_not_installed(
        self, lang: str, module: str, extra: str
    ) -> None:
        if importlib.util.find_spec(module) is not None:
            pytest.skip(f"{module} is installed.")

        with pytest.raises(
            MetricUnavailable, match=rf"language {lang} .*'sacrebleu\[{extra}\]'"
        ):
            create_bleu(lang)

    def test_tokenizer_is_chosen_by_name(self) -> None:
        assert create_bleu("zh", "char").tokenizer_signature == "char"

    def test_call_raises_error_when_tokenizer_is_unknown(self) -> None:
        with pytest.raises(WarmupError, match="no tokenizer `flores`; choose .*13a"):
            create_bleu("de", "flores")

    def test_call_says_what_to_download_when_it_cannot(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for module in (utils, tokenizer_spm):
            monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path))

        # Nothing listens there.
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")

        monkeypatch.delenv("no_proxy", raising=False)

        file = tmp_path / "models" / "flores200sacrebleuspm"

        with pytest.raises(MetricUnavailable, match=rf"flores200, .* to {file}\.$"):
            create_bleu("de", "flores200")

        # A score that cannot be had is none, with the reason.
        evaluation = evaluate_systems(
            {"a": _SYSTEMS[0]},
            _REFERENCES,
            metrics=["chrf", "spbleu", "spbleu_1k"],
            num_bootstrap=0,
        )

        chrf, spbleu, spbleu_1k = evaluation.scores["a"]

        assert chrf.score is not None and spbleu.score is None
        assert str(spbleu.reason).startswith("spBLEU needs the tokenizer flores200, ")
        assert spbleu_1k.name == "spBLEU-1K"
        assert str(spbleu_1k.reason).startswith("spBLEU needs the tokenizer spBLEU-1K")

    def test_flores200_is_read_from_its_file(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for module in (utils, tokenizer_spm):
            monkeypatch.setattr(module, "SACREBLEU_DIR", str(tmp_path))

        (tmp_path / "models").mkdir()

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(_REFERENCES),
            model_prefix=str(tmp_path / "models" / "spm"),
            vocab_size=40,
            minloglevel=2,
        )

        file = tmp_path / "models" / "flores200sacrebleuspm"

        (tmp_path / "models" / "spm.model").rename(file)

        options = MetricOptions(target_lang="zh", bleu_tokenize="flores200")

        [bleu] = _measure("bleu", _SYSTEMS[:1], _REFERENCES, options)

        assert "tok:flores200" in bleu.signature

        # A metric of its own, beside BLEU.
        [spbleu] = _measure("spbleu", _SYSTEMS[:1], _REFERENCES)

        assert (spbleu.key, spbleu.name) == ("spbleu", "spBLEU")
        assert (spbleu.score, spbleu.signature) == (bleu.score, bleu.signature)
        assert spbleu.sentence_scores() is not None

        # Pieces, of which there are more than words.
        pieces = sentencepiece.SentencePieceProcessor(str(file))

        expected = BLEU(tokenize="none").corpus_score(
            [" ".join(pieces.encode_as_pieces(line)) for line in _SYSTEMS[0]],
            [[" ".join(pieces.encode_as_pieces(line)) for line in _REFERENCES]],
        )

        assert bleu.score == pytest.approx(expected.score)


def test_bleu_of_short_corpus_is_worked_by_hand() -> None:
    [bleu] = _measure("bleu", [["a b c d"]], ["a b c d e"])

    assert bleu.score == pytest.approx(100 * math.exp(1 - 5 / 4))
