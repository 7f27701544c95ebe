# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Tokenised corpora in files, which are mapped into memory instead of read.

A folder of the cache holds one corpus: its arrays as ``.npy`` files and the rest in
``corpus.json``. Its name says what it was made of, so that nothing in it grows out of date,
and all of it may be deleted: processes that have mapped the files keep them.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from secrets import token_hex
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from warmup_plugin.data.corpus import Corpus, CorpusReport, TokenSeqs
from warmup_plugin.data.text_pairs import TextPairs
from warmup_plugin.errors import WarmupError
from warmup_plugin.files import open_new

CACHE_FOLDER: Final = ".warmup_cache"
"""The name of the folder of caches beside the data."""

# Raised whenever the same text would be read, tokenised or stored in another way.
_FORMAT: Final = 2

_RECORD: Final = "corpus.json"


@final
@dataclass(frozen=True)
class Note:
    """Holds a line that the log tells of a corpus."""

    text: str

    is_warning: bool = False


def make_cache_name(split: str, files: Iterable[Path], settings: object) -> str:
    """
    Names a corpus by all that it is made of.

    :param files: The files that are read: text and tokenizer. What is in them counts, not
        where they are.
    :param settings: All else that makes a difference, as JSON can write it.

    :raises WarmupError: If one of the files cannot be read.
    """
    digest = blake2b(digest_size=12)

    facts = [_FORMAT, settings]

    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())

    for file in files:
        try:
            digest.update(f"\n{file.name}\n{file.stat().st_size}\n".encode())

            with file.open("rb") as fp:
                while block := fp.read(1 << 20):
                    digest.update(block)
        except OSError as ex:
            raise WarmupError(
                f"`{file}` cannot be read ({ex.strerror or ex}): check that it is a file and its permissions."
            ) from None

    return f"{split}-{digest.hexdigest()}"


def save_corpus(folder: Path, corpus: Corpus, notes: Sequence[Note]) -> None:
    """
    Writes a corpus into a folder, which is there only once it is complete.

    A folder that is there already, since another process was faster, stays.

    :raises OSError: If it cannot be written; then nothing is left.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)

    temp_folder = folder.with_name(f"{folder.name}.{token_hex(8)}.tmp")

    temp_folder.mkdir()

    try:
        for name, array in _list_arrays(corpus).items():
            with open_new(temp_folder / f"{name}.npy") as fp:
                np.save(fp, array)

                _sync(fp.fileno())

        record = {
            "report": asdict(corpus.report),
            "directions": list(corpus.directions),
            "digest": corpus.digest,
            "has_given": corpus.given_lens is not None,
            "notes": [asdict(note) for note in notes],
            "parts": [
                {"references": dict(part.several_references)} for part in corpus.parts
            ],
        }

        with open_new(temp_folder / _RECORD) as fp:
            fp.write(json.dumps(record, ensure_ascii=False).encode("utf-8"))

            _sync(fp.fileno())

        try:
            temp_folder.rename(folder)
        except OSError:
            if not folder.joinpath(_RECORD).is_file():
                raise
    finally:
        shutil.rmtree(temp_folder, ignore_errors=True)


def load_corpus(
    folder: Path, origins: Sequence[str]
) -> tuple[Corpus, list[Note]] | None:
    """
    Maps a corpus of :func:`save_corpus` into memory.

    :param origins: What messages call the split of each part, whose data may have moved.

    :returns: The corpus and the lines of the log; ``None`` if it is not there, or not as
        it was written.
    """
    try:
        record = json.loads(folder.joinpath(_RECORD).read_bytes())

        corpus = _load_corpus(folder, record, origins)

        is_intact = corpus.digest == record["digest"]

        notes = [Note(**note) for note in record["notes"]]
    # What somebody has changed or cut off may fail anywhere.
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError):
        return None

    return (corpus, notes) if is_intact else None


def get_size(corpus: Corpus) -> int:
    """Returns the bytes of a corpus, in files or in memory."""
    return sum(array.nbytes for array in _list_arrays(corpus).values())


def _load_corpus(
    folder: Path, record: Mapping[str, Any], origins: Sequence[str]
) -> Corpus:
    def load(name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(folder / f"{name}.npy", mmap_mode="r")

        # Without the class of mapped files, each slice of which is slow to make.
        return np.asarray(array)

    parts = []

    report = CorpusReport(**record["report"])

    for n, (part, origin) in enumerate(zip(record["parts"], origins, strict=True)):
        arrays = {name: load(f"part_{n}_{name}") for name in _PART_ARRAYS}

        references = {int(idx): texts for idx, texts in part["references"].items()}

        parts.append(TextPairs.from_arrays(report.split, origin, arrays, references))

    return Corpus(
        parts=parts,
        part_indices=load("part_indices"),
        indices=load("indices"),
        sources=TokenSeqs(load("sources"), load("source_offsets")),
        targets=TokenSeqs(load("targets"), load("target_offsets")),
        report=report,
        directions=record["directions"],
        given_lens=load("given_lens") if record.get("has_given") else None,
    )


_PART_ARRAYS: Final = ("source_text", "source_offsets", "target_text", "target_offsets")


def _list_arrays(corpus: Corpus) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {
        "part_indices": corpus.part_indices,
        "indices": corpus.indices,
        "sources": corpus.sources.indices,
        "source_offsets": corpus.sources.offsets,
        "targets": corpus.targets.indices,
        "target_offsets": corpus.targets.offsets,
    }

    if corpus.given_lens is not None:
        arrays["given_lens"] = corpus.given_lens

    for n, part in enumerate(corpus.parts):
        for name, array in part.to_arrays().items():
            arrays[f"part_{n}_{name}"] = array

    return arrays


def _sync(fd: int) -> None:
    # Some file systems tell only now that there is no room.
    os.fsync(fd)
