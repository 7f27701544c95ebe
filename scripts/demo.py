# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from warmup_plugin.data.synthetic import write_synthetic_pair
from warmup_plugin.data.text_pairs import read_lines
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.translation import Comparison, MetricScore, format_table
from warmup_plugin.run_dir import RunDir, flatten_config

_DESCRIPTION: Final = (
    "Trains and compares SFT and warmup on a synthetic language pair, by the commands "
    "that a user would run. It takes a few minutes on two cores."
)

_ROOT: Final = Path(__file__).resolve().parent.parent

_CONFIGS: Final = Path("recipes/configs/translation")

_MARKER: Final = ".warmup_demo"

_VOCAB_SIZE: Final = 500

# As validation records them.
_SCORE_NAMES: Final = ("BLEU", "chrF++", "chrF2++")

_NUM_STAGES: Final = 9

# The directories of the runs, and what the table calls them.
_SFT: Final = "sft"
_WARMUP: Final = "warmup"
_CONTINUED: Final = "sft_continued"

_TITLES: Final = {
    _SFT: "SFT",
    _CONTINUED: "SFT, continued",
    _WARMUP: "SFT, then warmup",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo.py", description=_DESCRIPTION)

    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="output folder; what an earlier demo left in it is deleted (default: %(default)s)",
    )

    args = parser.parse_args(argv)

    try:
        _run_demo(args.out.resolve())
    except WarmupError as ex:
        print(f"error: {ex}", file=sys.stderr)

        return 2
    except StageError as ex:
        print(f"error: {ex}", file=sys.stderr)

        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)

        return 130

    return 0


def _run_demo(out: Path) -> None:
    begin = time.monotonic()

    _prepare_folder(out)

    stages = StageRunner(out)

    data, tokenizer = out / "data", out / "tokenizer.model"

    with stages.announce("write 6,000 sentence pairs"):
        write_synthetic_pair(data)

    stages.run(
        "train: tokenizer",
        ["warmup_plugin", "train-tokenizer", tokenizer, "--input"]
        + [data / "train.src", data / "train.tgt"]
        + ["--vocab-size", _VOCAB_SIZE],
    )

    def train(name: str, preset: str, *settings: str) -> float:
        # The output directory comes before `--config`, which takes all that follows.
        return stages.run(
            f"train: {_TITLES[name]}",
            ["recipes.train", out / name, "--config-file", _CONFIGS / preset]
            + ["--no-rich", "--config"]
            + [f"dataset.path={data}", f"tokenizer.path={tokenizer}", *settings],
            run_dir=out / name,
        )

    init = f"init_from={out / _SFT}"

    seconds = {
        _SFT: train(_SFT, "demo_sft.yaml"),
        _WARMUP: train(_WARMUP, "demo_warmup.yaml", init),
    }

    # A fair comparison grants SFT as many further steps under the same settings: the
    # same preset, one key apart.
    seconds[_CONTINUED] = train(
        _CONTINUED, "demo_warmup.yaml", init, "criterion.name=sft"
    )

    for name in _TITLES:
        stages.run(
            f"translate: {_TITLES[name]}",
            ["recipes.generate", out / name, "--split", "test"],
        )

    scores_file = out / "scores.json"

    # The first run is the one against which the others are tested.
    stages.run(
        "score",
        ["recipes.evaluate", out / _CONTINUED, out / _SFT, out / _WARMUP]
        + ["--split", "test", "--json", scores_file],
    )

    print()
    print(_format_scores(out, json.loads(scores_file.read_text("utf-8")), seconds))
    print()
    print(_format_examples(out))
    print()
    print(
        f"{time.monotonic() - begin:.0f} s in all. Scores with signatures: {scores_file}"
    )


def _prepare_folder(out: Path) -> None:
    """Empties the folder of an earlier demo, and no other."""
    marker = out / _MARKER

    try:
        if marker.is_file():
            shutil.rmtree(out)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise WarmupError(
                f"{out} holds something that is not of the demo; give another folder "
                "with `--out`."
            )

        out.mkdir(parents=True, exist_ok=True)

        marker.touch()
    except OSError as ex:
        raise WarmupError(
            f"{out} cannot be used ({ex.strerror}); give another folder with `--out`."
        ) from None


class StageError(Exception):
    """Reports a command that failed, with the end of its output."""


