# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
import json
import math
import os
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast, final

import numpy as np
from numpy.typing import NDArray

from warmup_plugin.data.questions import read_question
from warmup_plugin.data.test_sets import find_test_set, is_test_set
from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import parse_json_leniently

FORMATS: Final = ("auto", "plain", "tsv", "jsonl", "manifest")

EXAMPLES: Final = ("pair", "multiple_choice")

MAX_LINE_BYTES: Final = 1 << 24
"""The length of the longest line that is read."""

DOCUMENT_SUFFIX: Final = ".docid"
"""The ending of the file that names the document of each line of a split, where there is
one; it is that of sacreBLEU's files."""

_DOCUMENT_FIELD: Final = "docid"

_BOM: Final = b"\xef\xbb\xbf"


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
        self._split = split
        self._origin = origin
        self._sources = _TextColumn()
        self._targets = _TextColumn()
        # Of the few sources with several.
        self._references: dict[int, list[str]] = {}
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

        pairs._references = dict(references)

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
        references = self._references.get(idx)

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

    @property
    def several_references(self) -> Mapping[int, list[str]]:
        """The references of each source that has other ones than its target."""
        return self._references

    @property
    def split(self) -> str:
        return self._split

    @property
    def origin(self) -> str:
        return self._origin


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

    root, format_, files = _find_split(config, split)

    pairs = TextPairs(split, describe_split(config, split))

    if format_ == "plain":
        _read_plain(pairs, files[0], files[1])
    elif format_ == "tsv":
        _read_tsv(pairs, files[0], config)
    elif format_ == "jsonl" and config.example == "multiple_choice":
        _read_questions(pairs, files[0])
    elif format_ == "jsonl":
        _read_jsonl(pairs, files[0], config, with_references)
    else:
        _read_manifest(pairs, files[0])

    documents = _find_file(root, f"{split}{DOCUMENT_SUFFIX}")

    if with_references and documents is not None:
        _read_documents(pairs, documents)

    return pairs


def describe_split(config: TextPairsConfig, split: str) -> str:
    """Returns what messages call a split."""
    if is_test_set(split):
        return f"the test set `{split}` of `{config.source_lang}-{config.target_lang}`"

    return f"the `{split}` split of `{_get_root(config)}`"


def check_split(config: TextPairsConfig, split: str) -> None:
    """
    Checks that a split is there, without reading it.

    :raises WarmupError: If :func:`read_split` would not find it.
    """
    list_split_files(config, split)


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
                pairs._references[idx] = [text for text in texts if text]

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

    _, format_, files = _find_split(config, split)

    if format_ != "manifest":
        return files

    # Those that it names lie below it, also in folders that are links.
    below = [
        Path(folder, name)
        for folder, _, names in os.walk(files[0].parent, followlinks=True)
        for name in names
    ]

    return sorted(file for file in below if file.is_file() and file.suffix) + files


def _find_split(config: TextPairsConfig, split: str) -> tuple[Path, str, list[Path]]:
    """Returns the folder of a split, its format and its files."""
    _check_config(config)

    root = _get_root(config)

    format_, files = _find_files(config, root, split)

    if format_ == "plain":
        _check_langs(config)

    return root, format_, files


def read_lines(path: Path) -> list[str]:
    """
    Reads and checks a file of one sentence a line, gzipped if it ends in ``.gz``.

    :returns: The sentences, stripped of surrounding whitespace; empty lines are kept,
        so that the line numbers of input and output agree.
    """
    return list(iter_lines(path))


def iter_lines(path: Path) -> Iterator[str]:
    """Reads a file like :func:`read_lines` without holding it in memory."""
    for line in iter_raw_lines(path):
        yield line.strip()


def iter_raw_lines(path: Path) -> Iterator[str]:
    """
    Decodes the lines of a file.

    Only a line feed ends a line: ``str.splitlines`` and text files in universal
    newline mode also split at a form feed, U+0085 or U+2028, which shifts one side of
    the pairs against the other.
    """
    num_lines = 0

    try:
        with _open_binary(path) as fp:
            for line in decode_lines(fp, path):
                num_lines += 1

                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error) as ex:
        raise WarmupError(
            f"`{path}` is not a complete gzip file ({ex}, after line {num_lines}): copy or compress it again."
        ) from None
    except FileNotFoundError:
        raise WarmupError(f"`{path}` does not exist: check the path.") from None
    except OSError as ex:
        raise WarmupError(
            f"`{path}` cannot be read ({ex.strerror or ex}): check that it is a file and its permissions."
        ) from None


