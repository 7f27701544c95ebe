# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from warmup_plugin.data.preparation.data_folder import DataFolder, Inputs, Origin
from warmup_plugin.data.preparation.files import hash_files
from warmup_plugin.data.preparation.filters import FilterConfig, PairFilter
from warmup_plugin.data.preparation.parallel import Corpus, write_pairs
from warmup_plugin.data.preparation.text import HeldOutText
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.language_id import LanguageIdentifier


@final
@dataclass(kw_only=True)
class TrainingFilter:
    """Filters training text, and draws some of the pairs that are left."""

    source_lang: str

    target_lang: str

    config: FilterConfig = field(default_factory=FilterConfig)

    held_out_files: Sequence[Path] = ()
    """Files of one sentence a line, in either language, that training must not see."""

    identifier: LanguageIdentifier | None = None

    max_pairs: int | None = None
    """The most pairs to draw; ``None`` to keep all."""

    seed: int = 1

    def __post_init__(self) -> None:
        """
        :raises WarmupError: If a file is not there, or the two sides would have one file.
        """
        for file in self.held_out_files:
            if not file.is_file():
                raise WarmupError(f"`--held-out {file}` is not a file: check the path.")

        if self.source_lang == self.target_lang:
            raise WarmupError(
                f"`--source-lang` and `--target-lang` must differ, but both are `{self.source_lang}`."
            )

        self.held_out = HeldOutText()

        self._filter = PairFilter(
            self.config,
            self.source_lang,
            self.target_lang,
            held_out=self.held_out,
            identifier=self.identifier,
        )

    def describe(self) -> dict[str, Any]:
        """Returns all that the result depends on besides the text."""
        return self._filter.describe() | {
            "held_out": [str(file) for file in self.held_out_files],
            "max_pairs": self.max_pairs,
            "seed": self.seed,
        }

    def write(
        self, pairs: Iterable[tuple[str, str]], files: Sequence[Path]
    ) -> dict[str, int]:
        """
        Writes what is left of pairs.

        :param files: That of the sources and that of the targets.

        :returns: How many pairs were read, dropped and kept.
        """
        for file in self.held_out_files:
            self.held_out.add_file(file)

        source_file, target_file = files

        num_written = write_pairs(
            self._filter.filter(pairs),
            source_file,
            target_file,
            max_pairs=self.max_pairs,
            seed=self.seed,
        )

        counts = self._filter.counts()

        if self.max_pairs is not None:
            counts["pairs drawn"] = num_written

        return counts

    def list_notes(self) -> list[str]:
        """Returns notes on what the filters could see."""
        notes = []

        if len(self.held_out) > 0:
            notes.append(
                f"Pairs were dropped of which a side is one of {len(self.held_out):,} held-out sentences, regardless of case, punctuation and spaces."
            )
        else:
            notes.append(
                "Nothing was held out: overlap with test sets was not checked."
            )

        if self.identifier is None:
            notes.append(
                "Languages were not identified: no library for it was there or asked for."
            )

        return notes


def filter_corpus(
    folder: DataFolder,
    corpus: Corpus,
    training_filter: TrainingFilter,
    *,
    split: str = "train",
    origin: Origin,
) -> str:
    """
    Writes the pairs of a corpus that pass the filters as ``{split}.{lang}``.

    :returns: The key of the entry in the data card.
    """
    key = f"{origin.title}: {split}"

    inputs = Inputs(
        sources=hash_files([*corpus.files, *training_filter.held_out_files]),
        settings=training_filter.describe(),
    )

    if folder.is_done(key, inputs):
        return key

    langs = (training_filter.source_lang, training_filter.target_lang)

    names = [f"{split}.{lang}" for lang in langs]

    paths = [folder.path / name for name in names]

    for file in corpus.files:
        if file.resolve() in [path.resolve() for path in paths]:
            raise WarmupError(
                f"`{file}` would be overwritten by its own filtered text: write it to another folder."
            )

    folder.start(key, inputs, names)

    counts = training_filter.write(corpus, paths)

    folder.finish(
        key, names, origin=origin, counts=counts, notes=training_filter.list_notes()
    )

    return key
