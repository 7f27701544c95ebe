# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.common import assert_close, assert_equal
from tests.tiny_runs import (
    Options,
    assert_same_weights,
    load_weights,
    tiny_options,
    to_args,
)
from warmup_plugin.commands import generate
from warmup_plugin.errors import WarmupError
from warmup_plugin.interop import checkpoints
from warmup_plugin.interop.averaging import average_checkpoints
from warmup_plugin.models.lora import is_adapter_weight
from warmup_plugin.recipes.train import main
from warmup_plugin.runs.run_dir import RunDir

ALPHA, RANK = 8.0, 2

BASE_STEP = 4


def get_options(text_folder: Path, base: Path, **options: object) -> Options:
    defaults: Options = {
        "criterion__name": "warmup",
        "init_from": base,
        "init_checkpoint": "last",
        "lora__rank": RANK,
        "lora__alpha": ALPHA,
        "lora__dropout": 0.1,
        "optimizer__config__lr": 0.01,
        "lr_scheduler__config__num_warmup_steps": 1,
        "regime__num_steps": 4,
        "regime__keep_last_n_checkpoints": 2,
        # The model without its adapter is its own reference.
        "warmup__kl_weight": 0.1,
        "warmup__num_warmups": 2,
    }

    return tiny_options(text_folder, None, **{**defaults, **options})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, sft_run: Path) -> Path:
    """A copy of the run of others; not to be changed."""
    return Path(shutil.copytree(sft_run, tmp_path_factory.mktemp("base") / "sft"))


@pytest.fixture(scope="module")
def lora_run(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, base: Path
) -> Path:
    """A run of four steps with the checkpoints 2 and 4; not to be changed."""
    out = tmp_path_factory.mktemp("lora") / "run"

    assert main(to_args(out, get_options(text_folder, base))) == 0

    return out


@pytest.fixture
def copied(tmp_path: Path, base: Path, lora_run: Path) -> Path:
    """Both runs in another place, where the first one is not gone."""
    shutil.copytree(base, tmp_path / "sft")

    return Path(shutil.copytree(lora_run, tmp_path / "run"))


def load_whole(run_dir: Path, step: int) -> dict[str, Tensor]:
    return checkpoints.load_weights(RunDir(run_dir), step)


