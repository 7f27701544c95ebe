# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, final

from warmup_plugin.data.synthetic_pivot import (
    PIVOT_LANG,
    SOURCE_LANG,
    TARGET_LANG,
    tell_language,
)
from warmup_plugin.data.text_lines import read_lines
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.tables import format_p_value
from warmup_plugin.metrics.translation import Comparison, MetricScore, format_table
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import flatten_config
from warmup_plugin.terminal import get_arguments, guard, show_error

_DESCRIPTION: Final = (
    "Trains and compares SFT and warmup where a detour pays: a model that knows A→P and "
    "P→B gets a few pairs A→B. All is done by the commands that a user would run. It "
    "takes a few minutes on two cores."
)

_ROOT: Final = Path(__file__).resolve().parent.parent

_CONFIGS: Final = Path("recipes/configs/translation")

_MARKER: Final = ".warmup_demo"

# Most words of the three languages become one token or two.
_VOCAB_SIZE: Final = 1000

# As validation records them.
_SCORE_NAMES: Final = ("BLEU", "chrF++", "chrF2++")

_NUM_STAGES: Final = 8

# The directories of the runs, and what the table calls them.
_LEGS: Final = "legs"
_SFT: Final = "sft"
_WARMUP: Final = "warmup"

_TITLES: Final = {_SFT: "SFT", _WARMUP: "warmup"}


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

    def run() -> int:
        try:
            _run_demo(args.out.resolve())
        except StageError as ex:
            show_error(ex)

            return 1
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)

            return 130

        return 0

    return guard(run, get_arguments(argv))


