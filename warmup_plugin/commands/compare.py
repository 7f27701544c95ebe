# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from warmup_plugin.data.text_files import flatten
from warmup_plugin.errors import WarmupError, check_least
from warmup_plugin.evaluation.arguments import (
    add_file_arguments,
    add_scoring_arguments,
    read_file_arguments,
    read_lone_files,
    read_metric_arguments,
    read_run_arguments,
)
from warmup_plugin.evaluation.scores import (
    evaluate,
    make_report,
    print_notes,
    write_json,
)
from warmup_plugin.evaluation.systems import (
    System,
    name_systems,
    read_hypotheses,
    read_run,
    rename_systems,
)
from warmup_plugin.metrics.base import Evaluation
from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.metrics.resampling import NUM_TRIALS
from warmup_plugin.metrics.tables import format_columns, format_number, format_score
from warmup_plugin.metrics.wins import (
    Outcome,
    SentenceComparison,
    compare_sentences,
    measure_lengths,
)
from warmup_plugin.terminal import show

DESCRIPTION: Final = (
    "Tests whether systems differ from the first one, by approximate randomization, and "
    "shows where: sentences won and lost, by length, "
    "and examples."
)

# Of the metrics asked for, those whose sentences are worth counting; corpus metrics
# such as BLEU say little about one sentence. Suites read those of models from here.
_SENTENCE_METRICS: Final = (
    "chrf",
    *(name for name, entry in METRICS.items() if entry.runs_model),
)

_Comparisons = Mapping[str, Mapping[str, SentenceComparison]]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "systems",
        type=Path,
        nargs="*",
        metavar="SYSTEM",
        help="run directories, or files of one output a line or of JSON lines; the first one is the baseline",
    )

    add_file_arguments(parser)

    add_scoring_arguments(parser)

    parser.add_argument(
        "--paired-bootstrap",
        action="store_true",
        help="also show the p-value of sacreBLEU's paired bootstrap, about half of a two-sided one",
    )

    parser.add_argument(
        "--num-randomization",
        type=int,
        default=NUM_TRIALS,
        metavar="N",
        help="number of trials of the approximate randomization (default: %(default)s)",
    )

    parser.add_argument(
        "--num-examples",
        type=int,
        default=3,
        metavar="N",
        help="number of largest gains and of largest losses to show (default: %(default)s)",
    )

    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write everything to this file"
    )


def run(args: Namespace) -> int:
    # `--references FILE SYSTEM...`: what follows the first file can only be systems.
    if not args.systems and args.references:
        args.references, args.systems = args.references[:1], args.references[1:]

    if len(args.systems) < 2:
        raise WarmupError(
            f"There is nothing to compare{''.join(f' {path} with' for path in args.systems)}; give two systems or more."
        )

    check_least("--num-bootstrap", args.num_bootstrap, 1)
    check_least("--num-randomization", args.num_randomization, 1)
    check_least("--num-examples", args.num_examples, 0)

    # Before anything is translated.
    names = name_systems(args.systems, args.names)

    run_dir = next((path for path in args.systems if path.is_dir()), None)

    metrics, options = read_metric_arguments(args, run_dir)

    systems = rename_systems(_read_systems(args, metrics), names)

    evaluation = evaluate(
        systems,
        num_bootstrap=args.num_bootstrap,
        num_randomization=args.num_randomization,
        paired_bootstrap=args.paired_bootstrap,
        metrics=metrics,
        options=options,
    )

    baseline = systems[0]

    # Of several references the first.
    texts = baseline.sources or [texts[0] for texts in baseline.references]

    unit, lengths = measure_lengths(texts)

    side = "reference" if baseline.sources is None else "source"

    compared = _compare_sentences(evaluation, lengths, args.num_examples)

    show(_format_tests(evaluation, with_bootstrap=args.paired_bootstrap))

    print_notes(evaluation)

    tests = (
        f"p: of the difference from {baseline.name}, two-sided, by approximate "
        f"randomization, {args.num_randomization} trials"
    )

    if args.paired_bootstrap:
        tests += f"; bs: paired bootstrap, {args.num_bootstrap} resamples"

    show(tests)

    for key, by_system in compared.items():
        name = evaluation.measurements[baseline.name][key].name

        show(
            f"\nSentences by {name} against {baseline.name}, by {unit} of the {side}; "
            "scores are those of the sentences as a corpus\n"
        )

        show(_format_outcomes(key, by_system))

    for key, by_system in compared.items():
        _print_examples(key, by_system, systems, evaluation)

    if args.json is not None:
        report = make_report(
            systems, evaluation, args.num_bootstrap, args.num_randomization
        )

        report["sentences"] = {
            "length": f"{unit} of the {side}",
            "metrics": {
                key: {name: asdict(c) for name, c in by_system.items()}
                for key, by_system in compared.items()
            },
        }

        write_json(args.json, report)

        show(f"\nwrote {args.json}")

    return 0