def decode_lines(fp: BinaryIO, origin: object) -> Iterator[str]:
    """
    Decodes lines, without what ends them and without the mark that may begin a file.

    :param origin: What errors call the file.

    :raises WarmupError: If a line is not UTF-8, or so long that it is none.
    """
    # Iterating would wait for more than the next line, and take one of any length.
    lines = iter(lambda: fp.readline(MAX_LINE_BYTES + 1), b"")

    for line_nr, data in enumerate(lines, start=1):
        if len(data) > MAX_LINE_BYTES:
            raise WarmupError(
                f"Line {line_nr} of `{origin}` is longer than {MAX_LINE_BYTES:,} bytes, so the file seems to hold something else than lines of text: check what it is."
            )

        bom_size = 0

        if line_nr == 1 and data.startswith(_BOM):
            bom_size = len(_BOM)

            data = data[bom_size:]

        try:
            line = data.decode("utf-8")
        except UnicodeDecodeError as ex:
            column = bom_size + ex.start + 1

            raise _make_encoding_error(origin, line_nr, column, data) from None

        if line.endswith("\r\n"):
            yield line[:-2]
        elif line.endswith("\n"):
            yield line[:-1]
        else:
            yield line


def _open_binary(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))

    return path.open("rb")


def _make_encoding_error(
    origin: object, line_nr: int, column: int, data: bytes
) -> WarmupError:
    where = f"Line {line_nr} of `{origin}` is not valid UTF-8 at byte {column}"

    if line_nr == 1 and data.startswith(b"\x1f\x8b"):
        remedy = "the file is gzipped, so let its name end in `.gz`"
    elif line_nr == 1 and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        remedy = "convert the file, for example with `iconv -f utf-16 -t utf-8`"
    else:
        remedy = "correct the line or convert the file, for example with `iconv -f latin1 -t utf-8`"

    return WarmupError(f"{where}: {remedy}.")


def _check_config(config: TextPairsConfig) -> None:
    if config.format not in FORMATS:
        names = ", ".join(f"`{name}`" for name in FORMATS)

        raise WarmupError(
            f"`dataset.format` must be one of {names}, but is `{config.format}` instead."
        )

    if config.example not in EXAMPLES:
        names = ", ".join(f"`{name}`" for name in EXAMPLES)

        raise WarmupError(
            f"`dataset.example` must be one of {names}, but is `{config.example}` instead."
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


def _check_langs(config: TextPairsConfig) -> None:
    # In other formats they tell no files apart, and paraphrases have only one.
    if config.source_lang == config.target_lang:
        raise WarmupError(
            f"`dataset.source_lang` and `dataset.target_lang` must differ in the format `plain`, but both are `{config.source_lang}`."
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
        files = [_find_file(root, name) for name in format_names]

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
        missing = next(
            name for name in names["plain"] if _find_file(root, name) is None
        )

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


def _find_file(root: Path, name: str) -> Path | None:
    file, gz_file = root.joinpath(name), root.joinpath(f"{name}.gz")

    if file.is_file() and gz_file.is_file():
        raise WarmupError(
            f"`{file}` and `{gz_file.name}` both exist: remove the one that is out of date."
        )

    if file.is_file():
        return file

    return gz_file if gz_file.is_file() else None


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
        return f"the splits there are {_shorten(sorted(splits))}"

    if names:
        return f"it has no split of these languages at all, only {_shorten(names)}"

    return "the folder is empty"


def _shorten(names: Sequence[str]) -> str:
    max_num_names = 10

    text = ", ".join(names[:max_num_names])

    if len(names) > max_num_names:
        text += f" and {len(names) - max_num_names} more"

    return text


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
                f"Line {line_nr} of `{file}` has {_count(len(columns), 'column')}, but `dataset.source_column` {config.source_column} and `dataset.target_column` {config.target_column} (counted from 0) need {num_columns}: correct the line or the columns."
            )

        pairs.append(
            columns[config.source_column].strip(), columns[config.target_column].strip()
        )

    _check_not_empty(pairs, file)


def _read_questions(pairs: TextPairs, file: Path) -> None:
    for value, where in iter_json_objects(file):
        if value is None:
            # Not skipped: generation owes a line of output for every line of input.
            pairs.append("", "")

            continue

        source, target = read_question(value, where)

        check_encodable(source, where)

        pairs.append(source, target)

    _check_not_empty(pairs, file)


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

        source, target = _get_fields(value, fields, where)

        pairs.append(source, target)

        if with_references and has_json_field(value, references_field):
            references = get_json_list(
                value, references_field, where, "dataset.references_field"
            )

            if references:
                pairs._references[len(pairs) - 1] = references

        if with_references and has_json_field(value, _DOCUMENT_FIELD):
            pairs._documents[len(pairs) - 1] = str(value[_DOCUMENT_FIELD])

    _check_not_empty(pairs, file)


def iter_json_texts(
    file: Path, fields: Sequence[tuple[str, str]]
) -> Iterator[list[str] | None]:
    """
    Reads and checks fields of JSON lines, gzipped if the file ends in ``.gz``.

    :param fields: The option that names a field, and the field; dots descend.

    :returns: The texts of the fields, stripped of surrounding whitespace; ``None`` for
        an empty line.
    """
    for value, where in iter_json_objects(file):
        if value is None:
            yield None

            continue

        yield _get_fields(value, fields, where)


def _get_fields(
    value: dict[str, object], fields: Sequence[tuple[str, str]], where: str
) -> list[str]:
    texts = [
        _get_json_text(value, field, option, where).strip() for option, field in fields
    ]

    for (_, field), text in zip(fields, texts):
        check_encodable(text, f"{where}, field `{field}`,")

    return texts


def get_json_list(
    obj: dict[str, object], field: str, where: str, option: str = "--json-fields"
) -> list[str]:
    """
    Returns the text of a field, or those of a list in it, without empty ones.

    :param field: Dots descend.
    :param where: The line, for messages.
    :param option: What names the field.

    :raises WarmupError: If there is no such field, or it holds something else.
    """
    value = _get_json_value(obj, field, option, where)

    texts = [value] if isinstance(value, str) else value

    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts):
        raise WarmupError(
            f"{where} has {_name_json_type(value)} in field `{field}` (`{option}`): it must be a string or a list of strings."
        )

    for text in texts:
        check_encodable(text, f"{where}, field `{field}`,")

    return [text.strip() for text in texts if text.strip()]


