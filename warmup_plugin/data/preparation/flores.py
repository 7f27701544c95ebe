# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Final

from warmup_plugin.data.preparation.data_folder import DataFolder, Inputs, Origin
from warmup_plugin.data.preparation.download import (
    Downloader,
    FileIsMissing,
    hide_secrets,
)
from warmup_plugin.data.preparation.files import parse_langs
from warmup_plugin.data.preparation.members import read_members
from warmup_plugin.data.text_lines import decode_lines
from warmup_plugin.data.text_pairs import DOCUMENT_SUFFIX
from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import parse_json

SPLITS: Final = ("dev", "devtest")

_NUM_SENTENCES: Final = {"dev": 997, "devtest": 1012}

# Stands for a language where the documents of the sentences are meant.
_DOCUMENTS: Final = DOCUMENT_SUFFIX[1:]

# The releases know a document by where it is on the web.
_DOCUMENT_FIELD: Final = "url"


@dataclass(frozen=True, kw_only=True)
class Release:
    """Describes a release of FLORES."""

    title: str

    page: str

    url: str
    """An archive, or the folder that holds a file a language and split."""

    is_archive: bool

    citation: str

    codes: Mapping[str, Sequence[str]]
    """What the release calls our languages; it has changed some in the course of time."""


_GOYAL: Final = (
    "Goyal et al., The FLORES-101 Evaluation Benchmark for Low-Resource and Multilingual Machine Translation, TACL 2022"
)

_NLLB: Final = (
    "NLLB Team et al., Scaling neural machine translation to 200 languages, Nature 630, 2024"
)

_CODES_WITH_SCRIPT: Final = {
    "en": ["eng_Latn"],
    "de": ["deu_Latn"],
    "fr": ["fra_Latn"],
    "ru": ["rus_Cyrl"],
    "zh": ["cmn_Hans", "zho_Hans"],
}

RELEASES: Final = {
    "flores101": Release(
        title="FLORES-101",
        page="https://github.com/facebookresearch/flores",
        url="https://dl.fbaipublicfiles.com/flores101/dataset/flores101_dataset.tar.gz",
        is_archive=True,
        citation=_GOYAL,
        codes={
            "en": ["eng"],
            "de": ["deu"],
            "fr": ["fra"],
            "ru": ["rus"],
            "zh": ["zho_simpl"],
        },
    ),
    "flores200": Release(
        title="FLORES-200",
        page="https://github.com/facebookresearch/flores",
        url="https://dl.fbaipublicfiles.com/nllb/flores200_dataset.tar.gz",
        is_archive=True,
        citation=_NLLB,
        codes=_CODES_WITH_SCRIPT,
    ),
    "flores_plus": Release(
        title="FLORES+",
        page="https://huggingface.co/datasets/openlanguagedata/flores_plus",
        url="https://huggingface.co/datasets/openlanguagedata/flores_plus/resolve/main",
        is_archive=False,
        citation=_NLLB,
        codes=_CODES_WITH_SCRIPT,
    ),
}

_LICENSE: Final = "CC BY-SA 4.0; for evaluation, not for training"

# The Open Language Data Initiative locks its zip archives, so that crawlers do not train
# on them, and gives this word beside them.
_PASSWORD: Final = "multilingual machine translation"


def parse_languages(release: str, langs: Sequence[str]) -> dict[str, Sequence[str]]:
    """
    Parses languages such as ``de`` or, to name the release's own code, ``sw=swh_Latn``.

    :returns: The codes that each language may have in the release.
    """
    codes: dict[str, Sequence[str]] = {}

    for text, lang, code in parse_langs(langs):
        if code:
            codes[lang] = [code]
        elif lang in RELEASES[release].codes:
            codes[lang] = RELEASES[release].codes[lang]
        else:
            known = ", ".join(f"`{name}`" for name in RELEASES[release].codes)

            raise WarmupError(
                f"`--langs {text}` is not one of {known}: say what {RELEASES[release].title} calls it, as in `sw=swh_Latn`."
            )

    return codes


