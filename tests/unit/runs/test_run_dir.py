# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

import warmup_plugin.runs.run_dir
from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_text_atomically
from warmup_plugin.runs.run_dir import RunDir, collect_versions
from warmup_plugin.runs.tokenizer_files import is_same_tokenizer
from warmup_plugin.runs.yaml_files import flatten_config, load_yaml

CONFIG: dict[str, Any] = {"criterion": {"name": "sft"}, "regime": {"num_steps": 4}}


def dump(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)

    with file.open("w") as fp:
        YAML(typ="safe", pure=True).dump(content, fp)


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A run with the scores 10, 30, 30, none at the steps 2, 4, 6, 8."""
    run_dir = RunDir(tmp_path / "run")

    tokenizer = {"path": "x", "family": "warmup_spm", "config_overrides": None}

    dump(run_dir.run_file, {**CONFIG, "tokenizer": tokenizer})
    dump(run_dir.command_file, CONFIG)

    for step, score in ((2, "10.0"), (4, "30.0"), (6, "30.0"), (8, None)):
        add_checkpoint(run_dir, step, score)

    metadata = {"model_family": "nllb", "model_config": {"model_dim": 8}}

    dump(run_dir.checkpoint_dir / "model.yaml", metadata)

    return run_dir


def add_checkpoint(run_dir: RunDir, step: int, score: str | None) -> None:
    run_dir.model_path(step).mkdir(parents=True)

    scores_dir = run_dir.checkpoint_dir / "scores"

    scores_dir.mkdir(exist_ok=True)

    if score is not None:
        (scores_dir / f"step_{step}.txt").write_text(score + "\n")


def test_check_model_raises_error_when_weights_are_missing(run_dir: RunDir) -> None:
    folder = run_dir.model_path(4)

    # What is left of them.
    (folder / "sdp_00.pt.sha256").touch()

    with pytest.raises(WarmupError, match=f"`{folder}` holds no weights"):
        run_dir.check_model(4)

    (folder / "sdp_00.pt").touch()

    run_dir.check_model(4)


class TestFindCheckpoint:
    def test_call_finds_each(self, run_dir: RunDir) -> None:
        assert run_dir.find_checkpoint("best") == 4
        assert run_dir.find_checkpoint("last") == 8
        assert run_dir.find_checkpoint("6") == 6

    def test_call_takes_last_for_best_when_there_is_no_score(
        self, run_dir: RunDir
    ) -> None:
        for file in (run_dir.checkpoint_dir / "scores").iterdir():
            file.unlink()

        assert run_dir.find_checkpoint("best") == 8

    def test_call_ignores_what_is_no_complete_checkpoint(self, run_dir: RunDir) -> None:
        (run_dir.checkpoint_dir / "step_10.tmp" / "model").mkdir(parents=True)
        (run_dir.checkpoint_dir / "step_12").mkdir()
        (run_dir.checkpoint_dir / "scores" / "step_14.txt").write_text("99.0")

        assert run_dir.checkpoint_steps() == [2, 4, 6, 8]
        assert run_dir.find_checkpoint("best") == 4

    def test_call_sorts_steps_as_numbers(self, run_dir: RunDir) -> None:
        add_checkpoint(run_dir, 10, None)

        assert run_dir.find_checkpoint("last") == 10

    @pytest.mark.parametrize("which", ["5", "foo", "-2", "²", ""])
    def test_call_raises_error_when_there_is_no_such_checkpoint(
        self, run_dir: RunDir, which: str
    ) -> None:
        with pytest.raises(
            WarmupError, match="one of the steps 2, 4, 6, 8"
        ) as exc_info:
            run_dir.find_checkpoint(which)

        assert f"`{which}`" in str(exc_info.value)

    def test_call_raises_error_when_there_is_none(self, tmp_path: Path) -> None:
        run_dir = RunDir(tmp_path)

        dump(run_dir.run_file, CONFIG)

        with pytest.raises(WarmupError, match="has no checkpoint yet"):
            run_dir.find_checkpoint("last")

    def test_call_raises_error_when_score_is_no_number(self, run_dir: RunDir) -> None:
        (run_dir.checkpoint_dir / "scores" / "step_2.txt").write_text("")

        with pytest.raises(WarmupError, match="step_2.txt` does not hold a number"):
            run_dir.find_checkpoint("best")

    @pytest.mark.parametrize(
        "name,message", [("nope", "does not exist"), ("", "is not a run directory")]
    )
    def test_call_raises_error_when_directory_is_no_run(
        self, tmp_path: Path, name: str, message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            RunDir(tmp_path / name).find_checkpoint("best")


class TestRefuseChangedConfig:
    def test_call_accepts_same_config(self, run_dir: RunDir) -> None:
        run_dir.refuse_changed_config({**CONFIG, "init_from": None})

    def test_call_lists_all_differing_keys(self, run_dir: RunDir) -> None:
        config = {"criterion": {"name": "warmup"}, "regime": {"num_steps": 4}, "new": 1}

        with pytest.raises(WarmupError) as exc_info:
            run_dir.refuse_changed_config(config)

        text = str(exc_info.value)

        assert "`criterion.name` ('sft' in the run, 'warmup' now)" in text
        assert "`new` (absent in the run, 1 now)" in text
        assert "num_steps" not in text

    def test_call_raises_error_when_run_is_of_another_program(
        self, run_dir: RunDir
    ) -> None:
        run_dir.command_file.unlink()

        with pytest.raises(WarmupError, match="no `command.yaml`"):
            run_dir.refuse_changed_config(CONFIG)


class TestIsEarlyStopped:
    def test_call_counts_from_first_of_equal_scores(self, run_dir: RunDir) -> None:
        # The best is of step 4, the last validated one is 6.
        assert run_dir.is_early_stopped(1, 2)
        assert not run_dir.is_early_stopped(2, 2)

    def test_call_leaves_score_that_was_cut_off_to_the_run(
        self, run_dir: RunDir
    ) -> None:
        run_dir.checkpoint_dir.joinpath("scores", "step_6.txt").write_text("")

        # The best is of step 4, and so is the last one that is known.
        assert not run_dir.is_early_stopped(1, 2)

    def test_call_believes_record(self, run_dir: RunDir) -> None:
        run_dir.early_stop_file.write_text(json.dumps({"stopped_at": 8}))

        assert run_dir.is_early_stopped(100, 2)

    @pytest.mark.parametrize(
        "text", ['{"stopped_at": 10}', '{"stopped_at": null}', "{"]
    )
    def test_call_ignores_record_without_checkpoint(
        self, run_dir: RunDir, text: str
    ) -> None:
        run_dir.early_stop_file.write_text(text)

        assert not run_dir.is_early_stopped(100, 2)

    def test_call_returns_false_when_there_is_no_score(self, tmp_path: Path) -> None:
        assert not RunDir(tmp_path).is_early_stopped(1, 1)


class TestCheckIsUsable:
    def test_call_accepts_new_empty_and_unfinished_runs(self, tmp_path: Path) -> None:
        RunDir(tmp_path / "new").check_is_usable()
        RunDir(tmp_path).check_is_usable()

        # Such as the output of `nohup`.
        (tmp_path / "nohup.out").touch()

        RunDir(tmp_path).check_is_usable()

        for name in ("command.yaml", "config.yaml", "tokenizer.model"):
            (tmp_path / name).touch()

        RunDir(tmp_path).check_is_usable()

    @pytest.mark.parametrize("name", ["config.yaml", "tokenizer.model"])
    def test_call_raises_error_when_file_would_be_replaced(
        self, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / name).touch()

        with pytest.raises(WarmupError, match=f"{name}` is not of a run"):
            RunDir(tmp_path).check_is_usable()

    def test_call_raises_error_when_path_is_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()

        with pytest.raises(WarmupError, match="is a file"):
            RunDir(tmp_path / "file").check_is_usable()


class TestWriteCard:
    def test_call_names_best_and_last_with_relative_paths(
        self, run_dir: RunDir
    ) -> None:
        run_dir.tokenizer_file.touch()

        run_dir.write_card()

        best, last = YAML(typ="safe", pure=True).load_all(run_dir.card_file.read_text())

        assert best == {
            "name": "run",
            "model_family": "nllb",
            "model_config": {"model_dim": 8},
            "checkpoint": "./checkpoints/step_4/model",
            "tokenizer": "./tokenizer.model",
            "tokenizer_family": "warmup_spm",
        }

        assert last["name"] == "run_last"
        assert last["checkpoint"] == "./checkpoints/step_8/model"

    def test_call_describes_tokenizer_of_run(self, run_dir: RunDir) -> None:
        tokenizer = {"family": "nllb", "config_overrides": {"langs": ["eng_Latn"]}}

        dump(run_dir.run_file, {**CONFIG, "tokenizer": tokenizer})

        run_dir.tokenizer_folder.mkdir()

        run_dir.write_card(name="mine")

        best, _ = YAML(typ="safe", pure=True).load_all(run_dir.card_file.read_text())

        assert best["name"] == "mine"
        assert best["tokenizer"] == "./tokenizer"
        assert best["tokenizer_family"] == "nllb"
        assert best["tokenizer_config_overrides"] == {"langs": ["eng_Latn"]}

    def test_call_leaves_out_tokenizer_that_is_not_in_run(
        self, run_dir: RunDir
    ) -> None:
        run_dir.write_card()

        assert "tokenizer" not in run_dir.card_file.read_text()

    def test_call_writes_what_has_changed(self, run_dir: RunDir) -> None:
        def is_written(**options: str) -> bool:
            file = run_dir.card_file

            before = file.stat().st_ino if file.is_file() else None

            run_dir.write_card(**options)

            # It is replaced.
            return file.stat().st_ino != before

        assert is_written() and not is_written()

        # The last checkpoint is the best one now.
        (run_dir.checkpoint_dir / "scores" / "step_8.txt").write_text("99.0")

        assert is_written() and not is_written()

        assert run_dir.card_file.read_text().count("step_8/model") == 2

        assert is_written(name="mine")

        run_dir.card_file.unlink()

        assert is_written(name="mine")

    def test_call_does_nothing_when_there_is_no_checkpoint(
        self, tmp_path: Path
    ) -> None:
        RunDir(tmp_path).write_card()

        assert not list(tmp_path.iterdir())


class TestLoadModelMetadata:
    def test_call_returns_family_and_config(self, run_dir: RunDir) -> None:
        metadata = {"model_family": "t5", "model_config": {"num_layers": 1}}

        dump(run_dir.checkpoint_dir / "model.yaml", metadata)

        assert run_dir.load_model_metadata() == ("t5", {"num_layers": 1})

    def test_call_raises_error_when_file_is_missing_or_foreign(
        self, run_dir: RunDir
    ) -> None:
        file = run_dir.checkpoint_dir / "model.yaml"

        dump(file, {"model_family": "t5"})

        with pytest.raises(WarmupError, match="holds no `model_config`"):
            run_dir.load_model_metadata()

        file.unlink()

        with pytest.raises(WarmupError, match="is missing"):
            run_dir.load_model_metadata()


class TestAdoptTokenizer:
    def test_call_copies_and_replaces(self, tmp_path: Path) -> None:
        run_dir = RunDir(tmp_path / "a" / "run")

        for content in (b"one", b"two"):
            (tmp_path / "spm.model").write_bytes(content)

            run_dir.adopt_tokenizer(tmp_path / "spm.model")

            assert run_dir.tokenizer_file.read_bytes() == content

        # A run that starts again may name its own copy.
        run_dir.adopt_tokenizer(run_dir.tokenizer_file)

        assert [f.name for f in run_dir.path.iterdir()] == ["tokenizer.model"]

    def test_call_copies_files_of_tokenizer_from_folder(self, tmp_path: Path) -> None:
        run_dir = RunDir(tmp_path / "run")

        source = tmp_path / "model"

        source.mkdir()

        for name in ("tokenizer.json", "spiece.model", "model.safetensors"):
            (source / name).write_text(name)

        assert run_dir.tokenizer_path is None

        for _ in range(2):
            run_dir.adopt_tokenizer(source)

        # Neither the weights nor what a crash may leave.
        assert sorted(f.name for f in run_dir.tokenizer_folder.iterdir()) == [
            "spiece.model",
            "tokenizer.json",
        ]

        assert [f.name for f in run_dir.path.iterdir()] == ["tokenizer"]

        assert run_dir.tokenizer_path == run_dir.tokenizer_folder

        run_dir.adopt_tokenizer(run_dir.tokenizer_folder)

        assert is_same_tokenizer(run_dir.tokenizer_folder, source)

        (source / "tokenizer.json").write_text("other")

        assert not is_same_tokenizer(run_dir.tokenizer_folder, source)


class TestLoadConfig:
    def test_run_of_earlier_version_did_what_there_was(self, run_dir: RunDir) -> None:
        config: dict[str, Any] = {
            **CONFIG,
            "warmup": {"max_warmup_len": 3},
            "tokenizer": {},
        }

        dump(run_dir.run_file, config)

        assert run_dir.load_config()["warmup"] == {
            "max_warmup_len": 3,
            "plain_path": "bare",
            "separator_init": "none",
        }

        assert run_dir.load_config()["tokenizer"] == {"warmup_end": "separator"}

        config["warmup"] = {"plain_path": "empty", "separator_init": "eos"}
        config["tokenizer"] = {"warmup_end": "eos"}

        dump(run_dir.run_file, config)

        assert run_dir.load_config() == config


class TestVersions:
    def test_call_records_versions_and_commit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_dir = RunDir(tmp_path)

        monkeypatch.setattr(
            warmup_plugin.runs.run_dir, "_find_commit", lambda: "abc-dirty"
        )

        run_dir.write_versions({"num_processes": 2})

        [versions] = json.loads(run_dir.versions_file.read_text())

        assert versions["fairseq2"].startswith("0.8.1")
        assert versions["git_commit"] == "abc-dirty"
        assert versions["num_processes"] == 2
        assert set(versions) == {
            *("python", "warmup_plugin", "fairseq2", "torch", "sacrebleu"),
            *("sentencepiece", "git_commit", "num_processes"),
        }

    def test_call_finds_no_commit_outside_clone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "site-packages" / "warmup_plugin" / "run_dir.py"

        monkeypatch.setattr(warmup_plugin.runs.run_dir, "__file__", str(file))

        assert collect_versions()["git_commit"] is None

    def test_call_finds_no_commit_without_git(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("PATH", "")

        assert collect_versions()["git_commit"] is None


class TestLoadYaml:
    @pytest.mark.parametrize(
        "content,message",
        [
            (b"a: [", "cannot be read as YAML"),
            (b"\xff\xfe\x00", "cannot be read as YAML"),
            (b"- 1", "holds no YAML mapping"),
            (b"", "holds no YAML mapping"),
            (None, "cannot be read as YAML"),
        ],
    )
    def test_call_raises_error_when_file_is_bad(
        self, tmp_path: Path, content: bytes | None, message: str
    ) -> None:
        file = tmp_path / "x.yaml"

        if content is not None:
            file.write_bytes(content)

        with pytest.raises(WarmupError, match=message) as exc_info:
            load_yaml(file)

        assert str(file) in str(exc_info.value)
        assert "\n" not in str(exc_info.value)


class TestWriteTextAtomically:
    def test_call_leaves_old_file_when_interrupted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = tmp_path / "new" / "a.txt"

        write_text_atomically(file, "ä\n")

        def fail(*args: object) -> None:
            raise OSError("full")

        monkeypatch.setattr(os, "rename", fail)
        monkeypatch.setattr(os, "replace", fail)

        with pytest.raises(OSError, match="full"):
            write_text_atomically(file, "b\n")

        assert file.read_bytes() == "ä\n".encode()


class TestFlattenConfig:
    def test_call_joins_keys(self) -> None:
        config = {"a": {"b": 1, "c": {"d": None}}, "e": (0.9, 0.98), "f": "x"}

        assert flatten_config(config) == {
            "a.b": 1,
            "a.c.d": None,
            "e": [0.9, 0.98],
            "f": "x",
        }


def test_atomic_write_follows_no_link_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "a.json"

    other = tmp_path / "other"

    (tmp_path / "a.json.tmp").symlink_to(other)

    write_text_atomically(file, "text")

    assert file.read_text() == "text" and not other.exists()

    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(file, "half a surrogate \ud800")

    assert file.read_text() == "text"

    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.json.tmp"]
