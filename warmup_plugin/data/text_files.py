# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Files of one text a line: plain, JSON lines or TSV, told apart by their names."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

from warmup_plugin.data.json_lines import (
    get_json_list,
    has_json_field,
    iter_json_objects,
    iter_json_texts,
)
from warmup_plugin.data.text_lines import iter_lines, iter_raw_lines
from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import parse_json_leniently

DEFAULT_FIELDS: Final = {
    # As `generate` and `translate --jsonl` write it.
    "hypotheses": "output",
    "references": "target",
    "sources": "source",
    "targets": "target",
}
"""The JSON field of what a file holds."""

DEFAULT_COLUMNS: Final = {"references": 1, "sources": 0, "targets": 1}
"""The TSV column of what a file holds; nobody knows where hypotheses are."""

_JSON_ENDINGS: Final = (".jsonl", ".ndjson", ".json")

# Of one line it may be chance.
_NUM_LINES_TRIED: Final = 3


@final
@dataclass(frozen=True, kw_only=True)
class TextPlaces:
    """Says where the texts are in files that hold more than one a line."""

    fields: Mapping[str, str] = field(default_factory=dict)
    """The JSON field by what a file holds, such as ``references``."""

    columns: Mapping[str, int] = field(default_factory=dict)
    """The TSV column, counted from 0."""


_NO_PLACES: Final = TextPlaces()


def is_json_lines(path: Path) -> bool:
    return _get_ending(path) in _JSON_ENDINGS


def is_tsv(path: Path) -> bool:
    return _get_ending(path) == ".tsv"


def _get_ending(path: Path) -> str:
    return (path.with_suffix("") if path.suffix == ".gz" else path).suffix.lower()


def read_texts(path: Path, what: str, places: TextPlaces = _NO_PLACES) -> list[str]:
    """
    Reads a file of one text a line.

    :param what: What the file holds, one of :data:`DEFAULT_FIELDS`.

    :returns: The texts, stripped of surrounding whitespace; those of JSON lines may hold
        line feeds. An empty line is an empty text.

    :raises WarmupError: If the file cannot be read, has no such field or column, or
        holds JSON lines under another name.
    """
    return list(iter_texts(path, what, places))


def iter_texts(path: Path, what: str, places: TextPlaces = _NO_PLACES) -> Iterator[str]:
    """Reads a file like :func:`read_texts` without holding it in memory."""
    if is_json_lines(path):
        name = places.fields.get(what, DEFAULT_FIELDS[what])

        for texts in iter_json_texts(path, [("--json-fields", name)]):
            yield texts[0] if texts else ""
    elif is_tsv(path):
        yield from _iter_cells(path, what, places)
    else:
        yield from iter_plain(path)


def read_references(
    paths: Sequence[Path], places: TextPlaces = _NO_PLACES
) -> list[list[str]]:
    """
    Reads the references of each sentence.

    :param paths: Files of as many lines each. A field of JSON lines may hold a list;
        without a name for it that is ``targets``, or ``target`` where that is null, empty
        or not there.

    :returns: What the files have in a line, one after another. An empty line of one file
        stands for a reference that is missing, of all files for an empty text.

    :raises WarmupError: See :func:`read_texts`; or if the files do not have as many
        lines.
    """
    columns = [list(_iter_references(path, places)) for path in paths]

    for path, column in zip(paths, columns):
        if len(column) != len(columns[0]):
            raise WarmupError(
                f"`{path}` has {len(column)} lines but `{paths[0]}` has {len(columns[0])}; each file must have a reference of each sentence, or an empty line."
            )

    return [
        [text for texts in row for text in texts if text] or [""]
        for row in zip(*columns)
    ]


def _iter_references(path: Path, places: TextPlaces) -> Iterator[list[str]]:
    if not is_json_lines(path):
        for text in iter_texts(path, "references", places):
            yield [text]

        return

    name = places.fields.get("references")

    default = DEFAULT_FIELDS["references"]

    plural = f"{default}s"

    for value, where in iter_json_objects(path):
        if value is None:
            yield []

            continue

        if name is not None:
            yield get_json_list(value, name, where)

            continue

        texts: list[str] = []

        if has_json_field(value, plural):
            texts = get_json_list(value, plural, where)

        # As in a data folder.
        if not texts and (default in value or plural not in value):
            texts = get_json_list(value, default, where)

        yield texts


def iter_plain(path: Path) -> Iterator[str]:
    """
    Reads a file of one text a line, whatever its name is.

    :raises WarmupError: If it holds JSON lines.
    """
    yield from refuse_json(
        iter_lines(path),
        f"`{path}`",
        "let its name end in `.jsonl` or `.jsonl.gz`, of which a field is read",
    )


def flatten(text: str) -> str:
    """Puts a text on one line, as `generate` writes it beside its JSON lines."""
    return " ".join(text.splitlines())


def iter_all_texts(path: Path) -> Iterator[str]:
    """
    Reads all lines of a file; of JSON lines, those of all strings in them, of TSV all
    cells.
    """
    if is_json_lines(path):
        for value, _ in iter_json_objects(path):
            for text in _list_strings(value):
                yield from text.split("\n")
    elif is_tsv(path):
        for line in iter_raw_lines(path):
            yield from line.split("\t")
    else:
        yield from iter_plain(path)


