# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.inputs import (
    LINES,
    NUMBERS,
    TEXTS,
    VALUES,
    check,
    compressed,
    damaged,
    json_lines,
    new_folder,
    to_json,
)
from tests.unit.data.preparation.archives import make_tar, make_zip
from warmup_plugin.data.preparation.data_folder import DataFolder, Inputs, Origin
from warmup_plugin.data.preparation.download import Downloader, read_checksum
from warmup_plugin.data.preparation.filtering import TrainingFilter, filter_corpus
from warmup_plugin.data.preparation.flores import parse_languages, prepare_flores
from warmup_plugin.data.preparation.logiqa import prepare_logiqa
from warmup_plugin.data.preparation.members import read_members
from warmup_plugin.data.preparation.parallel import Corpus
from warmup_plugin.data.preparation.summarization import prepare_summarization
from warmup_plugin.data.preparation.wmt import find_local_set
from warmup_plugin.data.preparation.wmt24pp import prepare_wmt24pp

ARCHIVED: Final = {"x/dev/eng.dev": "a\nb\n", "x/dev/deu.dev": "c\nd\n"}

ARCHIVES: Final = [
    *(make_tar(ARCHIVED, mode) for mode in ("", "gz", "bz2", "xz")),
    make_zip(ARCHIVED),
    make_zip(ARCHIVED, "multilingual machine translation"),
]

ORIGIN: Final = Origin(title="a", page="b", version="c", license="d")


def prepare_archive(out: Path, source: Path) -> object:
    return prepare_flores(
        DataFolder(out, ["x"]),
        "flores101",
        parse_languages("flores101", ["en", "de"]),
        splits=["dev"],
        source=source,
        downloads=out,
        downloader=Downloader(),
    )


@given(damaged(st.sampled_from(ARCHIVES)))
def test_archives(data: bytes) -> None:
    with new_folder() as folder:
        source = folder / "archive"

        source.write_bytes(data)

        check(lambda: read_members(source, lambda path: True))
        check(lambda: prepare_archive(folder / "out", source))


@given(
    name=st.sampled_from(["a/b.txt", "../../a", "/a", "a\0b", "\x1b", "a" * 300]),
    data=st.text(max_size=20),
)
def test_names_in_archives_lead_nowhere(name: str, data: str) -> None:
    def make() -> list[bytes]:
        return [make_zip({name: data}), make_tar({name: data})]

    with new_folder() as folder:
        for content in make():
            source = folder / "archive"

            source.write_bytes(content)

            check(lambda: read_members(source, lambda path: path != PurePosixPath()))

        assert [p.name for p in folder.iterdir()] == ["archive"]


@given(
    st.fixed_dictionaries({"dev.en": LINES, "dev.de": LINES}),
    st.lists(
        json_lines({"id": NUMBERS, "text": TEXTS, "url": TEXTS}), min_size=2, max_size=2
    ),
    st.booleans(),
)
def test_flores(files: dict[str, bytes], rows: list[bytes], is_plus: bool) -> None:
    if is_plus:
        files = {"dev/eng_Latn.jsonl": rows[0], "dev/deu_Latn.jsonl": rows[1]}

    release = "flores_plus" if is_plus else "flores101"

    with new_folder() as folder:
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)

        check(
            lambda: prepare_flores(
                DataFolder(folder / "out", ["x"]),
                release,
                parse_languages(release, ["en", "de"]),
                splits=["dev"],
                source=folder,
                downloads=folder,
                downloader=Downloader(),
            )
        )


@given(
    json_lines(
        {
            **{"lp": st.just("en-de_DE"), "document_id": TEXTS, "segment_id": NUMBERS},
            **{"is_bad_source": st.booleans(), "source": TEXTS, "target": TEXTS},
        }
    )
)
def test_wmt24pp(data: bytes) -> None:
    with new_folder() as folder:
        (folder / "en-de_DE.jsonl").write_bytes(data)

        check(
            lambda: prepare_wmt24pp(
                DataFolder(folder / "out", ["x"]),
                {"de": "de_DE", "en": "en"},
                source=folder,
                downloads=folder,
                downloader=Downloader(),
            )
        )


