# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What the commands of a trained run are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from warmup_plugin.data.text_files import TextPlaces


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Says which model does a job, and how it is run."""

    run_dir: Path

    checkpoint: str = "best"
    """`best` (default), `last` or a step."""

    direction: str | None = None
    """One of the directions of a run that has several, such as `en-de`."""

    data_dir: Path | None = None
    """The data folder, if it is no longer where the run was trained."""

    truncate: bool = False
    """Cut a source that is longer than the model reads instead of refusing it."""

    places: TextPlaces = TextPlaces()
    """Where the texts are in files of more than one a line."""

    int8: bool = False
    """Large projections with weights of 8 bits, faster on CPUs and nearly as good."""

    no_rich: bool = False
    """Plain log lines."""

    settings: Sequence[str] = ()
    """Further settings, such as `model.dtype=bfloat16 max_num_tokens=20000`."""


@dataclass(frozen=True, kw_only=True)
class GenerationJobOptions(JobOptions):
    """Says how outputs are written."""

    output: Path | None = None
    """Write to a file; the same command goes on with a job that broke."""

    generation: Mapping[str, object] = field(default_factory=dict)
    """Fields of ``GenerationConfig`` that are not to be as in the run."""

    ensemble: Sequence[Path] = ()
    """Further runs of the same tokenizer; each token is predicted by the mean of all models' probabilities, or behind a warmup, if they are SFT runs, as `--plain-weight` says."""

    rank_model: str | None = None
    """Model of COMET behind `--rank-by mbr-comet` or `cometkiwi`: a checkpoint, its folder or a name on the Hugging Face Hub (default: as of `evaluate`)."""

    rank_gpus: int | None = None
    """GPUs of that model (default: 0)."""

    rank_labels: bool | None = None
    """If ``True``, the output is one of the run's labels; ``None`` for what the run says."""


@final
@dataclass(frozen=True, kw_only=True)
class GenerateOptions(GenerationJobOptions):
    """Says what is translated into the run directory, or to ``output``."""

    split: str | None = None
    """The split to translate (default: the run's `test_split`)."""

    input: Path | None = None
    """A file to translate instead: text, or sources in `.jsonl` or `.tsv`."""


@final
@dataclass(frozen=True, kw_only=True)
class TranslateOptions(GenerationJobOptions):
    """Says what is translated to ``output`` or standard output."""

    files: Sequence[Path] = ()
    """None for standard input."""

    as_json: bool = False
    """Write JSON lines: the `--num-best` hypotheses with warmups, tokens and log-probabilities."""

    interactive: bool = False
    """Answer each line at once, as is done on a terminal; for a program that waits for each answer."""

    target_prefix: str | None = None
    """What every translation begins with."""

    has_prefixes: bool = False
    """A line may hold a tab and behind it what its translation begins with."""

    chunk_size: int | None = None
    """The number of lines that are read before any is written (default: 2000 a process)."""

    ctranslate2: Path | None = None
    """Where the model is as CTranslate2 reads it, which is to write instead."""


@final
@dataclass(frozen=True, kw_only=True)
class ScoreOptions(JobOptions):
    """Says which pairs are scored."""

    split: str | None = None
    """The split to score (default: the run's `test_split`)."""

    source: Path | None = None
    """A file of sources, one a line."""

    target: Path | None = None
    """The file of their targets."""

    output: Path | None = None
    """Write to a file; the same command goes on with a job that broke."""

    as_json: bool = False
    """Write JSON lines with all warmups instead of columns; a split always is."""

    num_warmups: int | None = None
    """The number of warmups to draw for each pair; 0 for none (default: 8, or 0 if the run was trained without)."""

    max_warmup_len: int | None = None
    """The most tokens of a warmup (default: that of training)."""

    seed: int | None = None
    """The seed of the draws (default: 2)."""
