# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The tables of a report: scores, log-probabilities, words, settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final, cast, final

from warmup_plugin.metrics.base import Comparison, Evaluation, MetricScore
from warmup_plugin.metrics.tables import format_p_value
from warmup_plugin.report.lexical import (
    DrawsAnalysis,
    LexicalAnalysis,
    WarmupText,
    analyze_draws,
    analyze_warmups,
)
from warmup_plugin.report.runs import ReportRun, RunTranslations
from warmup_plugin.runs.records import ScoredPair
from warmup_plugin.runs.yaml_files import flatten_config

ALPHA: Final = 0.05

_NONE: Final = "–"

_NO_BREAK: Final = "\N{NO-BREAK SPACE}"

# What another machine, or another place on this one, would change.
_PLACES: Final = ("common.assets.", "model.path", "tokenizer.path")

# A run that starts from another spells out what the other one names.
_ARCHITECTURE: Final = ("model.arch", "model.config_overrides", "model.family")


@final
@dataclass(frozen=True)
class ScoreCell:
    """Holds a score of the comparison as text."""

    score: str

    interval: str

    difference: str
    """To the baseline; empty for itself."""

    p_value: str

    is_significant: bool

    reason: str
    """Why there is no score; else empty."""


@final
@dataclass(frozen=True)
class ScoreRow:
    """Holds the scores of a run."""

    run_idx: int

    is_baseline: bool

    cells: Sequence[ScoreCell]

    better: str
    """How many sentences have a higher, the same, a lower chrF++ than the baseline's."""


@final
@dataclass(frozen=True)
class ScoreTable:
    """Holds the comparison of all runs that have translations."""

    metrics: Sequence[str]

    rows: Sequence[ScoreRow]

    signatures: Sequence[tuple[str, str]]

    reasons: Sequence[tuple[str, str]]
    """What is missing, by metric, and why."""

    has_p_values: bool


def build_score_table(
    evaluation: Evaluation,
    run_idxs: Mapping[str, int],
    chrf: Mapping[int, Sequence[float]],
    baseline: int,
) -> ScoreTable:
    """
    Builds the comparison.

    :param run_idxs: The index of each run by its name.
    :param chrf: The chrF++ of the sentences of each run, by the index of the run.
    """
    scores = {
        run_idxs[name]: {score.name: score for score in row}
        for name, row in evaluation.scores.items()
    }

    comparisons = {(run_idxs[c.system], c.metric): c for c in evaluation.comparisons}

    metrics = list(dict.fromkeys(name for row in scores.values() for name in row))

    rows = []

    for idx, row in scores.items():
        cells = [
            _build_cell(
                row.get(metric),
                None if idx == baseline else scores[baseline].get(metric),
                comparisons.get((idx, metric)),
            )
            for metric in metrics
        ]

        better = "" if idx == baseline else _count_better(chrf[idx], chrf[baseline])

        rows.append(ScoreRow(idx, idx == baseline, cells, better))

    found = [score for row in scores.values() for score in row.values()]

    return ScoreTable(
        metrics,
        rows,
        signatures=_distinct((s.name, s.signature) for s in found if s.signature),
        reasons=_distinct((s.name, s.reason) for s in found if s.reason),
        has_p_values=bool(comparisons),
    )


def _build_cell(
    score: MetricScore | None,
    baseline: MetricScore | None,
    comparison: Comparison | None,
) -> ScoreCell:
    if score is None or score.score is None:
        reason = (score and score.reason) or "it was not computed"

        return ScoreCell(_NONE, "", "", "", False, reason)

    interval, difference, p_value = "", "", ""

    if score.ci_low is not None and score.ci_high is not None:
        interval = f"{score.ci_low:.2f} to {score.ci_high:.2f}"

    if baseline is not None and baseline.score is not None:
        difference = format_signed(score.score - baseline.score)

    if comparison is not None:
        p_value = format_p_value(comparison.p_value)

    return ScoreCell(
        f"{score.score:.2f}",
        interval,
        difference,
        p_value,
        comparison is not None and comparison.p_value < ALPHA,
        "",
    )


def _count_better(scores: Sequence[float], baseline: Sequence[float]) -> str:
    # As the page shows them.
    gains = [round(a - b, 2) for a, b in zip(scores, baseline)]

    better, worse = sum(g > 0.0 for g in gains), sum(g < 0.0 for g in gains)

    return f"{better:,} / {len(gains) - better - worse:,} / {worse:,}"


