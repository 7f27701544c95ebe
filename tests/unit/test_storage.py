# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.file_system import FileSystem, GlobalFileSystem
from fairseq2.io import (
    TensorFileDumper,
    TensorFileDumpOptions,
    TensorFileLoader,
    TensorFileLoadOptions,
)
from fairseq2.runtime.dependency import get_dependency_resolver

from tests.tiny_runs import tiny_options, to_args
from warmup_plugin.commands import generate
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes.train import main
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.storage import CheckedDumper, CheckedLoader

# To fairseq2's own file system most of them are patterns.
NAMES = ["exp[lr=0.1]", "a*", "b?", "[!x]", "{a,b}", "c d", "ü"]


class RunsCode:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._folder),)


class TestFileSystem:
    @pytest.mark.parametrize("name", NAMES)
    def test_names_are_no_patterns(self, tmp_path: Path, name: str) -> None:
        fs = get_dependency_resolver().resolve(FileSystem)

        assert isinstance(fs, GlobalFileSystem)

        for folder in (name, "exp.", "ax", "bx", "exp1", "expl"):
            (tmp_path / folder / "step_1").mkdir(parents=True)
            (tmp_path / folder / "file").write_text(folder)

        run = tmp_path / name

        assert list(fs.glob(run, "step_*")) == [run / "step_1"]

        assert fs.cat(run / "file") == name.encode()

        fs.move(run / "step_1", run / "step_2")

        fs.remove_directory(run)

        assert sorted(p.name for p in tmp_path.glob("*/step_1")) == ["step_1"] * 5

    @pytest.mark.parametrize("parent", ["exp[lr=0.1]", "a?*"])
    def test_run_resumes(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path, parent: str
    ) -> None:
        out = tmp_path / parent / "run"

        options = tiny_options(text_folder, tokenizer_file)

        assert main(to_args(out, options)) == 0

        file = (
            out / "checkpoints" / "step_2" / "model" / "pp_00" / "tp_00" / "sdp_00.pt"
        )

        before = file.stat().st_mtime_ns

        # It has ended, so that nothing is trained again.
        assert main(to_args(out, options)) == 0

        assert file.stat().st_mtime_ns == before

        options = tiny_options(text_folder, None, init_from=out)

        assert main(to_args(tmp_path / "[2]", options)) == 0


class TestCheckpointFiles:
    @pytest.fixture
    def dumper(self) -> CheckedDumper:
        dumper = get_dependency_resolver().resolve(TensorFileDumper)

        assert isinstance(dumper, CheckedDumper)

        return dumper

    @pytest.fixture
    def loader(self) -> CheckedLoader:
        loader = get_dependency_resolver().resolve(TensorFileLoader)

        assert isinstance(loader, CheckedLoader)

        return loader

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        (tmp_path / "step_2" / "trainer").mkdir(parents=True)
        (tmp_path / "step_1" / "trainer").mkdir(parents=True)

        return tmp_path / "step_2" / "trainer" / "rank_00.pt"

    @pytest.mark.parametrize("protocol", [2, 5])
    def test_state_is_read_back(
        self, dumper: CheckedDumper, loader: CheckedLoader, file: Path, protocol: int
    ) -> None:
        state = {"a": torch.ones(3), "b": {"c": [1, 2.0, None, "d", (True,)]}}

        dumper.dump(state, file, TensorFileDumpOptions(pickle_protocol=protocol))

        loaded = loader.load(file, TensorFileLoadOptions(restrict=False))

        assert torch.equal(loaded["a"], state["a"])  # type: ignore[arg-type]

        assert loaded["b"] == state["b"]

    @pytest.mark.parametrize("restrict", [True, False])
    @pytest.mark.parametrize("protocol", [2, 5])
    def test_no_code_runs(
        self, loader: CheckedLoader, file: Path, restrict: bool, protocol: int
    ) -> None:
        folder = file.parent / "made"

        torch.save({"a": RunsCode(folder)}, file, pickle_protocol=protocol)

        with pytest.raises(WarmupError):
            loader.load(file, TensorFileLoadOptions(restrict=restrict))

        assert not folder.exists()

    def test_no_code_runs_of_old_format(
        self, loader: CheckedLoader, file: Path
    ) -> None:
        folder = file.parent / "made"

        torch.save({"a": RunsCode(folder)}, file, _use_new_zipfile_serialization=False)

        with pytest.raises(WarmupError):
            loader.load(file, TensorFileLoadOptions(restrict=False))

        assert not folder.exists()

    def test_flipped_byte_is_found(
        self, dumper: CheckedDumper, loader: CheckedLoader, file: Path
    ) -> None:
        dumper.dump({"a": torch.arange(10_000)}, file)

        content = bytearray(file.read_bytes())

        content[20_000] ^= 1

        file.write_bytes(content)

        with pytest.raises(WarmupError) as info:
            loader.load(file)

        assert "delete it to go on from the checkpoint of step 1" in str(info.value)

        assert f"`{file.parent.parent}`" in str(info.value)

    @pytest.mark.parametrize("has_sum", [True, False])
    def test_truncated_file_is_found(
        self, dumper: CheckedDumper, loader: CheckedLoader, file: Path, has_sum: bool
    ) -> None:
        dumper.dump({"a": torch.arange(10_000)}, file)

        file.write_bytes(file.read_bytes()[:20_000])

        if not has_sum:
            file.with_name(file.name + ".sha256").unlink()

        with pytest.raises(WarmupError, match="is damaged"):
            loader.load(file)

    def test_missing_file_is_told(self, loader: CheckedLoader, file: Path) -> None:
        with pytest.raises(WarmupError, match="is missing; start as many processes"):
            loader.load(file)

    def test_equal_matrices_are_written_once(
        self, dumper: CheckedDumper, loader: CheckedLoader, file: Path
    ) -> None:
        matrix = torch.rand(100, 100)

        dumper.dump({"a": matrix, "b": matrix.clone(), "c": matrix + 1}, file)

        assert file.stat().st_size < 3 * 4 * 100 * 100

        loaded: dict[str, Any] = loader.load(file)

        assert torch.equal(loaded["b"], matrix)
        assert torch.equal(loaded["c"], matrix + 1)

        assert loaded["a"] is not loaded["b"]

    def test_full_disk_is_told_as_such(self, dumper: CheckedDumper) -> None:
        with pytest.raises(OSError) as info:
            dumper.dump({"a": torch.rand(10_000)}, Path("/dev/full"))

        assert info.value.errno == errno.ENOSPC


