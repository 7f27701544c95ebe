# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The outputs of systems and what they are scored against: of runs and of files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from warmup_plugin.console import quiet_log
from warmup_plugin.data.directions import (
    choose_direction,
    get_pairs_config,
    narrow_to_direction,
)
from warmup_plugin.data.text_files import (
    TextPlaces,
    flatten,
    is_json_lines,
    is_tsv,
    read_references,
    read_texts,
)
from warmup_plugin.data.text_lines import read_lines
from warmup_plugin.data.text_pairs import TextPairs, read_split
from warmup_plugin.errors import WarmupError
from warmup_plugin.late_imports import import_fairseq2
from warmup_plugin.metrics.base import References
from warmup_plugin.parsing import parse_json
from warmup_plugin.runs.outputs import details_file, translation_file
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.terminal import show


@final
@dataclass(frozen=True)
class System:
    """The outputs of one system and what they are scored against."""

    name: str

    hypotheses_file: Path

    hypotheses: Sequence[str]

    references_name: str
    """What tells the number of sentences: of what has no references the sources."""

    references: References

    target_lang: str | None

    sources: Sequence[str] | None = None
    """``None`` if they are not known."""

    documents: Sequence[str | None] = ()
    """The document of each source; empty if none is known."""

    @property
    def joined_references(self) -> list[str]:
        """All references of each sentence as one text, to be shown."""
        return ["\n".join(texts) for texts in self.references]


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


