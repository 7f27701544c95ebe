# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.unit.report.cases import (
    REFERENCES,
    SOURCES,
    write_data,
    write_metrics,
    write_run,
)
from warmup_plugin.__main__ import main
from warmup_plugin.evaluation.scores import evaluate
from warmup_plugin.metrics.base import Metric, MetricUnavailable
from warmup_plugin.metrics.registry import METRICS, MetricEntry, MetricOptions
from warmup_plugin.recipes import jobs
from warmup_plugin.recipes.job_options import GenerateOptions, JobOptions, ScoreOptions
from warmup_plugin.report.page import to_script_json


@pytest.fixture(scope="module", autouse=True)
def fewer_trials() -> Iterator[None]:
    """Each trial of a test is scored by sacreBLEU in Python."""
    defaults = {**(evaluate.__kwdefaults__ or {}), "num_randomization": 1000}

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(evaluate, "__kwdefaults__", defaults)

        yield


class Page(HTMLParser):
    """Reads what a browser would see of a page, without running anything."""

    def __init__(self, html: str) -> None:
        super().__init__()

        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._tag = ""

        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

        self._tag = tag

        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag == "script":
            attributes, text = self.scripts[-1]

            self.scripts[-1] = (attributes, text + data)
        elif self._tag != "style":
            self.text += f" {data}"

    def json(self, id_: str) -> Any:
        [text] = [text for attrs, text in self.scripts if attrs.get("id") == id_]

        return json.loads(text)

    def has(self, tag: str, **attributes: str) -> bool:
        return any(
            tag == name and attributes.items() <= attrs.items()
            for name, attrs in self.elements
        )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def runs(tmp_path: Path, data: Path) -> list[Path]:
    return [
        write_run(tmp_path / "runs" / "plain", data),
        write_run(tmp_path / "runs" / "method", data, is_warmup=True),
    ]


def report(runs: Sequence[Path], *options: str) -> Page:
    """Runs the command and reads the page."""
    output = runs[0].parent.parent / "report.html"

    args = [*map(str, runs), "-o", str(output), "--num-bootstrap", "20", *options]

    assert main(["report", *args]) == 0

    return Page(output.read_text(encoding="utf-8"))


