# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
How long does a command take until it does something useful?

Measured in turn, a tiny model each time, in wall seconds and in seconds of the CPU, which
other work on the machine does not stretch as much:

- ``import``: ``python -c "import torch, fairseq2"``, what none can do without;
- ``help``: ``python -m warmup_plugin translate --help``, which needs no model;
- ``log``: ``python -m recipes.train`` until its first line;
- ``step``: the same until the figures of the first step;
- ``translate``: ``python -m warmup_plugin translate`` until the first output;
- ``generate``: the test split of a run, until it is written;
- ``score``: the same of its log-probabilities;
- ``evaluate``: the scores of what ``generate`` wrote.

Several clones, such as one of an older commit, are compared side by side; the ratio to the
import counts seconds of the CPU, of the same clone. ::

    python scripts/bench_startup.py
    python scripts/bench_startup.py --clones ../older . --cases import,translate --rounds 9
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import psutil  # type: ignore[import-untyped]

if not __package__:
    # Started as a file: the folder of the package is not on the path then.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.bench_common import (
    ROOT,
    BenchParser,
    format_table,
    parse_names,
    prepare_device,
    print_record,
)
from warmup_plugin.data.synthetic import write_synthetic_pair
from warmup_plugin.data.train_tokenizer import train_tokenizer
from warmup_plugin.errors import WarmupError

_IMPORT: Final = ("-c", "import torch, fairseq2; print('done')")

_FIRST_STEP: Final = "Train Metrics (step 1)"

CASES: Final = (
    *("import", "help", "log", "step", "translate", "generate", "score", "evaluate"),
)

# Name, command and what the line that counts holds.
Case = tuple[str, Sequence[str], str]

# Wall and CPU seconds.
Times = tuple[float, float]


def write_data(folder: Path) -> list[str]:
    """Writes a tiny pair and its tokenizer; returns the settings of its runs."""
    write_synthetic_pair(folder / "text", num_train=60, num_valid=6, num_test=5)

    tokenizer = folder / "tokenizer.model"

    inputs = [folder / "text" / f"train.{lang}" for lang in ("src", "tgt")]

    train_tokenizer(inputs, tokenizer, vocab_size=120)

    return [
        *("model.arch=transformer_test", f"dataset.path={folder / 'text'}"),
        *("dataset.source_lang=src", "dataset.target_lang=tgt"),
        *(f"tokenizer.path={tokenizer}", "dataset.max_num_tokens=400"),
        *("regime.num_steps=2", "regime.publish_metrics_every_n_steps=1"),
        *("regime.validate_every_n_steps=2", "regime.checkpoint_every_n_steps=2"),
        "generation.max_len_b=5",
    ]


def list_cases(folder: Path, settings: Sequence[str]) -> list[Case]:
    """Lists what is measured; ``folder / "run"`` is a run that was trained."""
    source = str(folder / "text" / "test.src")

    new_run = ("-m", "recipes.train", str(folder / "new"), "--config", *settings)

    run_dir = str(folder / "run")

    def command(name: str, *args: str) -> Sequence[str]:
        return ("-m", "warmup_plugin", name, *args)

    return [
        ("import", _IMPORT, ""),
        ("help", command("translate", "--help"), "usage:"),
        ("log", new_run, ""),
        ("step", new_run, _FIRST_STEP),
        ("translate", command("translate", run_dir, source), ""),
        ("generate", command("generate", run_dir), "lines written"),
        ("score", command("score", run_dir), "a token"),
        ("evaluate", command("evaluate", run_dir, "--num-bootstrap", "0"), "BLEU"),
    ]


def measure(command: Sequence[str], clone: Path, text: str) -> Times:
    """
    Starts a command and waits for a line.

    :param text: What the line holds.

    :raises WarmupError: If there is none.
    """
    env = {
        **os.environ,
        **{"PYTHONPATH": str(clone), "PYTHONUNBUFFERED": "1"},
        # What is installed is compiled, as torch and fairseq2 are.
        "PYTHONDONTWRITEBYTECODE": "",
    }

    begin = time.perf_counter()

    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=clone,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    assert process.stdout is not None

    lines = []

    try:
        for line in process.stdout:
            lines.append(line)

            if text in line:
                wall = time.perf_counter() - begin

                cpu = psutil.Process(process.pid).cpu_times()

                return wall, cpu.user + cpu.system
    finally:
        process.kill()

        process.communicate()

    raise WarmupError(f"`{' '.join(command)}` failed:\n{''.join(lines)}")


def run_cases(args: argparse.Namespace) -> None:
    prepare_device(args)

    clones = [clone.resolve() for clone in args.clones]

    # The others are measured by it.
    names = {"import", *parse_names("--cases", args.cases, CASES)}

    load = os.getloadavg()

    with tempfile.TemporaryDirectory(prefix="warmup_plugin-") as name:
        folder = Path(name)

        settings = write_data(folder)

        subprocess.run(
            [sys.executable, "-m", "recipes.train", str(folder / "run")]
            + ["--config", *settings],
            cwd=clones[0],
            env={**os.environ, "PYTHONPATH": str(clones[0])},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )

        times: dict[tuple[str, Path], list[Times]] = {}

        # What the first round reads from the disk the others find in memory.
        for round_nr in range(1 + args.rounds):
            for case, command, text in list_cases(folder, settings):
                if case not in names:
                    continue

                for clone in clones:
                    shutil.rmtree(folder / "new", ignore_errors=True)

                    if case in ("generate", "score"):
                        shutil.rmtree(folder / "run" / case, ignore_errors=True)

                    print(f"round {round_nr}: {case} in {clone}", file=sys.stderr)

                    result = measure(command, clone, text)

                    if round_nr > 0:
                        times.setdefault((case, clone), []).append(result)

    rows = []

    records = []

    for (case, clone), results in times.items():
        wall, cpu = (statistics.median(values) for values in zip(*results))

        import_cpu = statistics.median(cpu for _, cpu in times["import", clone])

        rows.append(
            [case, clone.name, f"{wall:.2f}", f"{cpu:.2f}", f"{cpu / import_cpu:.2f}"]
        )

        records.append(
            {
                **{"case": case, "clone": clone.name, "wall_s": wall, "cpu_s": cpu},
                "of_import": cpu / import_cpu,
            }
        )

    print(format_table(["until", "clone", "wall s", "CPU s", "of the import"], rows))

    print_record(args, "startup", load=load, startup=records)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark and returns its exit status."""
    parser = BenchParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    parser.add_common_arguments()

    parser.add_argument(
        "--clones",
        nargs="+",
        type=Path,
        default=[ROOT],
        metavar="DIR",
        help="the clones to compare (default: this one)",
    )

    parser.add_names("--cases", CASES, "what is measured besides the import")

    return parser.run(argv, run_cases)


if __name__ == "__main__":
    sys.exit(main())
