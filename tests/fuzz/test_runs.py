# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.inputs import (
    TEXTS,
    VALUES,
    changed,
    check,
    damaged,
    new_folder,
    to_json,
)
from tests.tiny_runs import tiny_options, to_args
from warmup_plugin.__main__ import main
from warmup_plugin.report.curves import read_curves
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import dump_yaml, load_yaml
from warmup_plugin.storage import load_tensors
from warmup_plugin.suite.runs import is_finished, measure_training
from warmup_plugin.tokenizers.loading import load_tokenizer

FEW: Final = settings(max_examples=max(4, settings.default.max_examples // 25))  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def run(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, tokenizer_file: Path
) -> Path:
    out = tmp_path_factory.mktemp("fuzz") / "run"

    options = tiny_options(text_folder, tokenizer_file, criterion__name="warmup")

    assert main(["train", *to_args(out, options)]) == 0

    return out


def call_command(*args: object) -> str:
    """
    Runs a command, which must end in a sentence if it does not end well.

    :returns: What it has printed.
    """
    stream = io.StringIO()

    with redirect_stderr(stream), redirect_stdout(stream):
        try:
            status = main([str(arg) for arg in args])
        except SystemExit as ex:
            assert isinstance(ex.code, int)

            status = ex.code

    text = stream.getvalue()

    assert "Traceback" not in text, text

    if status != 0:
        assert "error" in text.lower(), text

    return text


NAMES: Final = st.one_of(
    st.sampled_from(["step_1", "step_2", "step_2.tmp", "step_", "step_-1", "step_²"]),
    st.sampled_from([f"step_{'9' * 200}", "step_٣", "step_1e3", "scores", "x"]),
)


@given(
    names=st.lists(NAMES, max_size=4),
    parts=st.lists(
        st.sampled_from(["model", "trainer/rank_00.pt", "model/a.pt"]), max_size=3
    ),
    score=st.one_of(st.binary(max_size=10), st.sampled_from([b"nan", b"inf", b"1\n"])),
    run_yaml=st.one_of(st.binary(), VALUES.map(to_json), st.just(b"{}")),
    which=st.one_of(st.sampled_from(["best", "last", "1", "٣", "9" * 5000]), TEXTS),
)
def test_run_directory(
    names: list[str], parts: list[str], score: bytes, run_yaml: bytes, which: str
) -> None:
    with new_folder() as folder:
        for name in names:
            for part in parts:
                place = folder / "checkpoints" / name / part

                try:
                    if part.endswith(".pt"):
                        place.parent.mkdir(parents=True, exist_ok=True)

                        place.write_bytes(b"x")
                    else:
                        place.mkdir(parents=True, exist_ok=True)
                except FileExistsError:
                    pass

        (folder / "checkpoints" / "scores").mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / "scores" / "step_1.txt").write_bytes(score)

        for file in ("run.yaml", "command.yaml", "checkpoints/model.yaml"):
            (folder / file).write_bytes(run_yaml)

        for file in ("early_stop.json", "versions.json", "out.txt.origin.json"):
            (folder / file).write_bytes(run_yaml)

        (folder / "out.txt").write_text("x")

        run_dir = RunDir(folder)

        check(run_dir.has_begun)
        check(run_dir.check_last_checkpoint)
        check(run_dir.scores)
        check(lambda: run_dir.find_checkpoint(which))
        check(run_dir.load_config)
        check(run_dir.load_model_metadata)
        check(lambda: run_dir.is_early_stopped(1, 1))
        check(lambda: run_dir.has_made(folder / "out.txt", "best"))
        check(lambda: run_dir.refuse_changed_config({"a": 1}))
        check(lambda: run_dir.write_versions({}))
        check(run_dir.write_card)
        check(lambda: is_finished(folder))


@given(
    st.lists(
        st.one_of(
            st.fixed_dictionaries(
                {"Step": st.one_of(st.integers(), VALUES)},
                optional={
                    "Lapse Time": VALUES,
                    "Wall Time": VALUES,
                    "NLL Loss": VALUES,
                    "Time": VALUES,
                    "Number of Batches": VALUES,
                },
            ).map(to_json),
            VALUES.map(to_json),
            st.binary(),
        ),
        max_size=4,
    ).map(b"\n".join)
)
def test_metrics(data: bytes) -> None:
    with new_folder() as folder:
        (folder / "metrics").mkdir()

        for name in ("train", "valid"):
            (folder / "metrics" / f"{name}.jsonl").write_bytes(data)

        check(lambda: read_curves(folder, "valid"))
        check(lambda: measure_training(folder))


@given(st.data())
def test_damaged_tensors(data: st.DataObject) -> None:
    stream = io.BytesIO()

    torch.save({"a": torch.zeros(3), "b": [1, {"c": "d"}]}, stream)

    content = data.draw(damaged(st.just(stream.getvalue())))

    for restrict in (True, False):
        try:
            load_tensors(io.BytesIO(content), restrict=restrict)
        # As what reads a checkpoint takes all of them, see `CheckedLoader`.
        except Exception:
            pass


@FEW
@given(data=st.data())
def test_damaged_tokenizer(tokenizer_file: Path, data: st.DataObject) -> None:
    content = data.draw(damaged(st.just(tokenizer_file.read_bytes())))

    with new_folder() as folder:
        file = folder / "tokenizer.model"

        file.write_bytes(content)

        check(lambda: load_tokenizer(file, "warmup_spm", None))


@FEW
@given(data=st.data())
def test_changed_config_of_a_run(run: Path, data: st.DataObject) -> None:
    """Whatever a run's own record says, each command that reads it ends in a sentence."""
    content = data.draw(changed(load_yaml(run / "run.yaml")))

    with new_folder() as folder:
        out = folder / "run"

        shutil.copytree(run, out)

        try:
            text = dump_yaml(content)

            (out / "run.yaml").write_text(text, encoding="utf-8")
        # What YAML cannot spell no file holds.
        except Exception:
            return

        call_command("report", out, "--curves-only", "-o", folder / "a.html")
        call_command("average", out, "--last", "1", "--output", folder / "mean")
        call_command("generate", out, "--output", folder / "out.txt", "--no-rich")
        call_command("export", out, folder / "hub")


@FEW
@given(data=st.data())
def test_damaged_checkpoint_of_a_run(run: Path, data: st.DataObject) -> None:
    with new_folder() as folder:
        out = folder / "run"

        shutil.copytree(run, out)

        files = sorted(p for p in (out / "checkpoints").rglob("*") if p.is_file())

        file = data.draw(st.sampled_from(files))

        file.write_bytes(data.draw(damaged(st.just(file.read_bytes()))))

        call_command("generate", out, "--output", folder / "out.txt", "--no-rich")