def read_files(
    hypotheses_files: Sequence[Path],
    references_files: Sequence[Path] | None,
    sources_file: Path | None,
    target_lang: str | None,
    places: TextPlaces = TextPlaces(),
) -> list[System]:
    """
    Reads outputs from files: text, JSON lines or TSV.

    :param references_files: ``None`` if there are none; then there must be sources.
    """
    sources = None

    if sources_file is not None:
        sources = read_texts(sources_file, "sources", places)

    references: References

    if references_files is None:
        assert sources is not None

        references, references_name = [[] for _ in sources], str(sources_file)
    else:
        references = read_references(references_files, places)

        references_name = ", ".join(map(str, references_files))

    if sources is not None:
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
            self._documents,
        )

    @property
    def _documents(self) -> list[str | None]:
        documents = [self.pairs.document(idx) for idx in range(len(self.pairs))]

        return documents if any(documents) else []


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Says which outputs of a run are meant."""

    split: str | None = None
    """Split of the runs (default: ``dataset.test_split`` of the run)."""

    checkpoint: str = "best"
    """Checkpoint of the runs (default: best)."""

    data: Path | None = None
    """The data folder, if it is no longer where the runs were trained."""

    direction: str | None = None
    """One of the directions of runs that have several, such as `en-de` (`evaluate` without it: all, one after the other)."""

    target_lang: str | None = None
    """The language that selects tokenizers; ``None`` for that of the run."""

    truncate: bool = False
    """Where runs translate, cut a source that is longer than the model reads instead of refusing it; how many is said."""


def read_run_texts(run_dir: Path, options: RunOptions) -> RunTexts:
    """Reads what a run would translate; see :func:`read_run`."""
    run_config = read_config(run_dir)

    direction = choose_direction(run_config, options.direction, run_dir)

    run_config = narrow_to_direction(
        run_config, direction, data_dir=options.data, find_data=True
    )

    split = options.split

    if split is None:
        split = str(run_config["dataset"].get("test_split", "test"))

    config = get_pairs_config(run_config["dataset"])

    return RunTexts(read_split(config, split), config.target_lang, direction)


def read_run(run_dir: Path, options: RunOptions) -> System:
    """
    Reads what a run makes of a split, which is translated first where it is not yet.
    """
    # Before generating, which takes longer to fail.
    texts = read_run_texts(run_dir, options)

    file = _ensure_translations(
        run_dir,
        texts.pairs,
        replace(options, split=texts.pairs.split, direction=texts.direction),
    )

    return texts.make_system(
        str(run_dir), file, _read_outputs(file, texts.pairs), options.target_lang
    )


def read_hypotheses(file: Path, places: TextPlaces = TextPlaces()) -> list[str]:
    """
    Reads a file of outputs.

    Text that `generate` has written has JSON lines beside it, which alone hold the line
    feeds inside outputs; they are read as long as they say the same.
    """
    hypotheses = read_texts(file, "hypotheses", places)

    details = details_file(file)

    if is_json_lines(file) or is_tsv(file) or not details.is_file():
        return hypotheses

    try:
        outputs = read_texts(details, "hypotheses")
    # They are of something else.
    except WarmupError:
        return hypotheses

    if [flatten(output) for output in outputs] != hypotheses:
        return hypotheses

    return outputs


def _read_outputs(file: Path, pairs: TextPairs) -> list[str]:
    """
    Reads what a run made of pairs from the JSON lines, where line feeds are kept.

    :raises WarmupError: Lines were lost, moved or changed since they were written.
    """
    hypotheses = read_lines(file)

    details = details_file(file)

    records = read_lines(details)

    remedy = "delete both files and run the command again, which translates anew"

    if len(hypotheses) != len(records):
        raise WarmupError(
            f"{file} has {len(hypotheses)} lines but {details} has {len(records)}; "
            f"{remedy}."
        )

    if len(records) != len(pairs):
        raise WarmupError(
            f"{details} has {len(records)} lines but {pairs.origin} has "
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
                f"Line {idx + 1} of {details} is no object with `source` and "
                f"`output`; {remedy}."
            ) from None

        if source != pairs.source(idx):
            raise WarmupError(
                f"Line {idx + 1} of {details} has another source than "
                f"{pairs.origin}; {remedy}."
            )

        if hypothesis != flatten(output):
            raise WarmupError(
                f"Line {idx + 1} of {file} is not the output in that line of "
                f"{details}, so that lines may have moved; {remedy}."
            )

        outputs.append(output)

        num_cut += bool(record.get("truncated"))

    if num_cut > 0:
        show(
            f"{num_cut:,} of the {len(outputs):,} sources of {details} were cut, since the model reads no longer ones",
            file=sys.stderr,
        )

    return outputs


def read_config(run_dir: Path) -> dict[str, Any]:
    """
    Reads the configuration of a run that is to be scored.

    :raises WarmupError: If it says nothing of data.
    """
    # fairseq2 takes seconds; files are scored without.
    import_fairseq2()

    from warmup_plugin.recipes.checks import read_run_config

    config = read_run_config(RunDir(run_dir))

    if not isinstance(config.get("dataset"), dict):
        raise WarmupError(
            f"{RunDir(run_dir).run_file} has no section `dataset`; restore the file "
            "that `recipes.train` wrote."
        )

    return config


def _ensure_translations(run_dir: Path, pairs: TextPairs, options: RunOptions) -> Path:
    checkpoint, direction = options.checkpoint, options.direction

    file = translation_file(run_dir, pairs.split, direction, checkpoint)

    if _is_current(file, run_dir, checkpoint, pairs):
        return file

    # fairseq2 takes seconds.
    import_fairseq2()

    from warmup_plugin.recipes.job_options import GenerateOptions
    from warmup_plugin.recipes.jobs import generate

    job_options = GenerateOptions(
        run_dir=run_dir,
        checkpoint=checkpoint,
        direction=direction,
        data_dir=options.data,
        truncate=options.truncate,
        split=pairs.split,
    )

    with quiet_log():
        status = generate(job_options)

    if status != 0:
        raise WarmupError(
            f"The {pairs.split} split cannot be translated with {run_dir}; see the "
            "message above."
        )

    return file


def _is_current(file: Path, run_dir: Path, checkpoint: str, pairs: TextPairs) -> bool:
    """Tells whether a translation is there, of this model and of this text."""
    details = details_file(file)

    if not details.is_file() or not RunDir(run_dir).has_made(file, checkpoint):
        return False

    try:
        sources = [parse_json(line)["source"] for line in read_lines(details)]
    # Whatever is wrong with the file, it is to be written again.
    except (WarmupError, ValueError, LookupError, TypeError):
        return False

    return sources == [pairs.source(idx) for idx in range(len(pairs))]
