# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Everything that is to be measured on a GPU, one benchmark after the other, within ten
minutes.

Each is a command of its own, so that one that fails or takes too long costs only its
own figures. With ``--device cpu`` and ``--settings captions`` it can be tried without a
GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_common import ROOT, BenchParser, parse_positive_int
from warmup_plugin.errors import WarmupError

# A command that has less left would not get through its imports and first steps.
_LEAST_SECONDS: Final = 30


@final
@dataclass(frozen=True)
class Part:
    """Holds one of the benchmarks."""

    name: str

    command: list[str]
    """Of the interpreter, the interpreter left out."""


def list_parts(args: argparse.Namespace) -> Iterator[Part]:
    """Lists the benchmarks, what matters most first."""
    step = ["scripts/bench_step.py", "--device", args.device, "--dtype", args.dtype]

    rounds = ["--rounds", str(args.rounds)]

    if args.num_tokens is not None:
        step += ["--num-tokens", str(args.num_tokens)]

    for setting in args.settings.split(","):
        own = ["--settings", setting]

        yield Part(
            f"step {setting}",
            [*step, *own, *rounds, "--variants", "sft,marginal-1,marginal-all"],
        )

        yield Part(
            f"share of drawing {setting}",
            [*step, *own, *rounds, "--profile", "marginal-1"],
        )

    for setting in args.settings.split(","):
        yield Part(
            f"generation {setting}",
            ["scripts/bench_generate.py", "--device", args.device, *rounds]
            + ["--settings", setting, "--systems", "transformers,ours"]
            + ["--beams", "1,5", "--sentences", str(args.sentences)],
        )

    for setting in args.settings.split(","):
        yield Part(
            f"memory {setting}",
            [*step, "--settings", setting, "--rounds", "1", "--memory"]
            + ["--variants", "sft,marginal-1"],
        )


def run_part(part: Part, timeout: float) -> dict[str, object]:
    """
    Runs a benchmark.

    :param timeout: In seconds.

    :returns: Its JSON record, or ``error`` and the last line that it wrote.
    """
    begin = time.monotonic()

    # Of a session of its own, to end the processes that it starts as well.
    with subprocess.Popen(
        [sys.executable, *part.command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            return {"error": f"broken off after {timeout:.0f} seconds"}
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    print(output, end="", flush=True)

    lines = output.splitlines() or [""]

    if process.returncode != 0:
        return {"error": lines[-1]}

    # Libraries may warn as late as at the end.
    [*_, last] = ["", *(line for line in lines if line.startswith("{"))]

    try:
        record: dict[str, object] = json.loads(last)
    except ValueError:
        return {"error": f"no record, but {lines[-1]}"}

    return {"seconds": round(time.monotonic() - begin, 1), **record}


def main(argv: Sequence[str] | None = None) -> int:
    parser = BenchParser(
        prog="python scripts/bench_gpu.py",
        description="Runs the benchmarks of steps, memory and generation on a GPU within a limit of time; the last line is one JSON record.",
    )

    parser.add_names("--settings", ["t5-base", "mt5-base"], "see `bench_step.py`")

    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")

    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="bf16")

    parser.add_argument("--num-tokens", type=parse_positive_int, metavar="N")

    parser.add_argument(
        "--rounds", type=parse_positive_int, default=5, metavar="N", help="(default: 5)"
    )

    parser.add_count("--sentences", 200, "the number of sources to translate")

    parser.add_count("--seconds", 570, "in all; what is left by then is not measured")

    return parser.run(argv, _run)


def _run(args: argparse.Namespace) -> None:
    end = time.monotonic() + args.seconds

    records: dict[str, object] = {}

    for part in list_parts(args):
        left = end - time.monotonic()

        if left < _LEAST_SECONDS:
            records[part.name] = {"error": "no time was left"}

            continue

        print(f"\n== {part.name}: python {' '.join(part.command)}\n", flush=True)

        records[part.name] = run_part(part, left)

    print(json.dumps({"benchmark": "gpu", "parts": records}))

    if all("error" in record for record in records.values()):  # type: ignore[operator]
        raise WarmupError(
            "No benchmark came to its end; what each wrote last is in the record above."
        )


if __name__ == "__main__":
    sys.exit(main())