def _run_demo(out: Path) -> None:
    begin = time.monotonic()

    _prepare_folder(out)

    stages = StageRunner(out)

    data, tokenizer = out / "data", out / "tokenizer"

    stages.run("write three languages", ["warmup_plugin", "synthetic-pivot", data])

    stages.run(
        "train: tokenizer",
        ["warmup_plugin", "train-tokenizer", tokenizer, "--model-type", "byte_bpe"]
        + ["--vocab-size", _VOCAB_SIZE, "--input"]
        + [data / "a-p" / "train.a", data / "a-p" / "train.p"]
        + [data / "p-b" / "train.b"],
    )

    def train(title: str, name: str, *settings: str) -> float:
        preset = _CONFIGS / f"demo_pivot_{name}.yaml"

        # The output directory comes before `--config`, which takes all that follows.
        return stages.run(
            f"train: {title}",
            ["recipes.train", out / name, "--config-file", preset]
            + ["--no-rich", "--config", *settings],
            run_dir=out / name,
        )

    train("A→P and P→B", _LEGS, f"dataset.path={data}", f"tokenizer.path={tokenizer}")

    # A fair comparison: the same pairs, start and learning rate, four times as many steps
    # for SFT, whose are cheaper, and of both the best checkpoint.
    seconds = {
        name: train(
            f"A→B by {title}",
            name,
            f"dataset.path={data / 'a-b'}",
            f"init_from={out / _LEGS}",
        )
        for name, title in _TITLES.items()
    }

    for name, title in _TITLES.items():
        stages.run(
            f"translate: {title}", ["recipes.generate", out / name, "--split", "test"]
        )

    scores_file = out / "scores.json"

    # The first run is the one against which the other is tested.
    stages.run(
        "score",
        ["recipes.evaluate", out / _SFT, out / _WARMUP]
        + ["--names", *_TITLES.values()]
        + ["--split", "test", "--json", scores_file],
    )

    report = json.loads(scores_file.read_text("utf-8"))

    print()
    print(_format_scores(report, seconds))
    print()
    print(_format_examples(out))
    print()
    print(
        f"{time.monotonic() - begin:.0f} s in all. Scores with signatures: {scores_file}"
    )
    print(_format_gain(out, report))


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

    def run(
        self, title: str, command: Sequence[object], *, run_dir: Path | None = None
    ) -> float:
        """
        Runs ``python -m`` with ``command``.

        :param run_dir: The run directory whose metrics are shown meanwhile.

        :returns: The wall time in seconds.
        """
        self._stage_nr += 1

        if self._live:
            self._rewrite(self._line(title, 0.0, ""))

        begin = time.monotonic()

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

        seconds = time.monotonic() - begin

        line = self._line(title, seconds, "".join(_read_progress(run_dir)))

        if self._live:
            self._rewrite(line)

            print()
        else:
            print(line, flush=True)

        return seconds

    def _watch(
        self,
        process: subprocess.Popen[bytes],
        title: str,
        begin: float,
        run_dir: Path | None,
    ) -> None:
        last_scores = ""

        while True:
            try:
                process.wait(timeout=0.5)

                return
            except subprocess.TimeoutExpired:
                pass

            steps, scores = _read_progress(run_dir)

            line = self._line(title, time.monotonic() - begin, steps + scores)

            if self._live:
                self._rewrite(line)
            elif scores != last_scores:
                print(line, flush=True)

                last_scores = scores

    def _line(self, title: str, seconds: float, note: str) -> str:
        line = f"[{self._stage_nr}/{_NUM_STAGES}] {title:<27} {seconds:4.0f} s  {note}"

        return line.rstrip()

    def _rewrite(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1

        # Carriage return, text, erase to the end of the line.
        print(f"\r{line[:width]}\033[K", end="", flush=True)


def _read_progress(run_dir: Path | None) -> tuple[str, str]:
    """Returns how far a training run is, and how good its last validation was."""
    if run_dir is None:
        return "", ""

    metrics_dir = run_dir / "metrics"

    step_nr = _read_last_record(metrics_dir / "train.jsonl").get("Step")

    if step_nr is None:
        return "", ""

    valid: dict[str, Any] = {}

    # What fairseq2 records of each validation unit, and of all together.
    for file in [
        *sorted(metrics_dir.glob("valid/*.jsonl")),
        metrics_dir / "valid.jsonl",
    ]:
        valid |= _read_last_record(file)

    scores = "".join(f", {n} {valid[n]:.1f}" for n in _SCORE_NAMES if n in valid)

    return f"step {step_nr}{_describe_num_steps(run_dir)}", scores


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


def _describe_num_steps(run_dir: Path) -> str:
    try:
        config = RunDir(run_dir).load_config()
    # The run writes the file while it starts.
    except WarmupError:
        return ""

    num_steps = flatten_config(config).get("regime.num_steps")

    return f"/{num_steps}" if isinstance(num_steps, int) else ""


def _format_scores(report: Mapping[str, Any], seconds: Mapping[str, float]) -> str:
    scores = {
        title: [MetricScore(**score) for score in row]
        for title, row in report["systems"].items()
    }

    comparisons = [Comparison(**comparison) for comparison in report["comparisons"]]

    table = format_table(
        scores,
        comparisons,
        extra_columns={"seconds": [f"{seconds[name]:.0f}" for name in _TITLES]},
    )

    return (
        f"{table}\n\n"
        "[...]: 95% bootstrap interval; p: approximate randomization against "
        f"{_TITLES[_SFT]}; seconds: training on A→B, start included"
    )


def _format_examples(out: Path, num_examples: int = 3) -> str:
    """Formats sentences beside what they would be in P, which training never saw."""
    texts = {
        lang: read_lines(out / "data" / "a-b" / f"test.{lang}")
        for lang in (SOURCE_LANG, PIVOT_LANG, TARGET_LANG)
    }

    sft_outputs = read_lines(out / _SFT / "generate" / "test.best.txt")

    details = _read_details(out)

    blocks = []

    for idx in range(num_examples):
        rows = {
            "source (A)": texts[SOURCE_LANG][idx],
            "in P": texts[PIVOT_LANG][idx],
            "warmup": details[idx]["warmup"],
            "reference (B)": texts[TARGET_LANG][idx],
            "with warmup": details[idx]["output"],
            "SFT": sft_outputs[idx],
        }

        blocks.append("\n".join(f"{name:<13}  {text}" for name, text in rows.items()))

    return "\n\n".join(blocks)


def _format_gain(out: Path, report: Mapping[str, Any]) -> str:
    bleu = next(
        c
        for c in report["comparisons"]
        if c["system"] == _TITLES[_WARMUP] and c["metric"] == "BLEU"
    )

    words = [word for d in _read_details(out) for word in d["warmup"].split()]

    share = sum(tell_language(word) == PIVOT_LANG for word in words) / max(
        len(words), 1
    )

    p_value = format_p_value(bleu["p_value"])

    relation = "" if p_value.startswith("<") else "= "

    return (
        f"gain of warmups over SFT: {bleu['score'] - bleu['baseline_score']:+.1f} BLEU "
        f"(p {relation}{p_value}), warmups written in P: {share:.0%}"
    ).replace("%", " %")


def _read_details(out: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in read_lines(out / _WARMUP / "generate" / "test.best.txt.jsonl")
    ]


if __name__ == "__main__":
    sys.exit(main())
