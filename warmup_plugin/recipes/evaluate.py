# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, final

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

# fairseq2 takes seconds to import and scoring files does not need it; hence the import
# of the `generate` recipe further below.
from warmup_plugin.data.text_pairs import TextPairsConfig, read_lines, read_split
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

        for name in ("split", "checkpoint"):
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
            _read_run(run_dir, args.split, args.checkpoint or "best", args.target_lang)
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
    run_dir: Path, split: str | None, checkpoint: str, target_lang: str | None
) -> System:
    section = _read_dataset_section(run_dir)

    if split is None:
        split = str(section.get("test_split", "test"))

    config = TextPairsConfig()

    for field in fields(TextPairsConfig):
        value = section.get(field.name)

        if value is not None:
            setattr(config, field.name, Path(value) if field.name == "path" else value)

    # Before generating, which takes longer to fail.
    pairs = read_split(config, split)

    hypotheses_file = _ensure_translations(run_dir, split, checkpoint)

    return System(
        str(run_dir),
        hypotheses_file,
        read_lines(hypotheses_file),
        pairs.origin,
        [pairs.target(idx) for idx in range(len(pairs))],
        target_lang or config.target_lang,
    )


def _read_dataset_section(run_dir: Path) -> Mapping[str, str]:
    file = run_dir / "config.yaml"

    try:
        with file.open(encoding="utf-8") as fp:
            config = YAML(typ="safe", pure=True).load(fp)
    except OSError:
        raise WarmupError(
            f"{run_dir} is not the directory of a training run, since it has no "
            "readable `config.yaml`; give the directory that `recipes.train` wrote."
        ) from None
    except (YAMLError, UnicodeDecodeError):
        raise WarmupError(
            f"{file} is not valid YAML; restore the file that `recipes.train` wrote."
        ) from None

    section = config.get("dataset") if isinstance(config, dict) else None

    if not isinstance(section, dict):
        raise WarmupError(
            f"{file} has no section `dataset`; restore the file that `recipes.train` "
            "wrote."
        )

    return section


def _ensure_translations(run_dir: Path, split: str, checkpoint: str) -> Path:
    file = run_dir / "generate" / f"{split}.{checkpoint}.txt"

    details_file = file.with_name(f"{file.name}.jsonl")

    if not (file.is_file() and details_file.is_file()) or _is_stale(file, run_dir):
        from warmup_plugin.recipes import generate

        args = [str(run_dir), "--split", split, "--checkpoint", checkpoint]

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


def _is_stale(file: Path, run_dir: Path) -> bool:
    """Tells whether checkpoints came or went since the translation was written."""
    try:
        return run_dir.joinpath("checkpoints").stat().st_mtime > file.stat().st_mtime
    except OSError:
        return False


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
    report["versions"] = {
        name: _get_version(name) for name in ("sacrebleu", "warmup_plugin")
    }

    return report


def _get_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _write_json(file: Path, data: Mapping[str, object]) -> None:
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)

    try:
        file.parent.mkdir(parents=True, exist_ok=True)

        file.write_text(text + "\n", encoding="utf-8")
    except OSError as ex:
        raise WarmupError(
            f"{file} cannot be written ({ex.strerror}); give a path that you may write "
            "to."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