def prepare_flores(
    folder: DataFolder,
    release_name: str,
    codes: Mapping[str, Sequence[str]],
    *,
    splits: Sequence[str] = SPLITS,
    source: Path | None = None,
    url: str | None = None,
    downloads: Path,
    downloader: Downloader,
) -> str:
    """
    Writes ``{split}.{lang}`` for each split and language, line by line translations.

    Every two languages are a direction then, each way: the reader takes any pair of
    files. Where the release tells the documents of the sentences, ``{split}.docid`` names
    that of each line.

    :param folder: Where to.
    :param release_name: A key of :data:`RELEASES`.
    :param codes: What the release calls each language, see :func:`parse_languages`.
    :param source: A folder or an archive that is there already. If ``None``, the release
        is downloaded.
    :param url: A mirror to download from.
    :param downloads: The folder for what is downloaded.

    :returns: The key of the entry in the data card.
    """
    release = RELEASES[release_name]

    texts, sources = _read(
        release, codes, splits, source, url or release.url, downloads, downloader
    )

    inputs = Inputs(
        sources=sources,
        settings={
            "release": release_name,
            "langs": sorted(codes),
            "splits": list(splits),
        },
    )

    if folder.is_done(release.title, inputs):
        return release.title

    counts, notes = _check(release, texts, splits, list(codes))

    folder.write_lines(
        inputs,
        {f"{split}.{lang}": lines for (split, lang), lines in texts.items()},
        origin=Origin(
            title=release.title,
            page=release.page,
            version=release_name,
            license=_LICENSE,
            citation=release.citation,
        ),
        counts=counts,
        notes=notes,
    )

    return release.title


def _read(
    release: Release,
    codes: Mapping[str, Sequence[str]],
    splits: Sequence[str],
    source: Path | None,
    url: str,
    downloads: Path,
    downloader: Downloader,
) -> tuple[dict[tuple[str, str], list[str]], dict[str, str]]:
    """Returns the lines of each split and language, and what they were read from."""
    sources: dict[str, str] = {}

    if source is not None:
        root = source
    elif release.is_archive:
        root = downloads / PurePosixPath(hide_secrets(url)).name

        sources |= downloader.fetch(url, root)
    else:
        root = downloads / "flores_plus"

        for split in splits:
            for names in codes.values():
                sources |= _download(f"{split}/{names[0]}", url, root, downloader)

    wanted = {
        PurePosixPath(path): (split, lang)
        for split in splits
        for lang, names in codes.items()
        for path in _list_paths(split, lang, names)
    }

    for split in splits:
        wanted[PurePosixPath(f"metadata_{split}.tsv")] = split, _DOCUMENTS

    members = read_members(
        root, lambda path: _find_key(path, wanted) is not None, password=_PASSWORD
    )

    found: dict[tuple[str, str], PurePosixPath] = {}

    # The Hub has had both at once.
    for path in sorted(members, key=lambda path: path.suffix != ".parquet"):
        key = _find_key(path, wanted)

        assert key is not None

        if key in found and found[key].suffix != ".parquet":
            raise WarmupError(
                f"`{root}` has `{key[0]}` of `{key[1]}` twice, as `{found[key]}` and `{path}`: give the folder of one release."
            )

        found[key] = path

    texts: dict[tuple[str, str], list[str]] = {}

    for split in splits:
        numbers: dict[str, list[int]] = {}

        documents: list[str] = []

        for lang, names in codes.items():
            if (split, lang) not in found:
                looked_for = ", ".join(
                    f"`{path}`" for path in _list_paths(split, lang, names)
                )

                raise WarmupError(
                    f"`{root}` has no `{split}` of `{lang}` (looked for {looked_for}): check `--release`, or leave it out of `--splits` or `--langs`."
                )

            path = found[split, lang]

            rows = _parse(members[path], root / path)

            numbers[lang] = [number for number, _, _ in rows]

            texts[split, lang] = [text for _, text, _ in rows]

            documents = documents or [name for _, _, name in rows if name]

            if source is not None:
                checksum = hashlib.sha256(members[path]).hexdigest()

                sources[str(root / path)] = checksum

        first, *others = numbers

        for other in others:
            if numbers[other] != numbers[first]:
                raise WarmupError(
                    f"`{split}` of {release.title} has {len(numbers[first]):,} sentences in `{first}`, but {len(numbers[other]):,} or others in `{other}`, though all languages share them: download it again."
                )

        if (split, _DOCUMENTS) in found:
            documents = _parse_metadata(members[found[split, _DOCUMENTS]], root)

        if len(documents) == len(numbers[lang]):
            texts[split, _DOCUMENTS] = documents

    return texts, sources