def read_record(run_dir: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((run_dir / "checkpoints/lora.json").read_text())

    return record


def write_record(run_dir: Path, **fields: object) -> None:
    (run_dir / "checkpoints/lora.json").write_text(
        json.dumps({**read_record(run_dir), **fields})
    )


class TestCheckpoint:
    def test_it_holds_what_trains(self, lora_run: Path) -> None:
        weights = load_weights(lora_run, 4)

        assert weights and all(map(is_adapter_weight, weights))

        file = lora_run / "checkpoints/step_4/optimizer/pp_00/tp_00/sdp_00.pt"

        state = torch.load(file, weights_only=False)["state"]

        shapes = sorted(tuple(s["exp_avg"].shape) for s in state.values())

        assert shapes == sorted(tuple(w.shape) for w in weights.values())

    def test_whole_model_is_base_plus_product(self, base: Path, lora_run: Path) -> None:
        before, after = load_whole(base, BASE_STEP), load_whole(lora_run, 4)

        adapter = {n.partition(":")[2]: w for n, w in load_weights(lora_run, 4).items()}

        assert before.keys() == after.keys()

        row = read_record(lora_run)["rows"][0]

        for name, weight in before.items():
            module = name.removesuffix(".weight")

            a, b = (adapter.pop(f"{module}.lora_{n}", None) for n in "ab")

            if a is not None and b is not None:
                assert b.abs().max() > 0

                assert_close(after[name], weight + ALPHA / RANK * b @ a)

                continue

            if name in row["weights"]:
                # The separator begins as EOS.
                weight = weight.clone()

                weight[row["row"]] = weight[row["mean_of"]].mean(dim=0)

                assert not weight.equal(before[name])

            assert_equal(after[name], weight)

        assert not adapter

    def test_run_needs_no_second_model(self, lora_run: Path) -> None:
        assert RunDir(lora_run).load_config()["reference_model"] is None

    def test_log_says_how_much_is_trained(self, lora_run: Path) -> None:
        num = sum(w.numel() for w in load_weights(lora_run, 4).values())

        log = (lora_run / "logs" / "rank_0.log").read_text()

        assert f" parameters, {num:,} of them trained; float32;" in log


class TestResume:
    def test_resumed_run_equals_uninterrupted_one(
        self, text_folder: Path, base: Path, lora_run: Path, tmp_path: Path
    ) -> None:
        run_dir = Path(shutil.copytree(lora_run, tmp_path / "run"))

        # As if it was killed after the first checkpoint.
        shutil.rmtree(run_dir / "checkpoints" / "step_4")

        assert main(to_args(run_dir, get_options(text_folder, base))) == 0

        assert_same_weights(load_weights(run_dir, 4), load_weights(lora_run, 4))

    def test_gone_base_is_said_before_anything_is_done(
        self,
        text_folder: Path,
        base: Path,
        copied: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        write_record(copied, base="/nope/gone/checkpoints/step_4/model")

        assert main(to_args(copied, get_options(text_folder, base))) == 2

        err = capfd.readouterr().err

        assert "`/nope/gone/checkpoints/step_4/model`, which the adapters of" in err
        assert "is gone; restore it, or write where it is now as `base` in" in err

    def test_lost_record_is_said(
        self,
        text_folder: Path,
        base: Path,
        copied: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        (copied / "checkpoints/lora.json").unlink()

        assert main(to_args(copied, get_options(text_folder, base))) == 2

        assert "has lost its `lora.json`" in capfd.readouterr().err


class TestBase:
    def test_base_that_moved_with_the_run_is_found(
        self, copied: Path, base: Path, lora_run: Path
    ) -> None:
        write_record(copied, base="/nope/sft/checkpoints/step_4/model")

        moved, weights = load_whole(copied, 4), load_whole(lora_run, 4)

        assert_same_weights(moved, weights)

    def test_changed_base_is_refused(self, copied: Path) -> None:
        place = copied.parent / "sft" / "checkpoints" / "step_4" / "model"

        write_record(copied, base=str(place))

        load_whole(copied, 4)

        # Another checkpoint.
        shutil.rmtree(place)
        shutil.copytree(place.parent.parent / "step_2" / "model", place)

        with pytest.raises(WarmupError, match="has changed since; restore it, or"):
            load_whole(copied, 4)

    @pytest.mark.parametrize(
        "fields", [{"rank": 0}, {"alpha": "many"}, {"dtype": "nope"}, {"rows": [1]}]
    )
    def test_damaged_record_is_refused(
        self, copied: Path, fields: dict[str, object]
    ) -> None:
        write_record(copied, **fields)

        with pytest.raises(WarmupError, match=r"lora.json`, which says what .* cannot"):
            load_whole(copied, 4)

    def test_adapter_without_place_is_refused(self, copied: Path) -> None:
        # A whole model in the place of an adapter.
        model = copied / "checkpoints/step_4/model"

        shutil.rmtree(model)
        shutil.copytree(copied.parent / "sft/checkpoints/step_4/model", model)

        with pytest.raises(WarmupError, match="which is not of an adapter, though"):
            load_whole(copied, 4)


class TestUse:
    def test_run_generates(self, lora_run: Path, tmp_path: Path) -> None:
        source = tmp_path / "source.txt"

        source.write_text("a b c\n")

        args = ["--input", source, "--output", tmp_path / "out.txt", "--no-rich"]

        assert generate.main([str(lora_run), *map(str, args)]) == 0

        assert len((tmp_path / "out.txt").read_text().splitlines()) == 1

    def test_adapter_is_trained_beside_a_model_with_an_adapter(
        self, text_folder: Path, lora_run: Path, tmp_path: Path
    ) -> None:
        options = get_options(
            text_folder, lora_run, criterion__name="sft", regime__num_steps=2
        )

        assert main(to_args(tmp_path / "second", options)) == 0

        # The rows that were prepared, too.
        before, after = load_whole(lora_run, 4), load_whole(tmp_path / "second", 2)

        assert before.keys() == after.keys()

        for name, weight in before.items():
            is_adapted = "_proj." in name and "final" not in name

            assert weight.equal(after[name]) != (is_adapted and "weight" in name), name

    def test_model_without_base_is_refused(
        self,
        text_folder: Path,
        tokenizer_file: Path,
        tmp_path: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file, lora__rank=2)

        assert main(to_args(tmp_path / "run", options)) == 2

        assert "`lora.rank` is set, but there is no model" in capfd.readouterr().err

        assert not (tmp_path / "run").exists()

    def test_average_is_of_whole_models(self, lora_run: Path, tmp_path: Path) -> None:
        average_checkpoints(
            RunDir(lora_run), num=2, best=False, output=tmp_path / "average"
        )

        average = load_whole(tmp_path / "average", 4)

        before, after = load_whole(lora_run, 2), load_whole(lora_run, 4)

        for name, weight in average.items():
            assert_close(weight, (before[name] + after[name]) / 2)