@given(
    json_lines(
        {
            **{"fname": VALUES, "dialogue": TEXTS, "summary": TEXTS, "topic": VALUES},
            **{"summary1": TEXTS},
        }
    )
)
def test_summarization(data: bytes) -> None:
    with new_folder() as folder:
        (folder / "test.jsonl").write_bytes(data)

        check(
            lambda: prepare_summarization(
                DataFolder(folder / "out", ["x"]),
                "dialogsum",
                splits=["test"],
                source=folder,
                downloads=folder,
                downloader=Downloader(),
            )
        )


@given(
    json_lines(
        {
            **{"id": VALUES, "text": TEXTS, "question": TEXTS, "type": VALUES},
            **{"options": st.lists(TEXTS, max_size=5), "answer": st.integers(-1, 5)},
        }
    )
)
def test_logiqa(data: bytes) -> None:
    with new_folder() as folder:
        (folder / "test.txt").write_bytes(data)

        check(
            lambda: prepare_logiqa(
                DataFolder(folder / "out", ["x"]),
                splits=["test"],
                source=folder,
                downloads=folder,
                downloader=Downloader(),
            )
        )


@given(
    name=st.sampled_from(["a.tsv", "a.tsv.gz"]),
    data=st.data(),
    columns=st.tuples(st.integers(0, 2), st.integers(0, 2)),
)
def test_filter_pairs(name: str, data: st.DataObject, columns: tuple[int, int]) -> None:
    content = data.draw(compressed(LINES) if name.endswith(".gz") else LINES)

    with new_folder() as folder:
        (folder / name).write_bytes(content)

        check(
            lambda: filter_corpus(
                DataFolder(folder / "out", ["x"]),
                Corpus([folder / name], columns=list(columns)),
                TrainingFilter(source_lang="en", target_lang="de", max_pairs=1),
                origin=ORIGIN,
            )
        )


ENTRY: Final = {
    "finished": st.one_of(st.booleans(), VALUES),
    "inputs": VALUES,
    "files": st.one_of(
        st.dictionaries(TEXTS, VALUES, max_size=2),
        st.dictionaries(TEXTS, st.dictionaries(st.just("sha256"), VALUES), max_size=2),
    ),
    "warmup_plugin": VALUES,
}

CARDS: Final = st.one_of(
    st.binary(),
    VALUES.map(to_json),
    st.fixed_dictionaries(
        {
            "format": st.just(1),
            "entries": st.dictionaries(
                st.sampled_from(["a", "b"]),
                st.one_of(
                    VALUES,
                    st.fixed_dictionaries(ENTRY),
                    st.fixed_dictionaries({}, optional=ENTRY),
                ),
                max_size=2,
            ),
        }
    ).map(to_json),
)


@given(CARDS)
def test_data_card(data: bytes) -> None:
    with new_folder() as folder:
        (folder / "DATA.json").write_bytes(data)

        (folder / "x").write_text("x\n")

        def use() -> None:
            data_folder = DataFolder(folder, ["x"], force=True)

            inputs = Inputs(sources={}, settings={})

            data_folder.is_done("a", inputs)

            data_folder.start("a", inputs, ["x"])

            data_folder.finish("a", ["x"], origin=ORIGIN, counts={})

            data_folder.summarize("a")

        check(use)


@given(st.one_of(st.binary(), VALUES.map(to_json)), st.binary())
def test_what_an_earlier_download_has_left(info: bytes, checksum: bytes) -> None:
    with new_folder() as folder:
        (folder / "a.part").write_bytes(b"x")
        (folder / "a.part.json").write_bytes(info)
        (folder / "a.sha256").write_bytes(checksum)

        read_checksum(folder / "a")

        def download() -> None:
            # Nobody listens there.
            Downloader(max_failures=1, wait_seconds=0).download(
                "http://127.0.0.1:9/a", folder / "a"
            )

        assert not check(download)


@given(TEXTS, TEXTS)
def test_names_of_sets(name: str, lang: str) -> None:
    check(lambda: find_local_set(name, lang, "de"))
    check(lambda: parse_languages("flores101", [name, lang]))
