# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

import pytest

from warmup_plugin.__main__ import main
from warmup_plugin.data.synthetic import write_synthetic_pair

SIZES = ["--num-train", "3", "--num-valid", "2", "--num-test", "1"]


class TestSyntheticPair:
    def test_command_writes_pairs_and_reports(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "a" / "toy"

        assert main(["synthetic-pair", str(folder), *SIZES, "--seed", "7"]) == 0

        out = capsys.readouterr().out

        assert out == f"{folder}: 3 train, 2 valid and 1 test pairs (src, tgt)\n"

        write_synthetic_pair(
            tmp_path / "b", num_train=3, num_valid=2, num_test=1, seed=7
        )

        for file in (tmp_path / "b").iterdir():
            assert (folder / file.name).read_bytes() == file.read_bytes()

    def test_command_takes_sizes_of_demo_by_default(self, tmp_path: Path) -> None:
        assert main(["synthetic-pair", str(tmp_path)]) == 0

        for split, size in (("train", 6000), ("valid", 200), ("test", 500)):
            text = (tmp_path / f"{split}.src").read_text()

            assert text.count("\n") == size

    def test_command_replaces_only_when_forced(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "train.src").write_text("mine\n")

        assert main(["synthetic-pair", str(tmp_path), *SIZES]) == 2

        err = capsys.readouterr().err

        assert err.startswith("error: The folder ") and err.count("\n") == 1
        assert [f.name for f in tmp_path.iterdir()] == ["train.src"]
        assert (tmp_path / "train.src").read_text() == "mine\n"

        assert main(["synthetic-pair", str(tmp_path), *SIZES, "--force"]) == 0
        assert (tmp_path / "train.src").read_text() != "mine\n"

    def test_command_reports_bad_size(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["synthetic-pair", str(tmp_path), "--num-test", "0"]) == 2
        assert "`num_test`" in capsys.readouterr().err