def _download(
    name: str, url: str, root: Path, downloader: Downloader
) -> dict[str, str]:
    """Downloads a file of the Hub. Returns its checksum by its URL."""
    try:
        return downloader.fetch(f"{url}/{name}.jsonl", root / f"{name}.jsonl")
    except FileIsMissing:
        # The format has changed in the course of time.
        return downloader.fetch(f"{url}/{name}.parquet", root / f"{name}.parquet")


def _list_paths(split: str, lang: str, codes: Sequence[str]) -> list[str]:
    """Lists where the releases, and those who repack them, have a split of a language."""
    patterns = (
        # FLORES-101 and FLORES-200.
        "{split}/{code}.{split}",
        # FLORES+, the archives and the folder on the Hugging Face Hub.
        "{split}/{split}.{code}",
        "{split}/{code}.jsonl",
        "{split}/{code}.parquet",
    )

    paths = [p.format(split=split, code=code) for code in codes for p in patterns]

    # What this script writes.
    return [*paths, f"{split}.{lang}"]


def _find_key(
    path: PurePosixPath, wanted: Mapping[PurePosixPath, tuple[str, str]]
) -> tuple[str, str] | None:
    # Archives have a folder of their own around all files.
    tail = PurePosixPath(*path.parts[-2:])

    return wanted.get(tail) or wanted.get(PurePosixPath(path.name))


def _parse(data: bytes, path: Path) -> list[tuple[int, str, str]]:
    """Returns the sentences with their numbers and, where they are known, documents."""
    if path.suffix == ".parquet":
        return _parse_rows(_read_parquet(data, path), path)

    lines = decode_lines(BytesIO(data), path)

    if path.suffix != ".jsonl":
        # As they are: a test set with other spaces is another test set.
        return [(number, line, "") for number, line in enumerate(lines)]

    rows = {nr: line for nr, line in enumerate(lines, start=1) if line.strip()}

    return _parse_rows(rows, path)


def _parse_rows(rows: Mapping[int, Any], path: Path) -> list[tuple[int, str, str]]:
    """Parses what FLORES+ says of each sentence, as JSON or as what JSON stands for."""
    parsed = []

    for line_nr, row in rows.items():
        try:
            if isinstance(row, str):
                row = parse_json(row)

            document = " ".join(str(row.get(_DOCUMENT_FIELD) or "").split())

            parsed.append(
                (int(row["id"]), str(row["text"]).replace("\n", " "), document)
            )
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise WarmupError(
                f"Line {line_nr} of `{path}` is not a JSON object with the fields `id` and `text`, as FLORES+ has them: download the file again."
            ) from None

    return sorted(parsed)


def _read_parquet(data: bytes, path: Path) -> dict[int, Any]:
    try:
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise WarmupError(
            f"`{path}` is a Parquet file, which pyarrow reads: run `pip install 'warmup_plugin[data]'`."
        ) from None

    try:
        rows = parquet.read_table(BytesIO(data)).to_pylist()
    # Of a damaged file, it raises more than its own errors.
    except Exception as ex:
        raise WarmupError(
            f"`{path}` is no Parquet file ({' '.join(str(ex).split())}): download it again."
        ) from None

    return dict(enumerate(rows, start=1))


def _parse_metadata(data: bytes, root: Path) -> list[str]:
    """Returns the documents that the table beside the splits of FLORES-200 names."""
    header, *rows = [line.split("\t") for line in decode_lines(BytesIO(data), root)]

    names = [name.strip().lower() for name in header]

    if _DOCUMENT_FIELD not in names:
        return []

    column = names.index(_DOCUMENT_FIELD)

    return [row[column].strip() for row in rows if len(row) > column and any(row)]


def _check(
    release: Release,
    texts: Mapping[tuple[str, str], list[str]],
    splits: Sequence[str],
    langs: Sequence[str],
) -> tuple[dict[str, int], list[str]]:
    counts: dict[str, int] = {}

    notes: list[str] = []

    for split in splits:
        for lang in langs:
            if "" in map(str.strip, texts[split, lang]):
                raise WarmupError(
                    f"`{split}` of {release.title} has an empty line in `{lang}`: download it again."
                )

        num_sentences = len(texts[split, langs[0]])

        counts[f"{split}: sentences in each of {len(langs)} languages"] = num_sentences

        if num_sentences != _NUM_SENTENCES[split]:
            notes.append(
                f"`{split}` has {num_sentences:,} sentences instead of the {_NUM_SENTENCES[split]:,} that were published."
            )

    return counts, notes
