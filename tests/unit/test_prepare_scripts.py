# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The scripts that prepare data, as a user starts them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

from scripts import (
    filter_pairs,
    prepare_flores,
    prepare_logiqa,
    prepare_summarization,
    prepare_wmt,
    prepare_wmt24pp,
)
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import read_split

SCRIPTS = [
    filter_pairs,
    prepare_flores,
    prepare_logiqa,
    prepare_summarization,
    prepare_wmt,
    prepare_wmt24pp,
]

ROOT = Path(__file__).resolve().parents[2]

each_script = pytest.mark.parametrize(
    "script", SCRIPTS, ids=lambda script: script.__name__.split(".")[-1]
)


def run(
    script: ModuleType, args: Sequence[object], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Returns the status and what was written to standard output and error."""
    capsys.readouterr()

    status = script.main([str(arg) for arg in args])

    captured = capsys.readouterr()

    return status, captured.out, captured.err


@pytest.fixture
def pairs(tmp_path: Path) -> list[Path]:
    """Two files of pairs, of which one is there twice."""
    files = [tmp_path / "raw.en", tmp_path / "raw.de"]

    files[0].write_text("one\ntwo\ntwo\nthree\n")
    files[1].write_text("eins\nzwei\nzwei\ndrei\n")

    return files


class TestScripts:
    @each_script
    def test_help_explains_and_gives_examples(
        self, script: ModuleType, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as info:
            script.main(["--help"])

        assert info.value.code == 0

        text = capsys.readouterr().out

        name = script.__name__.split(".")[-1]

        assert text.startswith(f"usage: {name}.py ")
        assert f"examples:\n  python scripts/{name}.py data/" in text

    def test_start_imports_neither_torch_nor_fairseq2(self) -> None:
        code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from scripts import {", ".join(s.__name__.split(".")[-1] for s in SCRIPTS)}
print({{"torch", "fairseq2", "datasets", "mtdata"}} & {{*sys.modules}})
"""

        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout

        assert output == "set()\n"

    @pytest.mark.parametrize(
        ("script", "args", "text"),
        [
            (filter_pairs, ["--pairs", "a.en", "a.de"], "`a.en` is not a file"),
            (prepare_flores, ["--from", "no/folder"], "`no/folder` does not exist"),
            (prepare_flores, ["--langs", "sw"], "`--langs sw` is not one of"),
            (prepare_logiqa, ["--from", "no/folder"], "has no `train.txt`"),
            (
                prepare_summarization,
                ["--set", "xsum", "--from", "no/folder"],
                "`--from no/folder` is not a folder",
            ),
            (
                prepare_summarization,
                ["--set", "dialogsum", "--url", "example.org"],
                "is not a URL of the web",
            ),
            (prepare_wmt24pp, ["--langs", "zh"], "`--langs zh` is more than one"),
            (
                prepare_wmt24pp,
                ["--langs", "de", "--from", "no/folder"],
                "`no/folder` has no `en-de_DE.jsonl`",
            ),
            (prepare_wmt, ["--pair", "ende", "--year", "2014"], "`--pair ende` is not"),
            (prepare_wmt, ["--pair", "en-de"], "There is nothing to train on"),
            (
                prepare_wmt,
                ["--pair", "en-de", "--year", "2014", "--recipe", "a"],
                "`--year` and `--recipe` both",
            ),
            (
                prepare_wmt,
                ["--pair", "en-de", "--year", "2014", "--max-pairs", "0"],
                "`--max-pairs` must be at least 1",
            ),
            (
                prepare_wmt,
                ["--pair", "en-de", "--year", "2014", "--held-out", "no.en"],
                "`--held-out no.en` is not a file",
            ),
        ],
    )
    def test_bad_input_is_one_sentence(
        self,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        script: ModuleType,
        args: list[str],
        text: str,
    ) -> None:
        if script is filter_pairs:
            args = [*args, "--source-lang", "en", "--target-lang", "de"]

        status, out, err = run(script, [tmp_path / "out", *args], capsys)

        assert status == 2
        assert out == ""
        assert err.startswith("error: ") and err.count("\n") == 1
        assert text in err

        # Nothing was begun.
        assert not tmp_path.joinpath("out").exists()


class TestFilterPairs:
    ARGS = ["--source-lang", "en", "--target-lang", "de", "--language-id", "none"]

    def test_run_filters_and_tells(
        self, tmp_path: Path, pairs: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"

        held_out = tmp_path / "test.de"

        held_out.write_text("DREI!\n")

        args = [out, "--pairs", *pairs, *self.ARGS, "--held-out", held_out]

        args += ["--title", "My pairs", "--license", "CC0"]

        status, text, _ = run(filter_pairs, args, capsys)

        assert status == 0
        assert text.startswith("My pairs: train (licence: CC0): written\n")
        assert "dropped: duplicate                                 1\n" in text
        assert "dropped: occurs in a held-out set                  1\n" in text
        assert "one of 1 held-out sentences" in text
        assert "Languages were not identified" in text

        split = read_split(TextPairsConfig(path=out), "train")

        assert [split.source(idx) for idx in range(len(split))] == ["one", "two"]

        # The same command has nothing to do.
        status, text, _ = run(filter_pairs, args, capsys)

        assert status == 0
        assert "there already, intact" in text

        # What is held out matters, not only where it is.
        held_out.write_text("zwei\n")

        assert "written" in run(filter_pairs, args, capsys)[1]
        assert out.joinpath("train.en").read_text() == "one\nthree\n"

    def test_run_reads_tsv(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "raw.tsv"

        file.write_text("0.9\teins\tone\n0.8\tzwei\ttwo\n")

        out = tmp_path / "out"

        args = [out, "--pairs", file, "--columns", "2", "1", *self.ARGS]

        assert run(filter_pairs, [*args, "--split", "dev"], capsys)[0] == 0
        assert out.joinpath("dev.en").read_text() == "one\ntwo\n"
        assert out.joinpath("dev.de").read_text() == "eins\nzwei\n"

    def test_run_does_not_overwrite_what_it_reads(
        self, tmp_path: Path, pairs: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = [tmp_path, "--pairs", *pairs, *self.ARGS, "--split", "raw", "--force"]

        status, _, err = run(filter_pairs, args, capsys)

        assert status == 2
        assert "would be overwritten by its own filtered text" in err
        assert pairs[0].read_text() == "one\ntwo\ntwo\nthree\n"

    def test_run_explains_what_cannot_be_written(
        self, tmp_path: Path, pairs: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        # In the way of what is written.
        tmp_path.joinpath("out", "train.de").mkdir(parents=True)

        args = [tmp_path / "out", "--pairs", *pairs, *self.ARGS, "--force"]

        status, _, err = run(filter_pairs, args, capsys)

        assert status == 2
        assert "train.de` cannot be read or written (Is a directory)" in err
        assert err.count("\n") == 1

    def test_run_needs_two_languages(
        self, tmp_path: Path, pairs: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = ["--source-lang", "en", "--target-lang", "en"]

        status, _, err = run(
            filter_pairs, [tmp_path / "out", "--pairs", *pairs, *args], capsys
        )

        assert status == 2
        assert "must differ, but both are `en`" in err


class TestPrepareWmt:
    def test_list_prints_sets_and_writes_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = [tmp_path / "out", "--pair", "de-en", "--year", "2020", "--list"]

        status, text, _ = run(prepare_wmt, args, capsys)

        lines = text.splitlines()

        assert status == 0
        assert "train  Statmt-europarl-10-deu-eng" in lines
        assert lines[-2:] == [
            "valid  Statmt-newstest_deen-2019-deu-eng",
            "test   Statmt-newstest_deen-2020-deu-eng",
        ]

        assert not tmp_path.joinpath("out").exists()

    def test_run_replaces_sets_of_year(
        self, tmp_path: Path, pairs: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = [tmp_path / "out", "--pair", "en-de", "--year", "2014"]

        args += ["--train", tmp_path / "raw", "--valid", "--test", "--list"]

        assert run(prepare_wmt, args, capsys)[1] == f"train  {tmp_path / 'raw'}\n"

    def test_folder_holds_training_text_and_flores(
        self, tmp_path: Path, pairs: list[Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        out = tmp_path / "out"

        flores = tmp_path / "flores"

        for split in ("dev", "devtest"):
            for code in ("eng", "deu"):
                file = flores / split / f"{code}.{split}"

                file.parent.mkdir(parents=True, exist_ok=True)

                file.write_text("three\n" if code == "eng" else "drei\n")

        args: list[object] = [out, "--from", flores, "--langs", "en", "de"]

        assert run(prepare_flores, args, capsys)[0] == 0

        args = [out, "--pair", "en-de", "--train", tmp_path / "raw"]

        args += ["--language-id", "none", "--held-out", out / "devtest.en"]

        assert run(prepare_wmt, args, capsys)[0] == 0

        config = TextPairsConfig(path=out)

        assert len(read_split(config, "train")) == 2
        assert len(read_split(config, "devtest")) == 1

        card = json.loads(out.joinpath("DATA.json").read_text())

        assert list(card["entries"]) == ["FLORES-101", "WMT en-de"]