class TestReport:
    def test_page_shows_curves_table_and_sentences(self, runs: list[Path]) -> None:
        page = report(runs)

        for part in ("results", "training", "warmups", "sentences", "runs"):
            assert page.has("section", id=part)

        figures = page.json("figure-data")

        assert {
            "curve-bleu",
            "curve-chrf",
            "curve-nll-loss",
            "curve-effective-sample-size",
            "curve-duplicate-warmups",
            "score-bleu",
            "score-chrf2",
            "chrf-gains",
            "log-prob-gains",
            "overlap-1",
            "overlap-2",
            "positions",
            "lengths",
        } <= set(figures)

        # Each has its place in the page and the other way round.
        places = [
            attrs["data-figure"] for _, attrs in page.elements if "data-figure" in attrs
        ]

        assert sorted(figures) == sorted(map(str, places))

        browser = page.json("browser-data")

        assert [run["name"] for run in browser["runs"]] == ["plain", "method"]
        assert [s["s"] for s in browser["sentences"]] == list(SOURCES)
        assert ["".join(p[0] for p in s["r"]) for s in browser["sentences"]] == list(
            REFERENCES
        )

        for text in (
            "95 % interval",
            "approximate randomization",
            "tok:13a",
            "6 sentences",
            "0123456789",
            "warmup: marginal, K\u00a0=\u00a02, at most 3 tokens",
        ):
            assert text in page.text

    def test_page_keeps_color_and_index_of_a_run(self, runs: list[Path]) -> None:
        page = report(runs)

        for figure in page.json("figure-data").values():
            for trace in figure["data"]:
                color = trace.get("line", {}).get("color") or trace["marker"]["color"]

                assert color == f"var(--run-{trace['meta']['run']})"

        style = "--color: var(--run-1)"

        assert page.has("button", **{"data-run": "1", "style": style})

    def test_curves_have_rings_and_limits(self, runs: list[Path]) -> None:
        figures = report(runs).json("figure-data")

        rings = [t for t in figures["curve-bleu"]["data"] if t["mode"] == "markers"]

        assert [(t["x"], t["y"], t["meta"]["times"]) for t in rings] == [
            ([40], [20], [240])
        ] * 2

        # 0.8 of the one draw of two that could differ.
        [shape] = figures["curve-duplicate-warmups"]["layout"]["shapes"]

        assert shape["y0"] == shape["y1"] == 0.4

    def test_page_asks_for_nothing_and_runs_only_its_scripts(
        self, runs: list[Path]
    ) -> None:
        page = report(runs)

        for tag, attrs in page.elements:
            for name in ("src", "href", "action", "srcset", "data"):
                value = attrs.get(name)

                assert value is None or value.startswith(("#", "data:,")), (tag, attrs)

        [policy] = [
            str(attrs["content"])
            for tag, attrs in page.elements
            if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
        ]

        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe-eval" not in policy

        hashes = re.findall(r"'sha256-(\S+)'", policy)

        scripts = [t for attrs, t in page.scripts if attrs.get("type") is None]

        assert len(scripts) == 3

        for script in scripts:
            digest = hashlib.sha256(script.encode("utf-8")).digest()

            assert base64.b64encode(digest).decode() in hashes

    def test_page_does_not_read_data_as_html(
        self, tmp_path: Path, data: Path, runs: list[Path]
    ) -> None:
        name = "<img src=x onerror=alert(1)>"

        odd = write_run(tmp_path / "runs" / name, data, is_warmup=True)

        page = report([*runs, odd], "--title", "<script>alert(1)</script>")

        assert not page.has("img") and not page.has("b", src="x")

        # The data, three scripts and no other.
        assert len(page.scripts) == 5
        assert "<script>alert(1)</script>" in page.text
        assert name in page.text

    def test_page_names_no_path_of_the_machine(
        self, tmp_path: Path, runs: list[Path]
    ) -> None:
        report(runs)

        html = (tmp_path / "report.html").read_text(encoding="utf-8")

        assert str(tmp_path) not in html
        assert (
            "python -m warmup_plugin report plain method --num-bootstrap 20 -o report.html"
            in html
        )

    def test_runs_are_called_as_told(self, tmp_path: Path, runs: list[Path]) -> None:
        page = report(runs, "--names", "SFT", "ours & theirs")

        assert "ours & theirs" in page.text

        html = (tmp_path / "report.html").read_text(encoding="utf-8")

        assert (
            "python -m warmup_plugin report SFT &#39;ours &amp; theirs&#39; --num-bootstrap 20 -o report.html"
            in html
        )

    def test_truncate_is_handed_on(
        self,
        tmp_path: Path,
        data: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        calls: list[JobOptions] = []

        def run(options: JobOptions) -> int:
            calls.append(options)

            return 2

        monkeypatch.setattr(jobs, "generate", run)
        monkeypatch.setattr(jobs, "score", run)

        new = write_run(tmp_path / "new", data, has_translations=False)

        translated = write_run(
            tmp_path / "translated", data, is_warmup=True, has_scores=False
        )

        for run_dir in (new, translated):
            args = ["report", str(run_dir), "-o", str(tmp_path / "x.html")]

            assert main([*args, "--truncate"]) == 2

        assert calls == [
            GenerateOptions(run_dir=new, split="test", truncate=True),
            ScoreOptions(run_dir=translated, split="test", truncate=True),
        ]

        assert not (tmp_path / "x.html").exists()

    def test_page_says_what_runs_lack(
        self, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runs = [
            write_run(
                tmp_path / "runs" / "young",
                data,
                has_checkpoint=False,
                has_translations=False,
            ),
            write_run(tmp_path / "runs" / "plain", data, has_metrics=False),
            write_run(
                tmp_path / "runs" / "method", data, is_warmup=True, has_scores=False
            ),
        ]

        with (runs[2] / "metrics" / "train.jsonl").open("a") as fp:
            fp.write('{"Step')

        page = report(runs, "--no-score")

        for text in (
            "has no translations here: it has no checkpoint yet.",
            "has no curves: it holds no training metrics.",
            "has no log P(y|x) here: it was left out by `--no-score`.",
            "1 line(s) of metrics/train.jsonl cannot be read and is left out.",
        ):
            assert text in page.text

        assert "young is shown without translations" in capsys.readouterr().out

        # The first run that has translations.
        browser = page.json("browser-data")

        assert browser["baseline"] == 1
        assert browser["sentences"][0]["o"][0] is None
        assert "log-prob-gains" not in page.json("figure-data")

    def test_page_of_a_run_in_training_has_curves_only(
        self, tmp_path: Path, data: Path
    ) -> None:
        run = write_run(
            tmp_path / "runs" / "young",
            data,
            is_warmup=True,
            has_checkpoint=False,
            has_translations=False,
            config={"num_steps": 100},
        )

        page = report([run])

        assert page.has("section", id="training")
        assert not page.has("section", id="results")
        assert not page.has("section", id="sentences")
        assert page.json("browser-data")["sentences"] == []
        assert "40 of 100" in page.text

    def test_page_of_one_run_compares_nothing(self, runs: list[Path]) -> None:
        page = report(runs[1:], "--num-bootstrap", "0")

        assert page.has("section", id="results")
        assert "score-bleu" not in page.json("figure-data")
        assert "chrf-gains" not in page.json("figure-data")
        assert "two-sided" not in page.text
        assert "Settings that differ" not in page.text

    def test_page_names_metrics_that_are_missing(
        self, runs: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def create(options: MetricOptions) -> Metric:
            raise MetricUnavailable("TER needs a part; install it.")

        monkeypatch.setitem(METRICS, "ter", MetricEntry({"ter": "TER"}, create))

        page = report(runs, "--metrics", "bleu,ter")

        assert "TER  is missing: TER needs a part; install it." in page.text
        assert "score-ter" not in page.json("figure-data")

    def test_page_lists_as_many_sentences_as_told(self, runs: list[Path]) -> None:
        browser = report(runs, "--max-sentences", "2").json("browser-data")

        assert len(browser["sentences"]) == 2
        assert browser["total"] == 6

    def test_page_of_more_runs_than_colors(self, tmp_path: Path, data: Path) -> None:
        runs = [
            write_run(tmp_path / "runs" / f"r{idx}", data, is_warmup=True)
            for idx in range(9)
        ]

        # Of more metrics the tests of eight differences take seconds.
        page = report(runs, "--num-bootstrap", "2", "--metrics", "chrf")

        last = page.json("browser-data")["runs"][8]

        assert (last["name"], last["color"]) == ("r8", 0)

    def test_page_has_two_validations_of_equal_value(
        self, tmp_path: Path, runs: list[Path]
    ) -> None:
        # No gain at all: bins of no width.
        for run in runs:
            write_metrics(run, is_warmup=False)

        file = runs[0] / "generate" / "test.best.txt"

        for name in (file.name, f"{file.name}.jsonl"):
            (runs[1] / "generate" / name).write_bytes((file.parent / name).read_bytes())

        page = report(runs, "--no-score")

        assert "chrf-gains" not in page.json("figure-data")
        assert "0 / 6 / 0" in page.text


class TestCommand:
    @pytest.mark.parametrize(
        "args,message",
        [
            (["nope"], "nope` does not exist; name the output directory"),
            (["run", "--num-bootstrap", "-1"], "`--num-bootstrap` must be greater"),
            (["run", "--max-sentences", "0"], "`--max-sentences` must be greater"),
            (["run", "-o", "."], "The output . is a folder; name a file."),
            (["run", "-o", "run/run.yaml/x"], "x cannot be written"),
            (["run", "--metrics", "nope"], "`nope` is not known"),
            (["run", "--split", "nope"], "has no `nope` split"),
            (["run", "run"], "run is given more than once"),
            (["run", "--names", "a", "b"], "`--names` has 2 names for 1 systems"),
            (["run", "--checkpoint", "7"], "has no checkpoint `7`"),
        ],
    )
    def test_main_reports_bad_input_in_one_line(
        self,
        tmp_path: Path,
        data: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        args: list[str],
        message: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)

        write_run(tmp_path / "run", data)

        assert main(["report", *args]) == 2

        err = capsys.readouterr().err

        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1


class TestToScriptJson:
    def test_call_leaves_nothing_that_html_reads(self) -> None:
        value = {"a": "</script><!-- <b> & \u2028\u2029 \ud800 ä 'x' \"y\""}

        text = to_script_json(value)

        assert not set("<>&\u2028\u2029") & set(text)
        assert "ä" in text
        assert json.loads(text) == value

    def test_call_refuses_what_is_not_json(self) -> None:
        with pytest.raises(ValueError):
            to_script_json({"a": float("nan")})
