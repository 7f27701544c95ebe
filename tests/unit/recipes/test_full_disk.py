# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""A disk that becomes full, in every command that writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from scripts import filter_pairs, prepare_flores, run_suite
from tests.hub_files import write_t5_model
from tests.small_disk import full_disk, small_disk
from tests.tiny_runs import tiny_options, to_args
from warmup_plugin.__main__ import main


def list_files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def get_error(err: str) -> str:
    """Returns the only line that says what went wrong."""
    assert "Traceback" not in err and "Logging error" not in err

    (line,) = [line for line in err.splitlines() if "error: " in line.lower()]

    assert "no space left" in line.lower() or "file too large" in line.lower()

    return line


class TestTrain:
    @pytest.mark.parametrize("size", [10, 3000, 8000, 60_000])
    def test_command_says_so(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capsys: pytest.CaptureFixture[str],
        size: int,
    ) -> None:
        """The config, the log, the state of the trainer and the model do not fit."""
        out = tmp_path / "run"

        args = to_args(out, tiny_options(text_folder, tokenizer_file))

        with small_disk(size):
            assert main(["train", *args]) != 0

        assert str(out) in get_error(capsys.readouterr().err)

        assert not (out / "checkpoints" / "step_2").exists()

        # There is room again.
        assert main(["train", *args]) == 0


class TestCommands:
    @pytest.mark.parametrize(
        "make",
        [
            lambda f, run: ["generate", run, "--output", f / "out", "--no-rich"],
            lambda f, run: [
                *("translate", run, f / "a.src", "--output", f / "out", "--no-rich")
            ],
            lambda f, run: ["score", run, "--output", f / "out", "--no-rich"],
            lambda f, run: [
                *("evaluate", "--hypotheses", f / "a.tgt", "--references", f / "a.tgt"),
                *("--json", f / "out", "--num-bootstrap", 0),
            ],
            lambda f, run: [
                *("compare", f / "a.tgt", f / "b.tgt", "--references", f / "a.tgt"),
                *("--json", f / "out"),
            ],
            lambda f, run: ["average", run, "--output", f / "out", "--last", 2],
            lambda f, run: [
                *("train-tokenizer", f / "out", "--input", f / "a.src"),
                *("--vocab-size", 60),
            ],
            lambda f, run: ["synthetic-pair", f / "out"],
            lambda f, run: ["synthetic-pivot", f / "out"],
        ],
    )
    def test_command_leaves_nothing(
        self,
        tmp_path: Path,
        text_folder: Path,
        sft_run: Path,
        capfd: pytest.CaptureFixture[str],
        make: Callable[[Path, Path], Sequence[object]],
    ) -> None:
        for name, file in (("a.src", "train.src"), ("a.tgt", "train.tgt")):
            (tmp_path / name).write_bytes((text_folder / file).read_bytes())

        (tmp_path / "b.tgt").write_text("x\n" * 60)

        before = list_files(tmp_path)

        with full_disk():
            assert main([str(arg) for arg in make(tmp_path, sft_run)]) != 0

        get_error(capfd.readouterr().err)

        # What an output is continued from, and the log, is no output.
        left = {
            name
            for name in list_files(tmp_path) - before
            if not name.endswith((".partial", ".state")) and "out.run/" not in name
        }

        assert left == set()

    def test_export_leaves_nothing(
        self, tmp_path: Path, sft_run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The weights are written by a library that is not Python."""
        with small_disk(100_000):
            assert main(["export", str(sft_run), str(tmp_path / "out")]) == 2

        get_error(capsys.readouterr().err)

        assert list(tmp_path.iterdir()) == []

    def test_import_leaves_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        write_t5_model(tmp_path / "hub")

        args = ["import", str(tmp_path / "hub"), str(tmp_path / "out")]

        with small_disk(3000):
            assert main(args) == 2

        get_error(capsys.readouterr().err)

        assert not list_files(tmp_path / "out")

        # There is room again.
        assert main(args) == 0

    def test_report_leaves_nothing(
        self, tmp_path: Path, sft_run: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with full_disk():
            status = main(
                [
                    "report",
                    str(sft_run),
                    "--curves-only",
                    "-o",
                    str(tmp_path / "a.html"),
                ]
            )

        assert status == 2

        get_error(capfd.readouterr().err)

        assert list(tmp_path.iterdir()) == []


class TestScripts:
    def test_filter_pairs_leaves_nothing(
        self, tmp_path: Path, text_folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = [
            *(tmp_path, "--source-lang", "src", "--target-lang", "tgt"),
            *("--language-id", "none", "--pairs"),
            *(text_folder / "train.src", text_folder / "train.tgt"),
        ]

        with full_disk():
            assert filter_pairs.main([str(arg) for arg in args]) == 2

        get_error(capsys.readouterr().err)

        assert list_files(tmp_path) == set()

    def test_prepare_flores_leaves_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        source, out = tmp_path / "flores", tmp_path / "out"

        source.mkdir()

        for lang in ("en", "de"):
            (source / f"dev.{lang}").write_text("x\n")

        args = [
            *(out, "--langs", "en", "de", "--splits", "dev", "--from", source),
            *("--release", "flores101"),
        ]

        with full_disk():
            assert prepare_flores.main([str(arg) for arg in args]) == 2

        get_error(capsys.readouterr().err)

        assert list_files(out) == set()

    def test_suite_leaves_no_table(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        grid = tmp_path / "grid.yaml"

        grid.write_text(
            "name: a\nout: out\ntasks: {t: {data: none}}\nsystems: {s: {tasks: [t]}}\n"
        )

        with full_disk():
            status = run_suite.main([str(grid), "--tables"])

        assert status == 2