class TestDamagedRun:
    @pytest.mark.parametrize("part", ["model", "trainer", "optimizer", "data_reader"])
    def test_run_does_not_resume(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        part: str,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        out = tmp_path / "run"

        options = tiny_options(text_folder, tokenizer_file)

        assert main(to_args(out, options)) == 0

        assert RunDir(out).checkpoint_steps() == [2]

        folder = out / "checkpoints" / "step_2" / part

        (file,) = folder.rglob("*.pt")

        content = bytearray(file.read_bytes())

        content[len(content) // 2] ^= 1

        file.write_bytes(content)

        assert main(to_args(out, options)) == 2

        assert "delete it to begin again" in capfd.readouterr().err

        shutil.rmtree(folder)

        assert main(to_args(out, options)) == 2

        err = capfd.readouterr().err

        assert "lacks" in err and "Traceback" not in err


class TestOrigin:
    def test_output_is_of_the_checkpoint_that_made_it(
        self, tmp_path: Path, sft_like_run: Path
    ) -> None:
        out = tmp_path / "run"

        shutil.copytree(sft_like_run, out)

        assert generate.main([str(out), "--no-rich", "--checkpoint", "last"]) == 0

        file = out / "generate" / "test.last.txt"

        run_dir = RunDir(out)

        assert (
            json.loads((file.parent / f"{file.name}.origin.json").read_text())["step"]
            == 4
        )

        # Whatever clocks say.
        os.utime(file, (0, 0))

        assert run_dir.has_made(file, "last")

        scores = out / "checkpoints" / "scores"

        best = run_dir.find_checkpoint("best")

        other = {2: 4, 4: 2}[best]

        run_dir.write_origin(file, run_dir.describe_checkpoint(best))

        assert run_dir.has_made(file, "best")

        (scores / f"step_{other}.txt").write_text("1000.0\n")

        assert not run_dir.has_made(file, "best")

        # The same step of another training.
        folder = out / "checkpoints" / f"step_{best}" / "model"

        (sum_file,) = folder.rglob("*.sha256")

        sum_file.write_text("0" * 64 + "  sdp_00.pt\n")

        assert not run_dir.has_made(file, str(best))

    @pytest.fixture
    def sft_like_run(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> Path:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            regime__num_steps=4,
            regime__keep_last_n_checkpoints=2,
        )

        assert main(to_args(tmp_path / "made", options)) == 0

        return tmp_path / "made"
