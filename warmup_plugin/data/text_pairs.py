# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, final

import numpy as np
from numpy.typing import NDArray

from warmup_plugin.data.json_lines import (
    check_encodable,
    get_json_list,
    get_json_texts,
    has_json_field,
    iter_json_objects,
)
from warmup_plugin.data.questions import read_question
from warmup_plugin.data.split_files import (
    TextPairsConfig,
    describe_split,
    find_file,
    find_split,
)
from warmup_plugin.data.test_sets import find_test_set, is_test_set
from warmup_plugin.data.text_lines import iter_lines, iter_raw_lines, read_lines
from warmup_plugin.errors import WarmupError

DOCUMENT_SUFFIX: Final = ".docid"
"""The ending of the file that names the document of each line of a split, where there is
one; it is that of sacreBLEU's files."""

_DOCUMENT_FIELD: Final = "docid"


@final
class TextPairs:
    """
    Holds the text pairs of a split, every line of it, empty ones included.

    The text is kept as UTF-8 in one buffer a side: tens of millions of ``str`` would
    cost several times their text.
    """

    def __init__(self, split: str, origin: str) -> None:
        """
        :param split: The name of the split.
        :param origin: The split as a message calls it, such as ``the `val` split of
            `/data```.
        """
        self.split = split
        self.origin = origin
        self._sources = _TextColumn()
        self._targets = _TextColumn()
        self.several_references: dict[int, list[str]] = {}
        """The references of each source that has other ones than its target."""
        # Of test sets, where they are known.
        self._documents: dict[int, str] = {}

    @staticmethod
    def from_arrays(
        split: str,
        origin: str,
        arrays: Mapping[str, NDArray[Any]],
        references: Mapping[int, list[str]],
    ) -> TextPairs:
        """
        Restores the pairs of :meth:`to_arrays`, also from arrays that are mapped files.

        :param references: Those of :attr:`several_references`.
        """
        pairs = TextPairs(split, origin)

        pairs._sources, pairs._targets = (
            _TextColumn(arrays[f"{side}_text"], arrays[f"{side}_offsets"])
            for side in ("source", "target")
        )

        pairs.several_references = dict(references)

        return pairs

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Returns the UTF-8 of each side and where each text of it begins, uncopied."""
        arrays: dict[str, NDArray[Any]] = {}

        for side, column in (("source", self._sources), ("target", self._targets)):
            arrays[f"{side}_text"], arrays[f"{side}_offsets"] = column.to_arrays()

        return arrays

    def append(self, source: str, target: str) -> None:
        self._sources.append(source.encode("utf-8"))
        self._targets.append(target.encode("utf-8"))

    def __len__(self) -> int:
        return len(self._sources)

    def source(self, idx: int) -> str:
        return self._sources.get(idx)

    def target(self, idx: int) -> str:
        return self._targets.get(idx)

    def references(self, idx: int) -> list[str]:
        """Returns all that is right for a source; the target alone unless there is more."""
        references = self.several_references.get(idx)

        return [self.target(idx)] if references is None else list(references)

    def document(self, idx: int) -> str | None:
        """Returns the name of the document that a source stands in, where it is known."""
        return self._documents.get(idx)

    def empty_mask(self) -> NDArray[np.bool_]:
        """Returns ``True`` for each pair with at least one empty side."""
        # A pair has an empty side if the shorter one is empty.
        mask: NDArray[np.bool_] = (
            np.minimum(self._sources.sizes(), self._targets.sizes()) == 0
        )

        return mask


@final
class _TextColumn:
    def __init__(
        self,
        blob: bytearray | NDArray[np.uint8] | None = None,
        offsets: array[int] | NDArray[np.int64] | None = None,
    ) -> None:
        """Of arrays, which are only read; or empty, to be appended to."""
        self._blob = bytearray() if blob is None else blob
        self._offsets = array("q", [0]) if offsets is None else offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def append(self, data: bytes) -> None:
        assert isinstance(self._blob, bytearray) and isinstance(self._offsets, array)

        self._blob += data
        self._offsets.append(len(self._blob))

    def get(self, idx: int) -> str:
        if idx < 0:
            raise IndexError(f"`idx` must not be negative, but is {idx} instead.")

        data = self._blob[self._offsets[idx] : self._offsets[idx + 1]]

        return bytes(data).decode("utf-8")

    def sizes(self) -> NDArray[np.int64]:
        offsets: NDArray[np.int64] = np.array(self._offsets, dtype=np.int64)

        return offsets[1:] - offsets[:-1]

    def to_arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return (
            np.frombuffer(self._blob, dtype=np.uint8),
            np.frombuffer(self._offsets, dtype=np.int64),
        )


def read_split(
    config: TextPairsConfig, split: str, *, with_references: bool = True
) -> TextPairs:
    """
    Reads and checks the text pairs of a split.

    fairseq2's own reader stops at a missing final newline and lets malformed UTF-8
    through as unknown tokens, both without naming a line; this one names it.

    :param config: Where the pairs are.
    :param split: The name of the split, such as ``train``.
    :param with_references: If ``False``, ``references_field`` and documents are not
        looked at, as in training, which reads the target alone.

    :returns: Every pair, in the order of the files, stripped of surrounding
        whitespace.
    """
    if is_test_set(split):
        return _read_test_set(config, split)

    root, format_, files = find_split(config, split)

    pairs = TextPairs(split, describe_split(config, split))

    if format_ == "plain":
        _read_plain(pairs, files[0], files[1])
    elif format_ == "tsv":
        _read_tsv(pairs, files[0], config)
    elif format_ == "jsonl":
        _read_jsonl(pairs, files[0], config, with_references)
    else:
        _read_manifest(pairs, files[0])

    if len(pairs) == 0:
        raise WarmupError(f"`{files[0]}` has no lines: fill or remove it.")

    documents = find_file(root, f"{split}{DOCUMENT_SUFFIX}")

    if with_references and documents is not None:
        _read_documents(pairs, documents)

    return pairs


def _read_test_set(config: TextPairsConfig, split: str) -> TextPairs:
    source_file, reference_files = find_test_set(
        split, config.source_lang, config.target_lang
    )

    pairs = TextPairs(split, describe_split(config, split))

    _read_plain(pairs, source_file, reference_files[0])

    references = [read_lines(file) for file in reference_files]

    for file, lines in zip(reference_files, references):
        if len(lines) != len(pairs):
            raise WarmupError(
                f"`{source_file}` has {len(pairs):,} lines, but `{file}` has {len(lines):,}: delete both, so that they are made anew."
            )

    if len(references) > 1:
        for idx, texts in enumerate(zip(*references)):
            # Some have several references of some sources alone.
            if any(texts):
                pairs.several_references[idx] = [text for text in texts if text]

    # Of sets of today; older ones have none.
    documents = source_file.with_suffix(DOCUMENT_SUFFIX)

    if documents.is_file():
        _read_documents(pairs, documents)

    return pairs


def _read_documents(pairs: TextPairs, file: Path) -> None:
    names = read_lines(file)

    if len(names) != len(pairs):
        raise WarmupError(
            f"`{file}` has {len(names):,} lines, but {pairs.origin} has {len(pairs):,}: line n must name the document of line n; correct the file or delete it."
        )

    pairs._documents = {idx: name for idx, name in enumerate(names) if name}


def _read_plain(pairs: TextPairs, source_file: Path, target_file: Path) -> None:
    start = len(pairs._sources)

    for line in iter_lines(source_file):
        pairs._sources.append(line.encode("utf-8"))

    for line in iter_lines(target_file):
        pairs._targets.append(line.encode("utf-8"))

    num_sources = len(pairs._sources) - start
    num_targets = len(pairs._targets) - start

    if num_sources != num_targets:
        raise WarmupError(
            f"`{source_file}` has {num_sources:,} lines, but `{target_file}` has {num_targets:,}: line n of one must translate line n of the other."
        )

    if num_sources == 0:
        raise WarmupError(
            f"`{source_file}` and `{target_file}` have no lines: fill or remove them."
        )


def _read_tsv(pairs: TextPairs, file: Path, config: TextPairsConfig) -> None:
    num_columns = max(config.source_column, config.target_column) + 1

    for line_nr, line in enumerate(iter_raw_lines(file), start=1):
        if not line.strip():
            # Not skipped: generation owes a line of output for every line of input.
            pairs.append("", "")

            continue

        columns = line.split("\t")

        if len(columns) < num_columns:
            raise WarmupError(
                f"Line {line_nr} of `{file}` has {len(columns):,} column{'' if len(columns) == 1 else 's'}, but `dataset.source_column` {config.source_column} and `dataset.target_column` {config.target_column} (counted from 0) need {num_columns}: correct the line or the columns."
            )

        pairs.append(
            columns[config.source_column].strip(), columns[config.target_column].strip()
        )


def _read_jsonl(
    pairs: TextPairs, file: Path, config: TextPairsConfig, with_references: bool
) -> None:
    fields = [
        ("dataset.source_field", config.source_field),
        ("dataset.target_field", config.target_field),
    ]

    references_field = config.references_field

    if references_field is None:
        # Beside another target, `targets` would be right for something else.
        references_field = f"{config.target_field}s"

    for value, where in iter_json_objects(file):
        if value is None:
            # Not skipped: generation owes a line of output for every line of input.
            pairs.append("", "")

            continue

        if config.example == "multiple_choice":
            source, target = read_question(value, where)

            check_encodable(source, where)

            pairs.append(source, target)

            continue

        source, target = get_json_texts(value, fields, where)

        pairs.append(source, target)

        if with_references and has_json_field(value, references_field):
            references = get_json_list(
                value, references_field, where, "dataset.references_field"
            )

            if references:
                pairs.several_references[len(pairs) - 1] = references

        if with_references and has_json_field(value, _DOCUMENT_FIELD):
            pairs._documents[len(pairs) - 1] = str(value[_DOCUMENT_FIELD])


def _read_manifest(pairs: TextPairs, manifest_file: Path) -> None:
    """
    Joins all directions of a split in the folder layout of fairseq2 0.4.

    Sampling by weight is not offered. The directions are joined as they are, which is
    what their weights ask for if they are the numbers of pairs, as that layout
    suggests; it is accepted too if all are equal. Other weights are refused: to ignore them would train on another mixture
    than the one asked for.
    """
    weights: dict[str, float] = {}

    target_langs: dict[str, str] = {}

    for line_nr, line in enumerate(iter_lines(manifest_file), start=1):
        if not line:
            continue

        direction, target_lang, weight = _parse_manifest_line(
            line, f"Line {line_nr} of `{manifest_file}`"
        )

        if direction in weights:
            raise WarmupError(
                f"Line {line_nr} of `{manifest_file}` names `{direction}` a second time: remove one of the lines."
            )

        weights[direction] = weight

        target_langs[target_lang] = direction

    if not weights:
        raise WarmupError(
            f"`{manifest_file}` has no lines: name at least one direction, such as `en-de`, a tab and a weight."
        )

    # The model is not told which language to write.
    if len(target_langs) > 1:
        directions = " and ".join(f"`{name}`" for name in target_langs.values())

        raise WarmupError(
            f"`{manifest_file}` joins {directions}, which differ in their target language: keep the directions into one language, or name them in `dataset.directions`, with a folder each."
        )

    sizes = []

    for direction in weights:
        start = len(pairs)

        folder, _, langs = direction.rpartition("/")

        source_lang, target_lang = langs.split("-")

        files = []

        for lang in (source_lang, target_lang):
            name = f"{langs}.{lang}.txt"

            file = find_file(manifest_file.parent.joinpath(folder), name)

            if file is None:
                raise WarmupError(
                    f"`{manifest_file.parent.joinpath(folder, name)}`, gzipped or not, does not exist, though `{manifest_file}` names `{direction}`: add the file or remove the line."
                )

            files.append(file)

        _read_plain(pairs, files[0], files[1])

        sizes.append(len(pairs) - start)

    _check_weights(manifest_file, weights, sizes)


def _parse_manifest_line(line: str, where: str) -> tuple[str, str, float]:
    fields = [field.strip() for field in line.split("\t")]

    langs = fields[0].split("/")[-1].split("-")

    try:
        weight = float(fields[1]) if len(fields) == 2 else math.nan
    except ValueError:
        weight = math.nan

    if (
        not (math.isfinite(weight) and weight > 0)
        or fields[0].count("/") > 1
        or len(langs) != 2
        or not all(langs)
    ):
        raise WarmupError(
            f"{where} is not a direction, a tab and a weight above 0: write for example `en-de` or `mining/en-de`, a tab and `1`."
        )

    return fields[0], langs[1], weight


def _check_weights(
    manifest_file: Path, weights: dict[str, float], sizes: list[int]
) -> None:
    values = list(weights.values())

    ratios = [weight / size for weight, size in zip(values, sizes)]

    for shares in (values, ratios):
        if math.isclose(min(shares), max(shares), rel_tol=1e-6):
            return

    text = ", ".join(f"`{name}` {weight:g}" for name, weight in weights.items())

    raise WarmupError(
        f"`{manifest_file}` asks for sampling by weight ({text}), which is not supported: give all directions the same weight to join them as they are, or sample them by `dataset.directions` and `dataset.sampling_temperature`, with a folder each."
    )
