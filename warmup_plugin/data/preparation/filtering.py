# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from warmup_plugin.data.preparation.data_folder import DataFolder, Inputs, Origin
from warmup_plugin.data.preparation.files import hash_file
from warmup_plugin.data.preparation.filters import FilterConfig, PairFilter
from warmup_plugin.data.preparation.held_out import HeldOutText
from warmup_plugin.data.preparation.parallel import Corpus, write_pairs
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.language_id import LanguageIdentifier


def filter_corpus(
    folder: DataFolder,
    corpus: Corpus,
    config: FilterConfig,
    *,
    source_lang: str,
    target_lang: str,
    split: str = "train",
    held_out_files: Sequence[Path] = (),
    identifier: LanguageIdentifier | None = None,
    max_pairs: int | None = None,
    seed: int = 1,
    origin: Origin,
    force: bool = False,
) -> str:
    """
    Writes the pairs of a corpus that pass the filters as ``{split}.{lang}``.

    :param held_out_files: Files of one sentence a line, in either language, that training
        must not see.

    :returns: The key of the entry in the data card.
    """
    check_held_out_files(held_out_files)

    check_langs(source_lang, target_lang)

    key = f"{origin.title}: {split}"

    held_out = HeldOutText()

    pair_filter = PairFilter(
        config, source_lang, target_lang, held_out=held_out, identifier=identifier
    )

    inputs = Inputs(
        sources={
            str(file): hash_file(file) for file in [*corpus.files, *held_out_files]
        },
        settings=pair_filter.describe()
        | {
            "held_out": [str(file) for file in held_out_files],
            "max_pairs": max_pairs,
            "seed": seed,
        },
    )

    if folder.is_done(key, inputs):
        return key

    for file in held_out_files:
        held_out.add_file(file)

    names = [f"{split}.{lang}" for lang in (source_lang, target_lang)]

    paths = [folder.path / name for name in names]

    for file in corpus.files:
        if file.resolve() in [path.resolve() for path in paths]:
            raise WarmupError(
                f"`{file}` would be overwritten by its own filtered text: write it to another folder."
            )

    folder.start(key, inputs, names, force=force)

    num_written = write_pairs(
        pair_filter.filter(corpus), paths[0], paths[1], max_pairs=max_pairs, seed=seed
    )

    counts = pair_filter.counts()

    if max_pairs is not None:
        counts["pairs drawn"] = num_written

    folder.finish(
        key,
        names,
        origin=origin,
        counts=counts,
        notes=describe_filters(held_out, identifier),
    )

    return key


def check_held_out_files(files: Sequence[Path]) -> None:
    """Raises an error if there is none of a file."""
    for file in files:
        if not file.is_file():
            raise WarmupError(f"`--held-out {file}` is not a file: check the path.")


def check_langs(source_lang: str, target_lang: str) -> None:
    """Raises an error if the two sides would have one file."""
    if source_lang == target_lang:
        raise WarmupError(
            f"`--source-lang` and `--target-lang` must differ, but both are `{source_lang}`."
        )


def describe_filters(
    held_out: HeldOutText, identifier: LanguageIdentifier | None
) -> list[str]:
    """Returns notes on what the filters could see."""
    notes = []

    if len(held_out) > 0:
        notes.append(
            f"Pairs were dropped of which a side is one of {len(held_out):,} held-out sentences, regardless of case, punctuation and spaces."
        )
    else:
        notes.append("Nothing was held out: overlap with test sets was not checked.")

    if identifier is None:
        notes.append(
            "Languages were not identified: no library for it was there or asked for."
        )

    return notes
