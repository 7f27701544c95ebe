# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""MetricX-24 by a tiny mT5 with random weights, against transformers' own forward."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, MT5Config, MT5ForConditionalGeneration

from tests.tiny_runs import write_tiny_tokenizer
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import Measurement, MetricUnavailable
from warmup_plugin.metrics.metricx_model import load_scorer
from warmup_plugin.metrics.registry import METRICS, MetricOptions

_SOURCES = ["lone ta sirika so", "pe", "lone pe ronatu kuseto pe ketu so pamato"]

_REFERENCES = ["dage wida ba", "ha zabu", "fobi"]

_LISTS = [[r] for r in _REFERENCES]

_HYPOTHESES = ["dage ba", "", "wida ha wegi ha weve za bu hega zefozuji wida vozofaji"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("metricx")

    torch.manual_seed(0)

    config = MT5Config(
        # That of mT5, of which the last hundred are `<extra_id_N>`.
        vocab_size=250_112,
        d_model=8,
        d_kv=4,
        d_ff=8,
        num_layers=1,
        num_heads=2,
        # So that some scores are within the range and some are not.
        initializer_factor=3.0,
    )

    model: Any = MT5ForConditionalGeneration(config)

    # As a published model names its own.
    model.config.architectures = ["MT5ForRegression"]

    model.save_pretrained(folder)

    write_tiny_tokenizer(folder / "spiece.model", text_folder)

    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}'
    )

    return folder


def measure(
    model_dir: Path | str,
    key: str = "metricx",
    references: Sequence[Sequence[str]] = _LISTS,
) -> Measurement:
    metric = METRICS[key].create(MetricOptions(metricx_model=str(model_dir)))

    [[measurement]] = metric.measure([_HYPOTHESES], references, _SOURCES)

    return measurement


def compute(model_dir: Path, text: str) -> float:
    """Computes a score by itself, as the published code does."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir)

    model: Any = MT5ForConditionalGeneration.from_pretrained(model_dir)

    # Without EOS.
    input_ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :-1]

    with torch.no_grad():
        logits = model(
            input_ids=input_ids, decoder_input_ids=torch.tensor([[0]])
        ).logits

    return float(logits[0, 0, 250_089].clamp(0.0, 25.0))


class TestMetricXMetric:
    def test_scores_are_those_of_transformers(self, model_dir: Path) -> None:
        expected = [
            compute(model_dir, f"source: {s} candidate: {h} reference: {r}")
            for s, h, r in zip(_SOURCES, _HYPOTHESES, _REFERENCES)
        ]

        # Or nothing would be told apart.
        assert len(set(expected)) > 1

        measurement = measure(model_dir)

        assert measurement.sentence_scores() == pytest.approx(expected, abs=1e-4)

        assert not measurement.higher_is_better

        assert measurement.signature.startswith(
            f"nrefs:1|model:{model_dir.name}|precision:fp32|version:transformers-"
        )

    def test_quality_is_estimated_without_references(self, model_dir: Path) -> None:
        expected = [
            compute(model_dir, f"source: {s} candidate: {h}")
            for s, h in zip(_SOURCES, _HYPOTHESES)
        ]

        nothing: list[list[str]] = [[], [], []]

        for references in (_LISTS, nothing):
            measurement = measure(model_dir, "metricx_qe", references)

            assert measurement.sentence_scores() == pytest.approx(expected, abs=1e-4)

    def test_score_is_mean_over_references(self, model_dir: Path) -> None:
        one = measure(model_dir).sentence_scores()

        other = measure(model_dir, references=[["x"], ["y"], ["z"]]).sentence_scores()

        both = measure(
            model_dir, references=[[r, o] for r, o in zip(_REFERENCES, "xyz")]
        )

        assert one is not None and other is not None

        assert both.sentence_scores() == pytest.approx((one + other) / 2, abs=1e-4)

    def test_scores_are_clamped(self, model_dir: Path) -> None:
        scorer = load_scorer(str(model_dir))

        head = scorer._model.lm_head.weight

        old = head[250_089].clone()

        try:
            with torch.no_grad():
                head[250_089] = 1e6 * old

            assert set(scorer.score(_SOURCES, _HYPOTHESES)) <= {0.0, 25.0}
        finally:
            with torch.no_grad():
                head[250_089] = old

    def test_model_that_is_none_of_metricx_is_told(
        self, model_dir: Path, tmp_path: Path
    ) -> None:
        config = MT5Config(
            vocab_size=100, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2
        )

        model: Any = MT5ForConditionalGeneration(config)

        model.save_pretrained(tmp_path)

        with pytest.raises(
            MetricUnavailable, match="is no model of MetricX, which are"
        ):
            measure(tmp_path)

    def test_missing_tokenizer_is_told(self, model_dir: Path, tmp_path: Path) -> None:
        for file in ("config.json", "model.safetensors"):
            shutil.copy(model_dir / file, tmp_path)

        with pytest.raises(
            MetricUnavailable, match="put the `spiece.model` of any mT5"
        ):
            measure(tmp_path)

    def test_missing_model_is_told(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match="MetricX /nope does not exist; give a"):
            measure("/nope")

        with pytest.raises(MetricUnavailable, match=r"cannot be loaded \("):
            measure(tmp_path)
