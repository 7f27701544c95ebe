# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.inputs import (
    LINES,
    TEXTS,
    VALUES,
    check,
    compressed,
    json_lines,
    new_folder,
)
from warmup_plugin.data.lines import iter_files, iter_stream
from warmup_plugin.data.split_files import EXAMPLES, FORMATS, TextPairsConfig
from warmup_plugin.data.text_files import TextPlaces, iter_all_texts, read_texts
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.parsing import parse_json, parse_yaml

PAIRS = json_lines(
    {
        "source": TEXTS,
        "target": TEXTS,
        "question": TEXTS,
        "options": st.lists(TEXTS, max_size=4),
        "answer": st.one_of(st.integers(0, 4), st.sampled_from(["A", "b", ""])),
    }
)

MANIFESTS = st.lists(
    st.tuples(
        st.sampled_from(["a-b", "x/a-b", "a", "../a-b", ""]),
        st.sampled_from(["1", "2", "nan", "-1", "x", ""]),
    ).map("\t".join),
    max_size=3,
).map(lambda lines: "\n".join(lines).encode())

CONTENTS = st.one_of(LINES, PAIRS)

FILES = st.dictionaries(
    st.sampled_from(["train.a", "train.b", "train.tsv", "train.jsonl"]),
    CONTENTS,
    max_size=3,
)


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        file = folder / name

        file.parent.mkdir(parents=True, exist_ok=True)

        file.write_bytes(data)


@given(
    files=FILES,
    gz_files=st.dictionaries(
        st.sampled_from(["train.a.gz", "train.b.gz", "train.jsonl.gz"]),
        compressed(CONTENTS),
        max_size=2,
    ),
    manifest=st.one_of(st.none(), MANIFESTS, LINES),
    options=st.fixed_dictionaries(
        {},
        optional={
            "format": st.sampled_from([*FORMATS, "x"]),
            "example": st.sampled_from([*EXAMPLES, "x"]),
            "source_field": st.sampled_from(["source", "a.b", "", "."]),
            "source_column": st.integers(-1, 3),
            "target_lang": st.sampled_from(["b", "a", "", "../b", "b\0"]),
        },
    ),
)
def test_data_folder(
    files: dict[str, bytes],
    gz_files: dict[str, bytes],
    manifest: bytes | None,
    options: dict[str, Any],
) -> None:
    with new_folder() as folder:
        write(folder, {**files, **gz_files})

        if manifest is not None:
            write(folder, {"train/MANIFEST": manifest, **{
                f"train/{name}": data
                for name, data in zip(
                    ["a-b.a.txt", "a-b.b.txt"], [*files.values(), b"x"]
                )
            }})  # fmt: skip

        config = TextPairsConfig(
            path=folder, **{"source_lang": "a", "target_lang": "b", **options}
        )

        def read() -> None:
            pairs = read_split(config, "train")

            for idx in range(len(pairs)):
                pairs.source(idx), pairs.target(idx)

            pairs.empty_mask()

        check(read)


@given(
    name=st.sampled_from(["a.txt", "a.tsv", "a.jsonl", "a.json"]),
    is_gzipped=st.booleans(),
    data=st.data(),
    places=st.builds(
        TextPlaces,
        fields=st.dictionaries(st.just("sources"), TEXTS, max_size=1),
        columns=st.dictionaries(st.just("sources"), st.integers(0, 2), max_size=1),
    ),
)
def test_files_of_texts(
    name: str, is_gzipped: bool, data: st.DataObject, places: TextPlaces
) -> None:
    content = data.draw(compressed(CONTENTS) if is_gzipped else CONTENTS)

    with new_folder() as folder:
        file = folder / (f"{name}.gz" if is_gzipped else name)

        file.write_bytes(content)

        check(lambda: read_texts(file, "sources", places))
        check(lambda: list(iter_files([file], places)))
        check(lambda: list(iter_all_texts(file)))


@given(LINES)
def test_stream(data: bytes) -> None:
    def read() -> Iterator[str]:
        return (line.source for line in iter_stream(BytesIO(data)))

    check(lambda: list(read()))


@given(
    st.one_of(TEXTS, st.text(alphabet='{}[]:,"\\ud80 &*-!?|>\n\t#%@19.e', max_size=40))
)
def test_documents(text: str) -> None:
    with suppress(ValueError):
        parse_yaml(text)

    with suppress(ValueError):
        parse_json(text)


@given(VALUES)
def test_what_is_read_can_be_written(value: object) -> None:
    import json

    with suppress(ValueError):
        json.dumps(parse_json(json.dumps(value)), ensure_ascii=False).encode()
