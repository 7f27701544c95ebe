# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_runs import (
    assert_same_weights,
    load_weights,
    tiny_options,
    to_args,
)
from warmup_plugin.recipes.train import main
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import load_yaml


class TestBadValues:
    @pytest.mark.parametrize(
        "key,value",
        [
            ("trainer.max_grad_norm", 0),
            ("trainer.max_grad_norm", -1),
            ("trainer.max_grad_norm", ".nan"),
            ("optimizer.config.lr", -1),
            ("optimizer.config.lr", ".nan"),
            ("optimizer.config.betas", "[1,2]"),
            ("regime.publish_metrics_every_n_steps", 0),
            ("trainer.gc_every_n_steps", 0),
            ("common.seed", 2**70),
            ("model.config_overrides", "{model_dim: 0}"),
            ("model.config_overrides", "{dropout_p: 2}"),
            ("lr_scheduler.config.num_warmup_steps", 0),
            ("dataset.max_num_tokens", 0),
            ("init_checkpoint", "last"),
            ("model.config_overrides", "{model_dim: 63}"),
            (
                "model.config_overrides",
                "{model_dim: 63, num_encoder_attn_heads: 1, num_decoder_attn_heads: 1}",
            ),
            ("model.config_overrides", "{model_dim: 1.5}"),
            ("model.config_overrides", "{model_dim: 1000000000000}"),
            ("model.config_overrides", "{dropout_p: x}"),
            ("model.config_overrides", "{nothing: 1}"),
            ("model.config_overrides", "{1: 2}"),
            ("warmup.num_warmups", 1.5),
            ("warmup.num_warmups", "true"),
            ("warmup.num_warmups", ".inf"),
            ("warmup.weight_temperature", 1e-40),
            ("validation.max_num_tokens", 0),
            ("lr_scheduler.config.start_lr", -1),
            ("common.torch.num_threads", 0),
            ("gang.timeout", 10**15),
            ("dataset.source_lang", '"\\ud800"'),
            ("dataset.source_lang", '"a\\0"'),
        ],
    )
    def test_main_refuses_in_a_sentence(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
        key: str,
        value: object,
    ) -> None:
        options = tiny_options(text_folder, tokenizer_file)

        options[key] = value

        assert main(to_args(tmp_path / "run", options)) == 2

        err = capfd.readouterr().err

        # Sections check themselves without their own name.
        names = (f"`{key}", f"`{key.rpartition('.')[2]}`")

        assert any(name in err for name in names) and "Traceback" not in err

        assert not (tmp_path / "run").exists()

    def test_long_warmup_of_learning_rate_names_keys_that_exist(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            lr_scheduler__name="polynomial_decay",
            lr_scheduler__config="{num_warmup_steps: 5}",
            lr_scheduler__config__num_warmup_steps=None,
        )

        assert main(to_args(tmp_path / "run", options)) == 2

        assert "only `regime.num_steps` = 2 steps" in capfd.readouterr().err


class TestGrowth:
    def test_run_trains_longer_as_if_it_had_always(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path, sft_run: Path
    ) -> None:
        options = tiny_options(
            text_folder, tokenizer_file, regime__keep_last_n_checkpoints=2
        )

        out = tmp_path / "run"

        assert main(to_args(out, options)) == 0

        options["regime.num_steps"] = 4

        assert main(to_args(out, options)) == 0

        assert RunDir(out).checkpoint_steps() == [2, 4]

        assert_same_weights(load_weights(out, 4), load_weights(sft_run, 4))

        for name in ("run.yaml", "command.yaml"):
            assert load_yaml(out / name)["regime"]["num_steps"] == 4  # type: ignore[index]

        # It does not shrink.
        options["regime.num_steps"] = 2

        assert main(to_args(out, options)) == 2

    def test_schedule_that_knows_its_end_is_not_stretched(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            lr_scheduler__name="cosine_annealing",
            lr_scheduler__config="{final_lr_scale: 0.1}",
            lr_scheduler__config__num_warmup_steps=None,
        )

        out = tmp_path / "run"

        assert main(to_args(out, options)) == 0

        options["regime.num_steps"] = 4

        assert main(to_args(out, options)) == 2

        assert "cannot grow from 2 to 4" in capfd.readouterr().err
