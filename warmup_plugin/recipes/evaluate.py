# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, cast, final

from warmup_plugin.console import quiet_log

# fairseq2 takes seconds to import and scoring files does not need it; hence the import
# of the `generate` recipe further below.
from warmup_plugin.data.directions import (
    choose_direction,
    get_pairs_config,
    list_directions,
    name_output,
    narrow_to_direction,
)
from warmup_plugin.data.text_files import (
    TextPlaces,
    add_place_arguments,
    is_json_lines,
    is_tsv,
    read_place_arguments,
    read_references,
    read_texts,
)
from warmup_plugin.data.text_pairs import TextPairs, read_lines, read_split
from warmup_plugin.errors import WarmupError
from warmup_plugin.files import write_text_atomically
from warmup_plugin.metrics.base import Evaluation as Evaluation
from warmup_plugin.metrics.base import References
from warmup_plugin.metrics.registry import (
    DEFAULT_METRICS,
    METRICS,
    MetricOptions,
    check_metric_names,
)
from warmup_plugin.metrics.resampling import (
    DEFAULT_SEED,
    NUM_TRIALS,
    warn_of_few_sentences,
)
from warmup_plugin.metrics.tables import format_latex, format_table, to_json
from warmup_plugin.metrics.translation import evaluate_systems
from warmup_plugin.parsing import parse_json
from warmup_plugin.run_dir import RunDir, collect_versions
from warmup_plugin.terminal import get_arguments, guard, show

_DESCRIPTION: Final = (
    "Scores outputs by BLEU, chrF2++ and other metrics with 95% bootstrap intervals; of "
    "several systems, each is tested against the first by approximate randomization."
)


