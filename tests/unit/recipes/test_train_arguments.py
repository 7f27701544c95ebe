# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from fairseq2.utils.structured import StandardValueConverter
from ruamel.yaml import YAML

from warmup_plugin.presets import list_presets
from warmup_plugin.recipes.train import TrainConfig
from warmup_plugin.recipes.train_arguments import KEYS, read_train_arguments
from warmup_plugin.run_dir import flatten_config


class TestReadTrainArguments:
    @pytest.mark.parametrize(
        "argv,words",
        [
            (["OUT"], ["OUT"]),
            (
                ["OUT", "--config-file", "a", "b", "--config", "x=1", "y=2"],
                "OUT --config-file=a --config-file=b --config x=1 y=2".split(),
            ),
            (
                ["--config-file", "a", "--no-rich", "OUT", "--config-file=b"],
                "OUT --config-file=a --config-file=b --no-rich".split(),
            ),
            # The directory behind a file, as was always possible.
            (["--config-file", "F", "OUT"], ["OUT", "--config-file=F"]),
            (
                ["--config-file", "F", "--no-rich", "OUT"],
                "OUT --config-file=F --no-rich".split(),
            ),
            (
                ["--config", "a=b", "--no-rich", "OUT"],
                "OUT --no-rich --config a=b".split(),
            ),
            (
                ["OUT", "--config", "a=1", "--config", "b=2"],
                "OUT --config a=1 b=2".split(),
            ),
            (
                ["OUT", "--config", "del:a.b", "set:c={d: -1}"],
                ["OUT", "--config", "del:a.b", "set:c={d: -1}"],
            ),
            (["--dump-config"], ["--dump-config"]),
            (["OUT", "--checkpoint-dir", "x"], ["OUT", "--checkpoint-dir=x"]),
            (["OUT", "--no-exit-on-error"], ["OUT", "--no-exit-on-error"]),
        ],
    )
    def test_words_are_those_of_fairseq2(
        self, argv: Sequence[str], words: Sequence[str]
    ) -> None:
        assert read_train_arguments(argv) == words

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
                "The value of `a` behind `--config` is no YAML;",
            ),
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

        for name in (*list_presets(), *(entry.key for entry in KEYS)):
            assert f"\n  {name} " in out

        assert "docs/config.md" in out

    def test_presets_are_listed_with_what_they_are_for(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit, match="0"):
            read_train_arguments(["--list-presets"])

        lines = capsys.readouterr().out.splitlines()

        assert [line.split()[0] for line in lines] == list_presets()

        assert "directions/de_en                     German to English" in lines


def test_keys_of_help_exist_and_have_these_defaults() -> None:
    config = flatten_config(StandardValueConverter().unstructure(TrainConfig()))

    yaml = YAML(typ="safe", pure=True)

    for entry in KEYS:
        assert config[entry.key] == yaml.load(entry.default), entry.key

        # Beside key and default, on a screen.
        assert len(entry.meaning) <= 46
