# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from fairseq2.logging import log

from tests.common import create_layout, create_tiny_model
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.config import create_generation_config
from warmup_plugin.generation.generator import WarmupGenerator
from warmup_plugin.models.conditional import create_conditional_model
from warmup_plugin.recipes import common
from warmup_plugin.recipes.common import (
    check_lengths,
    dump_config,
    get_rank,
    run_fairseq2,
)
from warmup_plugin.recipes.train import TranslationTrainRecipe
from warmup_plugin.run_dir import dump_yaml, load_yaml


class FakeModel:
    max_source_len = 10

    def get_max_target_len(self, source_len: int) -> int:
        # A prompt of the longest source leaves 20.
        return 30 - source_len


class TestCheckLengths:
    @pytest.mark.parametrize(
        "max_target_len,max_warmup_len",
        # The last token is predicted, not read.
        [(21, None), (15, 5), (20, 0)],
    )
    def test_call_accepts_what_fits(
        self, max_target_len: int, max_warmup_len: int | None
    ) -> None:
        model = cast(Any, FakeModel())

        check_lengths(model, create_layout(), 10, max_target_len, max_warmup_len)

    @pytest.mark.parametrize(
        "args,message",
        [
            ((11, 5, None), "`dataset.max_source_len` is 11, but"),
            ((10, 22, None), "`dataset.max_target_len` \\(22\\)"),
            ((10, 16, 5), "`warmup.max_warmup_len` \\(5\\)"),
        ],
    )
    def test_call_raises_error_when_limits_exceed_model(
        self, args: Any, message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            check_lengths(cast(Any, FakeModel()), create_layout(), *args)

    @pytest.mark.parametrize("max_warmup_len", [None, 0, 3])
    def test_what_is_trained_can_be_generated(self, max_warmup_len: int | None) -> None:
        layout = create_layout()

        model = create_conditional_model(create_tiny_model(max_seq_len=16))

        config = create_generation_config(max_warmup_len, beam_size=1)

        generator = WarmupGenerator(model, layout, config)

        # BOS, words and EOS.
        longest = layout.prefix_len + generator.get_room(source_len=5)

        check_lengths(model, layout, 5, longest, max_warmup_len)

        with pytest.raises(WarmupError, match="longer than the 16 tokens"):
            check_lengths(model, layout, 5, longest + 1, max_warmup_len)


class TestRunFairseq2:
    @pytest.mark.parametrize("code,status", [(0, 0), (2, 2), (None, 0), ("message", 1)])
    def test_call_returns_exit_status(
        self, monkeypatch: pytest.MonkeyPatch, code: Any, status: int
    ) -> None:
        def fail(recipe: object) -> None:
            assert sys.argv[-2:] == ["OUT", "--x"]

            sys.exit(code)

        monkeypatch.setattr(common, "fairseq2_main", fail)

        old_argv = sys.argv

        assert run_fairseq2(TranslationTrainRecipe(), ["OUT", "--x"]) == status

        assert sys.argv is old_argv

    @pytest.mark.parametrize(
        "is_terminal,args,expected",
        [
            # fairseq2 would break lines at 80 columns.
            (
                False,
                ["OUT", "--config", "a=1"],
                ["--no-rich", "OUT", "--config", "a=1"],
            ),
            (False, ["OUT", "--no-rich"], ["OUT", "--no-rich"]),
            (True, ["OUT"], ["OUT"]),
        ],
    )
    def test_lines_are_plain_without_terminal(
        self,
        monkeypatch: pytest.MonkeyPatch,
        is_terminal: bool,
        args: list[str],
        expected: list[str],
    ) -> None:
        seen: list[list[str]] = []

        monkeypatch.setattr(common, "fairseq2_main", lambda _: seen.append(sys.argv))
        monkeypatch.setattr("os.isatty", lambda fd: is_terminal)

        assert run_fairseq2(TranslationTrainRecipe(), args) == 0

        assert [argv[1:] for argv in seen] == [expected]

    def test_call_closes_log_file_of_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def log_to_file(recipe: object) -> None:
            log.logger.addHandler(logging.FileHandler(tmp_path / "rank_0.log"))

        monkeypatch.setattr(common, "fairseq2_main", log_to_file)

        old_handlers = list(log.logger.handlers)

        assert run_fairseq2(TranslationTrainRecipe(), []) == 0

        assert log.logger.handlers == old_handlers


class TestDumpConfig:
    def test_call_resolves_file_and_overrides(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "x.yaml"

        file.write_text("criterion: {name: sft}\nregime: {num_steps: 7}\n")

        args = ["OUT", "--config-file", str(file), "--config", "regime.num_steps=8"]

        status, config = dump_config(TranslationTrainRecipe(), args)

        assert status == 0

        assert config is not None
        assert cast(Any, config)["criterion"]["name"] == "sft"
        assert cast(Any, config)["regime"]["num_steps"] == 8

        assert capsys.readouterr().out == ""

    def test_call_returns_status_when_config_is_bad(self, tmp_path: Path) -> None:
        args = [str(tmp_path / "OUT"), "--config", "foo=1"]

        assert dump_config(TranslationTrainRecipe(), args) == (2, None)

        assert not (tmp_path / "OUT").exists()

    def test_dump_yaml_can_be_read_again(self, tmp_path: Path) -> None:
        config: dict[str, object] = {"a": {"b": [0.9, 1e-08], "c": None}, "d": "é: #"}

        (tmp_path / "x.yaml").write_text(dump_yaml(config), encoding="utf-8")

        assert load_yaml(tmp_path / "x.yaml") == config


class TestGetRank:
    @pytest.mark.parametrize(
        "variables,rank",
        [
            ({}, 0),
            ({"RANK": "3"}, 3),
            ({"SLURM_PROCID": "2"}, 2),
            ({"RANK": "1", "SLURM_PROCID": "2"}, 1),
            ({"RANK": ""}, 0),
        ],
    )
    def test_call_reads_environment(
        self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rank: int
    ) -> None:
        for name in ("RANK", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)

        for name, value in variables.items():
            monkeypatch.setenv(name, value)

        assert get_rank() == rank
