# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
A run directory that commit 6fee5df has written: `tests/data/run_6fee5df.tar.xz` holds its
checkpoint of step 2, the figures of the next two steps, and what that commit translated.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any, Final

import pytest

from tests.tiny_runs import ROOT, tiny_options, to_args
from warmup_plugin.commands import generate, score
from warmup_plugin.recipes import train
from warmup_plugin.runs.run_dir import RunDir

pytestmark = pytest.mark.integration

ARCHIVE: Final = ROOT / "tests" / "data" / "run_6fee5df.tar.xz"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")

    for file in (tmp_path / "run").glob("*.yaml"):
        file.write_text(file.read_text().replace("@ROOT@", str(tmp_path)))

    return tmp_path


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_outputs_are_those_of_then(folder: Path) -> None:
    out = folder / "out.txt"

    args = [str(folder / "run"), "--no-rich", "--checkpoint", "2"]

    assert generate.main([*args, "--beam-size", "3", "--output", str(out)]) == 0

    rows = read_rows(folder / "out.txt.jsonl")

    for row, expected in zip(rows, read_rows(folder / "expected.jsonl"), strict=True):
        for key in ("source", "warmup", "output"):
            assert row[key] == expected[key]

        # That of the target leaves the separator out since.
        assert row["warmup_log_prob"] == pytest.approx(
            expected["warmup_log_prob"], abs=1e-3
        )

    assert score.main([*args, "--output", str(folder / "scores.jsonl")]) == 0

    assert len(read_rows(folder / "scores.jsonl")) == 5


def test_run_goes_on(folder: Path) -> None:
    sizes = [
        *("model_dim: 16", "num_encoder_layers: 1", "num_decoder_layers: 1"),
        *("num_encoder_attn_heads: 2", "num_decoder_attn_heads: 2"),
        "ffn_inner_dim: 16",
    ]

    options = tiny_options(
        folder / "text",
        folder / "run" / "tokenizer.model",
        criterion__name="warmup",
        model__config_overrides=f"{{{', '.join(sizes)}}}",
        regime__num_steps=4,
        regime__keep_last_n_checkpoints=2,
    )

    assert train.main(to_args(folder / "run", options)) == 0

    assert RunDir(folder / "run").checkpoint_steps() == [2, 4]

    losses = {
        row["Step"]: row["NLL Loss"] for row in read_rows(folder / "losses.jsonl")
    }

    rows = read_rows(folder / "run" / "metrics" / "train.jsonl")

    assert [row["Step"] for row in rows] == [3, 4]

    for row in rows:
        assert row["NLL Loss"] == pytest.approx(losses[row["Step"]], rel=0.01)
