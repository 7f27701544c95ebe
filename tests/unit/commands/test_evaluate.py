# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from warmup_plugin.commands.evaluate import main
from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.scores import evaluate
from warmup_plugin.evaluation.systems import RunOptions, name_systems, read_run
from warmup_plugin.recipes import jobs
from warmup_plugin.recipes.job_options import GenerateOptions

_REFERENCES = [f"the cat number {i} sits on the red mat" for i in range(20)]

_HALF = [
    line if i % 2 == 0 else "a dog stood there" for i, line in enumerate(_REFERENCES)
]

_FILES = ["--hypotheses", "h", "--references", "r"]


def _write(file: Path, lines: Sequence[str]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)

    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    return str(file)


class TestNameSystems:
    def test_call_takes_shortest_ends_that_differ(self, tmp_path: Path) -> None:
        paths = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "b" / "x"]

        assert name_systems(paths[1:], None) == ["run", "x"]
        assert name_systems(paths, None) == ["a/run", "b/run", "b/x"]

    def test_call_names_one_path_within_the_other(self) -> None:
        assert name_systems([Path("/x"), Path("/y/x")], None) == ["x", "y/x"]

    def test_call_names_folder_that_is_given_by_dots(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "sft").mkdir()

        monkeypatch.chdir(tmp_path / "sft")

        assert name_systems([Path("."), Path("../warmup")], None) == ["sft", "warmup"]

    def test_link_is_called_as_it_is_given(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "run")

        assert name_systems([tmp_path / "link"], None) == ["link"]

    @pytest.mark.parametrize("names", [None, ["a", "b"]])
    def test_call_refuses_the_same_run_twice(
        self, tmp_path: Path, names: list[str] | None
    ) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "run")

        with pytest.raises(WarmupError, match="run is given more than once"):
            name_systems([tmp_path / "run", tmp_path / "link"], names)


