# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.interop.conftest import Case
from warmup_plugin.errors import WarmupError
from warmup_plugin.interop.checkpoints import (
    complete_tied,
    load_model_config,
    load_weights,
    new_folder,
)
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import dump_yaml, load_yaml


def read(run_dir: RunDir) -> dict[str, Tensor]:
    [file] = run_dir.model_path(0).rglob("sdp_00.pt")

    weights: dict[str, Tensor] = torch.load(file, weights_only=True)

    return weights


class TestLoadWeights:
    def test_call_joins_what_two_processes_have_saved(
        self, case: Case, tmp_path: Path
    ) -> None:
        shutil.copytree(case.imported, tmp_path / "run")

        run_dir = RunDir(tmp_path / "run")

        whole = read(run_dir)

        [file] = run_dir.model_path(0).rglob("sdp_00.pt")

        file.with_name("sdp_00.pt.sha256").unlink(missing_ok=True)

        for rank in range(2):
            # FSDP2 divides the first dimension; what is too short is in one part.
            shard = {
                name: parts[rank].clone()
                for name, weight in whole.items()
                if rank < len(parts := weight.chunk(2))
            }

            torch.save(shard, file.with_name(f"sdp_0{rank}.pt"))

        weights = load_weights(run_dir, 0)

        family_name, config = load_model_config(run_dir)

        complete = complete_tied(weights, family_name, config)

        assert complete.keys() == whole.keys()

        for name in whole:
            assert torch.equal(complete[name], whole[name]), name

    def test_weights_are_those_of_the_import(self, case: Case) -> None:
        run_dir = RunDir(case.imported)

        weights = load_weights(run_dir, 0)

        family_name, config = load_model_config(run_dir)

        complete = complete_tied(weights, family_name, config)

        whole = read(run_dir)

        assert complete.keys() == whole.keys()

        assert all(torch.equal(complete[name], whole[name]) for name in whole)

    @pytest.mark.parametrize(
        "change,message",
        [
            ({"model_family": "nope"}, "`nope`, which is not a known model family"),
            ({"model_config": {"foo": 1}}, "holds no configuration of the family"),
        ],
    )
    def test_call_raises_error_when_model_is_not_known(
        self, case: Case, tmp_path: Path, change: dict[str, Any], message: str
    ) -> None:
        shutil.copytree(case.imported, tmp_path / "run")

        run_dir = RunDir(tmp_path / "run")

        file = run_dir.checkpoint_dir / "model.yaml"

        file.write_text(dump_yaml({**load_yaml(file), **change}))

        with pytest.raises(WarmupError, match=message):
            load_weights(run_dir, 0)


class TestNewFolder:
    def test_folder_appears_when_it_is_complete(self, tmp_path: Path) -> None:
        out = tmp_path / "a" / "out"

        with new_folder(out) as folder:
            folder.joinpath("file").write_text("x")

            assert not out.exists()

        assert out.joinpath("file").read_text() == "x"

        # As other folders are, not for its owner alone.
        assert out.stat().st_mode == tmp_path.joinpath("a").stat().st_mode

        assert [path.name for path in out.parent.iterdir()] == ["out"]

    def test_empty_folder_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()

        with new_folder(tmp_path / "out") as folder:
            folder.joinpath("file").touch()

        assert (tmp_path / "out" / "file").is_file()

    @pytest.mark.parametrize("error", [WarmupError("no"), KeyboardInterrupt()])
    def test_nothing_is_left_after_an_error(
        self, tmp_path: Path, error: BaseException
    ) -> None:
        with pytest.raises(type(error)):
            with new_folder(tmp_path / "out") as folder:
                folder.joinpath("file").touch()

                raise error

        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "error",
        [
            OSError(28, "No space left on device"),
            # As `torch.save` says it.
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos"),
            RuntimeError("PytorchStreamWriter failed writing file data/0"),
        ],
    )
    def test_full_disk_is_one_sentence(self, tmp_path: Path, error: Exception) -> None:
        with pytest.raises(
            WarmupError, match="out` cannot be written.*free some space"
        ):
            with new_folder(tmp_path / "out"):
                raise error

        assert not list(tmp_path.iterdir())

    def test_place_that_is_no_folder_is_one_sentence(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()

        with pytest.raises(WarmupError, match="cannot be written"):
            with new_folder(tmp_path / "file" / "out"):
                pass

    def test_mask_of_the_process_is_left(self, tmp_path: Path) -> None:
        old = os.umask(0o027)

        try:
            with new_folder(tmp_path / "out"):
                pass

            assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750

            assert os.umask(0o027) == 0o027
        finally:
            os.umask(old)
