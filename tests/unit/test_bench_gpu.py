# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from scripts import bench_generate, bench_gpu, bench_step
from scripts.bench_gpu import Part, run_part


class TestRunPart:
    def test_returns_record(self) -> None:
        part = Part("x", ["-c", 'print("table"); print(\'{"benchmark": "step"}\')'])

        record = run_part(part, 60.0)

        assert record["benchmark"] == "step"

    def test_returns_what_failed(self) -> None:
        part = Part("x", ["-c", "import sys; print('table'); sys.exit('no GPU')"])

        assert run_part(part, 60.0) == {"error": "no GPU"}

    def test_breaks_off_with_what_was_started(self, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"

        os.mkfifo(fifo)

        # Both hold it open.
        code = f"import os, time; f = open('{fifo}', 'wb'); os.fork(); time.sleep(60)"

        receiver = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)

        begin = time.monotonic()

        record = run_part(Part("x", ["-c", code]), 2.0)

        assert record == {"error": "broken off after 2 seconds"}

        os.set_blocking(receiver, True)

        with open(receiver, "rb") as stream:
            assert stream.read() == b""

        assert time.monotonic() - begin < 30

    def test_finds_record_before_late_warning(self) -> None:
        code = "import sys; print('{\"n\": 1}', flush=True); print('late', file=sys.stderr)"

        assert run_part(Part("x", ["-c", code]), 60.0)["n"] == 1

        record = run_part(Part("x", ["-c", "print('table')"]), 60.0)

        assert record == {"error": "no record, but table"}


class TestMain:
    def test_runs_commands_that_are_there(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        mains = {
            "scripts/bench_step.py": bench_step.main,
            "scripts/bench_generate.py": bench_generate.main,
        }

        def run_here(part: Part, timeout: float) -> dict[str, object]:
            script, *args = part.command

            # One part is enough to see that a record comes back.
            if part.name == "share of drawing captions":
                assert mains[script](args) == 0

                return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))

            # Arguments are parsed before this one is refused.
            with pytest.raises(SystemExit, match="2"):
                mains[script]([*args, "--rounds", "none"])

            assert "argument --rounds" in capsys.readouterr().err

            return {"error": "left out"}

        monkeypatch.setattr(bench_gpu, "run_part", run_here)

        args = ["--device", "cpu", "--dtype", "fp32", "--settings", "captions"]

        args += ["--rounds", "1", "--num-tokens", "20", "--sentences", "2"]

        assert bench_gpu.main(args) == 0

        record = json.loads(capsys.readouterr().out.splitlines()[-1])

        assert list(record["parts"]) == [
            "step captions",
            "share of drawing captions",
            "generation captions",
            "memory captions",
        ]

        phases = record["parts"]["share of drawing captions"]["settings"]["captions"]

        assert "draw" in phases["phases"]

    def test_says_that_no_time_was_left(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert bench_gpu.main(["--seconds", "1"]) == 2

        out, err = capsys.readouterr()

        assert "no time was left" in out and err.startswith("error: No benchmark")
