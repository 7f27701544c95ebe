# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The one evaluator: of files, of runs and of validations during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from warmup_plugin.errors import WarmupError, check_least
from warmup_plugin.metrics.base import DEFAULT_METRICS
from warmup_plugin.metrics.base import Comparison as Comparison
from warmup_plugin.metrics.base import Evaluation, FloatArray, Measurement, Metric
from warmup_plugin.metrics.base import MetricScore as MetricScore
from warmup_plugin.metrics.base import MetricUnavailable, References
from warmup_plugin.metrics.registry import (
    METRICS,
    MetricOptions,
    check_metric_names,
    warn_of_missing_language,
)
from warmup_plugin.metrics.resampling import (
    DEFAULT_SEED,
    LEAST_SEED,
    NUM_TRIALS,
    bootstrap_interval,
    bootstrap_p_value,
    randomization_p_values_of_groups,
    resample_scores,
    sign_with_test,
)
from warmup_plugin.metrics.tables import format_table as format_table  # noqa: F401

_NO_OPTIONS: Final = MetricOptions()


def evaluate_systems(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str | Sequence[str]],
    *,
    sources: Sequence[str] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    options: MetricOptions = _NO_OPTIONS,
    num_bootstrap: int = 1000,
    num_randomization: int = NUM_TRIALS,
    paired_bootstrap: bool = False,
    seed: int = DEFAULT_SEED,
) -> Evaluation:
    """
    Scores systems and tests each against the first one.

    :param systems: The hypotheses of each system, by its name.
    :param references: Those of each hypothesis, in the same order: a string, or a list
        of several that are right. Not all need have as many, and none if no metric
        needs references.
    :param sources: What was translated; ``None`` if no metric needs it.
    :param metrics: Names of :data:`~warmup_plugin.metrics.registry.METRICS`.
    :param num_bootstrap: The number of resamples behind the 95% interval, whose ends
        are the percentiles 2.5 and 97.5. Zero leaves out intervals and comparisons.
    :param num_randomization: The number of trials of the approximate randomization,
        which gives the p-values. Zero leaves out all comparisons.
    :param paired_bootstrap: If ``True``, sacreBLEU's test is added to the comparisons.

    One sentence has no interval and no comparison.

    :raises WarmupError: The input is wrong. What an optional part is missing for has
        the score ``None`` and a reason instead.
    """
    check_metric_names(metrics)
    check_least("seed", seed, LEAST_SEED)
    check_least("num_bootstrap", num_bootstrap, 0)
    check_least("num_randomization", num_randomization, 0)

    lists = _list_references(
        references, may_lack=not any(METRICS[name].needs_references for name in metrics)
    )

    for name, hypotheses in systems.items():
        _check_lines(hypotheses, len(lists), f"hypotheses of {name}")

    if sources is not None:
        _check_lines(sources, len(lists), "sources")

    measured, reasons = _measure(systems, lists, sources, metrics, options)

    samples: dict[str, dict[str, FloatArray]] = {name: {} for name in systems}

    # Nothing but itself can be drawn of one sentence.
    has_tests = num_bootstrap > 0 and len(references) > 1

    if has_tests:
        samples = _resample(measured, num_bootstrap, seed)

    def make_score(name: str, key: str, title: str) -> MetricScore:
        found = measured[name].get(key)

        if found is None:
            return MetricScore(
                title, None, "", None, None, len(lists), key, reason=reasons[key]
            )

        low, high = None, None

        if key in samples[name]:
            low, high = bootstrap_interval(samples[name][key])

        return MetricScore(
            found.name,
            found.score,
            found.signature,
            low,
            high,
            len(lists),
            key,
            found.higher_is_better,
            details=found.details,
        )

    titles = {key: title for m in metrics for key, title in METRICS[m].names.items()}

    scores = {
        name: [make_score(name, key, title) for key, title in titles.items()]
        for name in systems
    }

    comparisons: list[Comparison] = []

    if has_tests and num_randomization > 0:
        comparisons = _compare(
            measured, samples if paired_bootstrap else None, num_randomization, seed
        )

    return Evaluation(scores, comparisons, measured, is_resampled=num_bootstrap > 0)


def score_translations(
    hypotheses: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    sources: Sequence[str] | None = None,
    num_bootstrap: int = 1000,
    seed: int = DEFAULT_SEED,
    metrics: Sequence[str] = DEFAULT_METRICS,
    options: MetricOptions = _NO_OPTIONS,
) -> list[MetricScore]:
    """
    Scores one system where no score may be missing.

    The arguments are those of :func:`evaluate_systems`.

    :raises WarmupError: The input is wrong or an optional part is missing.
    """
    _check_lines(hypotheses, len(references), "hypotheses")

    evaluation = evaluate_systems(
        {"": hypotheses},
        references,
        sources=sources,
        metrics=metrics,
        options=options,
        num_bootstrap=num_bootstrap,
        seed=seed,
    )

    scores = list(evaluation.scores[""])

    for score in scores:
        if score.reason is not None:
            raise WarmupError(score.reason)

    return scores


