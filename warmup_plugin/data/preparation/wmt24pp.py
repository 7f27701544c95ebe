# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from warmup_plugin.data.json_lines import check_encodable, iter_json_objects
from warmup_plugin.data.preparation.data_folder import DataFolder, Inputs, Origin
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.examples import check_fields
from warmup_plugin.data.preparation.files import hash_files, parse_langs
from warmup_plugin.data.text_pairs import DOCUMENT_SUFFIX
from warmup_plugin.errors import WarmupError

TITLE: Final = "WMT24++"

SPLIT: Final = "wmt24pp"
"""The name of the split that is written."""

URL: Final = "https://huggingface.co/datasets/google/wmt24pp/resolve/main"

# What the data card calls the languages beside English.
LOCALES: Final = (
    *("ar_EG", "ar_SA", "bg_BG", "bn_IN", "ca_ES", "cs_CZ", "da_DK", "de_DE", "el_GR"),
    *("es_MX", "et_EE", "fa_IR", "fi_FI", "fil_PH", "fr_CA", "fr_FR", "gu_IN", "he_IL"),
    *("hi_IN", "hr_HR", "hu_HU", "id_ID", "is_IS", "it_IT", "ja_JP", "kn_IN", "ko_KR"),
    *("lt_LT", "lv_LV", "ml_IN", "mr_IN", "nl_NL", "no_NO", "pa_IN", "pl_PL", "pt_BR"),
    *("pt_PT", "ro_RO", "ru_RU", "sk_SK", "sl_SI", "sr_RS", "sv_SE", "sw_KE", "sw_TZ"),
    *("ta_IN", "te_IN", "th_TH", "tr_TR", "uk_UA", "ur_PK", "vi_VN", "zh_CN", "zh_TW"),
    "zu_ZA",
)

_SOURCE_LANG: Final = "en"

_NUM_SEGMENTS: Final = 998

_FIELDS: Final[Mapping[str, tuple[type[object], str]]] = {
    "lp": (str, "a string"),
    "document_id": (str, "a string"),
    "segment_id": (int, "a number"),
    "is_bad_source": (bool, "true or false"),
    "source": (str, "a string"),
    "target": (str, "a string"),
}


@final
@dataclass(frozen=True)
class _Segment:
    """A row without its translation: what all languages share."""

    id: int

    document: str

    is_bad: bool

    source: str


def parse_locales(langs: Sequence[str]) -> dict[str, str]:
    """
    Parses languages such as ``de``, ``de_DE`` or ``zh=zh_CN``.

    :returns: What the release calls each language, English included, that of all sources.
    """
    locales: dict[str, str] = {}

    for text, lang, locale in parse_langs(langs):
        wanted = locale or lang

        found = [
            name
            for name in (_SOURCE_LANG, *LOCALES)
            if wanted in (name, name.partition("_")[0])
        ]

        if len(found) > 1:
            names = " or ".join(f"`{lang}={name}`" for name in found)

            raise WarmupError(
                f"`--langs {text}` is more than one language of {TITLE}: write {names}."
            )

        if not found:
            raise WarmupError(
                f"`--langs {text}` is no language of {TITLE}, which has {', '.join(LOCALES)}: correct it, or write for example `nb=no_NO`."
            )

        locales[lang] = found[0]

    english = [lang for lang, locale in locales.items() if locale == _SOURCE_LANG]

    if len(english) > 1:
        raise WarmupError(
            f"`--langs` names English twice, as `{english[0]}` and as `{english[1]}`: leave one out."
        )

    if not english:
        if _SOURCE_LANG in locales:
            raise WarmupError(
                f"`--langs` calls `{locales[_SOURCE_LANG]}` `{_SOURCE_LANG}`, which is what the sources are called: choose another name, or add one for English, such as `eng={_SOURCE_LANG}`."
            )

        locales[_SOURCE_LANG] = _SOURCE_LANG

    if list(locales.values()) == [_SOURCE_LANG]:
        raise WarmupError(
            "`--langs` names no language that English was translated to: name one, such as `de`."
        )

    return locales


