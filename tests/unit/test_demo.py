# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.demo import _format_gain


@pytest.mark.parametrize(
    "score,p_value,expected",
    [
        (
            21.26,
            0.0001,
            "gain of warmups over SFT: +11.3 BLEU (p < 0.001), warmups written in P: 75 %",
        ),
        (
            9.5,
            0.001,
            "gain of warmups over SFT: -0.5 BLEU (p = 0.001), warmups written in P: 75 %",
        ),
    ],
)
def test_last_line_tells_gain_and_language(
    tmp_path: Path, score: float, p_value: float, expected: str
) -> None:
    file = tmp_path / "warmup" / "generate" / "test.best.txt.jsonl"

    file.parent.mkdir(parents=True)

    # The last word is of B.
    warmups = ["bo gowi", "", "fobawiji ceci"]

    file.write_text("".join(json.dumps({"warmup": w}) + "\n" for w in warmups))

    comparison = {"baseline_score": 10.0, "p_value": p_value}

    report = {
        "comparisons": [
            {**comparison, "system": "warmup", **metric}
            for metric in (
                {"metric": "chrF2++", "score": 99.0},
                {"metric": "BLEU", "score": score},
            )
        ]
    }

    assert _format_gain(tmp_path, report) == expected
