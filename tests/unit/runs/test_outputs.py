# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

from warmup_plugin.runs.outputs import (
    details_file,
    evaluation_file,
    scores_file,
    translation_file,
)


def test_outputs_of_directions_stand_beside_each_other() -> None:
    run = Path("run")

    file = translation_file(run, "test", None, "best")

    assert file == run / "generate" / "test.best.txt"
    assert details_file(file) == run / "generate" / "test.best.txt.jsonl"
    assert evaluation_file(file) == run / "evaluate" / "test.best.json"

    file = translation_file(run, "test", "en-de", "400")

    assert file == run / "generate" / "test.en-de.400.txt"
    assert evaluation_file(file) == run / "evaluate" / "test.en-de.400.json"

    assert scores_file(run, "test", "en-de", "best") == (
        run / "score" / "test.en-de.best.jsonl"
    )
