# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
How fast are outputs found, against transformers and CTranslate2 with the same weights?

In turn in one process, the same sources in the same batches, encoding included:

- ``transformers``: ``generate()``, to which the others are compared;
- ``ours``: the generator ``warmup`` without warmups;
- ``ctranslate2``: a C++ library that serves models (fp32), for reference; it makes
  batches of its own within those it is given;
- ``ours-int8``, ``ctranslate2-int8``: with weights of 8 bits, on a CPU;
- ``single``, ``greedy-then-beam``, ``sample``: the generator with a warmup before each
  output, which no other library has; K as the setting says.

By default the model is untrained and every output is as long as the setting says, so that
all do the same work. ``--run`` takes a trained run and its test set instead, where outputs
end by themselves, and tells how many of them are equal. Memory is what the process needs
beyond the model while all sources are generated once (Linux only). ::

    python scripts/bench_generate.py
    python scripts/bench_generate.py --run runs/multi30k_sft --beams 1,5
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

if not __package__:
    # Started as a file: the folder of the package is not on the path then.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_common import (
    BenchParser,
    describe_environment,
    format_range,
    format_table,
    get_clock,
    measure_alternating,
    parse_names,
    prepare_device,
    read_memory,
    reset_peak_memory,
)
from scripts.generation_systems import (
    BASE,
    INT8_SYSTEMS,
    PLAIN_SYSTEMS,
    WARMUP_SYSTEMS,
    Job,
    create_random_job,
    create_system,
    load_run_job,
)
from scripts.step_settings import SETTINGS
from warmup_plugin.data.batching import sorted_batches
from warmup_plugin.errors import WarmupError
from warmup_plugin.heap import keep_freed_memory


def measure_memory(step: Callable[[], object]) -> float | None:
    """Measures by how much a step raises the peak of the process's memory, in MiB;
    ``None`` where the kernel does not tell."""
    try:
        # What other systems have left behind is not there to be used.
        ctypes.CDLL("libc.so.6").malloc_trim(0)

        before = reset_peak_memory()
    except (OSError, WarmupError):
        return None

    step()

    return (read_memory("VmHWM") - before) / 2**20


def run(args: argparse.Namespace) -> None:
    device = prepare_device(args)

    # As `translate` does; the others have it too.
    keep_freed_memory()

    names = parse_names("--systems", args.systems, [*PLAIN_SYSTEMS, *WARMUP_SYSTEMS])

    if BASE not in names:
        raise WarmupError(f"`--systems` must hold `{BASE}`, to which all are compared.")

    jobs = []

    if args.run is not None:
        jobs.append(load_run_job(args.run, args.sentences))
    else:
        for setting_name in parse_names("--settings", args.settings, list(SETTINGS)):
            jobs.append(create_random_job(SETTINGS[setting_name], args.sentences))

    report: dict[str, object] = {"environment": describe_environment(args)}

    measurements: list[object] = []

    for job in jobs:
        for beam in map(int, args.beams.split(",")):
            measurements.append(_measure_job(job, beam, names, device, args))

    report["measurements"] = measurements

    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    print(json.dumps({"benchmark": "generate", **report}))


def _measure_job(
    job: Job,
    beam: int,
    names: Sequence[str],
    device: torch.device,
    args: argparse.Namespace,
) -> dict[str, object]:
    lens = np.array([len(seq) for seq in job.sources])

    plan = [rows.tolist() for rows in sorted_batches(lens, args.max_num_tokens // beam)]

    systems = {
        name: create_system(name, job, device, beam, args.threads) for name in names
    }

    outputs: dict[str, dict[int, list[int]]] = {name: {} for name in names}

    def make_step(name: str) -> Callable[[], None]:
        def step() -> None:
            for rows in plan:
                batch = [job.sources[row] for row in rows]

                outputs[name].update(zip(rows, systems[name](batch)))

        return step

    steps = {name: make_step(name) for name in names}

    times = measure_alternating(
        steps, device, num_rounds=args.rounds, clock=get_clock(args)
    )

    memory = {name: measure_memory(step) for name, step in steps.items()}

    rows, results = [], []

    for name in names:
        seconds = statistics.median(times[name])

        # Each is compared with its neighbour of the same round.
        ratios = [base / own for base, own in zip(times[BASE], times[name])]

        num_tokens = sum(len(output) + 1 for output in outputs[name].values())

        num_equal = sum(
            output == outputs[BASE][row] for row, output in outputs[name].items()
        )

        is_plain = name in PLAIN_SYSTEMS

        mib = memory[name]

        results.append(
            {
                "system": name,
                "beam": beam,
                "seconds": times[name],
                "speedup": ratios,
                "num_tokens": num_tokens,
                "num_equal": num_equal if is_plain else None,
                "memory_mib": mib,
            }
        )

        rows.append(
            [
                name,
                f"{len(job.sources) / seconds:.0f}",
                f"{num_tokens / seconds:.0f}",
                f"{statistics.median(ratios):.2f}",
                format_range(ratios, digits=2),
                f"{100 * num_equal / len(job.sources):.1f}%" if is_plain else "-",
                "-" if mib is None else f"{mib:.0f}",
            ]
        )

    print(
        f"{job.name}\nbeam {beam}, {len(job.sources)} sentences in {len(plan)} batches, {args.threads} thread(s)\n"
    )

    print(
        format_table(
            ["system", "sent/s", "tok/s", "speed-up", "range", "equal", "MiB"], rows
        )
    )

    print(flush=True)

    return {"job": job.name, "beam": beam, "systems": results}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    parser = BenchParser(
        description="Compares generation with transformers and CTranslate2."
    )

    parser.add_common_arguments()

    parser.add_clock_argument()

    parser.add_names(
        "--settings",
        ["captions"],
        f"of {', '.join(SETTINGS)}; divided by commas",
    )

    parser.add_argument(
        "--run",
        type=Path,
        metavar="RUN_DIR",
        help="a trained run of the family `nllb` and its test set instead",
    )

    systems = (*PLAIN_SYSTEMS, *WARMUP_SYSTEMS)

    parser.add_names(
        "--systems",
        (name for name in systems if name not in INT8_SYSTEMS),
        "what to compare, divided by commas",
    )

    parser.add_argument(
        "--beams",
        default="1,5",
        metavar="SIZES",
        help="beam sizes, divided by commas (default: %(default)s)",
    )

    parser.add_count("--sentences", 500, "the number of sources")

    parser.add_count(
        "--max-num-tokens",
        10_000,
        "the size of a batch: rows, of which each beam is one, times the longest source",
    )

    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write the figures to this file"
    )

    return parser.run(argv, run)


if __name__ == "__main__":
    sys.exit(main())
