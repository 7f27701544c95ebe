# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, cast, final

# fairseq2 takes seconds to import and scoring files does not need it; hence the import
# of the `generate` recipe further below.
from warmup_plugin.data.text_pairs import (
    TextPairs,
    TextPairsConfig,
    read_lines,
    read_split,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.translation import (
    DEFAULT_SEED,
    Comparison,
    MetricScore,
    compare_translations,
    format_table,
    score_translations,
    to_json,
)
from warmup_plugin.run_dir import RunDir, collect_versions, write_text_atomically

_DESCRIPTION: Final = (
    "Scores translations by BLEU and chrF2++ with 95% bootstrap intervals; of several "
    "systems, each is tested against the first by paired bootstrap."
)


@final
@dataclass(frozen=True)
class System:
    """The translations of one system and what they are scored against."""

    name: str

    hypotheses_file: Path

    hypotheses: Sequence[str]

    references_name: str

    references: Sequence[str]

    target_lang: str | None


@final
@dataclass(frozen=True)
class Evaluation:
    """The scores of several systems; the first one is the baseline."""

    scores: Mapping[str, Sequence[MetricScore]]

    comparisons: Sequence[Comparison]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program, ``python -m recipes.evaluate``, and returns its exit code."""
    try:
        _run(_create_parser().parse_args(argv))
    except WarmupError as ex:
        print(f"error: {ex}", file=sys.stderr)

        return 2

    return 0


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.evaluate", description=_DESCRIPTION
    )

    parser.add_argument(
        "run_dirs",
        type=Path,
        nargs="*",
        metavar="RUN_DIR",
        help="run directories; their translations are generated where missing",
    )

    parser.add_argument(
        "--split",
        metavar="NAME",
        help="split to score (default: `dataset.test_split` of the run)",
    )

    parser.add_argument(
        "--checkpoint",
        metavar="best|last|N",
        help="checkpoint to score (default: best)",
    )

    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="the data folder, if it is no longer where the run was trained",
    )

    parser.add_argument(
        "--hypotheses",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="score these files instead, one translation a line",
    )

    parser.add_argument(
        "--references",
        type=Path,
        metavar="FILE",
        help="references of the files, one a line",
    )

    parser.add_argument(
        "--target-lang",
        metavar="LANG",
        help="language that selects the tokenizer of BLEU (default: that of the run)",
    )

    parser.add_argument(
        "--num-bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="number of resamples; 0 leaves out intervals and tests (default: %(default)s)",
    )

    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write all scores to this file"
    )

    return parser


def _run(args: argparse.Namespace) -> None:
    if args.hypotheses is not None:
        if args.run_dirs:
            raise WarmupError(
                "`RUN_DIR` and `--hypotheses` cannot be combined; give the one or the "
                "other."
            )

        for name in ("split", "checkpoint", "data"):
            if getattr(args, name) is not None:
                raise WarmupError(
                    f"`--{name}` belongs to a run directory; leave it out with "
                    "`--hypotheses`."
                )

        if args.references is None:
            raise WarmupError("`--hypotheses` needs `--references FILE`; add it.")

        systems = _read_files(args.hypotheses, args.references, args.target_lang)
    elif args.run_dirs:
        if args.references is not None:
            raise WarmupError(
                "A run is scored against the references of its data; leave "
                "`--references` out or give `--hypotheses`."
            )

        systems = [
            _read_run(
                run_dir,
                args.split,
                args.checkpoint or "best",
                args.data,
                args.target_lang,
            )
            for run_dir in args.run_dirs
        ]
    else:
        raise WarmupError(
            "There is nothing to score; give a `RUN_DIR`, or `--hypotheses FILE` and "
            "`--references FILE`."
        )

    evaluation = evaluate(systems, num_bootstrap=args.num_bootstrap)

    print(format_table(evaluation.scores, evaluation.comparisons))

    _print_notes(evaluation, systems[0].name)

    if args.run_dirs:
        for system in systems:
            # RUN_DIR/generate/X.txt -> RUN_DIR/evaluate/X.json
            run_dir = system.hypotheses_file.parent.parent

            file = run_dir / "evaluate" / f"{system.hypotheses_file.stem}.json"

            _write_json(file, _report([system], evaluation, args.num_bootstrap))

            print(f"wrote {file}")

    if args.json is not None:
        _write_json(args.json, _report(systems, evaluation, args.num_bootstrap))

        print(f"wrote {args.json}")


def evaluate(systems: Sequence[System], *, num_bootstrap: int = 1000) -> Evaluation:
    """
    Scores all systems and tests each against the first one.

    :param systems: All with the same references.
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

    scores = {
        system.name: score_translations(
            system.hypotheses,
            system.references,
            target_lang=system.target_lang,
            num_bootstrap=num_bootstrap,
        )
        for system in systems
    }

    comparisons: list[Comparison] = []

    if num_bootstrap > 0:
        comparisons = compare_translations(
            baseline.hypotheses,
            {system.name: system.hypotheses for system in systems[1:]},
            baseline.references,
            target_lang=baseline.target_lang,
            num_samples=num_bootstrap,
        )

    return Evaluation(scores, comparisons)


def _read_files(
    hypotheses_files: Sequence[Path], references_file: Path, target_lang: str | None
) -> list[System]:
    references = read_lines(references_file)

    return [
        System(
            str(file),
            file,
            read_lines(file),
            str(references_file),
            references,
            target_lang,
        )
        for file in hypotheses_files
    ]


def _read_run(
    run_dir: Path,
    split: str | None,
    checkpoint: str,
    data_dir: Path | None,
    target_lang: str | None,
) -> System:
    section = _read_dataset_section(run_dir)

    if split is None:
        split = str(section.get("test_split", "test"))

    config = TextPairsConfig()

    for field in fields(TextPairsConfig):
        value = section.get(field.name)

        if value is not None:
            setattr(config, field.name, Path(value) if field.name == "path" else value)

    if data_dir is not None:
        config.path = data_dir

    # Before generating, which takes longer to fail.
    pairs = read_split(config, split)

    hypotheses_file = _ensure_translations(run_dir, pairs, checkpoint, data_dir)

    return System(
        str(run_dir),
        hypotheses_file,
        read_lines(hypotheses_file),
        pairs.origin,
        [pairs.target(idx) for idx in range(len(pairs))],
        target_lang or config.target_lang,
    )


def _read_dataset_section(run_dir: Path) -> Mapping[str, Any]:
    section = RunDir(run_dir).load_config().get("dataset")

    if not isinstance(section, dict):
        raise WarmupError(
            f"{RunDir(run_dir).run_file} has no section `dataset`; restore the file "
            "that `recipes.train` wrote."
        )

    return cast("Mapping[str, Any]", section)


def _ensure_translations(
    run_dir: Path, pairs: TextPairs, checkpoint: str, data_dir: Path | None
) -> Path:
    split = pairs.split

    file = run_dir / "generate" / f"{split}.{checkpoint}.txt"

    details_file = file.with_name(f"{file.name}.jsonl")

    if not _is_current(file, details_file, run_dir, pairs):
        from warmup_plugin.recipes import generate

        args = [str(run_dir), "--split", split, "--checkpoint", checkpoint]

        if data_dir is not None:
            args += ["--data", str(data_dir)]

        if generate.main(args) != 0:
            raise WarmupError(
                f"The {split} split cannot be translated with {run_dir}; see the "
                "message above."
            )

    for path in (file, details_file):
        if not path.is_file():
            raise WarmupError(
                f"{path} does not exist; run `python -m recipes.generate {run_dir} "
                f"--split {split} --checkpoint {checkpoint}`."
            )

    return file


def _is_current(
    file: Path, details_file: Path, run_dir: Path, pairs: TextPairs
) -> bool:
    """Tells whether a translation is there, of this model and of this text."""
    if not (file.is_file() and details_file.is_file()):
        return False

    checkpoint_dir = RunDir(run_dir).checkpoint_dir

    # Checkpoints came or went since it was written.
    if checkpoint_dir.is_dir():
        if checkpoint_dir.stat().st_mtime > file.stat().st_mtime:
            return False

    return _read_translated_sources(details_file) == [
        # As `generate` writes it.
        " ".join(pairs.source(idx).split("\n"))
        for idx in range(len(pairs))
    ]


def _read_translated_sources(details_file: Path) -> list[str] | None:
    try:
        return [json.loads(line)["source"] for line in read_lines(details_file)]
    # Whatever is wrong with the file, it is to be written again.
    except (WarmupError, ValueError, LookupError, TypeError):
        return None


def _print_notes(evaluation: Evaluation, baseline: str) -> None:
    print()

    for score in evaluation.scores[baseline]:
        print(f"{score.name}: {score.signature}, {score.num_sentences} sentences")

    if evaluation.comparisons:
        print(f"p: paired bootstrap test against {baseline}")


def _report(
    systems: Sequence[System], evaluation: Evaluation, num_bootstrap: int
) -> dict[str, object]:
    names = {system.name for system in systems}

    report = to_json(
        {name: row for name, row in evaluation.scores.items() if name in names},
        [c for c in evaluation.comparisons if c.system in names],
    )

    report["baseline"] = next(iter(evaluation.scores))
    report["hypotheses"] = {s.name: str(s.hypotheses_file) for s in systems}
    report["references"] = systems[0].references_name
    report["target_lang"] = systems[0].target_lang
    report["num_sentences"] = len(systems[0].references)
    report["bootstrap"] = {"num_samples": num_bootstrap, "seed": DEFAULT_SEED}
    report["versions"] = collect_versions()

    return report


def _write_json(file: Path, data: Mapping[str, object]) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)

    try:
        write_text_atomically(file, f"{text}\n")
    except OSError as ex:
        raise WarmupError(
            f"{file} cannot be written ({ex.strerror}); give a path that you may write "
            "to."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
