# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""A test set of sacreBLEU, from its cache to the score."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.commands import TIMEOUT
from tests.tiny_runs import (
    ROOT,
    command_environment,
    python_command,
    tiny_options,
    to_args,
)
from warmup_plugin.recipes.train import main as train

pytestmark = pytest.mark.integration


def test_set_is_translated_and_scored(
    tmp_path: Path, text_folder: Path, tokenizer_file: Path
) -> None:
    data = tmp_path / "data"

    data.mkdir()

    for file in text_folder.iterdir():
        lang = {".src": ".en", ".tgt": ".de"}.get(file.suffix)

        if lang is not None:
            shutil.copyfile(file, data / f"{file.stem}{lang}")

    options = tiny_options(
        data,
        tokenizer_file,
        dataset__source_lang="en",
        dataset__target_lang="de",
        generation__max_len_b=5,
    )

    run_dir = tmp_path / "run"

    assert train(to_args(run_dir, options)) == 0

    def evaluate() -> subprocess.CompletedProcess[str]:
        # It looks for its folder when it is imported.
        return subprocess.run(
            python_command(
                *("-m", "warmup_plugin", "evaluate", run_dir),
                *("--split", "sacrebleu:wmt14"),
                is_warm=False,
            ),
            cwd=ROOT,
            env=command_environment(
                SACREBLEU=str(tmp_path / "sacrebleu"),
                # Nothing is downloaded, also where there is a network.
                https_proxy="http://127.0.0.1:9",
                http_proxy="http://127.0.0.1:9",
            ),
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )

    result = evaluate()

    assert result.returncode == 2
    assert "`sacrebleu:wmt14` of `en-de` cannot be downloaded" in result.stderr
    assert "Traceback" not in result.stderr

    folder = tmp_path / "sacrebleu" / "wmt14"

    shutil.copyfile(text_folder / "test.src", folder / "wmt14.en-de.src")
    shutil.copyfile(text_folder / "test.tgt", folder / "wmt14.en-de.ref")

    # Of the documents, a line each, which nobody reads.
    for name in ("docid", "genre", "origlang"):
        folder.joinpath(f"wmt14.en-de.{name}").write_text("x\n" * 5)

    result = evaluate()

    assert result.returncode == 0, result.stderr
    assert "BLEU" in result.stdout

    output = run_dir / "generate" / "sacrebleu-wmt14.best.txt"

    assert output.read_text().count("\n") == 5
