# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Where the files of a split are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from warmup_plugin.data.test_sets import find_test_set, is_test_set
from warmup_plugin.errors import WarmupError, shorten_names

FORMATS: Final = ("auto", "plain", "tsv", "jsonl", "manifest")

EXAMPLES: Final = ("pair", "multiple_choice")


@dataclass(kw_only=True)
class TextPairsConfig:
    """Configures where text pairs are and how their two sides are found."""

    path: Path | None = None
    """The folder of the data, with one file, or one pair of files, a split."""

    format: str = "auto"
    """
    The format of the files. If ``plain``, ``{split}.{source_lang}`` and
    ``{split}.{target_lang}``, one sentence a line; if ``tsv``, ``{split}.tsv``,
    tab-separated without header and quotes; if ``jsonl``, ``{split}.jsonl``, one
    object a line; if ``manifest``, the folder ``{split}`` with a ``MANIFEST`` as of
    fairseq2 0.4; if ``auto``, whichever of them is there. All files may be gzipped
    and then end in ``.gz``. An empty line is an empty pair in each format.
    """

    source_lang: str = "en"
    """The language of the sources; the file ending in ``plain``."""

    target_lang: str = "de"
    """The language of the targets; the file ending in ``plain``."""

    source_field: str = "source"
    """
    The JSON field of the source. Dots descend, as in ``translation.en``, unless the
    object has a field of just that name.
    """

    target_field: str = "target"
    """The JSON field of the target, read like ``source_field``."""

    references_field: str | None = None
    """
    The JSON field of all that is right for a source, a list of strings, read like
    ``source_field``; ``None`` for ``target_field`` with an s, such as ``targets``.
    Outputs are scored against them; training reads the target alone.
    Where an object has no such field, or if it is empty, the target is the only
    reference.
    """

    example: str = "pair"
    """
    What a JSON object is. If ``pair``, it has ``source_field`` and ``target_field``; if
    ``multiple_choice``, a question, from whose fields ``question``, ``options``,
    ``answer`` (the number of an option from 0, or its letter) and where there is one
    ``context`` source and target are made: the lettered options below the question, and
    a letter.
    """

    source_column: int = 0
    """The TSV column of the source, counted from 0."""

    target_column: int = 1
    """The TSV column of the target, counted from 0."""


def describe_split(config: TextPairsConfig, split: str) -> str:
    """Returns what messages call a split."""
    if is_test_set(split):
        return f"the test set `{split}` of `{config.source_lang}-{config.target_lang}`"

    return f"the `{split}` split of `{_get_root(config)}`"


def list_split_files(config: TextPairsConfig, split: str) -> list[Path]:
    """
    Lists the files that :func:`read_split` reads.

    :raises WarmupError: If it would not find them.
    """
    if is_test_set(split):
        source_file, reference_files = find_test_set(
            split, config.source_lang, config.target_lang
        )

        return [source_file, *reference_files]

    _, format_, files = find_split(config, split)

    if format_ != "manifest":
        return files

    # Those that it names lie below it, also in folders that are links.
    below = [
        Path(folder, name)
        for folder, _, names in os.walk(files[0].parent, followlinks=True)
        for name in names
    ]

    return sorted(file for file in below if file.is_file() and file.suffix) + files


def find_split(config: TextPairsConfig, split: str) -> tuple[Path, str, list[Path]]:
    """Returns the folder of a split, its format and its files."""
    _check_config(config)

    root = _get_root(config)

    format_, files = _find_files(config, root, split)

    # In other formats they tell no files apart, and paraphrases have only one.
    if format_ == "plain" and config.source_lang == config.target_lang:
        raise WarmupError(
            f"`dataset.source_lang` and `dataset.target_lang` must differ in the format `plain`, but both are `{config.source_lang}`."
        )

    return root, format_, files