@final
@dataclass(frozen=True)
class System:
    """The outputs of one system and what they are scored against."""

    name: str

    hypotheses_file: Path

    hypotheses: Sequence[str]

    references_name: str

    references: References

    target_lang: str | None

    sources: Sequence[str] | None = None
    """``None`` if they are not known."""

    @property
    def joined_references(self) -> list[str]:
        """All references of each sentence as one text, to be shown."""
        return ["\n".join(texts) for texts in self.references]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program, ``python -m recipes.evaluate``, and returns its exit code."""
    args = _create_parser().parse_args(argv)

    def run() -> int:
        _run(args)

        return 0

    return guard(run, get_arguments(argv))


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.evaluate", description=_DESCRIPTION
    )

    parser.add_argument(
        "run_dirs",
        type=Path,
        nargs="*",
        metavar="RUN_DIR",
        help="run directories; their translations are generated where missing; with `--hypotheses` the one whose data these are outputs for",
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
        "--direction",
        metavar="SRC-TGT",
        help="one of the directions of a run that has several (default: all, one after the other)",
    )

    parser.add_argument(
        "--hypotheses",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="score these files instead, one translation a line, or JSON lines as `generate` writes them, by `--references` or what RUN_DIR translates",
    )

    parser.add_argument(
        "--references",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="references of the files, one a line; of several files, each has one of every sentence or an empty line; a JSON field may hold a list",
    )

    parser.add_argument(
        "--sources",
        type=Path,
        metavar="FILE",
        help="what was translated to the files, one a line; COMET needs it",
    )

    add_place_arguments(parser, ["hypotheses", "references", "sources"])

    add_names_argument(parser)

    add_truncate_argument(parser)

    add_metric_arguments(parser)

    parser.add_argument(
        "--num-bootstrap",
        type=int,
        default=1000,
        metavar="N",
        help="number of resamples; 0 leaves out intervals and tests (default: %(default)s)",
    )

    parser.add_argument(
        "--latex", action="store_true", help="also print the rows of a LaTeX table"
    )

    parser.add_argument(
        "--json", type=Path, metavar="OUT", help="also write all scores to this file"
    )

    return parser


def add_names_argument(parser: argparse.ArgumentParser) -> None:
    """Adds what :func:`name_systems` reads."""
    parser.add_argument(
        "--names",
        nargs="+",
        metavar="NAME",
        help="what the systems are called, in their order (default: the ends of their paths that tell them apart)",
    )


def name_systems(paths: Sequence[Path], names: Sequence[str] | None) -> list[str]:
    """
    Names systems as ``--names`` says, or else by the ends of their paths, as short as
    tells them apart.

    :raises WarmupError: If there are not as many names, or one or a system is given
        twice.
    """
    resolved = [path.expanduser().resolve() for path in paths]

    for path, given in zip(resolved, paths):
        if resolved.count(path) > 1:
            raise WarmupError(f"{given} is given more than once; give it once.")

    if names is not None:
        if len(names) != len(paths):
            raise WarmupError(
                f"`--names` has {len(names)} names for {len(paths)} systems; give one for each."
            )

        for name in names:
            if names.count(name) > 1:
                raise WarmupError(
                    f"`--names` calls more than one system `{name}`; give each a name of its own."
                )

        return list(names)

    # Not resolved: a link is what the user calls it.
    parts = [Path(os.path.abspath(path.expanduser())).parts for path in paths]

    num_parts = 1

    while True:
        ends = [Path(*p[1:][-num_parts:]).as_posix() for p in parts]

        if len(set(ends)) == len(ends):
            return ends

        num_parts += 1


def rename_systems(systems: Sequence[System], names: Sequence[str]) -> list[System]:
    """Gives systems other names than their paths."""
    return [
        replace(system, name=name) for system, name in zip(systems, names, strict=True)
    ]


def add_truncate_argument(parser: argparse.ArgumentParser) -> None:
    """Adds what is handed on to the translation of runs."""
    parser.add_argument(
        "--truncate",
        action="store_true",
        help="where runs translate, cut a source that is longer than the model reads instead of refusing it; how many is said",
    )


def add_metric_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what chooses the metrics; :func:`read_metric_arguments` reads it."""
    parser.add_argument(
        "--metrics",
        metavar="M,...",
        help=f"some of {', '.join(METRICS)} (default: those that the run was validated by; {','.join(DEFAULT_METRICS)} for files)",
    )

    parser.add_argument(
        "--target-lang",
        metavar="LANG",
        help="language that selects tokenizers (default: that of the run)",
    )

    parser.add_argument(
        "--bleu-tokenize",
        metavar="NAME",
        help="tokenizer of BLEU, such as flores200 (default: by language)",
    )

    parser.add_argument(
        "--comet-model",
        metavar="CKPT",
        help="checkpoint of COMET, its folder or a name on the Hugging Face Hub",
    )

    parser.add_argument(
        "--comet-gpus", type=int, choices=(0, 1), help="GPUs of COMET (default: 0)"
    )

    parser.add_argument(
        "--bertscore-model",
        metavar="DIR",
        help="model of BERTScore, a folder or a name on the Hugging Face Hub (default: by language)",
    )

    parser.add_argument(
        "--bertscore-layers",
        type=int,
        metavar="N",
        help="the layer of that model to compare (default: what bert-score recommends)",
    )

    parser.add_argument(
        "--labels",
        metavar="A,B,...",
        help="all valid answers, for accuracy and macro_f1; other answers are wrong",
    )


# The arguments of metrics and which of these read them.
_OWNERS: Final = {
    "bleu_tokenize": ("bleu",),
    "comet_model": ("comet",),
    "comet_gpus": ("comet",),
    "bertscore_model": ("bertscore",),
    "bertscore_layers": ("bertscore",),
    "labels": ("accuracy", "macro_f1"),
}


