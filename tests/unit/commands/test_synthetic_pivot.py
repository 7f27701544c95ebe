# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

import pytest

from warmup_plugin.__main__ import main
from warmup_plugin.data.synthetic_pivot import write_synthetic_pivot

SIZES = ["--num-leg", "4", "--num-direct", "3", "--num-valid", "2", "--num-test", "1"]


class TestSyntheticPivot:
    def test_command_writes_directions_and_reports(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "a" / "pivot"

        assert main(["synthetic-pivot", str(folder), *SIZES, "--seed", "7"]) == 0

        assert (
            capsys.readouterr().out
            == f"{folder}: 4 training pairs of a-p and of p-b, 3 of a-b; 2 valid and 1 test pairs of each\n"
        )

        write_synthetic_pivot(
            tmp_path / "b", num_leg=4, num_direct=3, num_valid=2, num_test=1, seed=7
        )

        files = [file for file in (tmp_path / "b").rglob("*.*")]

        assert len(files) == 19

        for file in files:
            copy = folder / file.relative_to(tmp_path / "b")

            assert copy.read_bytes() == file.read_bytes()

    def test_command_replaces_only_when_forced(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "mine").touch()

        assert main(["synthetic-pivot", str(tmp_path), *SIZES]) == 2

        err = capsys.readouterr().err

        assert err.startswith("error: The folder ") and err.count("\n") == 1
        assert [f.name for f in tmp_path.iterdir()] == ["mine"]

        assert main(["synthetic-pivot", str(tmp_path), *SIZES, "--force"]) == 0
        assert (tmp_path / "a-b" / "train.b").is_file()

    def test_command_reports_bad_size(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["synthetic-pivot", str(tmp_path), "--num-leg", "0"]) == 2
        assert "`num_leg`" in capsys.readouterr().err
