# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import re
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.unit.metrics.fake_comet import install_comet_worker, write_comet_model
from tests.unit.metrics.texts import make_hypotheses, make_references
from warmup_plugin.commands import compare
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.base import Measurement, Metric, measure_mean
from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.recipes import jobs
from warmup_plugin.recipes.job_options import GenerateOptions

_REFERENCES = make_references()

_SOURCES = [line.upper() for line in _REFERENCES]

_BASE = make_hypotheses(_REFERENCES, 0.4, 2)

# Little better, and much.
_NEAR = make_hypotheses(_REFERENCES, 0.38, 3)

_GOOD = make_hypotheses(_REFERENCES, 0.1, 4)


def _write(file: Path, lines: Sequence[str]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)

    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    return str(file)


def _run(args: Sequence[str]) -> int:
    parser = ArgumentParser()

    compare.add_arguments(parser)

    return compare.run(parser.parse_args(args))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Holds the files, by whose bare names the tests call them."""
    monkeypatch.chdir(tmp_path)

    _write(tmp_path / "base", _BASE)
    _write(tmp_path / "near", _NEAR)
    _write(tmp_path / "good", _GOOD)
    _write(tmp_path / "ref", _REFERENCES)
    _write(tmp_path / "src", _SOURCES)
    _write(tmp_path / "short", _BASE[:-1])

    return tmp_path


_FILES = ["--references", "ref", "--sources", "src"]

# Few, but enough to tell much from little.
_NUMBERS = ["--num-bootstrap", "100", "--num-randomization", "200"]

_BOOTSTRAP = [*_NUMBERS, "--paired-bootstrap"]


class TestFiles:
    def test_command_tests_every_metric(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["base", "near", "good", *_FILES, *_BOOTSTRAP]

        assert (
            _run([*args, "--metrics", "bleu,chrf,ter,rouge", "--target-lang", "en"])
            == 0
        )

        lines = capsys.readouterr().out.splitlines()

        rows = {
            tuple(line.split()[:2]): line.split()[-3:]
            for line in lines
            if line.split()[1:2] in (["base"], ["near"], ["good"])
        }

        for metric in ("BLEU", "chrF2++", "TER", "ROUGE-1", "ROUGE-2", "ROUGE-Lsum"):
            assert rows[metric, "base"] == ["-", "-", "-"]

            difference, *p_values = rows[metric, "good"]

            # 1 / (200 + 1) and 1 / (100 + 1).
            assert p_values == ["0.0050", "0.0099"]

            assert difference.startswith("-" if metric == "TER" else "+")

            assert min(map(float, rows[metric, "near"][1:])) > 0.05

        assert any(line.startswith("BLEU: nrefs:1|case:mixed") for line in lines)

    def test_command_counts_sentences_by_length(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert _run(["base", "good", *_FILES, *_NUMBERS, "--json", "out.json"]) == 0

        out = capsys.readouterr().out

        assert "Sentences by chrF2++ against base, by words of the source;" in out

        rows = [line.split() for line in out.splitlines() if line.startswith("good")]

        ranges = [row[1] for row in rows]

        assert len(ranges) == 5
        assert ranges[0] == "all"
        assert ranges[1].startswith("3-") and ranges[-1].endswith("-14")

        # (sentences, wins, ties, losses)
        total, *buckets = [[int(cell) for cell in row[2:6]] for row in rows]

        assert total[0] == sum(total[1:]) == 60
        assert total[1] > total[3]

        assert [sum(column) for column in zip(*buckets)] == total

        data = json.loads((folder / "out.json").read_text(encoding="utf-8"))

        assert data["baseline"] == "base"
        assert data["randomization"] == {"num_trials": 200, "seed": 12345}
        assert data["comparisons"][0]["p_value"] == pytest.approx(1 / 201)

        sentences = data["sentences"]

        assert sentences["length"] == "words of the source"

        chrf = sentences["metrics"]["chrf"]["good"]

        assert chrf["total"]["wins"] == total[1]
        assert len(chrf["differences"]) == 60

    def test_several_references_are_shown(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _write(folder / "more", ["another", *[""] * (len(_REFERENCES) - 1)])
        _write(folder / "base", ["", *_REFERENCES[1:]])
        _write(folder / "other", _REFERENCES)

        args = ["base", "other", "--references", "ref", "more", *_NUMBERS]

        assert _run([*args, "--num-examples", "1"]) == 0

        assert (
            f"  reference 1  {_REFERENCES[0]}\n  reference 2  another\n"
            in capsys.readouterr().out
        )

    def test_systems_may_stand_behind_references(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert _run(["--references", "ref", "base", "good", *_NUMBERS]) == 0

        assert "Sentences by chrF2++ against base" in capsys.readouterr().out

    def test_command_shows_largest_differences(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        # The best of all gains and the worst of all losses.
        _write(folder / "base", ["", *_BASE[1:]])
        _write(folder / "other", [_REFERENCES[0], *_BASE[1:-1], ""])

        args = ["base", "other", *_FILES, *_NUMBERS, "--num-examples", "1"]

        assert _run(args) == 0

        out = capsys.readouterr().out

        assert out.count("\nline ") == 2

        gain = out[
            out.index("Largest gains of other by chrF2++\n\nline 1: +100.00\n") :
        ]

        assert gain.splitlines()[3:7] == [
            f"  source     {_SOURCES[0]}",
            f"  reference  {_REFERENCES[0]}",
            "  base",
            f"  other      {_REFERENCES[0]}",
        ]

        assert "Largest losses of other by chrF2++\n\nline 60: -" in out

    def test_comet_is_tested_and_counted_alike(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        install_comet_worker(folder, monkeypatch)

        # To it, longer outputs are better.
        _write(folder / "long", [f"{line} {line}" for line in _BASE])

        args = ["base", "long", *_FILES, *_BOOTSTRAP, "--metrics", "comet,bleu"]

        assert _run([*args, "--comet-model", write_comet_model(folder)]) == 0

        out = capsys.readouterr().out

        [comet] = [line for line in out.splitlines() if line.startswith("COMET   long")]

        assert comet.split()[-2:] == ["0.0050", "0.0099"]

        table = out[out.index("Sentences by COMET against base") :].splitlines()

        # All sentences are won, of every length.
        assert [row.split()[3] for row in table[4:9]][0] == "60"
        assert all(row.split()[4:6] == ["0", "0"] for row in table[4:9])

        assert "Sentences by BLEU" not in out
        assert "Largest gains of long by COMET" in out

        # One worker for both systems.
        assert (folder / "starts").read_text() == "x"

    def test_files_are_compared_without_references(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        install_comet_worker(folder, monkeypatch, requires_references=False)

        args = ["base", "good", "--sources", "src", "--metrics", "cometkiwi"]

        args += ["--cometkiwi-model", write_comet_model(folder), "--json", "out"]

        assert _run(args) == 0

        report = json.loads((folder / "out").read_text())

        [score] = report["systems"]["base"]

        expected = [len(h) / (100 + len(s)) for h, s in zip(_BASE, _SOURCES)]

        assert score["score"] == pytest.approx(sum(expected) / len(expected))
        assert score["signature"].startswith("nrefs:0|model:tiny-comet|")

        assert report["references"] is None

        assert "Sentences by CometKiwi against base" in capsys.readouterr().out

    def test_lengths_are_those_of_references_without_sources(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert _run(["base", "good", "--references", "ref", *_NUMBERS]) == 0

        out = capsys.readouterr().out

        assert "by words of the reference;" in out
        assert "  source " not in out

    def test_system_does_not_differ_from_itself(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _write(folder / "copy", _BASE)

        assert _run(["base", "copy", *_FILES, *_BOOTSTRAP]) == 0

        lines = capsys.readouterr().out.splitlines()

        [bleu] = [line for line in lines if line.startswith("BLEU     copy")]

        assert bleu.split()[-3:] == ["+0.00", "1.0000", "1.0000"]

        [total] = [line for line in lines if line.startswith("copy    all")]

        assert total.split()[3:6] == ["0", "60", "0"]

        assert not any(line.startswith("Largest") for line in lines)

    def test_sentences_of_each_model_are_there_for_suites(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def measure(
            self: object, systems: Sequence[Sequence[str]], *args: object
        ) -> list[list[Measurement]]:
            return [
                [measure_mean("bertscore", "BERTScore", [len(o) for o in outputs], "")]
                for outputs in systems
            ]

        fake = Mock(spec=Metric, measure=partial(measure, None))

        monkeypatch.setitem(
            METRICS,
            "bertscore",
            replace(METRICS["bertscore"], create=lambda options: fake),
        )

        args = ["base", "good", "--references", "ref", "--metrics", "chrf,bertscore"]

        assert _run([*args, *_NUMBERS, "--json", "out.json"]) == 0

        sentences = json.loads(Path("out.json").read_text())["sentences"]["metrics"]

        assert set(sentences) == {"chrf", "bertscore"}

    def test_metric_without_sentences_is_only_tested(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _write(folder / "gold", ["A", "B", "A", "B"])
        _write(folder / "a", ["A", "B", "A", "A"])
        _write(folder / "b", ["A", "A", "A", "A"])

        args = ["a", "b", "--references", "gold", "--labels", "A,B", *_NUMBERS]

        assert _run([*args, "--metrics", "macro_f1"]) == 0

        assert "Sentences by" not in capsys.readouterr().out

        assert _run([*args, "--metrics", "accuracy"]) == 0

        assert "Sentences by accuracy" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "args,message",
        [
            (["base"], "nothing to compare base with"),
            (["base", "short", *_FILES], "short has 59 lines but ref has 60"),
            (["short", "base", *_FILES], "short has 59 lines but ref has 60"),
            (["base", "good"], "files need `--references FILE`"),
            (["nope", "good"], "nope is not a directory, and files need"),
            (["base", "good", "--sources", "src"], "`--sources` belongs to"),
            (["base", "base", *_FILES], "base is given more than once"),
            (["base", "nope", *_FILES], "nope"),
            (
                ["base", "good", "--references", "ref", "--sources", "short"],
                "short has 59 lines but ref has 60",
            ),
            (["base", "good", *_FILES, "--num-bootstrap", "0"], "`--num-bootstrap`"),
            (
                ["base", "good", *_FILES, "--num-randomization", "0"],
                "`--num-randomization` must",
            ),
            (["base", "good", *_FILES, "--num-examples", "-1"], "`--num-examples`"),
            (["base", "good", *_FILES, "--metrics", "x"], "`x` is not known"),
            (["base", "good", *_FILES, "--split", "x"], "`--split` belongs to a run"),
            ([".", "good"], "is not a run directory"),
        ],
    )
    def test_command_reports_bad_input(
        self, folder: Path, args: Sequence[str], message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            _run(args)


@pytest.fixture
def run_dir(folder: Path) -> Path:
    """A run that has translated its test set."""
    _write(folder / "data" / "test.xx", _SOURCES)
    _write(folder / "data" / "test.yy", _REFERENCES)

    config = ["dataset:", f"  path: {folder / 'data'}"]

    config += ["  source_lang: xx", "  target_lang: yy"]

    _write(folder / "run" / "run.yaml", config)

    records = [
        json.dumps({"source": source, "output": output})
        for source, output in zip(_SOURCES, _BASE)
    ]

    _write(folder / "run" / "generate" / "test.best.txt", _BASE)
    _write(folder / "run" / "generate" / "test.best.txt.jsonl", records)

    return Path("run")


class TestRuns:
    def test_files_are_compared_with_run(
        self, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert _run(["good", str(run_dir), "near", *_BOOTSTRAP]) == 0

        out = capsys.readouterr().out

        # The references and sources are those of the run.
        assert "Sentences by chrF2++ against good, by words of the source;" in out

        difference, *p_values = next(
            line.split()[-3:]
            for line in out.splitlines()
            if line.startswith("BLEU     run")
        )

        assert difference.startswith("-") and p_values == ["0.0050", "0.0099"]

        # Only `evaluate` writes there.
        assert not (run_dir / "evaluate").exists()

    def test_examples_tell_their_documents(
        self, folder: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        _write(folder / "data" / "test.docid", [f"d{n}" for n in range(1, 61)])

        assert _run([str(run_dir), "good", *_NUMBERS, "--num-examples", "1"]) == 0

        lines = [
            line
            for line in capsys.readouterr().out.splitlines()
            if line.startswith("line ")
        ]

        # The gain and the loss.
        assert len(lines) == 2

        for line in lines:
            assert re.match(r"line (\d+) of d\1: [-+]", line)

    def test_systems_are_called_by_the_ends_of_their_paths_or_as_told(
        self, folder: Path, run_dir: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        systems = [str(folder / run_dir), str(folder / "good")]

        assert _run([*systems, *_NUMBERS]) == 0

        out = capsys.readouterr().out

        assert "difference from run, two-sided" in out and str(folder) not in out

        assert _run([*systems, *_NUMBERS, "--names", "SFT", "warmup"]) == 0

        out = capsys.readouterr().out

        assert "difference from SFT, two-sided" in out

        assert any(line.startswith("BLEU     warmup ") for line in out.splitlines())

    def test_truncate_is_handed_on_to_translation(
        self, run_dir: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[GenerateOptions] = []

        def generate(options: GenerateOptions) -> int:
            calls.append(options)

            return 2

        monkeypatch.setattr(jobs, "generate", generate)

        (run_dir / "generate" / "test.best.txt.jsonl").unlink()

        for further in ([], ["--truncate"]):
            with pytest.raises(WarmupError, match="cannot be translated"):
                _run([str(run_dir), "good", *_NUMBERS, *further])

        options = GenerateOptions(run_dir=run_dir, split="test")

        assert calls == [options, replace(options, truncate=True)]

    def test_file_of_other_length_is_refused(self, run_dir: Path) -> None:
        with pytest.raises(
            WarmupError, match="short has 59 lines but the `test` split"
        ):
            _run([str(run_dir), "short", *_NUMBERS])

    def test_references_of_run_cannot_be_replaced(self, run_dir: Path) -> None:
        with pytest.raises(WarmupError, match="references of its data"):
            _run([str(run_dir), "good", *_FILES])