def read_metric_arguments(
    args: argparse.Namespace, run_dir: Path | None = None
) -> tuple[list[str], MetricOptions]:
    """
    Reads what :func:`add_metric_arguments` added.

    :param run_dir: The run whose task gives the metrics and labels that are not given.

    :raises WarmupError: A metric is not known, or an argument has no metric.
    """
    metrics: list[str] = list(DEFAULT_METRICS)

    labels: list[str] = []

    if args.metrics is not None:
        metrics = [name.strip() for name in args.metrics.split(",") if name.strip()]

        check_metric_names(metrics)

    # What is no run is reported where it is read.
    if run_dir is not None and RunDir(run_dir).run_file.is_file():
        # An imported model has been validated by nothing.
        validation = cast(
            "Mapping[str, Any]", RunDir(run_dir).load_config().get("validation") or {}
        )

        labels = validation.get("labels") or labels

        if args.metrics is None:
            metrics = validation.get("metrics") or metrics

    if args.labels is not None:
        labels = args.labels.split(",")

    for argument, owners in _OWNERS.items():
        if getattr(args, argument) is not None and not set(owners) & set(metrics):
            raise WarmupError(
                f"`--{argument.replace('_', '-')}` is of no use without the metric "
                f"{' or '.join(f'`{owner}`' for owner in owners)}; add it to `--metrics` "
                "or leave the argument out."
            )

    options = MetricOptions(
        target_lang=args.target_lang,
        bleu_tokenizer=args.bleu_tokenize,
        labels=labels,
        comet_model=args.comet_model,
        comet_gpus=args.comet_gpus or 0,
        bertscore_model=args.bertscore_model,
        bertscore_layers=args.bertscore_layers,
    )

    return metrics, options


def _run(args: argparse.Namespace) -> None:
    systems: dict[str | None, list[System]]

    # Before anything is translated.
    if args.num_bootstrap < 0:
        raise WarmupError(
            f"`--num-bootstrap` must be greater than or equal to 0, but is {args.num_bootstrap}."
        )

    names = name_systems(args.hypotheses or args.run_dirs, args.names)

    metrics, options = read_metric_arguments(
        args, args.run_dirs[0] if args.run_dirs else None
    )

    if args.run_dirs:
        for name in ("references", "sources"):
            if getattr(args, name) is not None:
                raise WarmupError(
                    f"A run is scored with the {name} of its data; leave `--{name}` out, "
                    "or `RUN_DIR`."
                )

    if args.hypotheses is not None and args.run_dirs:
        systems = {None: _read_files_of_run(args)}
    elif args.hypotheses is not None:
        for name in ("split", "checkpoint", "data", "direction"):
            if getattr(args, name) is not None:
                raise WarmupError(
                    f"`--{name}` belongs to a run directory; leave it out with "
                    "`--hypotheses`."
                )

        if args.references is None:
            raise WarmupError("`--hypotheses` needs `--references FILE`; add it.")

        systems = {
            None: read_files(
                args.hypotheses,
                args.references,
                args.sources,
                args.target_lang,
                read_file_arguments(args, args.hypotheses),
            )
        }
    elif args.run_dirs:
        # There is no file that they could say anything of.
        read_file_arguments(args, [])

        systems = {
            direction: [
                read_run(
                    run_dir,
                    args.split,
                    args.checkpoint or "best",
                    args.data,
                    args.target_lang,
                    direction,
                    truncate=args.truncate,
                )
                for run_dir in args.run_dirs
            ]
            for direction in _list_directions(args)
        }
    else:
        raise WarmupError(
            "There is nothing to score; give a `RUN_DIR`, or `--hypotheses FILE` and "
            "`--references FILE`."
        )

    reports = {}

    for direction, direction_systems in systems.items():
        if len(systems) > 1:
            show(f"{direction}:\n")

        named = rename_systems(direction_systems, names)

        reports[direction] = _evaluate(args, named, metrics, options)

        if len(systems) > 1:
            show()

    if args.json is not None:
        if len(reports) == 1:
            [report] = reports.values()
        else:
            report = {"directions": reports}

        write_json(args.json, report)

        show(f"wrote {args.json}")