class TestFileMode:
    def test_main_scores_one_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hyp, ref = _write(tmp_path / "h", _REFERENCES), _write(
            tmp_path / "r", _REFERENCES
        )

        args = ["--hypotheses", hyp, "--references", ref, "--num-bootstrap", "20"]

        assert main(args) == 0

        out = capsys.readouterr().out

        assert "100.00 [100.00, 100.00]" in out
        assert "BLEU: nrefs:1|case:mixed|eff:no|tok:13a" in out
        assert "20 sentences" in out
        assert "paired" not in out

    def test_main_tests_systems_against_first(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        half, right = _write(tmp_path / "half", _HALF), _write(
            tmp_path / "right", _REFERENCES
        )

        out_file = tmp_path / "out" / "scores.json"

        args = ["--hypotheses", half, right, "--references", right]

        args += ["--target-lang", "de", "--json", str(out_file)]

        assert main([*args, "--num-bootstrap", "100"]) == 0

        out = capsys.readouterr().out

        assert "p: two-sided, by approximate randomization (10,000 trials), " in out
        assert "randomization (10,000 trials), against half\n" in out
        assert "Only 20 sentences" in out

        data = json.loads(out_file.read_text(encoding="utf-8"))

        # The ends of the paths that tell them apart.
        assert list(data["systems"]) == ["half", "right"]
        assert data["baseline"] == "half"
        assert data["hypotheses"] == {"half": half, "right": right}
        assert data["target_lang"] == "de"
        assert data["num_sentences"] == 20
        assert data["references"] == right
        assert data["bootstrap"] == {"num_samples": 100, "seed": 12345}
        assert data["versions"]["sacrebleu"].startswith("2.")

        bleu, _ = data["systems"]["half"]

        assert bleu["name"] == "BLEU"
        assert bleu["ci_low"] < bleu["score"] < bleu["ci_high"]
        assert "tok:13a" in bleu["signature"]

        comparison = data["comparisons"][0]

        assert (comparison["system"], comparison["metric"]) == ("right", "BLEU")
        # Two-sided: half of the outputs differ, and all are better. One trial in 1,024
        # swaps all or none of these.
        assert comparison["p_value"] == pytest.approx(2 / 1024, abs=0.0015)
        assert comparison["bootstrap_p_value"] is None

    def test_systems_are_called_as_told(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        half, ref = _write(tmp_path / "h", _HALF), _write(tmp_path / "r", _REFERENCES)

        args = ["--hypotheses", half, ref, "--references", ref, "--names"]

        assert main([*args, "SFT", "warmup"]) == 0

        out = capsys.readouterr().out

        assert "against SFT" in out and half not in out

        assert main([*args, "SFT"]) == 2

        assert "1 names for 2 systems" in capsys.readouterr().err

        assert main([*args, "SFT", "SFT"]) == 2

        assert "calls more than one system `SFT`" in capsys.readouterr().err

    def test_one_sentence_has_no_p_and_no_interval(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        a = _write(tmp_path / "a", ["the cat sat on the mat"])
        b = _write(tmp_path / "b", ["a cat sat on the mat"])
        ref = _write(tmp_path / "ref", ["the cat sat on a mat"])

        args = ["--hypotheses", a, b, "--references", ref, "--target-lang", "en"]

        assert main([*args, "--latex", "--json", str(tmp_path / "x.json")]) == 0

        out = capsys.readouterr().out

        assert "One sentence has no interval and no p-value." in out

        for mark in ("[", "$^{*", r"\pm", "p:", "p <"):
            assert mark not in out

        data = json.loads((tmp_path / "x.json").read_text())

        assert data["comparisons"] == []
        assert data["systems"]["a"][0]["ci_low"] is None

    @pytest.mark.parametrize("gz", [False, True])
    @pytest.mark.parametrize(
        "further",
        [[], ["--json-fields", "references=target"], ["--json-fields", "sum"]],
    )
    def test_main_reads_json_lines(
        self, tmp_path: Path, gz: bool, further: list[str]
    ) -> None:
        hypotheses = [{"source": "x", "output": line} for line in _REFERENCES]

        field = "sum" if further[-1:] == ["sum"] else "target"

        references = [{"source": "x", field: line} for line in _REFERENCES]

        files = []

        for name, rows in (("h.txt.jsonl", hypotheses), ("r.jsonl", references)):
            text = "".join(json.dumps(row) + "\n" for row in rows).encode()

            file = tmp_path / (f"{name}.gz" if gz else name)

            file.write_bytes(gzip.compress(text) if gz else text)

            files.append(str(file))

        out = tmp_path / "scores.json"

        args = ["--hypotheses", files[0], "--references", files[1], *further]

        assert main([*args, "--json", str(out)]) == 0

        bleu, _ = json.loads(out.read_text())["systems"][Path(files[0]).name]

        assert bleu["score"] == pytest.approx(100.0)

    def test_main_scores_without_references(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        files = [_write(tmp_path / name, _REFERENCES) for name in ("h", "s")]

        args = [
            "--hypotheses",
            files[0],
            "--sources",
            files[1],
            "--metrics",
            "language",
        ]

        assert main([*args, "--target-lang", "en"]) == 0

        assert "in language: nrefs:0|lang:en|" in capsys.readouterr().out

    @pytest.mark.parametrize("as_list", [False, True])
    def test_main_takes_several_references(self, tmp_path: Path, as_list: bool) -> None:
        other = ["an other text"] * len(_REFERENCES)

        hypotheses = _write(tmp_path / "h", _REFERENCES)

        files = [_write(tmp_path / "r1", other), _write(tmp_path / "r2", _REFERENCES)]

        if as_list:
            rows = [json.dumps({"targets": row}) for row in zip(other, _REFERENCES)]

            files = [_write(tmp_path / "r.jsonl", rows)]

        out = tmp_path / "scores.json"

        args = ["--hypotheses", hypotheses, "--json", str(out)]

        assert main([*args, "--references", *files]) == 0

        report = json.loads(out.read_text())

        [bleu, chrf] = report["systems"]["h"]

        assert (bleu["score"], chrf["score"]) == (pytest.approx(100), 100)
        assert bleu["signature"].startswith("nrefs:2|")
        assert report["references"] == ", ".join(files)

    @pytest.mark.parametrize(
        "args,message",
        [
            ([], "There is nothing to score"),
            (
                ["--hypotheses", "h"],
                "`bleu` needs `--references FILE`; add it, or choose",
            ),
            (
                ["--hypotheses", "h", "--metrics", "cometkiwi,language"],
                "without references need `--sources FILE`",
            ),
            (["run", "x", "--hypotheses", "h"], "takes one `RUN_DIR`, whose data"),
            (
                ["run", "--hypotheses", "h", "--checkpoint", "last"],
                "`--checkpoint` is of no use with `--hypotheses`",
            ),
            (["run", "--references", "r"], "leave `--references` out"),
            (["run", "--sources", "r"], "leave `--sources` out"),
            (["--hypotheses", "h", "--split", "test"], "`--split` belongs to a run"),
            (["--hypotheses", "h", "--data", "d"], "`--data` belongs to a run"),
            (["--hypotheses", "nope", "--references", "r"], "nope"),
            (["--hypotheses", "h", "h", "--references", "r"], "h is given more than"),
            (["--hypotheses", "h", "--references", "short"], "h has 20 lines but"),
            (
                ["--hypotheses", "h", "--references", "r", "--json", "h/x.json"],
                "h/x.json cannot be written",
            ),
            (
                ["--hypotheses", "h", "--references", "r", "--sources", "short"],
                "short has 19 lines but r has 20",
            ),
            (["h", "--metrics", "bleu,nope"], "`nope` is not known; choose some of"),
            (["h", "--metrics", ","], "No metric is given"),
            (["h", "--labels", "A,B"], "`--labels` is of no use without the metric"),
            (["h", "--comet-gpus", "1"], "`--comet-gpus` is of no use without"),
            (
                [*_FILES, "--metrics", "comet", "--comet-model", "."],
                "`comet` needs the sources; add `--sources FILE`",
            ),
            (
                [*_FILES, "--metrics", "comet", "--cometkiwi-model", "a/b"],
                "`--cometkiwi-model` is of no use without the metric `cometkiwi`",
            ),
            ([*_FILES, "--metrics", "rouge"], "`rouge` needs `--target-lang`"),
            ([*_FILES, "--bleu-tokenize", "x"], "no tokenizer `x`; choose one of"),
            (
                [*_FILES, "--metrics", "accuracy", "--labels", "A,B"],
                "Reference 1 is `the cat number 0",
            ),
            (["nope"], "nope` does not exist; name the output directory of a"),
            (["h"], "h` does not exist"),
            (["."], "is not a run directory"),
        ],
    )
    def test_main_reports_bad_input_in_one_line(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        args: Sequence[str],
        message: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)

        _write(tmp_path / "h", _HALF)
        _write(tmp_path / "r", _REFERENCES)
        _write(tmp_path / "short", _REFERENCES[:19])

        assert main([*args, "--num-bootstrap", "5"]) == 2

        err = capsys.readouterr().err

        assert err.startswith("error: ")
        assert message in err
        assert err.count("\n") == 1

    def test_main_prints_latex(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        half, right = _write(tmp_path / "h_1", _HALF), _write(
            tmp_path / "r", _REFERENCES
        )

        args = ["--hypotheses", half, right, "--references", right, "--latex"]

        assert main([*args, "--num-bootstrap", "200"]) == 0

        lines = capsys.readouterr().out.splitlines()

        [row] = [line for line in lines if r"h\_1 & " in line]

        assert row.count(r"$\pm$") == 2 and row.endswith(r" \\")

        assert any(line.endswith(r"$^{**}$ \\") for line in lines)

    def test_main_scores_answers(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        hyp = _write(tmp_path / "h", ["A", "B", "A man", ""])
        ref = _write(tmp_path / "r", ["A", "A", "B", "C"])

        out_file = tmp_path / "scores.json"

        args = ["--hypotheses", hyp, "--references", ref, "--json", str(out_file)]

        args += ["--metrics", "accuracy, macro_f1", "--labels", "A,B,C,D"]

        assert main([*args, "--num-bootstrap", "10"]) == 0

        assert (
            "invalid answers of h: 2 of 4, such as `A man`, an empty one\n"
            in capsys.readouterr().out
        )

        accuracy, macro_f1 = json.loads(out_file.read_text())["systems"]["h"]

        assert accuracy["score"] == 25.0
        assert accuracy["details"]["num_invalid"] == 2

        # A: 2 * 1 / (2 + 1); B, C, D: 0.
        assert macro_f1["score"] == pytest.approx(100 * 2 / 3 / 4)

    def test_main_says_what_cannot_be_computed(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("WARMUP_COMET_PYTHON", "/nope/python")

        hyp, ref = _write(tmp_path / "h", _HALF), _write(tmp_path / "r", _REFERENCES)

        out_file = tmp_path / "scores.json"

        args = ["--hypotheses", hyp, "--references", ref, "--sources", ref]

        args += ["--metrics", "chrf,comet", "--comet-model", str(tmp_path)]

        args += ["--num-bootstrap", "0", "--json", str(out_file)]

        assert main(args) == 0

        out = capsys.readouterr().out

        assert out.splitlines()[2].split()[-1] == "-"
        assert "COMET: not computed. " in out and "/nope/python" in out

        chrf, comet = json.loads(out_file.read_text())["systems"]["h"]

        assert chrf["score"] > 0
        assert comet["score"] is None and "/nope/python" in comet["reason"]

    def test_main_fails_if_nothing_can_be_computed(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("WARMUP_COMET_PYTHON", "/nope/python")

        hyp, ref = _write(tmp_path / "h", _HALF), _write(tmp_path / "r", _REFERENCES)

        args = ["--hypotheses", hyp, "--references", ref, "--sources", ref]

        assert main([*args, "--metrics", "comet", "--num-bootstrap", "0"]) == 2

        out, err = capsys.readouterr()

        assert "COMET: not computed. " in out
        assert err.startswith("error: No metric could be computed; ")

    def test_main_splits_files_at_line_feeds_alone(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = ["a\u2028b c d e", "f\tg h i j", "k\x0cl\x85m n o", "p\rq r s t"]

        hyp, ref = _write(tmp_path / "h", lines), _write(tmp_path / "r", lines)

        assert main(["--hypotheses", hyp, "--references", ref]) == 0

        out = capsys.readouterr().out

        assert "4 sentences" in out
        assert "100.00 [100.00, 100.00]" in out

    def test_module_imports_neither_torch_nor_fairseq2(self) -> None:
        code = (
            "import sys, warmup_plugin.commands.evaluate; "
            "sys.exit(not {'torch', 'fairseq2'}.isdisjoint(sys.modules))"
        )

        assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    data = tmp_path / "data"

    _write(data / "test.xx", ["source"] * 20)
    _write(data / "test.zh", _REFERENCES)
    _write(data / "short.xx", ["source"] * 19)
    _write(data / "short.zh", _REFERENCES[:19])

    config = [
        "model: {family: nllb}",
        "dataset:",
        f"  path: {data}",
        "  format: plain",
        "  source_lang: xx",
        "  target_lang: zh",
        "  max_num_tokens: 10",
    ]

    _write(tmp_path / "run" / "run.yaml", config)

    return tmp_path / "run"


@pytest.fixture
def generate_calls(monkeypatch: pytest.MonkeyPatch) -> list[GenerateOptions]:
    """Replaces the job that translates by one that records its options."""
    calls: list[GenerateOptions] = []

    def generate(options: GenerateOptions) -> int:
        calls.append(options)

        if options.split == "short":
            return 2

        _write_translations(options.run_dir, f"{options.split}.{options.checkpoint}")

        return 0

    monkeypatch.setattr(jobs, "generate", generate)

    return calls


def _write_translations(
    run_dir: Path, name: str, sources: Sequence[str] = ("source",) * 20
) -> Path:
    file = run_dir / "generate" / f"{name}.txt"

    # U+2028 is no end of line, but `generate` writes a space for it.
    lines = [
        json.dumps({"source": source, "output": output.replace(" ", "\u2028", 1)})
        for source, output in zip(sources, _HALF)
    ]

    _write(file, _HALF)
    _write(file.with_name(f"{file.name}.jsonl"), lines)

    return file


class TestRunMode:
    def test_run_is_scored_by_all_its_references(
        self, run_dir: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        data = run_dir.parent / "data"

        rows = [
            json.dumps(
                {"source": "source", "target": "x", "targets": ["x", half, "no"]}
            )
            for half in _HALF
        ]

        _write(data / "more.jsonl", rows)

        text = (run_dir / "run.yaml").read_text().replace("plain", "jsonl")

        (run_dir / "run.yaml").write_text(text)

        assert main([str(run_dir), "--split", "more", "--num-bootstrap", "0"]) == 0

        report = json.loads((run_dir / "evaluate" / "more.best.json").read_text())

        [bleu, chrf] = report["systems"]["run"]

        assert chrf["score"] == 100 and "nrefs:3" in chrf["signature"]

    def test_main_generates_and_writes_scores(
        self, run_dir: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        assert main([str(run_dir), "--num-bootstrap", "10"]) == 0

        assert generate_calls == [GenerateOptions(run_dir=run_dir, split="test")]

        text = (run_dir / "evaluate" / "test.best.json").read_text(encoding="utf-8")

        data = json.loads(text)

        assert list(data["systems"]) == ["run"]
        assert data["target_lang"] == "zh"
        assert "tok:zh" in data["systems"]["run"][0]["signature"]
        assert data["num_sentences"] == 20
        assert data["hypotheses"] == {
            "run": str(run_dir / "generate" / "test.best.txt")
        }
        assert {"sacrebleu", "warmup_plugin", "git_commit"} <= set(data["versions"])

        # Those of a test set are not known always.
        assert "num_documents" not in data

    def test_documents_of_the_split_are_counted(
        self, run_dir: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        _write(run_dir.parent / "data" / "test.docid", ["a"] * 12 + ["b"] * 8)

        assert main([str(run_dir), "--num-bootstrap", "0"]) == 0

        data = json.loads((run_dir / "evaluate" / "test.best.json").read_text())

        assert data["num_documents"] == 2

    def test_truncate_is_handed_on_to_translation(
        self, run_dir: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        assert main([str(run_dir), "--truncate", "--num-bootstrap", "0"]) == 0

        assert generate_calls == [
            GenerateOptions(run_dir=run_dir, split="test", truncate=True)
        ]

    def test_main_refuses_the_same_run_before_it_translates(
        self,
        run_dir: Path,
        generate_calls: list[GenerateOptions],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert main([str(run_dir), str(run_dir)]) == 2

        assert "is given more than once" in capsys.readouterr().err

        assert generate_calls == []

    def test_main_reuses_translations(
        self, run_dir: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        _write_translations(run_dir, "test.last")

        args = [str(run_dir), "--checkpoint", "last", "--num-bootstrap", "0"]

        assert main(args) == 0

        assert generate_calls == []

        assert (run_dir / "evaluate" / "test.last.json").is_file()

    def test_main_generates_again_when_checkpoints_are_newer(
        self, run_dir: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        file = _write_translations(run_dir, "test.best")

        (run_dir / "checkpoints" / "step_2").mkdir(parents=True)

        os.utime(file, (0, 0))

        assert main([str(run_dir), "--num-bootstrap", "0"]) == 0

        assert len(generate_calls) == 1

    @pytest.mark.parametrize("idx", [0, 19])
    def test_main_generates_again_when_sources_differ(
        self, run_dir: Path, generate_calls: list[GenerateOptions], idx: int
    ) -> None:
        sources = ["source"] * 20

        sources[idx] = "an older source"

        _write_translations(run_dir, "test.best", sources)

        assert main([str(run_dir), "--num-bootstrap", "0"]) == 0

        assert len(generate_calls) == 1

    @pytest.mark.parametrize("line", ["{", "[]", "{}", "1"])
    def test_main_generates_again_when_details_are_broken(
        self, run_dir: Path, generate_calls: list[GenerateOptions], line: str
    ) -> None:
        file = _write_translations(run_dir, "test.best")

        _write(file.with_name(f"{file.name}.jsonl"), [line])

        assert main([str(run_dir), "--num-bootstrap", "0"]) == 0

        assert len(generate_calls) == 1

    def test_main_reuses_translations_of_sources_with_line_feeds(
        self, tmp_path: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        rows = [{"source": "a\n\nb\u2028c", "target": line} for line in _REFERENCES]

        _write(tmp_path / "data" / "test.jsonl", [json.dumps(row) for row in rows])

        run_dir = tmp_path / "run"

        _write(run_dir / "run.yaml", ["dataset:", f"  path: {tmp_path / 'data'}"])

        _write_translations(run_dir, "test.best", ["a\n\nb\u2028c"] * 20)

        assert main([str(run_dir), "--num-bootstrap", "0"]) == 0

        assert generate_calls == []

    @pytest.mark.parametrize("mode", ["run", "files", "files of run", "json"])
    def test_main_scores_line_feeds_inside_outputs(
        self, tmp_path: Path, generate_calls: list[GenerateOptions], mode: str
    ) -> None:
        pytest.importorskip("rouge_score")

        reference = "the cat sat here\nwe saw two dogs there"

        output = "we saw two dogs there\nthe cat sat here"

        _write(
            tmp_path / "data" / "test.jsonl",
            [json.dumps({"source": "x", "target": reference})],
        )

        run_dir = tmp_path / "run"

        _write(run_dir / "run.yaml", ["dataset:", f"  path: {tmp_path / 'data'}"])

        file = run_dir / "generate" / "test.best.txt"

        _write(file, [output.replace("\n", " ")])

        details = tmp_path / "run" / "generate" / "test.best.txt.jsonl"

        _write(details, [json.dumps({"source": "x", "output": output})])

        args = {
            "run": [str(run_dir)],
            "files": ["--hypotheses", str(file), "--references"],
            "files of run": [str(run_dir), "--hypotheses", str(file)],
            "json": ["--hypotheses", str(details), "--references"],
        }[mode]

        if args[-1] == "--references":
            args.append(str(tmp_path / "data" / "test.jsonl"))

        out = tmp_path / "scores.json"

        args += ["--metrics", "rouge", "--target-lang", "en", "--json", str(out)]

        assert main(args) == 0

        [scores] = json.loads(out.read_text())["systems"].values()

        by_key = {score["key"]: score["score"] for score in scores}

        # Sentence by sentence, and over their border.
        assert by_key["rougeLsum"] == pytest.approx(100.0)
        assert by_key["rougeL"] < 60.0

    def test_main_takes_text_that_was_changed_as_it_is(self, tmp_path: Path) -> None:
        hyp, ref = _write(tmp_path / "h", ["a b c"]), _write(tmp_path / "r", ["a b c"])

        _write(tmp_path / "h.jsonl", [json.dumps({"output": "x"})])

        out = tmp_path / "scores.json"

        args = ["--hypotheses", hyp, "--references", ref, "--json", str(out)]

        assert main([*args, "--metrics", "chrf"]) == 0

        assert json.loads(out.read_text())["systems"]["h"][0]["score"] == 100.0

    @pytest.mark.parametrize(
        "edit,message",
        [
            (lambda lines: lines[:-1], "has 19 lines but"),
            (lambda lines: lines[1:] + lines[:1], "Line 1 of {} is not the output"),
            (lambda lines: [*lines[:18], lines[19], lines[18]], "Line 19 of {} is not"),
            (lambda lines: [*lines[:5], "", *lines[6:]], "Line 6 of {} is not"),
        ],
    )
    def test_main_refuses_translations_that_were_changed(
        self,
        run_dir: Path,
        generate_calls: list[GenerateOptions],
        capsys: pytest.CaptureFixture[str],
        edit: Callable[[list[str]], list[str]],
        message: str,
    ) -> None:
        file = _write_translations(run_dir, "test.best")

        _write(file, edit(list(_HALF)))

        assert main([str(run_dir), "--num-bootstrap", "0"]) == 2

        err = capsys.readouterr().err

        assert message.format(file) in err
        assert "delete both files" in err and err.count("\n") == 1

        # Not to be written over.
        assert generate_calls == []

    def test_main_refuses_details_without_outputs(
        self,
        run_dir: Path,
        generate_calls: list[GenerateOptions],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        file = _write_translations(run_dir, "test.best")

        _write(file.with_name(f"{file.name}.jsonl"), ['{"source": "source"}'] * 20)

        assert main([str(run_dir), "--num-bootstrap", "0"]) == 2

        assert "test.best.txt.jsonl is no object with" in capsys.readouterr().err

    def test_run_has_sources(
        self, run_dir: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        system = read_run(run_dir, RunOptions(split="test"))

        assert system.sources == ["source"] * 20
        assert system.references == [[line] for line in _REFERENCES]
        # As of the JSON lines.
        assert system.hypotheses == [line.replace(" ", "\u2028", 1) for line in _HALF]
        assert system.target_lang == "zh"

    def test_sources_must_agree_when_a_metric_reads_them(
        self, run_dir: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        system = read_run(run_dir, RunOptions(split="test"))

        other = replace(system, name="other", sources=["another"] * 20)

        evaluate([system, other], num_bootstrap=0)

        with pytest.raises(WarmupError, match="other and .* have different sources"):
            evaluate([system, other], num_bootstrap=0, metrics=["comet"])

    def test_main_reads_data_where_told(
        self, run_dir: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        data, moved = run_dir.parent / "data", run_dir.parent / "moved"

        data.rename(moved)

        args = [str(run_dir), "--num-bootstrap", "0"]

        assert main(args) == 2

        assert main([*args, "--data", str(moved)]) == 0

        assert generate_calls == [
            GenerateOptions(run_dir=run_dir, split="test", data_dir=moved)
        ]

        text = (run_dir / "evaluate" / "test.best.json").read_text(encoding="utf-8")

        assert str(moved) in json.loads(text)["references"]

    def test_main_takes_split_from_config(
        self, run_dir: Path, generate_calls: list[GenerateOptions]
    ) -> None:
        with (run_dir / "run.yaml").open("a") as fp:
            fp.write("  test_split: short\n")

        assert main([str(run_dir)]) == 2

        assert generate_calls[0].split == "short"

    def test_main_compares_runs(
        self,
        run_dir: Path,
        generate_calls: list[GenerateOptions],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        other_dir = run_dir.with_name("other")

        text = (run_dir / "run.yaml").read_text()

        _write(other_dir / "run.yaml", [text])

        assert main([str(run_dir), str(other_dir), "--num-bootstrap", "10"]) == 0

        assert len(generate_calls) == 2

        assert "1.000" in capsys.readouterr().out

        text = (other_dir / "evaluate" / "test.best.json").read_text(encoding="utf-8")

        data = json.loads(text)

        assert list(data["systems"]) == ["other"]
        assert data["baseline"] == "run"
        assert data["comparisons"][0]["p_value"] == 1.0

    def test_main_scores_files_by_what_a_run_translates(
        self, run_dir: Path, generate_calls: list[GenerateOptions], tmp_path: Path
    ) -> None:
        file = tmp_path / "other.txt"

        _write(file, _HALF)

        args = [str(run_dir), "--hypotheses", str(file), "--json", str(tmp_path / "o")]

        assert main([*args, "--num-bootstrap", "10"]) == 0

        data = json.loads((tmp_path / "o").read_text(encoding="utf-8"))

        assert list(data["systems"]) == ["other.txt"]
        assert data["target_lang"] == "zh"
        assert data["num_sentences"] == 20

        # The run itself is neither translated nor scored.
        assert generate_calls == []
        assert not (run_dir / "evaluate").exists()

    @pytest.mark.parametrize(
        "args,message",
        [
            (["--split", "nope"], "has no `nope` split"),
            (["--split", "short"], "cannot be translated"),
        ],
    )
    def test_main_reports_bad_split(
        self,
        run_dir: Path,
        generate_calls: list[GenerateOptions],
        capsys: pytest.CaptureFixture[str],
        args: Sequence[str],
        message: str,
    ) -> None:
        assert main([str(run_dir), *args]) == 2

        assert message in capsys.readouterr().err

    @pytest.mark.parametrize(
        "text,message",
        [
            ("a: [", "cannot be read as YAML"),
            ("model: {}", "has no section `dataset`"),
            ("- 1", "holds no YAML mapping"),
        ],
    )
    def test_main_reports_bad_config(
        self,
        run_dir: Path,
        capsys: pytest.CaptureFixture[str],
        text: str,
        message: str,
    ) -> None:
        (run_dir / "run.yaml").write_text(text)

        assert main([str(run_dir)]) == 2

        assert message in capsys.readouterr().err
