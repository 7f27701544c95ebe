# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.data.json_lines import iter_json_objects
from warmup_plugin.data.preparation.logiqa import read_questions
from warmup_plugin.data.split_files import TextPairsConfig, list_split_files
from warmup_plugin.data.text_lines import iter_lines, read_lines
from warmup_plugin.data.text_pairs import TextPairs, read_split
from warmup_plugin.errors import WarmupError


def write(file: Path, data: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)

    if isinstance(data, str):
        data = data.encode("utf-8")

    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)

    return file


def read(path: Path, split: str = "train", **options: Any) -> TextPairs:
    return read_split(TextPairsConfig(path=path, **options), split)


def to_list(pairs: TextPairs) -> list[tuple[str, str]]:
    return [(pairs.source(i), pairs.target(i)) for i in range(len(pairs))]


def expect_error(*parts: str) -> AbstractContextManager[object]:
    """Matches one sentence that has all ``parts`` in order."""
    pattern = ".*".join(re.escape(part) for part in parts)

    return pytest.raises(WarmupError, match=f"(?s)^[^\n]*{pattern}[^\n]*[.]$")


class TestReadLines:
    def test_call_works_when_final_newline_is_missing(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt", "one\ntwo")

        assert read_lines(file) == ["one", "two"]

    def test_call_keeps_empty_lines(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt", "one\n\n  \ntwo\n\n")

        assert read_lines(file) == ["one", "", "", "two", ""]

    def test_call_strips_crlf_bom_and_whitespace(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt", b"\xef\xbb\xbf one \r\n\ttwo\r\n")

        assert read_lines(file) == ["one", "two"]

    def test_call_keeps_bom_inside_of_file(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt", "one\n\ufefftwo\n")

        assert read_lines(file) == ["one", "\ufefftwo"]

    @pytest.mark.parametrize("char", ["\u2028", "\u0085", "\f", "\v", "\x1c", "\r"])
    def test_call_splits_at_line_feed_only(self, tmp_path: Path, char: str) -> None:
        file = write(tmp_path / "a.txt", f"a{char}b\nc\n")

        assert read_lines(file) == [f"a{char}b", "c"]

    def test_call_keeps_nul(self, tmp_path: Path) -> None:
        assert read_lines(write(tmp_path / "a.txt", b"a\0b\n")) == ["a\0b"]

    def test_call_returns_nothing_when_file_is_empty(self, tmp_path: Path) -> None:
        assert read_lines(write(tmp_path / "a.txt", "")) == []

    def test_call_reads_gzip(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt.gz", "one\ntwö\n")

        assert read_lines(file) == ["one", "twö"]

    def test_call_raises_error_when_encoding_is_wrong(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt", b"one\nstra\xdfe\n")

        with expect_error("Line 2", str(file), "UTF-8 at byte 5", "iconv"):
            read_lines(file)

    def test_call_counts_bom_in_byte_column(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt", b"\xef\xbb\xbfa\xff\n")

        with expect_error("Line 1", "at byte 5"):
            read_lines(file)

    def test_call_raises_error_when_file_is_utf_16(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt", "one\n".encode("utf-16"))

        with expect_error("Line 1", "-f utf-16"):
            read_lines(file)

    def test_call_raises_error_when_gzip_has_other_name(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt", gzip.compress(b"one\n"))

        with expect_error(str(file), "end in `.gz`"):
            read_lines(file)

    def test_call_raises_error_when_gzip_is_truncated(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.gz", "".join(f"line {i}\n" for i in range(1000)))

        file.write_bytes(file.read_bytes()[:-20])

        with expect_error(str(file), "complete gzip file", "again"):
            read_lines(file)

    def test_call_raises_error_when_gzip_is_none(self, tmp_path: Path) -> None:
        file = tmp_path / "a.gz"

        file.write_bytes(b"plain text\n")

        with expect_error(str(file), "complete gzip file", "again"):
            read_lines(file)

    def test_call_raises_error_when_file_is_missing(self, tmp_path: Path) -> None:
        with expect_error(str(tmp_path / "a.txt"), "does not exist"):
            read_lines(tmp_path / "a.txt")

    def test_call_raises_error_when_file_is_folder(self, tmp_path: Path) -> None:
        with expect_error(str(tmp_path), "cannot be read", "Is a directory"):
            read_lines(tmp_path)


class TestIterLines:
    def test_call_is_lazy(self, tmp_path: Path) -> None:
        file = write(tmp_path / "a.txt", b"one\n\xff\n")

        assert next(iter_lines(file)) == "one"


class TestReadSplit:
    def test_call_reads_plain_files(self, tmp_path: Path) -> None:
        write(tmp_path / "train.en", "a dog\n\nsun\u2028shine\n")
        write(tmp_path / "train.de", "ein Hund\r\nx\r\nSonne")

        pairs = read(tmp_path)

        assert to_list(pairs) == [
            ("a dog", "ein Hund"),
            ("", "x"),
            ("sun\u2028shine", "Sonne"),
        ]
        assert pairs.empty_mask().tolist() == [False, True, False]
        assert pairs.split == "train"
        assert pairs.origin == f"the `train` split of `{tmp_path}`"

    def test_call_reads_gzipped_side(self, tmp_path: Path) -> None:
        write(tmp_path / "train.fr", "un\n")
        write(tmp_path / "train.zh.gz", "一\n")

        pairs = read(tmp_path, source_lang="fr", target_lang="zh")

        assert to_list(pairs) == [("un", "一")]

    @pytest.mark.parametrize("name", ["train.tsv", "train.tsv.gz"])
    def test_call_reads_tsv(self, tmp_path: Path, name: str) -> None:
        write(tmp_path / name, "0\teins \tone\r\n1\t\ttwo")

        pairs = read(tmp_path, source_column=2, target_column=1)

        assert to_list(pairs) == [("one", "eins"), ("two", "")]

    @pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
    def test_call_reads_jsonl(self, tmp_path: Path, name: str) -> None:
        rows = [{"source": "one", "target": "eins"}, {"target": "zwei", "source": ""}]

        write(tmp_path / name, "\n".join(json.dumps(row) for row in rows))

        assert to_list(read(tmp_path)) == [("one", "eins"), ("", "zwei")]

    def test_call_reads_nested_fields(self, tmp_path: Path) -> None:
        rows = [
            {"translation": {"en": "one", "de": "eins"}},
            {"translation.en": "two", "translation": {"de": "zwei", "en": "not this"}},
        ]

        write(tmp_path / "train.jsonl", "\n".join(json.dumps(row) for row in rows))

        pairs = read(
            tmp_path, source_field="translation.en", target_field="translation.de"
        )

        assert to_list(pairs) == [("one", "eins"), ("two", "zwei")]

    def test_call_joins_directions_of_manifest(self, tmp_path: Path) -> None:
        write(tmp_path / "train/MANIFEST", "en-de\t1\n\nmined/fr-de\t1.0\n")
        write(tmp_path / "train/en-de.en.txt", "one\ntwo\n")
        write(tmp_path / "train/en-de.de.txt", "eins\nzwei\n")
        write(tmp_path / "train/mined/fr-de.fr.txt", "trois\n")
        write(tmp_path / "train/mined/fr-de.de.txt", "drei\n")

        pairs = read(tmp_path)

        assert to_list(pairs) == [("one", "eins"), ("two", "zwei"), ("trois", "drei")]

    @pytest.mark.parametrize("ends", [("", ".gz"), (".gz", ".gz")])
    def test_call_reads_gzipped_files_of_manifest(
        self, tmp_path: Path, ends: tuple[str, str]
    ) -> None:
        write(tmp_path / "train/MANIFEST", "mined/en-de\t1\n")
        write(tmp_path / f"train/mined/en-de.en.txt{ends[0]}", "one\n")
        write(tmp_path / f"train/mined/en-de.de.txt{ends[1]}", "eins\n")

        assert to_list(read(tmp_path)) == [("one", "eins")]

    def test_call_raises_error_when_file_of_manifest_is_there_twice(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "train/MANIFEST", "en-de\t1\n")

        for name in ("en.txt", "en.txt.gz", "de.txt"):
            write(tmp_path / f"train/en-de.{name}", "x\n")

        with expect_error("en-de.en.txt`", "`en-de.en.txt.gz` both exist", "remove"):
            read(tmp_path)

    @pytest.mark.parametrize("blank", ["", " \t ", "\r"])
    def test_call_reads_blank_line_as_empty_pair(
        self, tmp_path: Path, blank: str
    ) -> None:
        write(tmp_path / "train.tsv", f"one\teins\n{blank}\ntwo\tzwei\n")

        row = '{"source": "one", "target": "eins"}'

        write(tmp_path / "val.jsonl", f"{row}\n{blank}\n{row}\n")

        pairs = read(tmp_path)

        assert to_list(pairs) == [("one", "eins"), ("", ""), ("two", "zwei")]
        assert pairs.empty_mask().tolist() == [False, True, False]

        pairs = read(tmp_path, "val")

        assert to_list(pairs) == [("one", "eins"), ("", ""), ("one", "eins")]

    def test_call_keeps_line_numbers_when_line_is_blank(self, tmp_path: Path) -> None:
        write(tmp_path / "train.tsv", "\na\tb\nc\n")
        write(tmp_path / "val.jsonl", "\n{\n")

        with expect_error("Line 3", "train.tsv", "has 1 column"):
            read(tmp_path)

        with expect_error("Line 2", "val.jsonl", "not valid JSON"):
            read(tmp_path, "val")

    @pytest.mark.parametrize("format", ["auto", "tsv"])
    def test_call_accepts_one_language_when_format_names_no_files_by_it(
        self, tmp_path: Path, format: str
    ) -> None:
        write(tmp_path / "train.tsv", "a\tb\n")

        pairs = read(tmp_path, format=format, source_lang="en", target_lang="en")

        assert to_list(pairs) == [("a", "b")]

    @pytest.mark.parametrize("format", ["auto", "plain"])
    def test_call_raises_error_when_plain_has_one_language(
        self, tmp_path: Path, format: str
    ) -> None:
        write(tmp_path / "train.en", "a\n")

        with expect_error("must differ in the format `plain`", "both are `en`"):
            read(tmp_path, format=format, source_lang="en", target_lang="en")

    def test_call_accepts_weights_that_are_numbers_of_pairs(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "train/MANIFEST", "en-de\t2\nfr-de\t1\n")
        write(tmp_path / "train/en-de.en.txt", "one\ntwo\n")
        write(tmp_path / "train/en-de.de.txt", "eins\nzwei\n")
        write(tmp_path / "train/fr-de.fr.txt", "trois\n")
        write(tmp_path / "train/fr-de.de.txt", "drei\n")

        assert len(read(tmp_path)) == 3

    def test_call_raises_error_when_weights_ask_for_sampling(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "train/MANIFEST", "en-de\t3\nfr-de\t1\n")

        for name in ("en-de.en", "en-de.de", "fr-de.fr", "fr-de.de"):
            write(tmp_path / f"train/{name}.txt", "x\n")

        with expect_error("MANIFEST", "`en-de` 3, `fr-de` 1", "same weight"):
            read(tmp_path)

    @pytest.mark.parametrize(
        "line",
        ["en-de", "en-de\tmany", "en-de\t0", "en-de\tnan", "en\t1", "a/b/en-de\t1"],
    )
    def test_call_raises_error_when_manifest_line_is_wrong(
        self, tmp_path: Path, line: str
    ) -> None:
        write(tmp_path / "train/MANIFEST", f"\n{line}\n")

        with expect_error("Line 2", "MANIFEST", "is not a direction", "write"):
            read(tmp_path)

    def test_call_raises_error_when_manifest_repeats_direction(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "train/MANIFEST", "en-de\t1\nen-de\t1\n")

        with expect_error("Line 2", "MANIFEST", "`en-de` a second time"):
            read(tmp_path)

    def test_call_raises_error_when_manifest_is_empty(self, tmp_path: Path) -> None:
        write(tmp_path / "train/MANIFEST", "\n")

        with expect_error("MANIFEST", "no lines"):
            read(tmp_path)

    def test_call_raises_error_when_manifest_has_many_target_languages(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "train/MANIFEST", "en-de\t1\nde-en\t1\n")

        with expect_error("MANIFEST", "`en-de` and `de-en`", "target language"):
            read(tmp_path)

    def test_call_raises_error_when_file_of_manifest_is_missing(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "train/MANIFEST", "mined/en-de\t1\n")
        write(tmp_path / "train/mined/en-de.en.txt", "x\n")

        with expect_error("mined/en-de.de.txt", "does not exist", "MANIFEST"):
            read(tmp_path)

    def test_call_raises_error_when_path_is_not_given(self) -> None:
        with expect_error("not given", "dataset.path"):
            read_split(TextPairsConfig(), "train")

    def test_call_raises_error_when_folder_is_missing(self, tmp_path: Path) -> None:
        with expect_error(str(tmp_path / "x"), "does not exist", "`--data`"):
            read(tmp_path / "x")

    def test_call_raises_error_when_folder_is_file(self, tmp_path: Path) -> None:
        file = write(tmp_path / "train.tsv", "a\tb\n")

        with expect_error(str(file), "is a file"):
            read(file)

    def test_call_raises_error_when_split_is_missing(self, tmp_path: Path) -> None:
        for name in ("val.en", "val.de", "train.tsv.gz", "dev/MANIFEST.gz", "README"):
            write(tmp_path / name, "x\n")

        with expect_error(
            str(tmp_path),
            "no `test` split",
            "`test.en` + `test.de` or `test.tsv` or `test.jsonl` or `test/MANIFEST`",
            "splits there are `dev`, `train`, `val`",
        ):
            read(tmp_path, "test")

    def test_call_raises_error_when_languages_are_wrong(self, tmp_path: Path) -> None:
        for idx in range(12):
            write(tmp_path / f"train_{idx:02}.xx", "x\n")

        with expect_error("no split of these languages", "train_09.xx` and 2 more"):
            read(tmp_path)

    def test_call_raises_error_when_folder_is_empty(self, tmp_path: Path) -> None:
        with expect_error("no `train` split", "the folder is empty"):
            read(tmp_path)

    def test_call_raises_error_when_one_side_is_missing(self, tmp_path: Path) -> None:
        write(tmp_path / "train.en", "x\n")

        with expect_error("train.en", "no counterpart `train.de`"):
            read(tmp_path)

    def test_call_raises_error_when_format_is_ambiguous(self, tmp_path: Path) -> None:
        for name in ("train.en", "train.de", "train.jsonl", "train/MANIFEST"):
            write(tmp_path / name, "x\n")

        with expect_error(
            "`train.en` + `train.de` and `train.jsonl` and `train/MANIFEST`",
            "set `dataset.format` to `plain` or `jsonl` or `manifest`",
        ):
            read(tmp_path)

    def test_call_reads_given_format_when_there_are_several(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "train.en", "a\n")
        write(tmp_path / "train.de", "b\n")
        write(tmp_path / "train.tsv", "c\td\n")

        assert to_list(read(tmp_path, format="plain")) == [("a", "b")]
        assert to_list(read(tmp_path, format="tsv")) == [("c", "d")]

        with expect_error("looked for `train.jsonl`, gzipped or not"):
            read(tmp_path, format="jsonl")

    def test_call_raises_error_when_file_is_there_twice(self, tmp_path: Path) -> None:
        write(tmp_path / "train.tsv", "a\tb\n")
        write(tmp_path / "train.tsv.gz", "a\tb\n")

        with expect_error("train.tsv`", "`train.tsv.gz` both exist", "remove"):
            read(tmp_path)

    @pytest.mark.parametrize(
        ("options", "part"),
        [
            ({"format": "xml"}, "`xml`"),
            ({"source_field": "target"}, "both are `target`"),
            ({"source_column": 1}, "both are 1"),
            ({"source_column": -1}, "count from 0"),
        ],
    )
    def test_call_raises_error_when_config_is_wrong(
        self, tmp_path: Path, options: dict[str, Any], part: str
    ) -> None:
        with expect_error(part):
            read(tmp_path, **options)

    def test_call_raises_error_when_line_counts_differ(self, tmp_path: Path) -> None:
        write(tmp_path / "train.en", "x\n" * 1200)
        write(tmp_path / "train.de", "x\n" * 3)

        with expect_error("train.en", "1,200 lines", "train.de", "has 3:"):
            read(tmp_path)

    def test_call_raises_error_when_plain_is_empty(self, tmp_path: Path) -> None:
        write(tmp_path / "train.en", "")
        write(tmp_path / "train.de", "")

        with expect_error("train.en", "train.de", "have no lines"):
            read(tmp_path)

    @pytest.mark.parametrize("name", ["train.tsv", "train.jsonl", "train.jsonl.gz"])
    def test_call_raises_error_when_file_is_empty(
        self, tmp_path: Path, name: str
    ) -> None:
        write(tmp_path / name, "")

        with expect_error(name, "has no lines"):
            read(tmp_path)

    def test_call_names_file_when_encoding_is_wrong(self, tmp_path: Path) -> None:
        write(tmp_path / "train.en", "x\ny\n")
        write(tmp_path / "train.de", b"x\n\xe4\n")

        with expect_error("Line 2", str(tmp_path / "train.de"), "at byte 1"):
            read(tmp_path)

    def test_call_raises_error_when_column_is_missing(self, tmp_path: Path) -> None:
        write(tmp_path / "train.tsv", "a\tb\nc\n")

        with expect_error("Line 2", "train.tsv", "has 1 column,", "need 2"):
            read(tmp_path)

    @pytest.mark.parametrize(
        ("line", "parts"),
        [
            ("{", ["is not valid JSON", "column 2"]),
            ("[" * 100_000, ["is not valid JSON"]),
            ("[1]", ["not a JSON object but a list"]),
            ("null", ["not a JSON object but null"]),
            ('{"id": 1}', ["no field `source`", "there are `id`"]),
            ("{}", ["no field `source`", "there are none"]),
            ('{"source": 1, "target": ""}', ["a number in field `source`", "string"]),
            ('{"source": "", "target": null}', ["null in field `target`", "string"]),
            ('{"source": "\\ud800", "target": ""}', ["`source`", "surrogate"]),
        ],
    )
    def test_call_raises_error_when_json_line_is_wrong(
        self, tmp_path: Path, line: str, parts: list[str]
    ) -> None:
        write(tmp_path / "train.jsonl", '{"source": "", "target": ""}\n' + line + "\n")

        with pytest.raises(WarmupError, match=r"(?i)\bline 2 of `.*train\.jsonl`"):
            read(tmp_path)

        with expect_error(*parts):
            read(tmp_path)

    def test_call_raises_error_when_nested_field_is_missing(
        self, tmp_path: Path
    ) -> None:
        write(tmp_path / "train.jsonl", '{"translation": {"en": "", "fr": ""}}\n')

        with expect_error("Line 1", "`translation.de`", "are `en`, `fr`"):
            read(tmp_path, source_field="translation.en", target_field="translation.de")

    def test_pairs_raise_error_when_index_is_out_of_range(self, tmp_path: Path) -> None:
        write(tmp_path / "train.tsv", "a\tb\n")

        pairs = read(tmp_path)

        for idx in (-1, 1):
            with pytest.raises(IndexError):
                pairs.source(idx)


def test_import_is_light() -> None:
    code = (
        "import sys, warmup_plugin.data.text_pairs; print(*sys.modules.keys(), sep=' ')"
    )

    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert not {"torch", "fairseq2"} & set(output.split())


class TestReferences:
    def test_field_holds_all_that_is_right(self, tmp_path: Path) -> None:
        rows = [
            {"source": "a", "target": "b", "targets": ["b", " c\n", ""]},
            {"source": "a", "target": "b"},
            {"source": "a", "target": "b", "targets": None},
        ]

        write(tmp_path / "test.jsonl", "".join(f"{json.dumps(r)}\n" for r in rows))

        pairs = read(tmp_path, split="test")

        assert [pairs.references(idx) for idx in range(3)] == [["b", "c"], ["b"], ["b"]]
        assert [pairs.target(idx) for idx in range(3)] == ["b"] * 3

        pairs = read(tmp_path, split="test", references_field="")

        assert pairs.references(0) == ["b"]

    def test_field_is_that_of_target(self, tmp_path: Path) -> None:
        row = {"source": "a", "target": "b", "targets": ["b", "c"], "topic": "d"}

        rows = [row, {**row, "topics": ["d", "e"]}]

        write(tmp_path / "test.jsonl", "".join(f"{json.dumps(r)}\n" for r in rows))

        pairs = read(tmp_path, split="test", target_field="topic")

        assert [pairs.references(idx) for idx in range(2)] == [["d"], ["d", "e"]]

        pairs = read(
            tmp_path, split="test", target_field="topic", references_field="targets"
        )

        assert pairs.references(0) == ["b", "c"]

    @pytest.mark.parametrize("value", [[1], {"a": "b"}, 3])
    def test_other_values_are_refused(self, tmp_path: Path, value: object) -> None:
        row = {"source": "a", "target": "b", "others": value}

        write(tmp_path / "train.jsonl", json.dumps(row))

        with pytest.raises(WarmupError, match="`others` .`dataset.references_field`"):
            read(tmp_path, references_field="others")

    def test_training_reads_the_target_alone(self, tmp_path: Path) -> None:
        row = {"source": "a", "target": "b", "targets": [{"of": "something else"}]}

        write(tmp_path / "train.jsonl", json.dumps(row))

        config = TextPairsConfig(path=tmp_path)

        pairs = read_split(config, "train", with_references=False)

        assert pairs.references(0) == ["b"]

        with pytest.raises(WarmupError, match="`targets` .`dataset.references_field`"):
            read_split(config, "train")


class TestDocuments:
    def test_file_beside_the_split_names_them(self, tmp_path: Path) -> None:
        write(tmp_path / "test.en", "a\nb\nc\n")
        write(tmp_path / "test.de", "A\nB\nC\n")

        assert read(tmp_path, split="test").document(0) is None

        # Of a line, it need not be known.
        write(tmp_path / "test.docid", "d1\nd1\n\n")

        pairs = read(tmp_path, split="test")

        assert [pairs.document(idx) for idx in range(3)] == ["d1", "d1", None]

    def test_texts_may_be_gzipped(self, tmp_path: Path) -> None:
        for lang in ("en", "de"):
            (tmp_path / f"test.{lang}.gz").write_bytes(gzip.compress(b"a\nb\n"))

        write(tmp_path / "test.docid", "d1\nd2\n")

        assert read(tmp_path, split="test").document(1) == "d2"

    def test_file_of_other_length_is_refused(self, tmp_path: Path) -> None:
        write(tmp_path / "train.tsv", "a\tA\nb\tB\n")
        write(tmp_path / "train.docid", "d1\n")

        with pytest.raises(WarmupError, match="train.docid` has 1 lines, but the `tr"):
            read(tmp_path)

        # Training does not look at it.
        config = TextPairsConfig(path=tmp_path)

        assert len(read_split(config, "train", with_references=False)) == 2

    def test_field_of_json_names_them(self, tmp_path: Path) -> None:
        rows: list[dict[str, object]] = [{"docid": "d1"}, {"docid": 2}, {}]

        text = "".join(
            f"{json.dumps({'source': 'a', 'target': 'A', **row})}\n" for row in rows
        )

        write(tmp_path / "train.jsonl", text)

        pairs = read(tmp_path)

        assert [pairs.document(idx) for idx in range(3)] == ["d1", "2", None]


class TestQuestions:
    @pytest.mark.parametrize("answer", [1, "B"])
    def test_question_is_formatted(self, tmp_path: Path, answer: object) -> None:
        question = {"context": "c ", "question": "q?", "options": [" x", "y"]}

        rows = [json.dumps({**question, "answer": answer}), ""]

        write(tmp_path / "train.jsonl", "".join(f"{row}\n" for row in rows))

        pairs = read(tmp_path, example="multiple_choice")

        assert pairs.source(0) == "c\nq?\nA. x\nB. y"
        assert pairs.target(0) == "B"

        # An empty line is an empty pair.
        assert (pairs.source(1), pairs.target(1)) == ("", "")

    def test_file_of_authors_reads_like_prepared_one(self, tmp_path: Path) -> None:
        row = {"text": "c", "question": "q?", "options": ["x", "y"], "answer": 0}

        write(tmp_path / "train.jsonl", json.dumps(row) + "\n")

        [example] = read_questions(tmp_path / "train.jsonl")

        pairs = read(tmp_path, example="multiple_choice")

        assert pairs.source(0) == example["source"]
        assert pairs.target(0) == example["target"]

    def test_context_may_be_left_out(self, tmp_path: Path) -> None:
        row = {"question": "q?", "options": ["x", "y", "z"], "answer": "C"}

        write(tmp_path / "train.jsonl", json.dumps(row))

        assert (
            read(tmp_path, example="multiple_choice").source(0).startswith("q?\nA. x")
        )

    @pytest.mark.parametrize(
        ("change", "parts"),
        [
            ({"question": None}, ["no text in field `question`"]),
            ({"options": "xy"}, ["a list of texts in field `options`"]),
            ({"options": ["x"]}, ["has 1 options"]),
            ({"answer": 2}, ["has 2 in field `answer`", "none of its 2 options"]),
            ({"answer": "b"}, ["has 'b' in field `answer`"]),
            ({"answer": ""}, ["has '' in field `answer`"]),
            ({"answer": True}, ["has True in field `answer`"]),
            ({"question": "\ud800"}, ["surrogate"]),
        ],
    )
    def test_wrong_line_is_named(
        self, tmp_path: Path, change: dict[str, object], parts: list[str]
    ) -> None:
        good = {"question": "q?", "options": ["x", "y"], "answer": 0}

        rows = [json.dumps(row) for row in (good, {**good, **change})]

        write(tmp_path / "train.jsonl", "".join(f"{row}\n" for row in rows))

        with expect_error("Line 2 of", *parts):
            read(tmp_path, example="multiple_choice")

    def test_unknown_kind_is_named(self, tmp_path: Path) -> None:
        with expect_error("`dataset.example`", "`multiple_choice`", "`triple`"):
            read(tmp_path, example="triple")


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_line_without_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("warmup_plugin.data.text_lines.MAX_LINE_BYTES", 10)

    file = tmp_path / name

    def write(data: bytes) -> None:
        file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)

    write(b"a\n123456789\n0123456789")

    assert read_lines(file) == ["a", "123456789", "0123456789"]

    write(b"a\n01234567890")

    with pytest.raises(WarmupError, match="Line 2 of .* is longer than 10 bytes"):
        read_lines(file)


@pytest.mark.parametrize("depth", [3000, 200])
def test_nested_json_is_refused(tmp_path: Path, depth: int) -> None:
    file = tmp_path / "a.jsonl"

    file.write_text('{"a": ' + "[" * depth + "]" * depth + "}\n")

    with pytest.raises(WarmupError, match="Line 1 of .* is nested too deeply"):
        list(iter_json_objects(file))


def test_files_of_a_manifest_may_lie_behind_a_link(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"

    folder.mkdir()

    for lang in ("en", "de"):
        folder.joinpath(f"en-de.{lang}.txt").write_text("a\n")

    split = tmp_path / "data" / "train"

    split.mkdir(parents=True)

    split.joinpath("corpus").symlink_to(folder)
    split.joinpath("MANIFEST").write_text("corpus/en-de\t1\n")

    config = TextPairsConfig(path=tmp_path / "data")

    assert len(read_split(config, "train")) == 1

    assert [file.name for file in list_split_files(config, "train")] == [
        *("en-de.de.txt", "en-de.en.txt", "MANIFEST")
    ]