def _read_files_of_run(args: argparse.Namespace) -> list[System]:
    """Reads outputs from plain files for what a run would translate."""
    if len(args.run_dirs) > 1:
        raise WarmupError(
            "`--hypotheses` takes one `RUN_DIR`, whose data the files are outputs for; "
            "leave out the others."
        )

    if args.checkpoint is not None:
        raise WarmupError(
            "`--checkpoint` is of no use with `--hypotheses`, whose files are scored as "
            "they are; leave it out."
        )

    [run_dir] = args.run_dirs

    places = read_file_arguments(args, args.hypotheses)

    texts = read_run_texts(run_dir, args.split, args.data, args.direction)

    return [
        texts.make_system(
            str(file), file, read_hypotheses(file, places), args.target_lang
        )
        for file in args.hypotheses
    ]


def read_file_arguments(args: argparse.Namespace, files: Sequence[Path]) -> TextPlaces:
    """Reads where the texts are in files of outputs, and in those of their references
    and sources."""
    return read_place_arguments(
        args,
        {
            "hypotheses": files,
            "references": args.references or [],
            "sources": [] if args.sources is None else [args.sources],
        },
    )


def _list_directions(args: argparse.Namespace) -> list[str | None]:
    """
    Lists the directions to score one after the other; ``None`` for that of the runs.
    """
    if args.direction is not None:
        return [args.direction]

    # The first run with several directions: the others must have them too.
    for run_dir in args.run_dirs:
        dataset = _load_config(run_dir)["dataset"]

        if dataset.get("directions"):
            names = list_directions(dataset)

            if len(names) > 1 and args.target_lang is not None:
                raise WarmupError(
                    f"`--target-lang` cannot be the language of all directions of {run_dir}; leave it out, or choose one of them with `--direction`."
                )

            return [*names]

    return [None]


def _evaluate(
    args: argparse.Namespace,
    systems: Sequence[System],
    metrics: Sequence[str],
    options: MetricOptions,
) -> dict[str, object]:
    """
    Scores systems, prints the table, and writes the scores of runs beside these.

    :returns: All scores, as JSON.
    """
    evaluation = evaluate(
        systems, num_bootstrap=args.num_bootstrap, metrics=metrics, options=options
    )

    show(format_table(evaluation.scores, evaluation.comparisons))

    print_notes(evaluation)

    if evaluation.comparisons:
        show(
            f"p: two-sided, by approximate randomization ({NUM_TRIALS:,} trials), "
            f"against {systems[0].name}"
        )

    if args.latex:
        show(f"\n{format_latex(evaluation.scores, evaluation.comparisons)}\n")

    if args.hypotheses is None:
        for system in systems:
            # RUN_DIR/generate/X.txt -> RUN_DIR/evaluate/X.json
            run_dir = system.hypotheses_file.parent.parent

            file = run_dir / "evaluate" / f"{system.hypotheses_file.stem}.json"

            write_json(file, make_report([system], evaluation, args.num_bootstrap))

            show(f"wrote {file}")

    return make_report(systems, evaluation, args.num_bootstrap)


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


def read_files(
    hypotheses_files: Sequence[Path],
    references_files: Sequence[Path],
    sources_file: Path | None,
    target_lang: str | None,
    places: TextPlaces = TextPlaces(),
) -> list[System]:
    """Reads outputs from files: text, JSON lines or TSV."""
    references = read_references(references_files, places)

    references_name = ", ".join(map(str, references_files))

    sources = None

    if sources_file is not None:
        sources = read_texts(sources_file, "sources", places)

        if len(sources) != len(references):
            raise WarmupError(
                f"{sources_file} has {len(sources)} lines but {references_name} has "
                f"{len(references)}; give the source of each reference."
            )

    return [
        System(
            str(file),
            file,
            read_hypotheses(file, places),
            references_name,
            references,
            target_lang,
            sources,
        )
        for file in hypotheses_files
    ]


@final
@dataclass(frozen=True)
class RunTexts:
    """The text pairs of a split as a run reads them."""

    pairs: TextPairs

    target_lang: str

    direction: str | None
    """As of :func:`choose_direction`."""

    @property
    def sources(self) -> list[str]:
        return [self.pairs.source(idx) for idx in range(len(self.pairs))]

    def make_system(
        self,
        name: str,
        file: Path,
        hypotheses: Sequence[str],
        target_lang: str | None = None,
    ) -> System:
        """
        Returns outputs with what they are scored against.

        :param target_lang: ``None`` for that of the run.
        """
        return System(
            name,
            file,
            hypotheses,
            self.pairs.origin,
            [self.pairs.references(idx) for idx in range(len(self.pairs))],
            target_lang or self.target_lang,
            self.sources,
        )


