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
    """``best``, ``last`` or a step."""

    direction: str | None = None
    """One of the directions of a run that has several."""

    data_dir: Path | None = None
    """The data folder, if it is no longer where the run was trained."""

    truncate: bool = False
    """If ``True``, lines that are too long are cut, also where the run does not say so."""

    places: TextPlaces = TextPlaces()
    """Where the texts are in files of more than one a line."""

    int8: bool = False
    """If ``True``, large projections have weights of 8 bits."""

    no_rich: bool = False

    settings: Sequence[str] = ()
    """Further settings of the job's config, such as ``max_num_tokens=20000``."""


@dataclass(frozen=True, kw_only=True)
class GenerationJobOptions(JobOptions):
    """Says how outputs are written."""

    output: Path | None = None

    generation: Mapping[str, object] = field(default_factory=dict)
    """Fields of ``GenerationConfig`` that are not to be as in the run."""

    ensemble: Sequence[Path] = ()
    """Further runs of the same tokenizer, whose models predict each token together."""

    rank_model: str | None = None
    """The model of COMET that a ranking asks; ``None`` for the usual one."""

    rank_gpus: int | None = None
    """The number of its GPUs, 0 or 1; ``None`` for none."""

    rank_labels: bool | None = None
    """If ``True``, the output is one of the run's labels; ``None`` for what the run says."""


@final
@dataclass(frozen=True, kw_only=True)
class GenerateOptions(GenerationJobOptions):
    """Says what is translated into the run directory, or to ``output``."""

    split: str | None = None
    """``None`` for the run's ``test_split``."""

    input: Path | None = None
    """A file to translate instead of a split."""


@final
@dataclass(frozen=True, kw_only=True)
class TranslateOptions(GenerationJobOptions):
    """Says what is translated to ``output`` or standard output."""

    files: Sequence[Path] = ()
    """None for standard input."""

    as_json: bool = False

    interactive: bool = False
    """If ``True``, each line is answered at once."""

    target_prefix: str | None = None

    has_prefixes: bool = False

    chunk_size: int | None = None

    ctranslate2: Path | None = None
    """Where the model is as CTranslate2 reads it, which is to write instead."""


@final
@dataclass(frozen=True, kw_only=True)
class ScoreOptions(JobOptions):
    """Says which pairs are scored."""

    split: str | None = None
    """``None`` for the run's ``test_split``."""

    source: Path | None = None
    """A file of sources to score instead of a split."""

    target: Path | None = None
    """The file of their targets."""

    output: Path | None = None

    as_json: bool = False

    num_warmups: int | None = None

    max_warmup_len: int | None = None

    seed: int | None = None
