# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.report.cases import (
    SOURCES,
    write_lines,
    write_scores,
    write_translations,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.runs.records import read_scores, read_translations


class TestReadTranslations:
    def test_call_reads_hypotheses(self, tmp_path: Path) -> None:
        file = write_translations(tmp_path, is_warmup=True)

        lines = read_translations(file.with_name(f"{file.name}.jsonl"))

        # A line separator ends no line.
        assert [line.source for line in lines] == list(SOURCES)

        best = lines[0].best

        assert (best.warmup, best.output) == ("Mann schläft", "Ein Mann schläft.")
        assert (best.log_prob, best.warmup_log_prob) == (-3.0, -1.0)
        assert (best.target_log_prob, best.weight) == (-2.0, None)
        assert [h.output for h in lines[0].hypotheses] == [
            "Ein Mann schläft.",
            "Ein Mann schläft. again",
        ]

        # An empty source.
        assert (lines[3].best.log_prob, lines[3].hypotheses) == (None, [])

    def test_call_reads_files_without_hypotheses(self, tmp_path: Path) -> None:
        file = write_translations(tmp_path, is_warmup=False, has_hypotheses=False)

        lines = read_translations(file.with_name(f"{file.name}.jsonl"))

        assert lines[0].hypotheses == []
        assert lines[0].best.warmup is None
        assert lines[0].best.warmup_log_prob is None

    @pytest.mark.parametrize(
        "line,message",
        [
            ("{", "file:2 holds no JSON object; delete the file and run"),
            ("[]", "file:2 holds no JSON object"),
            ('{"output": ""}', "file:2 has no field `source` that is text"),
            ('{"source": "", "output": 1}', "no field `output` that is text"),
            (
                '{"source": "", "output": "", "log_prob": "x"}',
                "no field `log_prob` that is a number",
            ),
            (
                '{"source": "", "output": "", "hypotheses": {}}',
                "no field `hypotheses` that is a list of objects",
            ),
            (
                '{"source": "", "output": "", "hypotheses": [{}]}',
                "file:2, hypotheses 1 has no field `output`",
            ),
        ],
    )
    def test_call_names_what_is_wrong(
        self, tmp_path: Path, line: str, message: str
    ) -> None:
        file = tmp_path / "file"

        write_lines(file, ['{"source": "", "output": ""}', line])

        with pytest.raises(WarmupError, match="RUN_DIR` again") as info:
            read_translations(file)

        assert message in str(info.value)


class TestReadScores:
    def test_call_reads_draws(self, tmp_path: Path) -> None:
        pairs = read_scores(write_scores(tmp_path))

        assert pairs[1].gain == 0.5
        assert pairs[1].num_target_tokens == 5
        assert [draw.weight for draw in pairs[1].draws] == [0.25, 0.75]
        # Where it is not said, once.
        assert [draw.count for draw in pairs[1].draws] == [1, 2]
        assert pairs[1].num_draws == 3
        assert pairs[0].draws[1].warmup == "Ein zzz"

    def test_call_takes_no_number_for_what_is_not_finite(self, tmp_path: Path) -> None:
        file = tmp_path / "file"

        write_lines(
            file,
            [
                '{"source": "a", "num_target_tokens": 1, "log_prob": -Infinity, '
                '"marginal_log_prob": null, "gain": NaN}'
            ],
        )

        [pair] = read_scores(file)

        assert (pair.log_prob, pair.marginal_log_prob, pair.gain) == (None, None, None)
        assert pair.draws == []