def read_run_texts(
    run_dir: Path, split: str | None, data_dir: Path | None, direction: str | None
) -> RunTexts:
    """
    Reads what a run would translate; see :func:`read_run`.
    """
    run_config = _load_config(run_dir)

    direction = choose_direction(run_config, direction)

    run_config = narrow_to_direction(
        run_config, direction, data_dir=data_dir, find_data=True
    )

    if split is None:
        split = str(run_config["dataset"].get("test_split", "test"))

    config = get_pairs_config(run_config["dataset"])

    return RunTexts(read_split(config, split), config.target_lang, direction)


def read_run(
    run_dir: Path,
    split: str | None,
    checkpoint: str,
    data_dir: Path | None,
    target_lang: str | None,
    direction: str | None = None,
    *,
    truncate: bool = False,
) -> System:
    """
    Reads what a run makes of a split, which is translated first where it is not yet.

    :param split: ``None`` for the ``dataset.test_split`` of the run.
    :param checkpoint: ``best``, ``last`` or a step.
    :param data_dir: The data folder; ``None`` if it is where the run was trained.
    :param target_lang: ``None`` for that of the run.
    :param direction: What stands behind ``--direction``.
    """
    # Before generating, which takes longer to fail.
    texts = read_run_texts(run_dir, split, data_dir, direction)

    hypotheses_file = _ensure_translations(
        run_dir, texts.pairs, checkpoint, data_dir, texts.direction, truncate
    )

    hypotheses = _read_outputs(hypotheses_file, texts.pairs)

    return texts.make_system(str(run_dir), hypotheses_file, hypotheses, target_lang)


def read_hypotheses(file: Path, places: TextPlaces = TextPlaces()) -> list[str]:
    """
    Reads a file of outputs.

    Text that `generate` has written has JSON lines beside it, which alone hold the line
    feeds inside outputs; they are read as long as they say the same.
    """
    hypotheses = read_texts(file, "hypotheses", places)

    details_file = _details_file(file)

    if is_json_lines(file) or is_tsv(file) or not details_file.is_file():
        return hypotheses

    try:
        outputs = read_texts(details_file, "hypotheses")
    # They are of something else.
    except WarmupError:
        return hypotheses

    if [_flatten(output) for output in outputs] != hypotheses:
        return hypotheses

    return outputs


def _flatten(output: str) -> str:
    """Puts an output on one line, as `generate` writes it as text."""
    return " ".join(output.splitlines()).strip()


def _read_outputs(file: Path, pairs: TextPairs) -> list[str]:
    """
    Reads what a run made of pairs from the JSON lines, where line feeds are kept.

    :raises WarmupError: Lines were lost, moved or changed since they were written.
    """
    hypotheses = read_lines(file)

    details_file = _details_file(file)

    records = read_lines(details_file)

    remedy = "delete both files and run the command again, which translates anew"

    if len(hypotheses) != len(records):
        raise WarmupError(
            f"{file} has {len(hypotheses)} lines but {details_file} has {len(records)}; "
            f"{remedy}."
        )

    if len(records) != len(pairs):
        raise WarmupError(
            f"{details_file} has {len(records)} lines but {pairs.origin} has "
            f"{len(pairs)}; {remedy}."
        )

    outputs = []

    num_cut = 0

    for idx, (hypothesis, line) in enumerate(zip(hypotheses, records)):
        try:
            record = parse_json(line)

            source, output = record["source"], record["output"].strip()
        except (ValueError, LookupError, TypeError, AttributeError):
            raise WarmupError(
                f"Line {idx + 1} of {details_file} is no object with `source` and "
                f"`output`; {remedy}."
            ) from None

        if source != pairs.source(idx):
            raise WarmupError(
                f"Line {idx + 1} of {details_file} has another source than "
                f"{pairs.origin}; {remedy}."
            )

        if hypothesis != _flatten(output):
            raise WarmupError(
                f"Line {idx + 1} of {file} is not the output in that line of "
                f"{details_file}, so that lines may have moved; {remedy}."
            )

        outputs.append(output)

        num_cut += bool(record.get("truncated"))

    if num_cut > 0:
        show(
            f"{num_cut:,} of the {len(outputs):,} sources of {details_file} were cut, since the model reads no longer ones",
            file=sys.stderr,
        )

    return outputs


