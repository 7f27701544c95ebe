# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.unit.metrics.texts import make_hypotheses, make_references
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics import bertscore
from warmup_plugin.metrics.base import Measurement, MetricUnavailable
from warmup_plugin.metrics.bertscore import BertScoreMetric
from warmup_plugin.metrics.registry import METRICS, MetricOptions

pytest.importorskip("bert_score")

_REFERENCES = make_references(5)

_SYSTEMS = [
    make_hypotheses(_REFERENCES, rate, seed) for rate, seed in ((0.5, 2), (0, 3))
]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of two layers."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny-bert"

    folder.mkdir()

    words = sorted({word for line in _REFERENCES for word in line.split()})

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]

    (folder / "vocab.txt").write_text("\n".join(tokens))

    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=32)

    tokenizer.save_pretrained(folder)

    torch.manual_seed(0)

    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )

    BertModel(config).save_pretrained(folder)

    return folder


def _measure(metric: BertScoreMetric) -> list[Measurement]:
    return [m for [m] in metric.measure(_SYSTEMS, [[r] for r in _REFERENCES], None)]


class TestBertScoreMetric:
    def test_scores_are_those_of_bert_score(self, model_dir: Path) -> None:
        from bert_score import BERTScorer

        scorer = BERTScorer(model_type=str(model_dir), num_layers=2, device="cpu")

        measurements = _measure(BertScoreMetric(str(model_dir), 2, None))

        for measurement, hypotheses in zip(measurements, _SYSTEMS, strict=True):
            precision, recall, f1 = scorer.score(hypotheses, _REFERENCES)

            assert measurement.sentence_scores() == pytest.approx(
                (100 * f1).tolist(), abs=1e-3
            )
            assert measurement.score == pytest.approx(100 * f1.mean().item(), abs=1e-3)

            assert measurement.details == {
                "precision": pytest.approx(100 * precision.mean().item(), abs=1e-3),
                "recall": pytest.approx(100 * recall.mean().item(), abs=1e-3),
            }

        # The references themselves.
        assert measurements[1].score == pytest.approx(100.0, abs=1e-3)
        assert measurements[0].score < 99

        assert measurements[0].signature.startswith(
            "nrefs:1|model:tiny-bert|layer:2|idf:no|rescaled:no|version:bert-score-0."
        )

    def test_best_of_several_references_counts(self, model_dir: Path) -> None:
        from bert_score import BERTScorer

        scorer = BERTScorer(model_type=str(model_dir), num_layers=2, device="cpu")

        references = [[r] for r in _REFERENCES]

        references[1] = [_REFERENCES[0], _REFERENCES[1], _REFERENCES[2]]

        metric = BertScoreMetric(str(model_dir), 2, None)

        for [measurement], hypotheses in zip(
            metric.measure(_SYSTEMS, references, None), _SYSTEMS, strict=True
        ):
            _, _, f1 = scorer.score(hypotheses, references)

            assert measurement.sentence_scores() == pytest.approx(
                (100 * f1).tolist(), abs=1e-3
            )
            assert measurement.signature.startswith("nrefs:var|")

    def test_scores_do_not_depend_on_blocks(
        self, model_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        metric = BertScoreMetric(str(model_dir), 2, None)

        expected = [m.stats for m in _measure(metric)]

        monkeypatch.setattr(bertscore, "_MAX_SENTENCES", 2)

        for measurement, stats in zip(_measure(metric), expected, strict=True):
            assert measurement.stats == pytest.approx(stats, abs=1e-3)

    def test_layer_is_that_given(self, model_dir: Path) -> None:
        scores = [
            _measure(BertScoreMetric(str(model_dir), layer, None))[0].score
            for layer in (1, 2)
        ]

        assert scores[0] != pytest.approx(scores[1], abs=1e-3)

    def test_layer_of_unknown_model_has_to_be_told(self, model_dir: Path) -> None:
        with pytest.raises(WarmupError, match="choose one with `--bertscore-layers N`"):
            BertScoreMetric(str(model_dir), None, None)

    def test_init_raises_error_when_folder_does_not_exist(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match=f"{tmp_path}/nope does not exist"):
            BertScoreMetric(f"{tmp_path}/nope", 2, None)

    @pytest.mark.parametrize("num_layers", [-1, 3])
    def test_init_raises_error_when_model_has_no_such_layer(
        self, model_dir: Path, num_layers: int
    ) -> None:
        with pytest.raises(
            WarmupError, match=f"`--bertscore-layers {num_layers}` .* between 0 and 2"
        ):
            BertScoreMetric(str(model_dir), num_layers, None)

    def test_init_says_why_model_cannot_be_loaded(self, tmp_path: Path) -> None:
        with pytest.raises(
            MetricUnavailable, match=rf"cannot load the model {tmp_path} .*`--bertscore"
        ):
            BertScoreMetric(str(tmp_path), 2, None)

    def test_init_neither_runs_code_of_model_nor_asks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_dir: Path
    ) -> None:
        from transformers import dynamic_module_utils

        # As in a process that has not set fairseq2 up.
        monkeypatch.setattr(dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 15)

        monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))

        folder = tmp_path / "odd-bert"

        shutil.copytree(model_dir, folder)

        file = folder / "config.json"

        config = json.loads(file.read_text())

        config["model_type"] = "odd"

        config["auto_map"] = {"AutoConfig": "odd.Config", "AutoModel": "odd.Model"}

        file.write_text(json.dumps(config))

        with pytest.raises(MetricUnavailable, match="custom code"):
            BertScoreMetric(str(folder), 2, None)

        assert sys.stdin.read() == "y\n"

    def test_measure_says_why_text_cannot_be_read(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        folder = tmp_path / "unlimited"

        shutil.copytree(model_dir, folder)

        file = folder / "tokenizer_config.json"

        config = json.loads(file.read_text())

        del config["model_max_length"]

        file.write_text(json.dumps(config))

        metric = BertScoreMetric(str(folder), 2, None)

        # Longer than the positions of the model.
        long = " ".join(_REFERENCES)

        with pytest.raises(MetricUnavailable, match="`model_max_length` in its"):
            metric.measure([[long]], [[long]], None)

        # With it the text is cut.
        [[measurement]] = BertScoreMetric(str(model_dir), 2, None).measure(
            [[long]], [[long]], None
        )

        assert measurement.score == pytest.approx(100.0, abs=1e-3)

    def test_model_is_chosen_by_language(self) -> None:
        # Tests are offline: the one of bert-score cannot be loaded.
        with pytest.raises(
            MetricUnavailable, match="the model bert-base-chinese with 8"
        ):
            BertScoreMetric(None, None, "zho_Hans")

    def test_init_names_extra_when_package_is_not_installed(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Makes the import raise `ImportError`.
        monkeypatch.setitem(sys.modules, "bert_score", None)

        with pytest.raises(MetricUnavailable, match=r"'warmup_plugin\[metrics\]'"):
            BertScoreMetric("x", 1, None)

    def test_model_or_language_has_to_be_told(self) -> None:
        with pytest.raises(WarmupError, match="needs `--bertscore-model DIR`, or"):
            METRICS["bertscore"].create(MetricOptions())
