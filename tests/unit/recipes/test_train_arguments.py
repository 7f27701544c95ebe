# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from fairseq2.utils.structured import StandardValueConverter
from ruamel.yaml import YAML

from warmup_plugin.presets import list_presets
from warmup_plugin.recipes.train_arguments import KEYS, read_train_arguments
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.runs.yaml_files import flatten_config


class TestReadTrainArguments:
    @pytest.mark.parametrize(
        "argv,expected",
        [
            (["OUT"], {}),
            (
                ["OUT", "--config-file", "a", "b", "--config", "x=1", "y=2"],
                {"config_files": ["a", "b"], "settings": ["x=1", "y=2"]},
            ),
            (
                ["--config-file", "a", "--no-rich", "OUT", "--config-file=b"],
                {"config_files": ["a", "b"], "no_rich": True},
            ),
            # The directory behind a file, as was always possible.
            (["--config-file", "F", "OUT"], {"config_files": ["F"]}),
            (
                ["--config-file", "F", "--no-rich", "OUT"],
                {"config_files": ["F"], "no_rich": True},
            ),
            (
                ["--config", "a=b", "--no-rich", "OUT"],
                {"settings": ["a=b"], "no_rich": True},
            ),
            (
                ["OUT", "--config", "a=1", "--config", "b=2"],
                {"settings": ["a=1", "b=2"]},
            ),
            (
                ["OUT", "--config", "del:a.b", "set:c={d: -1}"],
                {"settings": ["del:a.b", "set:c={d: -1}"]},
            ),
            (["--dump-config"], {"out": None, "dump_config": True}),
            (["OUT", "--no-exit-on-error"], {"no_exit_on_error": True}),
        ],
    )
    def test_call_tells_directory_files_and_settings(
        self, argv: Sequence[str], expected: dict[str, Any]
    ) -> None:
        defaults: dict[str, Any] = {
            **{"out": Path("OUT"), "config_files": [], "settings": []},
            **{"dump_config": False, "no_rich": False, "no_exit_on_error": False},
        }

        assert asdict(read_train_arguments(argv)) == {**defaults, **expected}

    def test_last_preset_is_no_directory(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        names = ["translation/finetune_sft", "directions/de_en"]

        with pytest.raises(SystemExit, match="2"):
            read_train_arguments(["--config-file", *names])

        assert (
            "error: OUT, the directory of the run, is missing"
            in capsys.readouterr().err
        )

    def test_last_file_is_no_directory(self, tmp_path: Path) -> None:
        file = tmp_path / "x.yaml"

        file.touch()

        with pytest.raises(SystemExit, match="2"):
            read_train_arguments(["--config-file", "a", str(file)])

    @pytest.mark.parametrize(
        "argv,message",
        [
            ([], "OUT, the directory of the run, is missing; put it first."),
            (["--config", "a=b", "OUT"], "`OUT` behind `--config` is no KEY=VALUE;"),
            (
                ["OUT", "--config", "a=["],
                "The value of `a` behind `--config` is no YAML (while parsing a flow",
            ),
            (
                ["OUT", "--config", "a={b: 1, b: 2}"],
                "(line: 1)); correct it, or put it in quotes.",
            ),
            (["OUT", "--checkpoint-dir", "x"], "`--checkpoint-dir` is not supported"),
            (["OUT", "--nope"], "unrecognized arguments: --nope"),
            (["OUT", "--config-file"], "argument --config-file: expected at least one"),
        ],
    )
    def test_mistake_is_shown_with_our_usage(
        self, argv: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="2"):
            read_train_arguments(argv)

        err = capsys.readouterr().err

        assert err.startswith("usage: python -m recipes.train OUT --config-file PRESET")
        assert message in err

    def test_help_names_presets_and_keys(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="0"):
            read_train_arguments(["--help"])

        out = capsys.readouterr().out

        assert out.startswith("usage: python -m recipes.train OUT --config-file PRESET")

        for name in (*list_presets(), *(key for key, _, _ in KEYS)):
            assert f"\n  {name} " in out

        assert "docs/config.md" in out

    def test_presets_are_listed_with_what_they_are_for(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="0"):
            read_train_arguments(["--list-presets"])

        lines = capsys.readouterr().out.splitlines()

        assert [line.split()[0] for line in lines] == list_presets()

        # Aligned, whatever the longest name is.
        assert any(
            re.fullmatch(r"directions/de_en {2,}German to English", line)
            for line in lines
        )


def test_keys_of_help_exist_and_have_these_defaults() -> None:
    config = flatten_config(StandardValueConverter().unstructure(TrainConfig()))

    yaml = YAML(typ="safe", pure=True)

    for key, default, meaning in KEYS:
        assert config[key] == yaml.load(default), key

        # Beside key and default, on a screen.
        assert len(meaning) <= 46
