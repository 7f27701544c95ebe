# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
How fast are outputs found, against transformers and CTranslate2 with the same weights?

In turn, each in a process of its own, the same sources in the same batches, encoding
included:

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
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

if not __package__:
    # Started as a file: the folder of the package is not on the path then.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_common import (
    BenchParser,
    Setting,
    describe_environment,
    format_range,
    format_table,
    get_clock,
    parse_names,
    parse_positive_ints,
    prepare_device,
    take_turns,
)
from scripts.generation_systems import (
    BASE,
    INT8_SYSTEMS,
    PLAIN_SYSTEMS,
    WARMUP_SYSTEMS,
)
from scripts.step_settings import SETTINGS
from scripts.system_process import SystemProcess, Work
from warmup_plugin.errors import WarmupError


def run(args: argparse.Namespace) -> None:
    device = prepare_device(args)

    names = parse_names("--systems", args.systems, [*PLAIN_SYSTEMS, *WARMUP_SYSTEMS])

    if BASE not in names:
        raise WarmupError(f"`--systems` must hold `{BASE}`, to which all are compared.")

    subjects: list[Setting | Path]

    if args.run is not None:
        subjects = [args.run]
    else:
        subjects = [
            SETTINGS[name]
            for name in parse_names("--settings", args.settings, list(SETTINGS))
        ]

    measurements = []

    with ExitStack() as stack:
        systems = {
            name: stack.enter_context(
                SystemProcess(name, device, args.threads, get_clock(args))
            )
            for name in names
        }

        for subject in subjects:
            for beam_size in args.beams:
                work = Work(
                    subject=subject,
                    num_sentences=args.sentences,
                    beam_size=beam_size,
                    max_num_tokens=args.max_num_tokens,
                )

                measurements.append(_measure_work(work, systems, args))

    report = {
        "environment": describe_environment(args),
        "measurements": measurements,
    }

    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    print(json.dumps({"benchmark": "generate", **report}))


def _measure_work(
    work: Work, systems: Mapping[str, SystemProcess], args: argparse.Namespace
) -> dict[str, object]:
    for system in systems.values():
        title, num_sentences, num_batches = system.prepare(work)

    times = take_turns(
        systems, args.rounds, lambda name, round_nr: systems[name].measure(round_nr)
    )

    base_outputs = systems[BASE].get_outputs()

    rows, results = [], []

    for name, system in systems.items():
        seconds = statistics.median(times[name])

        # Each is compared with its neighbour of the same round.
        ratios = [base / own for base, own in zip(times[BASE], times[name])]

        outputs = system.get_outputs()

        num_tokens = sum(len(output) + 1 for output in outputs.values())

        num_equal = sum(output == base_outputs[row] for row, output in outputs.items())

        is_plain = name in PLAIN_SYSTEMS

        mib = system.measure_memory()

        results.append(
            {
                "system": name,
                "beam": work.beam_size,
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
                f"{num_sentences / seconds:.0f}",
                f"{num_tokens / seconds:.0f}",
                f"{statistics.median(ratios):.2f}",
                format_range(ratios, digits=2),
                f"{100 * num_equal / num_sentences:.1f}%" if is_plain else "-",
                "-" if mib is None else f"{mib:.0f}",
            ]
        )

    print(
        f"{title}\nbeam {work.beam_size}, {num_sentences} sentences in {num_batches} batches, {args.threads} thread(s)\n"
    )

    print(
        format_table(
            ["system", "sent/s", "tok/s", "speed-up", "range", "equal", "MiB"], rows
        )
    )

    print(flush=True)

    return {"job": title, "beam": work.beam_size, "systems": results}


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
        type=parse_positive_ints,
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
