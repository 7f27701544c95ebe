# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""COMET as a metric; what runs in its process is tested with the client."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.unit.metrics.fake_comet import install_comet_worker, write_comet_model
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import MetricUnavailable
from warmup_plugin.metrics.comet import CometWorkers
from warmup_plugin.metrics.registry import METRICS, MetricOptions
from warmup_plugin.metrics.translation import evaluate_systems

_SOURCES = ["ein Haus", "zwei", "drei"]

_REFERENCES = ["a house", "two", "three"]

_SYSTEMS = [["a house", "two", "thre"], ["house", "2", ""]]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return write_comet_model(tmp_path)


class TestCometMetric:
    @pytest.mark.parametrize("requires_references", [True, False])
    def test_one_worker_scores_all_systems(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        model: str,
        requires_references: bool,
    ) -> None:
        install_comet_worker(
            tmp_path, monkeypatch, requires_references=requires_references
        )

        metric = METRICS["comet"].create(MetricOptions(comet_model=model))

        rows = metric.measure(_SYSTEMS, [[r] for r in _REFERENCES], _SOURCES)

        for [measurement], hypotheses in zip(rows, _SYSTEMS, strict=True):
            scores = [
                len(h) / (100 + len(s) + len(r))
                for h, s, r in zip(hypotheses, _SOURCES, _REFERENCES)
            ]

            assert measurement.sentence_scores() == pytest.approx(scores)
            assert measurement.score == pytest.approx(sum(scores) / 3)
            assert measurement.signature == (
                "nrefs:1|model:tiny-comet|precision:fp32|version:unbabel-comet-2.2.7"
            )

        assert (tmp_path / "starts").read_text() == "x"

    def test_score_is_mean_over_references(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        install_comet_worker(tmp_path, monkeypatch)

        metric = METRICS["comet"].create(MetricOptions(comet_model=model))

        references = [["a house", "the house"], ["two"], ["three", "3", "tree"]]

        [[measurement]] = metric.measure(_SYSTEMS[:1], references, _SOURCES)

        assert measurement.sentence_scores() == pytest.approx(
            [
                sum(len(h) / (100 + len(s) + len(r)) for r in texts) / len(texts)
                for h, s, texts in zip(_SYSTEMS[0], _SOURCES, references)
            ]
        )
        assert measurement.signature.startswith("nrefs:var|")

    def test_measure_says_why_worker_does_not_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        install_comet_worker(tmp_path, monkeypatch, ready=False)

        metric = METRICS["comet"].create(MetricOptions(comet_model=model))

        with pytest.raises(MetricUnavailable, match="no such model"):
            metric.measure(_SYSTEMS, [[r] for r in _REFERENCES], _SOURCES)

    def test_measure_says_what_worker_could_not_do(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        install_comet_worker(tmp_path, monkeypatch)

        metric = METRICS["comet"].create(MetricOptions(comet_model=model))

        with pytest.raises(MetricUnavailable, match="out of memory"):
            metric.measure([["boom", "b", "c"]], [[r] for r in _REFERENCES], _SOURCES)

    def test_measure_says_that_interpreter_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        monkeypatch.setenv("WARMUP_COMET_PYTHON", str(tmp_path / "nope"))

        metric = METRICS["comet"].create(MetricOptions(comet_model=model))

        with pytest.raises(MetricUnavailable, match=f"{tmp_path}/nope"):
            metric.measure(_SYSTEMS, [[r] for r in _REFERENCES], _SOURCES)

    @pytest.mark.parametrize("model", ["x.ckpt", "./x", "/a/b", "~/x", "a/b/c", "x"])
    def test_model_that_does_not_exist_is_refused(self, model: str) -> None:
        with pytest.raises(WarmupError, match=f"COMET model {model} does not exist"):
            METRICS["comet"].create(MetricOptions(comet_model=model))

    def test_workers_are_kept_and_replaced_when_they_have_ended(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        install_comet_worker(tmp_path, monkeypatch)

        def measure(workers: CometWorkers) -> float:
            options = MetricOptions(comet_model=model, comet_workers=workers)

            [[measurement]] = (
                METRICS["comet"]
                .create(options)
                .measure(_SYSTEMS[:1], [[r] for r in _REFERENCES], _SOURCES)
            )

            return measurement.score

        with pytest.raises(ZeroDivisionError), CometWorkers() as workers:
            scores = {measure(workers) for _ in range(2)}

            assert (tmp_path / "starts").read_text() == "x"

            first = int((tmp_path / "pid").read_text())

            # Before it ends, or another would be started in its place.
            process = workers.get(tmp_path / "python", model)._process

            os.kill(first, signal.SIGKILL)

            process.wait(60)

            scores.add(measure(workers))

            assert (tmp_path / "starts").read_text() == "xx"
            assert len(scores) == 1

            second = int((tmp_path / "pid").read_text())

            raise ZeroDivisionError

        # Whatever ends the training.
        with pytest.raises(ProcessLookupError):
            os.kill(second, 0)

    def test_kiwi_reads_no_references(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        install_comet_worker(tmp_path, monkeypatch, requires_references=False)

        metric = METRICS["cometkiwi"].create(MetricOptions(cometkiwi_model=model))

        # Neither where there are some nor where there are none.
        nothing: list[list[str]] = [[], [], []]

        for references in ([[r, r] for r in _REFERENCES], nothing):
            [[measurement]] = metric.measure(_SYSTEMS[:1], references, _SOURCES)

            assert (measurement.key, measurement.name) == ("cometkiwi", "CometKiwi")
            assert measurement.signature.startswith("nrefs:0|model:tiny-comet|")
            assert measurement.sentence_scores() == pytest.approx(
                [len(h) / (100 + len(s)) for h, s in zip(_SYSTEMS[0], _SOURCES)]
            )

    def test_model_without_references_is_asked_once_a_sentence(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        install_comet_worker(
            tmp_path, monkeypatch, requires_references=False, uses_references=False
        )

        metric = METRICS["comet"].create(MetricOptions(comet_model=model))

        references = [[r, r] for r in _REFERENCES]

        [[measurement]] = metric.measure(_SYSTEMS[:1], references, _SOURCES)

        assert measurement.sentence_scores() == pytest.approx(
            [len(h) / (100 + len(s)) for h, s in zip(_SYSTEMS[0], _SOURCES)]
        )

    def test_kiwi_refuses_model_that_requires_references(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
    ) -> None:
        install_comet_worker(tmp_path, monkeypatch)

        metric = METRICS["cometkiwi"].create(MetricOptions(cometkiwi_model=model))

        with pytest.raises(WarmupError, match="requires them; give it to `comet`, or"):
            metric.measure(_SYSTEMS, [[]] * 3, _SOURCES)

    def test_licence_of_public_model_is_told(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install_comet_worker(tmp_path, monkeypatch, requires_references=False)

        # By what must not be sold, and by a model that nobody knows.
        for name, licence in (("Unbabel/XCOMET-XL", "not for commercial"), ("a/b", "")):
            evaluation = evaluate_systems(
                {"a": _SYSTEMS[0]},
                _REFERENCES,
                sources=_SOURCES,
                metrics=["comet"],
                options=MetricOptions(comet_model=name),
                num_bootstrap=0,
            )

            [score] = evaluation.scores["a"]

            assert score.details["model"] == name
            assert (licence in score.notes[-1]) and len(score.notes) == 1 + bool(
                licence
            )
            assert ("licence" in score.details) == bool(licence)

    def test_default_models_are_public_ones(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install_comet_worker(tmp_path, monkeypatch, requires_references=False)

        for key, model in (
            ("comet", "wmt22-comet-da"),
            ("cometkiwi", "wmt22-cometkiwi-da"),
        ):
            metric = METRICS[key].create(MetricOptions())

            [[measurement]] = metric.measure(
                _SYSTEMS[:1], [[r] for r in _REFERENCES], _SOURCES
            )

            assert f"|model:{model}|" in measurement.signature
