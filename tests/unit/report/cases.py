# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Run directories as training, ``generate`` and ``score`` leave them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from warmup_plugin.runs.yaml_files import dump_yaml

Row = dict[str, object]

SOURCES: Final = (
    "A man sleeps.",
    "Two dogs run </script><b>fast</b> <!-- <script>alert(1)</script>",
    "A line\u2028separator and\tmore words here",
    "",
    "هذا كلب صغير",
    "One two three four five six seven",
)

REFERENCES: Final = (
    "Ein Mann schläft.",
    "Zwei Hunde rennen </script><b>schnell</b> & weit",
    "Eine Zeile\u2028mit Trenner",
    "",
    "Das ist ein kleiner Hund.",
    "Eins zwei drei vier fünf sechs sieben",
)

SFT_OUTPUTS: Final = (
    "Ein Mann läuft.",
    "Zwei Hunde rennen </script><b>schnell</b> & weit",
    "Eine Linie",
    "",
    "Das ist ein Hund.",
    "Eins zwei drei",
)

WARMUP_OUTPUTS: Final = (
    "Ein Mann schläft.",
    "Zwei Hunde schlafen",
    "Eine Zeile mit Trenner",
    "",
    "Das ist ein kleiner Hund.",
    "Eins zwei drei vier",
)

WARMUPS: Final = (
    "Mann schläft",
    "<img src=x onerror=alert(1)> Hunde",
    "Zeile",
    "",
    "",
    "sieben eins",
)


def write_data(folder: Path) -> Path:
    """Writes the test set of the runs."""
    rows = [
        json.dumps({"source": source, "target": target})
        for source, target in zip(SOURCES, REFERENCES)
    ]

    write_lines(folder / "test.jsonl", rows)

    return folder


def write_run(
    run_dir: Path,
    data: Path,
    *,
    is_warmup: bool = False,
    has_checkpoint: bool = True,
    has_metrics: bool = True,
    has_translations: bool = True,
    has_scores: bool = True,
    config: Mapping[str, object] | None = None,
) -> Path:
    """
    Writes a run directory.

    :param config: Settings of the section ``regime``.
    """
    run_config: dict[str, object] = {
        "criterion": {"name": "warmup" if is_warmup else "sft"},
        "dataset": {
            "path": str(data),
            "valid_split": "dev",
            "test_split": "test",
            "target_lang": "de",
        },
        "regime": {"num_steps": 40, **(config or {})},
        "warmup": {
            "num_warmups": 2,
            "max_warmup_len": 3,
            "objective": {"name": "marginal"},
        },
    }

    run_dir.mkdir(parents=True, exist_ok=True)

    (run_dir / "run.yaml").write_text(dump_yaml(run_config), encoding="utf-8")

    versions = [
        {"python": "3.11.7", "fairseq2": "0.8.1", "git_commit": "0123456789abcd"}
    ]

    (run_dir / "versions.json").write_text(json.dumps(versions), encoding="utf-8")

    # Before what is made of it.
    if has_checkpoint:
        (run_dir / "checkpoints" / "step_40" / "model").mkdir(parents=True)

    if has_metrics:
        write_metrics(run_dir, is_warmup=is_warmup)

    if has_translations:
        write_translations(run_dir, is_warmup=is_warmup)

    if has_scores and is_warmup:
        write_scores(run_dir)

    return run_dir


def write_metrics(run_dir: Path, *, is_warmup: bool) -> None:
    train: list[Row] = []

    valid: list[Row] = []

    for step in (10, 20, 30, 40):
        row: Row = {
            "Time": f"2026-01-02T03:{step}:00.5+00:00",
            "Step": step,
            "NLL Loss": 8.0 - step / 10,
        }

        if is_warmup:
            row |= {
                "Warmups per Source (K)": 2.0,
                "Effective Sample Size": 1.5,
                "Duplicate Warmups (%)": 0.25,
                "Cut Warmups (%)": 1.0,
            }

        train.append({**row, "Total Time": 6.0 * step})

        if step % 20 == 0:
            valid.append({**row, "BLEU": step / 2, "chrF++": float(step)})

    write_rows(run_dir / "metrics" / "train.jsonl", train)
    write_rows(run_dir / "metrics" / "valid" / "dev.jsonl", valid)


def write_translations(
    run_dir: Path, *, is_warmup: bool, has_hypotheses: bool = True
) -> Path:
    """Writes what ``generate`` does, as older versions do if without hypotheses."""
    outputs = WARMUP_OUTPUTS if is_warmup else SFT_OUTPUTS

    rows: list[Row] = []

    for source, output, warmup in zip(SOURCES, outputs, WARMUPS):
        best: Row = {
            "warmup": warmup if is_warmup else None,
            "output": output,
            "score": -0.5 if source else None,
            "log_prob": -3.0 if source else None,
        }

        if has_hypotheses:
            best |= {
                "warmup_log_prob": -1.0 if source and is_warmup else None,
                "target_log_prob": -2.0 if source else None,
            }

        row: Row = {"source": source, **best}

        if has_hypotheses:
            second = {**best, "output": f"{output} again", "warmup": best["warmup"]}

            hypotheses = [{**h, "weight": None, "tokens": []} for h in (best, second)]

            row["hypotheses"] = hypotheses if source else []

        rows.append(row)

    file = run_dir / "generate" / "test.best.txt"

    write_lines(file, outputs)
    write_rows(file.with_name(f"{file.name}.jsonl"), rows)

    return file


def write_scores(run_dir: Path, sources: Sequence[str] = SOURCES) -> Path:
    rows: list[Row] = []

    for idx, (source, reference) in enumerate(zip(sources, REFERENCES)):
        draws = [
            {
                "warmup": WARMUPS[idx],
                "warmup_log_prob": -1.5,
                "target_log_prob": -10.0,
                "weight": 0.25,
            },
            {
                "warmup": f"{reference.split()[0] if reference else ''} zzz",
                "warmup_log_prob": -2.5,
                "target_log_prob": -9.0,
                "weight": 0.75,
                "count": 2,
            },
        ]

        rows.append(
            {
                "source": source,
                "target": reference,
                "num_target_tokens": 5,
                "log_prob": -11.0,
                "marginal_log_prob": -9.5 - idx,
                "gain": 1.5 - idx,
                "effective_sample_size": 1.6,
                "warmups": draws,
            }
        )

    file = run_dir / "score" / "test.best.jsonl"

    write_rows(file, rows)

    return file


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    write_lines(file, [json.dumps(row, ensure_ascii=False) for row in rows])


def write_lines(file: Path, lines: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)

    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