def prepare_wmt24pp(
    folder: DataFolder,
    locales: Mapping[str, str],
    *,
    source: Path | None = None,
    url: str = URL,
    downloads: Path,
    downloader: Downloader,
) -> str:
    """
    Writes ``wmt24pp.{lang}`` for each language, English included, a segment a line.

    The targets are the post-edited references. What the card calls a bad source is left
    out, as its authors did. ``wmt24pp.docid`` names the document of each line.

    :param folder: Where to.
    :param locales: What the release calls each language, see :func:`parse_locales`.
    :param source: A folder with files of the release, such as ``en-de_DE.jsonl``. If
        ``None``, they are downloaded.
    :param url: The folder to download them from.
    :param downloads: The folder for what is downloaded.

    :returns: The key of the entry in the data card.
    """
    files: dict[str, Path] = {}

    sources: dict[str, str] = {}

    for lang, locale in locales.items():
        if locale == _SOURCE_LANG:
            continue

        name = f"{_SOURCE_LANG}-{locale}.jsonl"

        if source is None:
            files[lang] = downloads / SPLIT / name

            sources |= downloader.fetch(f"{url}/{name}", files[lang])
        else:
            files[lang] = source / name

            if not files[lang].is_file():
                raise WarmupError(
                    f"`{source}` has no `{name}`: correct `--from`, or leave `{lang}` out of `--langs`."
                )

            sources |= hash_files([files[lang]])

    inputs = Inputs(sources=sources, settings={"langs": dict(locales)})

    if folder.is_done(TITLE, inputs):
        return TITLE

    segments, targets, num_joined = _read(files, locales)

    [source_lang] = [lang for lang, locale in locales.items() if locale == _SOURCE_LANG]

    kept = [idx for idx, segment in enumerate(segments) if not segment.is_bad]

    if not kept:
        [file, *_] = files.values()

        raise WarmupError(
            f"All segments of `{file}` are bad sources (`is_bad_source`); download it again."
        )

    texts = {
        source_lang: [segments[idx].source for idx in kept],
        **{lang: [lines[idx] for idx in kept] for lang, lines in targets.items()},
        DOCUMENT_SUFFIX[1:]: [segments[idx].document for idx in kept],
    }

    notes = []

    if len(segments) != _NUM_SEGMENTS:
        notes.append(
            f"There are {len(segments):,} segments instead of the {_NUM_SEGMENTS:,} that were published."
        )

    if num_joined > 0:
        notes.append(
            f"Line feeds inside {num_joined:,} of the translations are spaces here."
        )

    folder.write_lines(
        inputs,
        {f"{SPLIT}.{key}": lines for key, lines in texts.items()},
        origin=Origin(
            title=TITLE,
            page="https://huggingface.co/datasets/google/wmt24pp",
            version="that of the checksums below",
            license="Apache 2.0, says its page",
            citation="Deutsch et al., WMT24++: Expanding the Language Coverage of WMT24 to 55 Languages & Dialects, Findings of ACL 2025",
        ),
        counts={
            "segments": len(segments),
            "left out: bad source": len(segments) - len(kept),
            f"segments in each of {len(locales)} languages": len(kept),
            "documents": len(set(texts[DOCUMENT_SUFFIX[1:]])),
        },
        notes=notes,
    )

    return TITLE


def _read(
    files: Mapping[str, Path], locales: Mapping[str, str]
) -> tuple[list[_Segment], dict[str, list[str]], int]:
    """
    Returns the segments in their order, bad ones included, the translations of each
    language, and how many of them held line feeds.
    """
    segments: list[_Segment] = []

    targets: dict[str, list[str]] = {}

    num_joined = 0

    for lang, file in files.items():
        rows: dict[int, tuple[_Segment, str]] = {}

        for row, where in iter_json_objects(file):
            if row is None:
                continue

            segment, target = _parse(row, where, f"{_SOURCE_LANG}-{locales[lang]}")

            if segment.id in rows:
                raise WarmupError(
                    f"{where} has the `segment_id` {segment.id} of an earlier line: download the file again."
                )

            num_joined += "\n" in target and not segment.is_bad

            rows[segment.id] = segment, " ".join(target.split("\n"))

        found = [rows[idx][0] for idx in sorted(rows)]

        if not found:
            raise WarmupError(f"`{file}` has no segments: download it again.")

        targets[lang] = [rows[idx][1] for idx in sorted(rows)]

        if segments and found != segments:
            raise WarmupError(
                f"`{file}` has other sources or documents than the files of other languages, though all share them: download all of them again, or prepare `{lang}` in a folder of its own."
            )

        segments = found

    return segments, targets, num_joined


def _parse(row: Any, where: str, pair: str) -> tuple[_Segment, str]:
    check_fields(row, _FIELDS, where, f", as {TITLE} has: download the file again")

    if row["lp"] != pair:
        raise WarmupError(
            f"{where} is of `{row['lp']}`, not of `{pair}`: download the file again."
        )

    for field in ("document_id", "source", "target"):
        if not row[field].strip():
            raise WarmupError(
                f"{where} has an empty `{field}`: download the file again."
            )

        check_encodable(row[field], f"{where}, field `{field}`,")

    segment = _Segment(
        row["segment_id"],
        " ".join(row["document_id"].split()),
        row["is_bad_source"],
        " ".join(row["source"].split("\n")),
    )

    return segment, row["target"]