def check_validation_metrics(
    metrics: Sequence[str],
    options: MetricOptions = _NO_OPTIONS,
    references: References = (),
) -> None:
    """
    Checks that a validation will be able to score.

    What ``options.comet_workers`` keeps is started.

    :param references: Those of the sentences that will be scored.

    :raises WarmupError: A metric is unknown, lacks an optional part or an option, cannot
        score by one of the references, or is too slow for validations.
    """
    check_metric_names(metrics, in_validation=True)

    for name in metrics:
        try:
            metric = METRICS[name].create(options)

            metric.start()
        except MetricUnavailable as ex:
            raise WarmupError(str(ex)) from None

        metric.check_references(references)


def _measure(
    systems: Mapping[str, Sequence[str]],
    references: References,
    sources: Sequence[str] | None,
    metrics: Sequence[str],
    options: MetricOptions,
) -> tuple[dict[str, dict[str, Measurement]], dict[str, str]]:
    """Returns the measurements by system and key, and the reasons for missing ones."""
    for name in metrics:
        if METRICS[name].needs_sources and sources is None:
            raise WarmupError(
                f"The metric `{name}` needs the sources; add `--sources FILE`."
            )

    reasons: dict[str, str] = {}

    created: dict[str, Metric] = {}

    # Wrong options are told before anything takes time.
    for name in metrics:
        try:
            created[name] = METRICS[name].create(options)
        except MetricUnavailable as ex:
            reasons.update(dict.fromkeys(METRICS[name].names, str(ex)))

    warn_of_missing_language(metrics, options, references)

    measured: dict[str, dict[str, Measurement]] = {name: {} for name in systems}

    for name, metric in created.items():
        try:
            rows = metric.measure(list(systems.values()), references, sources)
        except MetricUnavailable as ex:
            reasons.update(dict.fromkeys(METRICS[name].names, str(ex)))

            continue

        for by_key, row in zip(measured.values(), rows, strict=True):
            by_key.update((measurement.key, measurement) for measurement in row)

    return measured, reasons


def _resample(
    measured: Mapping[str, Mapping[str, Measurement]], num_bootstrap: int, seed: int
) -> dict[str, dict[str, FloatArray]]:
    flat = [m for by_key in measured.values() for m in by_key.values()]

    samples = iter(resample_scores(flat, num_bootstrap, seed=seed) if flat else [])

    return {
        name: {key: next(samples) for key in by_key}
        for name, by_key in measured.items()
    }


def _compare(
    measured: Mapping[str, Mapping[str, Measurement]],
    samples: Mapping[str, Mapping[str, FloatArray]] | None,
    num_randomization: int,
    seed: int,
) -> list[Comparison]:
    """:param samples: Those of the paired bootstrap; ``None`` to leave it out."""
    baseline_name, *names = measured

    baseline = measured[baseline_name]

    pairs = [(name, key) for name in names for key in measured[name]]

    p_values = randomization_p_values_of_groups(
        [[(baseline[key], measured[name][key])] for name, key in pairs],
        num_randomization,
        seed=seed,
    )

    comparisons = []

    for (name, key), p_value in zip(pairs, p_values):
        system = measured[name][key]

        bootstrapped = None

        if samples is not None:
            bootstrapped = bootstrap_p_value(
                baseline[key], system, samples[baseline_name][key], samples[name][key]
            )

        comparisons.append(
            Comparison(
                name,
                system.name,
                system.score,
                baseline[key].score,
                p_value,
                sign_with_test(system.signature, "ar", num_randomization, seed),
                bootstrapped,
                key,
            )
        )

    return comparisons


def _list_references(
    references: Sequence[str | Sequence[str]], *, may_lack: bool
) -> list[list[str]]:
    """:param may_lack: If ``True``, a sentence may have none."""
    if isinstance(references, str):
        raise WarmupError(
            "The references must be a list, with a string or a list of strings a sentence."
        )

    lists = [[texts] if isinstance(texts, str) else list(texts) for texts in references]

    for sentence_nr, texts in enumerate(lists, start=1):
        if not (texts or may_lack) or not all(isinstance(text, str) for text in texts):
            raise WarmupError(
                f"The references of sentence {sentence_nr} must be a string or a list of strings; give at least one."
            )

    return lists


def _check_lines(lines: Sequence[str], num_references: int, what: str) -> None:
    # sacreBLEU scores the common beginning of lists of different length, and reads a
    # string as a list of characters, both without a word.
    if isinstance(lines, str) or not all(isinstance(line, str) for line in lines):
        raise WarmupError(
            f"The {what} must be a flat list of strings; give one a sentence."
        )

    if len(lines) != num_references:
        raise WarmupError(
            f"There are {len(lines)} {what} but the references of {num_references}; "
            "give those of each hypothesis."
        )

    if not lines:
        raise WarmupError(
            f"There are 0 {what} and 0 references; give at least one sentence to score."
        )
