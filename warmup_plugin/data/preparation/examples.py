# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

from warmup_plugin.blank import is_blank
from warmup_plugin.data.preparation.data_folder import DataFolder, Inputs, Origin
from warmup_plugin.data.preparation.files import write_json_lines
from warmup_plugin.data.preparation.text import HeldOutText
from warmup_plugin.data.text_lines import iter_lines
from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import parse_json

Example: TypeAlias = dict[str, Any]
"""A JSON object with ``source`` and ``target``, and whatever else is known."""

SPLITS: Final = ("train", "valid", "test")


def prepare_examples(
    folder: DataFolder,
    inputs: Inputs,
    examples: Mapping[str, Iterable[Example]],
    *,
    origin: Origin,
    num_published: Mapping[str, int],
    drop_overlap: bool = False,
    notes: Iterable[str] = (),
) -> str:
    """
    Writes ``{split}.jsonl`` for each split.

    Examples with an empty source or target are dropped. Those of ``train`` whose source
    occurs in another split are counted and, with ``drop_overlap``, dropped.

    :param examples: The examples of each split; they are read once, as a stream.
    :param num_published: How many examples each split has as published, where known.

    :returns: The key of the entry in the data card.
    """
    key = origin.title

    if folder.is_done(key, inputs):
        return key

    names = {split: f"{split}.jsonl" for split in examples}

    folder.start(key, inputs, names.values())

    counts: dict[str, dict[str, int]] = {}

    held_out = HeldOutText()

    # `train` last: by then it is known what the other splits hold.
    for split in sorted(examples, key=lambda split: split == "train"):
        counts[split] = {"read": 0, "dropped, an empty source or target": 0}

        if split == "train" and len(examples) > 1:
            counts[split]["source occurs in another split"] = 0

        rows = _filter(examples[split], split, counts[split], held_out, drop_overlap)

        write_json_lines(folder.path / names[split], rows)

    all_notes = list(notes)

    for split in examples:
        num_read = counts[split]["read"]

        if num_read != num_published.get(split, num_read):
            all_notes.append(
                f"`{split}` has {num_read:,} examples instead of the {num_published[split]:,} that were published."
            )

    folder.finish(
        key,
        names.values(),
        origin=origin,
        counts={
            f"{split}: {what}": num
            for split in examples
            for what, num in counts[split].items()
        },
        notes=all_notes,
    )

    return key


def iter_rows(file: Path) -> Iterator[tuple[Any, str]]:
    """Reads JSON lines as their authors published them; what is in a line, and where it
    stands, for messages."""
    for line_nr, line in enumerate(iter_lines(file), start=1):
        if not line:
            continue

        where = f"Line {line_nr} of `{file}`"

        try:
            yield parse_json(line), where
        except ValueError as ex:
            raise WarmupError(
                f"{where} is not valid JSON ({ex}): download the file again."
            ) from None


def check_fields(
    row: Any, fields: Mapping[str, tuple[type[object], str]], where: str, remedy: str
) -> None:
    """
    Checks that a row is an object with some fields.

    :param fields: The type of each field, and what a message calls it.

    :raises WarmupError: If it is not.
    """
    for field, (kls, kind) in fields.items():
        if not isinstance(row, dict) or not isinstance(row.get(field), kls):
            raise WarmupError(f"{where} must have {kind} in field `{field}`{remedy}.")


def _filter(
    examples: Iterable[Example],
    split: str,
    counts: dict[str, int],
    held_out: HeldOutText,
    drop_overlap: bool,
) -> Iterator[Example]:
    num_kept = 0

    for example in examples:
        counts["read"] += 1

        if is_blank(example["source"]) or is_blank(example["target"]):
            counts["dropped, an empty source or target"] += 1

            continue

        if split != "train":
            held_out.add(example["source"])
        elif example["source"] in held_out:
            counts["source occurs in another split"] += 1

            if drop_overlap:
                continue

        num_kept += 1

        yield example

    counts["written"] = num_kept
