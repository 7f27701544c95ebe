# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The files that commands write about a run, by name; they stand in its directory."""

from __future__ import annotations

from pathlib import Path

from warmup_plugin.data.test_sets import make_file_name


def translation_file(
    run_dir: Path, what: str, direction: str | None, checkpoint: str
) -> Path:
    """
    Returns the file of translations, which :func:`details_file` belongs to.

    :param what: The split that was translated, or ``input-NAME`` for a file.
    :param direction: Of a run with several: its output stands beside that of the others.
    :param checkpoint: ``best``, ``last`` or a step.
    """
    name = _name_output(what, direction, checkpoint)

    return run_dir / "generate" / f"{name}.txt"


def scores_file(
    run_dir: Path, split: str, direction: str | None, checkpoint: str
) -> Path:
    """Returns the file of log P(y|x), as of :func:`translation_file`."""
    return run_dir / "score" / f"{_name_output(split, direction, checkpoint)}.jsonl"


def evaluation_file(translations: Path) -> Path:
    """Returns the file of scores of translations, as of :func:`translation_file`."""
    run_dir = translations.parent.parent

    return run_dir / "evaluate" / f"{translations.stem}.json"


def details_file(output: Path) -> Path:
    """Returns the JSON lines that stand beside a file of translations."""
    return output.with_name(f"{output.name}.jsonl")


def _name_output(what: str, direction: str | None, checkpoint: str) -> str:
    return ".".join(
        [make_file_name(what), *([] if direction is None else [direction]), checkpoint]
    )