def _load_config(run_dir: Path) -> dict[str, Any]:
    config = RunDir(run_dir).load_config()

    if not isinstance(config.get("dataset"), dict):
        raise WarmupError(
            f"{RunDir(run_dir).run_file} has no section `dataset`; restore the file "
            "that `recipes.train` wrote."
        )

    return config


def _ensure_translations(
    run_dir: Path,
    pairs: TextPairs,
    checkpoint: str,
    data_dir: Path | None,
    direction: str | None,
    truncate: bool,
) -> Path:
    split = pairs.split

    file = run_dir / "generate" / f"{name_output(split, direction, checkpoint)}.txt"

    direction_args = [] if direction is None else ["--direction", direction]

    details_file = _details_file(file)

    if not _is_current(file, details_file, run_dir, checkpoint, pairs):
        from warmup_plugin.recipes import generate

        args = [str(run_dir), "--split", split, "--checkpoint", checkpoint]

        args += direction_args

        if data_dir is not None:
            args += ["--data", str(data_dir)]

        if truncate:
            args.append("--truncate")

        with quiet_log():
            status = generate.main(args)

        if status != 0:
            raise WarmupError(
                f"The {split} split cannot be translated with {run_dir}; see the "
                "message above."
            )

    for path in (file, details_file):
        if not path.is_file():
            raise WarmupError(
                f"{path} does not exist; run `python -m recipes.generate {run_dir} "
                f"{' '.join(['--split', split, '--checkpoint', checkpoint, *direction_args])}`."
            )

    return file


def _is_current(
    file: Path, details_file: Path, run_dir: Path, checkpoint: str, pairs: TextPairs
) -> bool:
    """Tells whether a translation is there, of this model and of this text."""
    if not details_file.is_file() or not RunDir(run_dir).has_made(file, checkpoint):
        return False

    return _read_translated_sources(details_file) == [
        pairs.source(idx) for idx in range(len(pairs))
    ]


def _details_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.jsonl")


def _read_translated_sources(details_file: Path) -> list[str] | None:
    try:
        return [parse_json(line)["source"] for line in read_lines(details_file)]
    # Whatever is wrong with the file, it is to be written again.
    except (WarmupError, ValueError, LookupError, TypeError):
        return None


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
            show(f"{score.name}: {score.signature}, {score.num_sentences} sentences")

    for system, row in evaluation.scores.items():
        for score in row:
            if score.details.get("num_invalid"):
                examples = cast("Sequence[str]", score.details["invalid_examples"])

                shown = [
                    f"`{_shorten(text)}`" if text else "an empty one"
                    for text in examples
                ]

                show(
                    f"invalid answers of {system}: {score.details['num_invalid']} of "
                    f"{score.num_sentences}, such as {', '.join(shown)}"
                )

                # All metrics of labels say the same.
                break


def _shorten(text: str, max_len: int = 40) -> str:
    return text if len(text) <= max_len else f"{text[:max_len]}…"


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
    report["references"] = systems[0].references_name
    report["target_lang"] = systems[0].target_lang
    report["num_sentences"] = len(systems[0].references)
    report["bootstrap"] = {"num_samples": num_bootstrap, "seed": DEFAULT_SEED}
    report["randomization"] = {"num_trials": num_randomization, "seed": DEFAULT_SEED}
    report["versions"] = collect_versions()

    return report


def write_json(file: Path, data: Mapping[str, object]) -> None:
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
