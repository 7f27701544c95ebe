# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from warmup_plugin.suite.results import _get_name


def test_run_is_found_by_its_outputs_whatever_a_report_calls_it() -> None:
    outputs: Any = SimpleNamespace(
        translations=Path("runs/sft/seed_1/generate/test.best.txt"),
        system_path=Path("runs/sft/seed_1"),
    )

    files = {
        "warmup/seed_1": "runs/warmup/seed_1/generate/test.best.txt",
        "sft/seed_1": "runs/sft/seed_1/generate/test.best.txt",
    }

    assert _get_name({"hypotheses": files}, outputs) == "sft/seed_1"

    # As earlier versions wrote it.
    assert _get_name({}, outputs) == "runs/sft/seed_1"