def _check_config(config: TextPairsConfig) -> None:
    for field, value, known in (
        ("format", config.format, FORMATS),
        ("example", config.example, EXAMPLES),
    ):
        if value not in known:
            names = ", ".join(f"`{name}`" for name in known)

            raise WarmupError(
                f"`dataset.{field}` must be one of {names}, but is `{value}` instead."
            )

    if config.source_field == config.target_field:
        raise WarmupError(
            f"`dataset.source_field` and `dataset.target_field` must differ, but both are `{config.source_field}`."
        )

    if config.source_column == config.target_column:
        raise WarmupError(
            f"`dataset.source_column` and `dataset.target_column` must differ, but both are {config.source_column}."
        )

    if config.source_column < 0 or config.target_column < 0:
        raise WarmupError(
            f"`dataset.source_column` and `dataset.target_column` count from 0, but are {config.source_column} and {config.target_column} instead."
        )


def _get_root(config: TextPairsConfig) -> Path:
    if config.path is None:
        raise WarmupError(
            "The folder of the text pairs is not given: set `dataset.path`, for example with `--config dataset.path=FOLDER`."
        )

    root = Path(config.path).expanduser()

    if root.is_file():
        raise WarmupError(
            f"The data folder `{root}` is a file: give the folder that holds the files of all splits."
        )

    if not root.is_dir():
        raise WarmupError(
            f"The data folder `{root}` does not exist: check `dataset.path`, or the `path` of the direction, or give `--data` where the data of a run has moved to."
        )

    return root


def _find_files(
    config: TextPairsConfig, root: Path, split: str
) -> tuple[str, list[Path]]:
    names = {
        "plain": [f"{split}.{config.source_lang}", f"{split}.{config.target_lang}"],
        "tsv": [f"{split}.tsv"],
        "jsonl": [f"{split}.jsonl"],
        "manifest": [f"{split}/MANIFEST"],
    }

    if config.format != "auto":
        names = {config.format: names[config.format]}

    found: dict[str, list[Path]] = {}

    for format_, format_names in names.items():
        files = [find_file(root, name) for name in format_names]

        found[format_] = [file for file in files if file is not None]

    complete = [name for name, files in found.items() if len(files) == len(names[name])]

    if len(complete) > 1:
        files_text = " and ".join(
            (
                " + ".join(f"`{file.name}`" for file in found[name])
                if name != "manifest"
                else f"`{split}/MANIFEST`"
            )
            for name in complete
        )

        formats_text = " or ".join(f"`{name}`" for name in complete)

        raise WarmupError(
            f"The `{split}` split is in `{root}` more than once, as {files_text}: set `dataset.format` to {formats_text}."
        )

    if complete:
        return complete[0], found[complete[0]]

    one_side = found.get("plain", [])

    if one_side:
        missing = next(name for name in names["plain"] if find_file(root, name) is None)

        raise WarmupError(
            f"`{one_side[0]}` has no counterpart `{missing}` or `{missing}.gz`: add it or correct `dataset.source_lang` and `dataset.target_lang`."
        )

    looked_for = " or ".join(
        " + ".join(f"`{name}`" for name in format_names)
        for format_names in names.values()
    )

    raise WarmupError(
        f"`{root}` has no `{split}` split (looked for {looked_for}, gzipped or not): {_describe_folder(config, root)}."
    )


def find_file(root: Path, name: str) -> Path | None:
    file, gz_file = root.joinpath(name), root.joinpath(f"{name}.gz")

    found = [candidate for candidate in (file, gz_file) if candidate.is_file()]

    if len(found) > 1:
        raise WarmupError(
            f"`{file}` and `{gz_file.name}` both exist: remove the one that is out of date."
        )

    return found[0] if found else None


def _describe_folder(config: TextPairsConfig, root: Path) -> str:
    endings = {f".{config.source_lang}", f".{config.target_lang}", ".tsv", ".jsonl"}

    splits, names = set(), []

    for child in sorted(root.iterdir()):
        # Such as that of caches.
        if child.name.startswith("."):
            continue

        names.append(f"`{child.name}`")

        if any(child.joinpath(f"MANIFEST{end}").is_file() for end in ("", ".gz")):
            splits.add(f"`{child.name}`")

        file = child.with_suffix("") if child.suffix == ".gz" else child

        if file.suffix in endings:
            splits.add(f"`{file.stem}`")

    if splits:
        return f"the splits there are {shorten_names(sorted(splits))}"

    if names:
        return f"it has no split of these languages at all, only {shorten_names(names)}"

    return "the folder is empty"