def has_json_field(obj: dict[str, object], field: str) -> bool:
    """Tells whether an object has a field that is not null; dots descend."""
    value: object = obj

    for part in [field] if field in obj else field.split("."):
        value = value.get(part) if isinstance(value, dict) else None

    return value is not None


def iter_json_objects(file: Path) -> Iterator[tuple[dict[str, object] | None, str]]:
    """Reads JSON lines; ``None`` for an empty one, and where it stands, for messages."""
    for line_nr, line in enumerate(iter_raw_lines(file), start=1):
        where = f"Line {line_nr} of `{file}`"

        if not line.strip():
            yield None, where

            continue

        try:
            value = parse_json_leniently(line)
        except json.JSONDecodeError as ex:
            raise WarmupError(
                f"{where} is not valid JSON ({ex.msg}, column {ex.colno}): write one object a line."
            ) from None
        except ValueError as ex:
            raise WarmupError(
                f"{where} is not valid JSON ({ex}): write one object a line."
            ) from None

        if not isinstance(value, dict):
            raise WarmupError(
                f"{where} is not a JSON object but {_name_json_type(value)}: write one object a line."
            )

        yield value, where


def check_encodable(text: str, what: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        # JSON can spell what UTF-8 cannot.
        raise WarmupError(
            f"{what} has half a surrogate pair, as of a text cut inside a character: correct the line."
        ) from None


def _get_json_text(obj: dict[str, object], field: str, option: str, where: str) -> str:
    value = _get_json_value(obj, field, option, where)

    if not isinstance(value, str):
        raise WarmupError(
            f"{where} has {_name_json_type(value)} in field `{field}` (`{option}`): it must be a string."
        )

    return value


def _get_json_value(
    obj: dict[str, object], field: str, option: str, where: str
) -> object:
    value: object = obj

    parts = [field] if field in obj else field.split(".")

    for part in parts:
        if not isinstance(value, dict) or part not in value:
            names = value if isinstance(value, dict) else obj

            fields = _shorten([f"`{name}`" for name in names]) or "none"

            raise WarmupError(
                f"{where} has no field `{field}` (`{option}`): the fields there are {fields}."
            )

        value = value[part]

    return value


def _name_json_type(value: object) -> str:
    if value is None:
        return "null"

    if isinstance(value, bool):
        return "a truth value"

    for kls, name in ((dict, "an object"), (list, "a list"), (str, "a string")):
        if isinstance(value, kls):
            return name

    return "a number"


def _check_not_empty(pairs: TextPairs, file: Path) -> None:
    if len(pairs) == 0:
        raise WarmupError(f"`{file}` has no lines: fill or remove it.")


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

            file = _find_file(manifest_file.parent.joinpath(folder), name)

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


def _count(num: int, noun: str) -> str:
    return f"{num:,} {noun}" if num == 1 else f"{num:,} {noun}s"
