# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
How long does a training wait for its data, and how much memory does the data take?

Pairs of a synthetic text are read as ``recipes.train`` reads them, each time in a process of
its own:

- ``memory``: tokenised into memory at each start (``dataset.cache=none``);
- ``first``: tokenised and kept in the cache;
- ``later``: mapped from the cache.

Seconds until the first batch, those of the plan of an epoch in it, the memory that each process
needs for itself, and the peak with what is mapped, which all processes of a machine share. Then
batches a second. With 5,000,000 pairs half an hour on one core, and 6 GiB of disk. ::

    python scripts/bench_corpus.py
    python scripts/bench_corpus.py --pairs 100000
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import torch

if not __package__:
    # Started as a file: the folder of the package is not on the path then.
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fairseq2.gang import FakeGang, Gangs
from torch.nn import Module

from scripts.bench_common import (
    ROOT,
    BenchParser,
    format_table,
    prepare_device,
    print_record,
    read_memory,
)
from warmup_plugin.data.reader import TextPairReader
from warmup_plugin.data.train_tokenizer import train_tokenizer
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes.common import create_direction_codecs
from warmup_plugin.recipes.control import StopSignal
from warmup_plugin.recipes.corpora import CorpusReader
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.tokenizers.spm import load_warmup_spm

_LANGS: Final = ("src", "tgt")

_NUM_SENTENCES: Final = 100_000
"""Distinct ones a side; the pairs join them anew."""

_VOCAB_SIZE: Final = 8000

_NUM_BATCHES: Final = 200

_VARIANTS: Final = ("memory", "first", "later", "later")


def write_text(folder: Path, num_pairs: int) -> None:
    """Writes pairs of sentences of 5 to 40 words of Zipf's law, and a tokenizer."""
    rng = np.random.default_rng(1)

    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))

    words = np.array(
        ["".join(rng.choice(letters, rng.integers(2, 12))) for _ in range(30_000)]
    )

    probs = 1.0 / np.arange(1, len(words) + 1)

    probs /= probs.sum()

    folder.joinpath("data").mkdir(parents=True)

    for lang in _LANGS:
        drawn = words[rng.choice(len(words), (_NUM_SENTENCES, 40), p=probs)]

        lens = rng.integers(5, 41, _NUM_SENTENCES)

        sentences = [" ".join(row[:n]) for row, n in zip(drawn, lens)]

        for split, size in (("train", num_pairs), ("valid", 100)):
            with folder.joinpath("data", f"{split}.{lang}").open("w") as fp:
                for start in range(0, size, _NUM_SENTENCES):
                    order = rng.integers(
                        0, _NUM_SENTENCES, min(_NUM_SENTENCES, size - start)
                    )

                    fp.writelines(f"{sentences[idx]}\n" for idx in order)

    folder.joinpath("run").mkdir()

    samples = [folder / f"sample.{lang}" for lang in _LANGS]

    for lang, sample in zip(_LANGS, samples):
        with folder.joinpath("data", f"train.{lang}").open() as fp:
            sample.write_text("".join(islice(fp, 20_000)))

    train_tokenizer(
        [folder / "data" / f"valid.{lang}" for lang in _LANGS] + samples,
        folder / "run" / "tokenizer.model",
        vocab_size=_VOCAB_SIZE,
    )


def measure_start(folder: Path, cache: str) -> dict[str, float]:
    """Reads the text in this process as a training does."""
    config = TrainConfig()

    config.dataset.path = folder / "data"
    config.dataset.source_lang, config.dataset.target_lang = _LANGS
    config.dataset.cache = cache
    config.dataset.max_num_tokens = 4000

    tokenizer = load_warmup_spm(folder / "run" / "tokenizer.model")

    sections = {
        "tokenizer": asdict(config.tokenizer),
        "dataset": asdict(config.dataset),
    }

    codecs = create_direction_codecs(tokenizer, sections, reads_prompts=False)

    gang = FakeGang(torch.device("cpu"))

    before = read_memory("Anonymous", "smaps_rollup")

    begin = time.perf_counter()

    def get_model() -> Module:
        raise RuntimeError("no direction stands behind another")

    corpus = CorpusReader(
        config,
        codecs,
        RunDir(folder / "run"),
        gang,
        get_model,
        StopSignal(),
        reads_prompts=False,
    ).read("train", is_training=True)

    read_time = time.perf_counter() - begin

    reader = TextPairReader(
        corpus,
        Gangs(root=gang, dp=gang, rdp=gang, sdp=gang, tp=gang, pp=gang),
        max_num_tokens=config.dataset.max_num_tokens,
        shuffle=True,
        seed=1,
        pad_idx=0,
    )

    next(reader)

    start_time = time.perf_counter() - begin

    after = read_memory("Anonymous", "smaps_rollup")

    begin = time.perf_counter()

    num_batches = sum(1 for _, _ in zip(range(_NUM_BATCHES), reader))

    return {
        "seconds": start_time,
        "plan_seconds": start_time - read_time,
        "own_mib": (after - before) / 2**20,
        "peak_mib": read_memory("VmHWM") / 2**20,
        "batches_per_second": num_batches / (time.perf_counter() - begin),
    }


def _run(args: argparse.Namespace) -> None:
    prepare_device(args)

    if args.measure is not None:
        print(json.dumps(measure_start(args.folder, args.measure)))

        return

    with tempfile.TemporaryDirectory(dir=args.folder) as temp_dir:
        folder = Path(temp_dir)

        write_text(folder / "work", args.pairs)

        results = []

        for variant in _VARIANTS:
            cache = "none" if variant == "memory" else str(folder / "cache")

            results.append((variant, measure_in_process(folder / "work", cache)))

            figures = results[-1][1]

            print(f"{variant}: {figures['seconds']:.1f} s", file=sys.stderr, flush=True)

    header = ["", "first batch", "of it the plan", "own memory", "peak", "batches/s"]

    rows = [
        [
            variant,
            f"{f['seconds']:.1f} s",
            f"{f['plan_seconds']:.1f} s",
            f"{f['own_mib']:,.0f} MiB",
            f"{f['peak_mib']:,.0f} MiB",
            f"{f['batches_per_second']:,.0f}",
        ]
        for variant, f in results
    ]

    print(f"{args.pairs:,} pairs\n")
    print(format_table(header, rows))

    print_record(
        args,
        "corpus",
        num_pairs=args.pairs,
        starts=[{"variant": variant, **figures} for variant, figures in results],
    )


def measure_in_process(folder: Path, cache: str) -> dict[str, float]:
    """Does what :func:`measure_start` does in a process of its own."""
    result = subprocess.run(
        [sys.executable, __file__, "--folder", str(folder), "--measure", cache],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )

    if result.returncode != 0:
        raise WarmupError(f"the process of a start failed:\n{result.stderr}")

    figures: dict[str, float] = json.loads(result.stdout.splitlines()[-1])

    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = BenchParser(
        description="Measures how long a training waits for its data.",
    )

    parser.add_count("--pairs", 5_000_000, "pairs of the synthetic text")

    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where to write text and cache for the time (default: that of the system)",
    )

    parser.add_argument("--measure", metavar="CACHE", help=argparse.SUPPRESS)

    parser.add_common_arguments()

    return parser.run(argv, _run)


if __name__ == "__main__":
    sys.exit(main())
