# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Collects all that a report shows of runs, and has made what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from warmup_plugin.console import quiet_log
from warmup_plugin.data.directions import choose_direction
from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.systems import (
    RunOptions,
    System,
    name_systems,
    read_config,
    read_run,
)
from warmup_plugin.late_imports import import_fairseq2
from warmup_plugin.report.curves import Curves, read_curves
from warmup_plugin.runs.outputs import details_file, scores_file, translation_file
from warmup_plugin.runs.records import (
    ScoredPair,
    Translation,
    read_scores,
    read_translations,
)
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.warmup_lens import writes_warmups


@final
@dataclass(frozen=True, kw_only=True)
class CollectOptions(RunOptions):
    """Says what to collect of runs."""

    translate: bool = True
    """If ``False``, translations are left out, also those that exist."""

    score: bool = True
    """If ``True``, log P(y|x) is computed for warmup runs where it is missing."""


@final
@dataclass(frozen=True)
class RunTranslations:
    """Holds what a run made of the test set."""

    system: System

    lines: Sequence[Translation]
    """As many as references."""

    scores: Sequence[ScoredPair] | None
    """As many as references; ``None`` if they were not computed."""

    no_scores: str
    """Why there are no scores, as the end of a sentence; else empty."""


@final
@dataclass(frozen=True)
class ReportRun:
    """Holds all that a report shows of a run."""

    name: str

    config: Mapping[str, Any]

    model: Mapping[str, object] | None
    """Family and configuration of the model; ``None`` if they are not known."""

    curves: Curves

    starts: Sequence[Mapping[str, object]]
    """The versions at each start of the run."""

    split: str

    direction: str | None
    """One of several directions; ``None`` if the run has one, or for curves alone."""

    checkpoint_step: int | None
    """The step of the checkpoint; ``None`` if there is none, or not any more."""

    translations: RunTranslations | None

    no_translations: str
    """Why there are no translations, as the end of a sentence; else empty."""

    @property
    def has_warmup(self) -> bool:
        return has_warmup(self.config)


def has_warmup(config: Mapping[str, Any]) -> bool:
    """Tells whether the model of a run writes warmups."""
    return isinstance(config.get("criterion"), dict) and writes_warmups(config)


def collect_runs(
    paths: Sequence[Path],
    options: CollectOptions,
    names: Sequence[str] | None = None,
) -> list[ReportRun]:
    """
    Collects all that a report shows of runs.

    :param names: What they are called; ``None`` for the ends of their paths.

    :raises WarmupError: If one is no run, has nothing to show yet, or cannot be
        translated.
    """
    # All of them before the first one is translated, which takes long.
    begun = [
        _collect_curves(path, name, options)
        for path, name in zip(paths, name_systems(paths, names))
    ]

    runs = []

    for path, run in zip(paths, begun):
        if not run.no_translations:
            run = replace(run, translations=_collect_translations(path, run, options))

        runs.append(run)

    return runs


def _collect_curves(path: Path, name: str, options: CollectOptions) -> ReportRun:
    run_dir = RunDir(path)

    config = read_config(path)

    dataset = config["dataset"]

    split = options.split or str(dataset.get("test_split") or "test")

    # Curves are those of all directions.
    direction = (
        choose_direction(config, options.direction, path) if options.translate else None
    )

    curves = read_curves(run_dir.path, str(dataset.get("valid_split") or "valid"))

    checkpoint_step, no_translations = None, ""

    if run_dir.checkpoint_steps():
        checkpoint_step = run_dir.find_checkpoint(options.checkpoint)
    elif not translation_file(
        run_dir.path, split, direction, options.checkpoint
    ).is_file():
        no_translations = "it has no checkpoint yet"

        if curves.is_empty():
            raise WarmupError(
                f"{path} has neither metrics nor a checkpoint yet; wait until it has "
                "trained `regime.publish_metrics_every_n_steps` steps."
            )

    if not options.translate:
        no_translations = "translations were left out by `--curves-only`"

    model: dict[str, object] | None = None

    # It is not there before the first checkpoint.
    with suppress(WarmupError):
        family, model_config = run_dir.load_model_metadata()

        model = {"family": family, **model_config}

    return ReportRun(
        name=name,
        config=config,
        model=model,
        curves=curves,
        starts=run_dir.load_starts(),
        split=split,
        direction=direction,
        checkpoint_step=checkpoint_step,
        translations=None,
        no_translations=no_translations,
    )


def _collect_translations(
    path: Path, run: ReportRun, options: CollectOptions
) -> RunTranslations:
    # A translation would tell all about the model first.
    with quiet_log():
        system = read_run(path, replace(options, split=run.split))

    file = system.hypotheses_file

    lines = read_translations(details_file(file))

    if len(lines) != len(system.references):
        raise WarmupError(
            f"{details_file(file)} has {len(lines)} lines but {system.references_name} has "
            f"{len(system.references)}; delete the file to translate again."
        )

    scores, no_scores = _collect_scores(path, run, lines, options)

    return RunTranslations(replace(system, name=run.name), lines, scores, no_scores)


def _collect_scores(
    path: Path, run: ReportRun, lines: Sequence[Translation], options: CollectOptions
) -> tuple[list[ScoredPair] | None, str]:
    """Returns the scores of the references, or why there are none."""
    run_dir = RunDir(path)

    file = scores_file(path, run.split, run.direction, options.checkpoint)

    sources = [line.source for line in lines]

    scores = _read_current_scores(file, run_dir, options.checkpoint, sources)

    if scores is not None:
        return scores, ""

    # Of a model without warmups, there is little to tell.
    if not run.has_warmup:
        return None, "the run has no warmups"

    if not options.score:
        return None, "it was left out by `--no-score`"

    if run.checkpoint_step is None:
        return None, "the run has no checkpoint any more"

    # fairseq2 takes seconds.
    import_fairseq2()

    from warmup_plugin.recipes.job_options import ScoreOptions
    from warmup_plugin.recipes.jobs import score

    score_options = ScoreOptions(
        run_dir=path,
        checkpoint=options.checkpoint,
        direction=run.direction,
        data_dir=options.data,
        truncate=options.truncate,
        split=run.split,
    )

    if score(score_options) != 0:
        raise WarmupError(
            f"The {run.split} split cannot be scored with {path}; see the message "
            "above, or leave it out with `--no-score`."
        )

    scores = _read_current_scores(file, run_dir, options.checkpoint, sources)

    if scores is None:
        raise WarmupError(
            f"{file} does not hold the {run.split} split after it was scored; delete "
            "it, or leave it out with `--no-score`."
        )

    return scores, ""


def _read_current_scores(
    file: Path, run_dir: RunDir, checkpoint: str, sources: Sequence[str]
) -> list[ScoredPair] | None:
    """Reads scores; ``None`` if they are not of this model and of this text."""
    if not run_dir.has_made(file, checkpoint):
        return None

    scores = read_scores(file)

    # A translation has no line feeds in its sources, where JSON text may have some.
    scored = [" ".join(pair.source.split("\n")) for pair in scores]

    return scores if scored == [" ".join(s.split("\n")) for s in sources] else None