def _list_strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]

    if isinstance(value, dict):
        return [text for item in value.values() for text in _list_strings(item)]

    if isinstance(value, list):
        return [text for item in value for text in _list_strings(item)]

    return []


def _iter_cells(path: Path, what: str, places: TextPlaces) -> Iterator[str]:
    column = places.columns.get(what, DEFAULT_COLUMNS.get(what))

    for line_nr, line in enumerate(iter_raw_lines(path), start=1):
        if not line.strip():
            yield ""

            continue

        cells = line.split("\t")

        if column is None and len(cells) > 1:
            raise WarmupError(
                f"`{path}` has {len(cells)} columns, of which one holds the {what}; name it, counted from 0, for example with `--columns {what}=1`."
            )

        if len(cells) <= (column or 0):
            raise WarmupError(
                f"Line {line_nr} of `{path}` has too few columns ({len(cells)}), since column {column} (counted from 0) is read; correct the line, or give `--columns {what}=N`."
            )

        yield cells[column or 0].strip()


def refuse_json(lines: Iterable[str], origin: str, remedy: str) -> Iterator[str]:
    """
    Hands lines on, the first ones only when they are known to be text.

    :param origin: What an error calls them.

    :raises WarmupError: If plain lines turn out to be JSON objects, which nobody
        translates.
    """
    num_objects: int | None = 0

    held: list[str] = []

    for line in lines:
        if num_objects is None:
            yield line

            continue

        held.append(line)

        if _is_object(line):
            num_objects += 1
        elif line:
            num_objects = None

        if num_objects is None:
            yield from held

            held = []
        elif num_objects >= _NUM_LINES_TRIED:
            break

    if num_objects:
        raise WarmupError(
            f"{origin[:1].upper()}{origin[1:]} holds JSON lines, not text; {remedy}."
        )

    yield from held


def _is_object(line: str) -> bool:
    if not line.startswith("{"):
        return False

    try:
        return isinstance(parse_json_leniently(line), dict)
    except ValueError:
        return False


def add_place_arguments(parser: ArgumentParser, whats: Sequence[str]) -> None:
    """
    Adds what names fields and columns; :func:`read_place_arguments` reads it.

    :param whats: What the files of the command hold.
    """
    fields = ", ".join(f"`{DEFAULT_FIELDS[w]}` for {w}" for w in whats)

    parser.add_argument(
        "--json-fields",
        nargs="+",
        metavar="[WHAT=]FIELD",
        help=f"the fields to read of `.jsonl` files, such as `{whats[0]}=text`; without WHAT, that of the files that have it (default: {fields})",
    )

    columns = [f"{DEFAULT_COLUMNS[w]} for {w}" for w in whats if w in DEFAULT_COLUMNS]

    parser.add_argument(
        "--columns",
        nargs="+",
        metavar="[WHAT=]N",
        help=f"the columns to read of `.tsv` files, counted from 0 (default: {', '.join(columns)})",
    )


def read_place_arguments(
    args: Namespace, files: Mapping[str, Sequence[Path]]
) -> TextPlaces:
    """
    Reads what :func:`add_place_arguments` added.

    :param files: The files of the command by what they hold.

    :raises WarmupError: If an argument says nothing of these files.
    """
    fields: dict[str, str] = {}

    for given in args.json_fields or []:
        what, is_named, name = given.partition("=")

        json_files = {
            w: [f for f in paths if is_json_lines(f)] for w, paths in files.items()
        }

        if is_named and what in files:
            chosen = [what] if json_files[what] else []
        else:
            name = given

            chosen = _find_owners(name, json_files)

        if not name or not chosen:
            raise WarmupError(
                f"`--json-fields {given}` is of no use, since no such file is `.jsonl` or has this field; leave it out, or correct the field or the name of the file."
            )

        fields.update(dict.fromkeys(chosen, name))

    columns: dict[str, int] = {}

    for given in args.columns or []:
        what, is_named, number = given.rpartition("=")

        whats = [what] if is_named else list(files)

        chosen = [w for w in whats if any(map(is_tsv, files.get(w, ())))]

        if not (number.isascii() and number.isdecimal()) or not chosen:
            names = ", ".join(f"`{w}=N`" for w in files)

            raise WarmupError(
                f"`--columns {given}` is no column, counted from 0, of a `.tsv` file of this command; give a number, or one of {names}."
            )

        columns.update(dict.fromkeys(chosen, int(number)))

    return TextPlaces(fields=fields, columns=columns)


def _find_owners(name: str, files: Mapping[str, Sequence[Path]]) -> list[str]:
    """Finds the files that have a field, by what they hold."""
    owners = [
        what
        for what, paths in files.items()
        if paths and all(_has_field(path, name) for path in paths)
    ]

    # `generate` copies sources: is the field that of the hypotheses too?
    doubtful = [
        what
        for what in owners
        if name != DEFAULT_FIELDS[what]
        and any(_has_field(path, DEFAULT_FIELDS[what]) for path in files[what])
    ]

    if len(owners) > 1 and doubtful:
        raise WarmupError(
            f"The field `{name}` is in the files of {' and '.join(owners)}; say which of them `--json-fields` means, for example `{owners[-1]}={name}`."
        )

    return owners


def _has_field(path: Path, name: str) -> bool:
    try:
        return any(
            value is not None and has_json_field(value, name)
            for value, _ in iter_json_objects(path)
        )
    # What else is wrong is said where the file is read.
    except WarmupError:
        return False