@final
class StageRunner:
    """Runs commands one after the other and shows how far they are."""

    def __init__(self, out: Path) -> None:
        self._log_dir = out / "logs"
        self._stage_nr = 0

        # Rewriting a line makes sense only where someone watches it.
        self._live = sys.stdout.isatty()

        self._log_dir.mkdir()

    @contextmanager
    def announce(self, title: str) -> Iterator[None]:
        begin = self._begin(title)

        yield

        self._end(title, begin)

    def run(
        self, title: str, command: Sequence[object], *, run_dir: Path | None = None
    ) -> float:
        """
        Runs ``python -m`` with ``command``.

        :param run_dir: The run directory whose metrics are shown meanwhile.

        :returns: The wall time in seconds.
        """
        begin = self._begin(title)

        log_file = self._log_dir / f"{self._stage_nr}.log"

        args = [sys.executable, "-m", *map(str, command)]

        with log_file.open("wb") as fp:
            process = subprocess.Popen(
                args, cwd=_ROOT, stdout=fp, stderr=subprocess.STDOUT
            )

            try:
                self._watch(process, title, begin, run_dir)
            finally:
                # Only after an error or Ctrl-C, which reaches the child as well.
                if process.poll() is None:
                    process.terminate()
                    process.wait()

        if process.returncode != 0:
            if self._live:
                print()

            tail = log_file.read_text("utf-8", errors="replace").splitlines()[-15:]

            raise StageError(
                "\n".join(
                    [
                        f"`{title}` failed with exit code {process.returncode}:",
                        *(f"    {line}" for line in tail),
                        f"    command: {' '.join(args)}",
                        f"    output:  {log_file}",
                    ]
                )
            )

        return self._end(title, begin, _read_progress(run_dir).describe())

    def _begin(self, title: str) -> float:
        self._stage_nr += 1

        if self._live:
            self._rewrite(self._line(title, 0.0, ""))

        return time.monotonic()

    def _watch(
        self,
        process: subprocess.Popen[bytes],
        title: str,
        begin: float,
        run_dir: Path | None,
    ) -> None:
        last_scores: Mapping[str, float] = {}

        while True:
            try:
                process.wait(timeout=0.5)

                return
            except subprocess.TimeoutExpired:
                pass

            progress = _read_progress(run_dir)

            line = self._line(title, time.monotonic() - begin, progress.describe())

            if self._live:
                self._rewrite(line)
            elif progress.scores != last_scores:
                print(line, flush=True)

                last_scores = progress.scores

    def _end(self, title: str, begin: float, note: str = "") -> float:
        seconds = time.monotonic() - begin

        line = self._line(title, seconds, note)

        if self._live:
            self._rewrite(line)

            print()
        else:
            print(line, flush=True)

        return seconds

    def _line(self, title: str, seconds: float, note: str) -> str:
        line = f"[{self._stage_nr}/{_NUM_STAGES}] {title:<27} {seconds:4.0f} s  {note}"

        return line.rstrip()

    def _rewrite(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1

        # Carriage return, text, erase to the end of the line.
        print(f"\r{line[:width]}\033[K", end="", flush=True)


@final
@dataclass(frozen=True)
class Progress:
    """How far a training run is."""

    step_nr: int | None

    num_steps: int | None

    scores: Mapping[str, float]
    """The scores of the last validation on the dev set."""

    def describe(self) -> str:
        if self.step_nr is None:
            return ""

        of = "" if self.num_steps is None else f"/{self.num_steps}"

        scores = "".join(f", {name} {value:.1f}" for name, value in self.scores.items())

        return f"step {self.step_nr}{of}{scores}"


def _read_progress(run_dir: Path | None) -> Progress:
    if run_dir is None:
        return Progress(None, None, {})

    metrics_dir = run_dir / "metrics"

    train = _read_last_record(metrics_dir / "train.jsonl")

    valid: dict[str, Any] = {}

    # What fairseq2 records of each validation unit, and of all together.
    for file in sorted(metrics_dir.glob("valid/*.jsonl")):
        valid |= _read_last_record(file)

    valid |= _read_last_record(metrics_dir / "valid.jsonl")

    scores: dict[str, float] = {n: valid[n] for n in _SCORE_NAMES if n in valid}

    return Progress(train.get("Step"), _find_num_steps(run_dir), scores)


def _read_last_record(file: Path) -> dict[str, Any]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError:
        return {}

    # The last line may be half written.
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue

        if isinstance(record, dict):
            return record

    return {}


def _find_num_steps(run_dir: Path) -> int | None:
    try:
        config = RunDir(run_dir).load_config()
    # The run writes the file while it starts.
    except WarmupError:
        return None

    num_steps = flatten_config(config).get("regime.num_steps")

    return num_steps if isinstance(num_steps, int) else None


def _format_scores(
    out: Path, report: Mapping[str, Any], seconds: Mapping[str, float]
) -> str:
    titles = {str(out / name): title for name, title in _TITLES.items()}

    scores = {
        title: [MetricScore(**score) for score in report["systems"][path]]
        for path, title in titles.items()
    }

    comparisons = [
        Comparison(**{**comparison, "system": titles[comparison["system"]]})
        for comparison in report["comparisons"]
    ]

    def describe_seconds(name: str) -> str:
        if name == _SFT:
            return f"{seconds[name]:.0f}"

        return f"{seconds[_SFT]:.0f} + {seconds[name]:.0f}"

    table = format_table(
        scores,
        comparisons,
        extra_columns={"seconds": [describe_seconds(name) for name in _TITLES]},
    )

    return (
        f"{table}\n\n"
        "[...]: 95% bootstrap interval; p: paired bootstrap test against "
        f"`{_TITLES[_CONTINUED]}`; seconds: training, start included"
    )


def _format_examples(out: Path, num_examples: int = 3) -> str:
    sources = read_lines(out / "data" / "test.src")
    references = read_lines(out / "data" / "test.tgt")

    sft_outputs = read_lines(out / _CONTINUED / "generate" / "test.best.txt")

    details = [
        json.loads(line)
        for line in read_lines(out / _WARMUP / "generate" / "test.best.txt.jsonl")
    ]

    blocks = []

    for idx in range(num_examples):
        rows = {
            "source": sources[idx],
            "reference": references[idx],
            _TITLES[_CONTINUED]: sft_outputs[idx],
            "warmup": details[idx]["warmup"],
            _TITLES[_WARMUP]: details[idx]["output"],
        }

        blocks.append("\n".join(f"{name:<16}  {text}" for name, text in rows.items()))

    return "\n\n".join(blocks)


if __name__ == "__main__":
    sys.exit(main())