def _read_systems(args: Namespace, metrics: Sequence[str]) -> list[System]:
    run_dirs = [path for path in args.systems if path.is_dir()]

    files = [path for path in args.systems if not path.is_dir()]

    # Before anything is translated.
    if run_dirs and args.references is not None:
        raise WarmupError(
            "A run is scored with the references of its data; leave `--references` out, "
            "or give files only."
        )

    needs_references = any(METRICS[name].needs_references for name in metrics)

    if args.sources is not None and args.references is None:
        if run_dirs or needs_references:
            raise WarmupError(
                "`--sources` belongs to `--references FILE`; add it, or leave both out."
            )

    if not run_dirs:
        if args.references is None and needs_references:
            raise WarmupError(
                f"{files[0]} is not a directory, and files need `--references FILE`; "
                "add it, or correct the path of the run."
            )

        return read_lone_files(args, files, metrics)

    places = read_file_arguments(args, files)

    by_path = {path: read_run(path, read_run_arguments(args)) for path in run_dirs}

    # Outputs of another toolkit for what the runs have translated.
    like = by_path[run_dirs[0]]

    for file in files:
        by_path[file] = replace(
            like,
            name=str(file),
            hypotheses_file=file,
            hypotheses=read_hypotheses(file, places),
        )

    # As often as they are given, which `evaluate()` checks.
    return [by_path[path] for path in args.systems]


def _compare_sentences(
    evaluation: Evaluation, lengths: Sequence[int], num_examples: int
) -> _Comparisons:
    """Compares sentences by metric and system."""
    baseline, *systems = evaluation.measurements.values()

    _, *names = evaluation.measurements

    keys = [key for key in _SENTENCE_METRICS if key in baseline] or list(baseline)[:1]

    compared: dict[str, dict[str, SentenceComparison]] = {}

    for key in keys:
        for name, system in zip(names, systems):
            comparison = compare_sentences(
                baseline[key], system[key], lengths, num_examples=num_examples
            )

            if comparison is not None:
                compared.setdefault(key, {})[name] = comparison

    return compared


def _format_tests(evaluation: Evaluation, *, with_bootstrap: bool) -> str:
    rows = [["metric", "system", "score", "difference", "p"]]

    if with_bootstrap:
        rows[0].append("p (bs)")

    baseline_name = next(iter(evaluation.scores))

    by_key = {(c.system, c.key): c for c in evaluation.comparisons}

    # One block a metric; all systems have the same ones.
    for row in zip(*evaluation.scores.values(), strict=True):
        for name, score in zip(evaluation.scores, row):
            cells = [score.name, name, format_score(score), "-", "-"]

            baseline = evaluation.measurements[baseline_name].get(score.key)

            if name != baseline_name and baseline and score.score is not None:
                difference = score.score - baseline.score

                cells[3] = format_number(score.key, difference, sign="+")

            comparison = by_key.get((name, score.key))

            if comparison is not None:
                cells[4] = f"{comparison.p_value:.4f}"

            if with_bootstrap:
                p_value = comparison and comparison.bootstrap_p_value

                cells.append("-" if p_value is None else f"{p_value:.4f}")

            rows.append(cells)

    return format_columns(rows, num_left=2)


def _format_outcomes(key: str, by_system: Mapping[str, SentenceComparison]) -> str:
    rows = [
        ["system", "length", "sentences", "wins", "ties", "losses"]
        + ["baseline", "score", "difference"]
    ]

    for name, comparison in by_system.items():
        for outcome in (comparison.total, *comparison.buckets):
            difference = outcome.score - outcome.baseline_score

            rows.append(
                [name, _format_length(outcome)]
                + [str(n) for n in (outcome.num_sentences, outcome.wins)]
                + [str(n) for n in (outcome.ties, outcome.losses)]
                + [format_number(key, outcome.baseline_score)]
                + [format_number(key, outcome.score)]
                + [format_number(key, difference, sign="+")]
            )

    return format_columns(rows, num_left=2)


def _format_length(outcome: Outcome) -> str:
    if outcome.min_length is None:
        return "all"

    if outcome.min_length == outcome.max_length:
        return str(outcome.min_length)

    return f"{outcome.min_length}-{outcome.max_length}"


def _print_examples(
    key: str,
    by_system: Mapping[str, SentenceComparison],
    systems: Sequence[System],
    evaluation: Evaluation,
) -> None:
    baseline = systems[0]

    for system in systems[1:]:
        comparison = by_system[system.name]

        for what, indices in (
            ("gains", comparison.largest_gains),
            ("losses", comparison.largest_losses),
        ):
            if not indices:
                continue

            metric = evaluation.measurements[system.name][key].name

            show(f"\nLargest {what} of {system.name} by {metric}")

            for idx in indices:
                texts = {
                    **_name_references(baseline.references[idx]),
                    baseline.name: baseline.hypotheses[idx],
                    system.name: system.hypotheses[idx],
                }

                if baseline.sources is not None:
                    texts = {"source": baseline.sources[idx], **texts}

                difference = comparison.differences[idx]

                document = baseline.documents[idx] if baseline.documents else None

                where = "" if document is None else f" of {document}"

                show(
                    f"\nline {idx + 1}{where}: {format_number(key, difference, sign='+')}"
                )

                width = max(map(len, texts))

                for name, text in texts.items():
                    # A text of JSON lines may hold line feeds.
                    show(f"  {name:<{width}}  {flatten(text)}".rstrip())


def _name_references(texts: Sequence[str]) -> dict[str, str]:
    if len(texts) == 1:
        return {"reference": texts[0]}

    return {f"reference {idx}": text for idx, text in enumerate(texts, start=1)}
