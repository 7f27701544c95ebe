# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Systems scored and tested, as a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from warmup_plugin.errors import WarmupError
from warmup_plugin.evaluation.systems import System
from warmup_plugin.files import write_output
from warmup_plugin.metrics.base import DEFAULT_METRICS
from warmup_plugin.metrics.base import Evaluation as Evaluation
from warmup_plugin.metrics.registry import METRICS, MetricOptions
from warmup_plugin.metrics.resampling import (
    DEFAULT_SEED,
    NUM_TRIALS,
    warn_of_few_sentences,
)
from warmup_plugin.metrics.tables import to_json
from warmup_plugin.metrics.translation import evaluate_systems
from warmup_plugin.parsing import shorten_text
from warmup_plugin.runs.run_dir import collect_versions
from warmup_plugin.terminal import show


def evaluate(
    systems: Sequence[System],
    *,
    num_bootstrap: int = 1000,
    num_randomization: int = NUM_TRIALS,
    paired_bootstrap: bool = False,
    metrics: Sequence[str] = DEFAULT_METRICS,
    options: MetricOptions | None = None,
) -> Evaluation:
    """
    Scores all systems and tests each against the first one.

    :param systems: All with the same references.
    :param options: The language is that of the systems.

    The other arguments are those of
    :func:`~warmup_plugin.metrics.translation.evaluate_systems`.
    """
    names = [system.name for system in systems]

    for name in names:
        if names.count(name) > 1:
            raise WarmupError(f"{name} is given more than once; give it once.")

    baseline = systems[0]

    for system in systems:
        if len(system.hypotheses) != len(system.references):
            raise WarmupError(
                f"{system.hypotheses_file} has {len(system.hypotheses)} lines but "
                f"{system.references_name} has {len(system.references)}; translate "
                "the same text again."
            )

        # Neither scores nor tests compare systems that translated different text.
        if system.references != baseline.references:
            raise WarmupError(
                f"{system.name} and {baseline.name} have different references; "
                "evaluate them one at a time."
            )

        if system.target_lang != baseline.target_lang:
            raise WarmupError(
                f"{system.name} has the target language {system.target_lang} but "
                f"{baseline.name} has {baseline.target_lang}; give one with "
                "`--target-lang`."
            )

    if any(METRICS[name].needs_sources for name in metrics if name in METRICS):
        for system in systems:
            if system.sources != baseline.sources:
                raise WarmupError(
                    f"{system.name} and {baseline.name} have different sources; "
                    "evaluate them one at a time."
                )

    return evaluate_systems(
        {system.name: system.hypotheses for system in systems},
        baseline.references,
        sources=baseline.sources,
        metrics=metrics,
        options=replace(options or MetricOptions(), target_lang=baseline.target_lang),
        num_bootstrap=num_bootstrap,
        num_randomization=num_randomization,
        paired_bootstrap=paired_bootstrap,
    )


def print_notes(evaluation: Evaluation) -> None:
    """
    Prints what a table has no room for: signatures, reasons, invalid answers, and that
    there are few sentences.
    """
    show()

    first = next(iter(evaluation.scores.values()))

    warning = warn_of_few_sentences(first[0].num_sentences)

    if warning is not None and evaluation.is_resampled:
        show(warning)

    for score in next(iter(evaluation.scores.values())):
        if score.reason is not None:
            show(f"{score.name}: not computed. {score.reason}")
        else:
            notes = "; ".join(score.notes)

            show(f"{score.name}: {notes}, {score.num_sentences} sentences")

    for system, row in evaluation.scores.items():
        for score in row:
            if score.details.get("num_invalid"):
                examples = cast("Sequence[str]", score.details["invalid_examples"])

                shown = [
                    f"`{shorten_text(text)}`" if text else "an empty one"
                    for text in examples
                ]

                show(
                    f"invalid answers of {system}: {score.details['num_invalid']} of "
                    f"{score.num_sentences}, such as {', '.join(shown)}"
                )

                # All metrics of labels say the same.
                break


def make_report(
    systems: Sequence[System],
    evaluation: Evaluation,
    num_bootstrap: int,
    num_randomization: int = NUM_TRIALS,
) -> dict[str, object]:
    """Returns the scores of some systems and how they came about, as JSON."""
    names = {system.name for system in systems}

    report = to_json(
        {name: row for name, row in evaluation.scores.items() if name in names},
        [c for c in evaluation.comparisons if c.system in names],
    )

    report["baseline"] = next(iter(evaluation.scores))
    report["hypotheses"] = {s.name: str(s.hypotheses_file) for s in systems}
    report["references"] = None

    if any(systems[0].references):
        report["references"] = systems[0].references_name

    report["target_lang"] = systems[0].target_lang
    report["num_sentences"] = len(systems[0].references)

    if systems[0].documents:
        report["num_documents"] = len(set(systems[0].documents))

    report["bootstrap"] = {"num_samples": num_bootstrap, "seed": DEFAULT_SEED}
    report["randomization"] = {"num_trials": num_randomization, "seed": DEFAULT_SEED}
    report["versions"] = collect_versions()

    return report


def write_json(file: Path, data: Mapping[str, object]) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)

    write_output(file, f"{text}\n", "give a path that you may write to")
