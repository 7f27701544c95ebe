# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The client and the worker with ``unbabel-comet`` itself and a tiny model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any, Final

import pytest

from warmup_plugin.metrics.comet import (
    CometClient,
    CometRequestError,
    CometUnavailable,
    find_comet_python,
)
from warmup_plugin.metrics.comet import worker as worker_module

PYTHON: Final = find_comet_python()

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        PYTHON is None, reason="needs the environment that `make comet` builds"
    ),
]

TOLERANCE: Final = 1e-6
"""Padding shifts scores by less, and those of two samples differ by more."""


@dataclass(frozen=True)
class Cases:
    """What ``comet_cases.py`` has made."""

    folder: Path

    samples: list[dict[str, str]]

    results: dict[str, Any]

    def columns(self, *names: str) -> list[list[str]]:
        return [[sample[name] for sample in self.samples] for name in names]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Cases:
    folder = tmp_path_factory.mktemp("comet")

    sources, targets = (
        (text_folder / f"train.{side}").read_text(encoding="utf-8").splitlines()
        for side in ("src", "tgt")
    )

    samples = [
        {"src": src, "mt": mt, "ref": ref}
        for src, mt, ref in zip(sources, targets[1:], targets)
    ]

    # What would end a line if it was not escaped, and what a tokenizer may drop.
    for idx, text in enumerate(["a\nb", "a\u2028b\u0085c", "\t", "", "é\U0001f600"]):
        samples[3 * idx]["mt"] = text

    text = json.dumps(samples)

    (folder / "samples.json").write_text(text, encoding="utf-8")

    process = subprocess.run(
        [
            *(str(PYTHON), "-I", Path(__file__).with_name("comet_cases.py")),
            *(Path(worker_module.__file__), folder),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )

    assert process.returncode == 0, process.stdout

    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))

    return Cases(folder, samples, results)


@pytest.fixture(scope="module")
def client(cases: Cases) -> Iterator[CometClient]:
    """A client whose process is a part of a job of eight, and with an environment."""
    variables = {
        "SLURM_JOB_ID": "1",
        "SLURM_NTASKS": "8",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "3",
        "RANK": "3",
        "WORLD_SIZE": "8",
        # Of another version of numpy, among others.
        "PYTHONPATH": os.pathsep.join(sys.path),
    }

    with pytest.MonkeyPatch.context() as monkeypatch:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

        assert PYTHON is not None

        client = CometClient(PYTHON, cases.folder / "model", batch_size=4)

    with client:
        yield client


class TestCometClient:
    def test_scores_are_those_of_comet(self, client: CometClient, cases: Cases) -> None:
        scores = client.score(*cases.columns("src", "mt", "ref"))

        assert scores == pytest.approx(cases.results["scores"], abs=TOLERANCE)

        # Or the order could not be told.
        ordered = sorted(scores)

        gaps = [b - a for a, b in zip(ordered, ordered[1:])]

        assert sum(gap > 10 * TOLERANCE for gap in gaps) > 0.9 * len(gaps)

        # Of other sentences, so that nothing is left from the last request.
        columns = [column[::-1][:9] for column in cases.columns("src", "mt", "ref")]

        expected = cases.results["scores"][::-1][:9]

        assert client.score(*columns) == pytest.approx(expected, abs=TOLERANCE)

    def test_versions_are_those_of_environment(self, client: CometClient) -> None:
        assert client.versions["unbabel-comet"] == "2.2.7"

        # Not the one of this process.
        assert client.versions["numpy"].startswith("1.26.")

        assert client.requires_references

    def test_nothing_is_scored_without_sentences(self, client: CometClient) -> None:
        assert client.score([], [], []) == []

    def test_worker_survives_what_it_refuses(
        self, client: CometClient, cases: Cases
    ) -> None:
        # No text, but a string in Python.
        surrogate = "\ud800"

        with pytest.raises(CometRequestError, match="^COMET cannot score these sent"):
            client.score(["a"], [surrogate], ["b"])

        with pytest.raises(CometRequestError, match="number 1 is None"):
            client.score(["a"], [None], ["b"])  # type: ignore[list-item]

        with pytest.raises(CometRequestError, match="needs references"):
            client.score(["a"], ["b"])

        columns = [column[:1] for column in cases.columns("src", "mt", "ref")]

        expected = cases.results["scores"][:1]

        assert client.score(*columns) == pytest.approx(expected, abs=TOLERANCE)

    def test_call_raises_error_when_worker_is_killed(
        self, client: CometClient, cases: Cases
    ) -> None:
        # The last one that needs it; another start would take 10 seconds.
        columns = [100 * column for column in cases.columns("src", "mt", "ref")]

        timer = Timer(0.5, client._process.kill)

        timer.start()

        with pytest.raises(CometUnavailable) as info:
            client.score(*columns)

        assert str(info.value).startswith(
            "The COMET worker was ended by SIGKILL while scoring 512 sentence(s); it may "
            "have run out of memory, which a smaller `batch_size` saves"
        )

        assert "\n" not in str(info.value)


class TestUnifiedModels:
    @pytest.mark.parametrize(("name", "uses"), [("kiwi", False), ("xcomet", True)])
    def test_references_are_not_required(
        self, name: str, uses: bool, cases: Cases
    ) -> None:
        result = cases.results["unified"][name]

        assert not result["requires_references"]
        assert result["uses_references"] is uses

        assert result["worker"] == pytest.approx(result["direct"], abs=TOLERANCE)

        assert len(set(result["worker"])) > 1


class TestLoading:
    @pytest.mark.parametrize("name", ["model", "moved", "cached"])
    def test_model_is_loaded(self, name: str, cases: Cases) -> None:
        assert cases.results["loaded"][name] == pytest.approx(
            cases.results["scores"][0], abs=TOLERANCE
        )

    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("junk", ["junk/checkpoints/model.ckpt cannot be", "UnpicklingError", "no checkpoint"]),  # fmt: skip
            ("incomplete", ["cannot be loaded", "estimator.ff.0.weight", "copy it anew"]),  # fmt: skip
            ("lost", ["encoder /gone/encoder of", "`pretrained_model` in /", "lost/hparams.yaml"]),  # fmt: skip
            ("unreachable", ["encoder xlm-roberta-large of", "where there is a network"]),  # fmt: skip
            ("uncached", ["tests/no-comet is no file or folder here", "from the Hugging Face Hub"]),  # fmt: skip
            ("gpu", ["`gpus` to 0"]),
        ],
    )
    def test_reason_is_told(self, name: str, parts: list[str], cases: Cases) -> None:
        if name == "gpu" and not isinstance(cases.results["loaded"][name], str):
            pytest.skip("there is a GPU")

        for part in parts:
            assert part in cases.results["loaded"][name]

        assert "\n" not in cases.results["loaded"][name]

    def test_start_fails_with_reason_of_worker(self, cases: Cases) -> None:
        assert PYTHON is not None

        with pytest.raises(CometUnavailable) as info:
            CometClient(PYTHON, cases.folder / "junk")

        assert str(info.value) == cases.results["loaded"]["junk"]