def summarize(table: ScoreTable, names: Sequence[str]) -> list[tuple[int, str]]:
    """Says in a sentence for each run how it compares with the baseline."""
    baseline = next(names[row.run_idx] for row in table.rows if row.is_baseline)

    sentences = []

    for row in table.rows:
        parts = []

        for metric, cell in zip(table.metrics, row.cells):
            if cell.reason:
                continue

            part = f"{cell.score} {metric}"

            if cell.difference:
                p_value = ""

                if cell.p_value:
                    relation = "" if cell.p_value.startswith("<") else "= "

                    # Not to be torn apart at the end of a line.
                    p_value = f"p {relation}{cell.p_value}".replace(" ", _NO_BREAK)

                    p_value = f", {p_value}"

                part += f" ({cell.difference}{p_value})"

            parts.append(part)

        if parts:
            against = "" if row.is_baseline else f", against {baseline}"

            sentences.append((row.run_idx, f"{', '.join(parts)}{against}."))

    return sentences


@final
@dataclass(frozen=True)
class LogProbRow:
    """Holds how likely a run finds the references, as text."""

    run_idx: int

    num_pairs: int

    plain: str
    """Without warmup, in nats a token."""

    marginal: str
    """With the warmups drawn, in nats a token."""

    gain: str
    """The mean over sentences, in nats, with its interval."""

    num_better: str
    """The share of sentences with a gain above 0."""

    effective_sample_size: str


def build_log_prob_row(run_idx: int, pairs: Sequence[ScoredPair]) -> LogProbRow:
    """Sums up how likely a run finds the references."""

    def list_known(value: str, count: str) -> list[tuple[float, int]]:
        return [
            (getattr(pair, value), getattr(pair, count))
            for pair in pairs
            if getattr(pair, value) is not None
        ]

    gains = [pair.gain for pair in pairs if pair.gain is not None]

    sizes = list_known("effective_sample_size", "num_draws")

    gain, num_better, size = _NONE, _NONE, _NONE

    if gains:
        mean = sum(gains) / len(gains)

        gain = format_signed(mean)

        if len(gains) > 1:
            variance = sum((g - mean) ** 2 for g in gains) / (len(gains) - 1)

            half = 1.96 * math.sqrt(variance / len(gains))

            gain += f" ({format_signed(mean - half)} to {format_signed(mean + half)})"

        num_better = f"{100 * sum(g > 0.0 for g in gains) / len(gains):.1f} %"

    if sizes:
        size = f"{sum(size for size, _ in sizes) / len(sizes):.2f}"

        if len({num for _, num in sizes}) == 1:
            size += f" of {sizes[0][1]}"

    return LogProbRow(
        run_idx,
        len(pairs),
        _format_per_token(list_known("log_prob", "num_target_tokens")),
        _format_per_token(list_known("marginal_log_prob", "num_target_tokens")),
        gain,
        num_better,
        size,
    )


def _format_per_token(log_probs: Sequence[tuple[float, int]]) -> str:
    num_tokens = sum(num for _, num in log_probs)

    if num_tokens == 0:
        return _NONE

    return _minus(f"{sum(value for value, _ in log_probs) / num_tokens:.3f}")


def analyze_run(translations: RunTranslations) -> LexicalAnalysis:
    """Analyzes the warmups beside the outputs of a run."""
    texts = [
        WarmupText(line.best.warmup, line.source, line.best.output, reference)
        for line, reference in zip(
            translations.lines, translations.system.joined_references
        )
        # Nothing is written for an empty source.
        if line.best.warmup is not None and line.source.strip()
    ]

    return analyze_warmups(texts)


def analyze_scores(translations: RunTranslations) -> DrawsAnalysis:
    """Analyzes the warmups that were drawn to score the references."""
    draws = [pair.draws for pair in translations.scores or []]

    return analyze_draws(list(zip(draws, translations.system.joined_references)))


def compare_settings(runs: Sequence[ReportRun]) -> list[tuple[str, list[str]]]:
    """
    Finds the settings in which runs differ.

    :returns: The name of each, and its value in each run.
    """
    configs = [flatten_config(run.config) for run in runs]

    keys = list(dict.fromkeys(key for config in configs for key in config))

    ignored: tuple[str, ...] = _PLACES

    # The same model, however it is given.
    if runs[0].model is not None and all(run.model == runs[0].model for run in runs):
        ignored += _ARCHITECTURE

    rows = []

    for key in sorted(keys):
        if key.startswith(ignored):
            continue

        # Nothing else reads this section.
        is_read = [run.has_warmup or not key.startswith("warmup.") for run in runs]

        values = [
            _show_setting(config[key]) if key in config and read else _NONE
            for config, read in zip(configs, is_read)
        ]

        if len({value for value, read in zip(values, is_read) if read}) > 1:
            rows.append((key, values))

    return rows


def _show_setting(value: object) -> str:
    if value is None:
        return "none"

    if isinstance(value, bool):
        return str(value).lower()

    text = str(value)

    # What is above it says more of this machine than of the run.
    if PurePath(text).is_absolute():
        return PurePath(text).name

    return text


def format_signed(value: float) -> str:
    return _minus(f"{value:+.2f}")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _distinct(pairs: object) -> list[tuple[str, str]]:
    return list(dict.fromkeys(cast("Sequence[tuple[str, str]]", pairs)))
