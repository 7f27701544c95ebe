# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import MetricUnavailable
from warmup_plugin.metrics.language_id import create_language_identifier, reduce_code
from warmup_plugin.metrics.registry import METRICS, MetricOptions

GERMAN = "Die Führungskräfte rechtfertigen ihre Politik mit der Notwendigkeit."

ENGLISH = "The committee meets again next week to discuss the budget of the city."

CHINESE = "和其他一些专家一样，他对糖尿病能否治愈持怀疑态度。"


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the libraries that identify languages."""
    for name in ("py3langid", "fasttext"):
        monkeypatch.setitem(sys.modules, name, None)


class TestReduceCode:
    @pytest.mark.parametrize(
        ("code", "expected"),
        [
            ("de", "de"),
            ("zh-TW", "zh"),
            ("zho_Hans", "zh"),
            ("yue", "zh"),
            ("nb", "no"),
        ],
    )
    def test_call_drops_scripts_and_varieties(self, code: str, expected: str) -> None:
        assert reduce_code(code) == expected


class TestCreateLanguageIdentifier:
    @pytest.mark.usefixtures("no_libraries")
    def test_call_goes_without_library_by_default(self) -> None:
        assert create_language_identifier("auto") is None
        assert create_language_identifier("none") is None

    @pytest.mark.usefixtures("no_libraries")
    def test_call_explains_missing_library(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match="run `pip install py3langid`"):
            create_language_identifier("py3langid")

        model = tmp_path / "lid.176.bin"

        model.touch()

        with pytest.raises(WarmupError, match="run `pip install fasttext-predict`"):
            create_language_identifier(str(model))

    def test_call_refuses_unknown_choice(self) -> None:
        with pytest.raises(WarmupError, match="`--language-id foo` is neither `auto`"):
            create_language_identifier("foo")

    def test_call_runs_model_of_fasttext(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines: list[str] = []

        class Model:
            def predict(self, text: str) -> tuple[tuple[str, ...], object]:
                lines.append(text)

                return ("__label__de",), None

        # As the packages `fasttext` and `fasttext-predict` both have it.
        module = ModuleType("fasttext")

        setattr(module, "load_model", lambda path: Model())

        monkeypatch.setitem(sys.modules, "fasttext", module)

        model = tmp_path / "lid.176.bin"

        model.write_bytes(b"model")

        identifier = create_language_identifier(str(model))

        assert identifier is not None
        assert identifier.is_in("a\nb", "de")
        assert not identifier.is_in("a\nb", "en")
        assert lines == ["a b", "a b"]
        assert identifier.name.startswith("fastText lid.176.bin, SHA-256 9372c470")

    def test_call_runs_py3langid(self) -> None:
        pytest.importorskip("py3langid")

        identifier = create_language_identifier("auto")

        assert identifier is not None
        assert identifier.name.startswith("py3langid 0.")
        assert identifier.is_in(GERMAN, "de")
        assert not identifier.is_in(GERMAN, "en")
        assert identifier.is_in(CHINESE, "zh")


class TestLanguageMetric:
    OUTPUTS = [GERMAN, ENGLISH, "", GERMAN]

    REFERENCES = [[GERMAN], [GERMAN, ENGLISH], [GERMAN], [ENGLISH]]

    @pytest.mark.parametrize("lang", ["de", "deu_Latn", "de-AT"])
    def test_call_counts_outputs_in_the_language(self, lang: str) -> None:
        metric = METRICS["language"].create(MetricOptions(target_lang=lang))

        [[measurement]] = metric.measure([self.OUTPUTS], self.REFERENCES, None)

        assert measurement.score == 50.0
        assert measurement.details == {"of_references": 75.0}

        scores = measurement.sentence_scores()

        assert scores is not None and scores.tolist() == [100.0, 0.0, 0.0, 100.0]

        assert measurement.signature.startswith("nrefs:var|lang:de|id:py3langid-0.")

    def test_call_needs_no_references(self) -> None:
        metric = METRICS["language"].create(MetricOptions(target_lang="de"))

        [[measurement]] = metric.measure([self.OUTPUTS], [[]] * 4, None)

        assert measurement.score == 50.0
        assert measurement.details == {}

    def test_call_needs_the_language(self) -> None:
        with pytest.raises(WarmupError, match="needs `--target-lang`"):
            METRICS["language"].create(MetricOptions())

    def test_call_tells_what_is_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "py3langid", None)

        with pytest.raises(MetricUnavailable, match="pip install"):
            METRICS["language"].create(MetricOptions(target_lang="de"))
