# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from warmup_plugin.data.preparation.data_folder import DataFolder, Inputs, Origin
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.examples import (
    SPLITS,
    Example,
    check_fields,
    iter_rows,
    prepare_examples,
)
from warmup_plugin.data.preparation.files import find_file, hash_files
from warmup_plugin.data.questions import format_question
from warmup_plugin.errors import WarmupError

URL: Final = (
    "https://raw.githubusercontent.com/csitfun/LogiQA2.0/main/logiqa/DATA/LOGIQA"
)

# What the authors call our splits.
_NAMES: Final = {"train": "train", "valid": "dev", "test": "test"}

_NUM_PUBLISHED: Final = {
    "en": {"train": 12567, "valid": 1569, "test": 1572},
    # Of the training split no number is at hand.
    "zh": {"valid": 1593, "test": 1594},
}

_FIELDS: Final[Mapping[str, tuple[type[object], str]]] = {
    "text": (str, "a string"),
    "question": (str, "a string"),
    "options": (list, "a list"),
    "answer": (int, "a number"),
}

_LETTERS: Final = "ABCDEFGH"

# The options of the Chinese files begin with their letters, in either width and before
# punctuation of any kind or the text at once.
_LETTERED: Final = re.compile(
    r"[(（]?([A-HＡ-Ｈ])(?:\s*[.．。、,，:：)）]+\s*|(?=\s*[^\x00-\x7f])\s*)"
)


def prepare_logiqa(
    folder: DataFolder,
    *,
    lang: str = "en",
    splits: Sequence[str] = SPLITS,
    source: Path | None = None,
    url: str = URL,
    downloads: Path,
    downloader: Downloader,
    drop_overlap: bool = False,
) -> str:
    """
    Writes the multiple choice questions of LogiQA 2.0 as JSON lines.

    Each has the fields of the authors (``id``, ``context``, ``question``, ``options``,
    ``answer`` counted from 0, ``types`` of reasoning) and, ready to train with,
    ``source`` (context, question and lettered options, each in a line of its own) and
    ``target`` (the letter of the answer).

    :param lang: ``en`` or ``zh``.
    :param source: A folder of the authors' files. If ``None``, they are downloaded.
    :param url: The folder to download them from.

    :returns: The key of the entry in the data card.
    """
    suffix = "" if lang == "en" else f"_{lang}"

    files: dict[str, Path] = {}

    sources: dict[str, str] = {}

    for split in splits:
        name = f"{_NAMES[split]}{suffix}"

        if source is None:
            files[split] = downloads / f"logiqa2_{name}.txt"

            sources |= downloader.fetch(f"{url}/{name}.txt", files[split])
        else:
            files[split] = find_file(source, [f"{name}.txt", f"{name}.jsonl"], split)

            sources |= hash_files([files[split]])

    inputs = Inputs(
        sources=sources,
        settings={"lang": lang, "splits": list(splits), "drop_overlap": drop_overlap},
    )

    title = f"LogiQA 2.0 ({lang})"

    return prepare_examples(
        folder,
        inputs,
        {split: read_questions(files[split]) for split in splits},
        origin=Origin(
            title=title,
            page="https://github.com/csitfun/LogiQA2.0",
            version="2.0",
            license="CC BY-NC-SA 4.0, not for commercial use",
            citation="Liu et al., LogiQA 2.0 - An Improved Dataset for Logical Reasoning in Natural Language Understanding, IEEE/ACM Transactions on Audio, Speech, and Language Processing 31, 2023",
        ),
        num_published=_NUM_PUBLISHED[lang],
        drop_overlap=drop_overlap,
    )


def read_questions(file: Path) -> Iterator[Example]:
    """Reads and checks the questions of a file as of the authors."""
    for row, where in iter_rows(file):
        yield _convert(row, where)


def _convert(row: Any, where: str) -> Example:
    check_fields(
        row,
        _FIELDS,
        where,
        ": give the multiple choice files of LogiQA 2.0, not those of its inference task",
    )

    options = [str(option).strip() for option in row["options"]]

    if not 2 <= len(options) <= len(_LETTERS) or not 0 <= row["answer"] < len(options):
        raise WarmupError(
            f"{where} has {len(options)} options and the answer {row['answer']} (counted from 0), which fits no question: correct the line."
        )

    options = _strip_letters(options)

    context, question = row["text"].strip(), row["question"].strip()

    return {
        "id": row.get("id"),
        "context": context,
        "question": question,
        "options": options,
        "answer": row["answer"],
        # An object of which all values are true; Chinese files have none.
        "types": list(row.get("type", {})),
        "source": format_question(context, question, options),
        "target": _LETTERS[row["answer"]],
    }


def _strip_letters(options: list[str]) -> list[str]:
    """Strips ``A.``, ``B，``, … if that is how the options begin, all in order."""
    matches = [_LETTERED.match(option) for option in options]

    letters = "".join(match[1] for match in matches if match is not None)

    letters = unicodedata.normalize("NFKC", letters)

    if letters != _LETTERS[: len(options)]:
        return options

    return [_LETTERED.sub("", option, count=1) for option in options]
