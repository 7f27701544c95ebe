# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
import json
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

import pytest

from warmup_plugin.data.lines import iter_files, iter_parallel_files
from warmup_plugin.data.preparation.parallel import Corpus
from warmup_plugin.data.preparation.text import HeldOutText
from warmup_plugin.data.text_files import (
    TextPlaces,
    add_place_arguments,
    read_place_arguments,
    read_references,
    read_texts,
)
from warmup_plugin.errors import WarmupError


def _write(file: Path, rows: Sequence[object]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()

    file.write_bytes(gzip.compress(text) if file.suffix == ".gz" else text)

    return file


_ROWS = [{"source": "a\nb", "target": "c", "output": "d"}] * 2


class TestReadTexts:
    @pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "x.json", "x.JSONL"])
    @pytest.mark.parametrize(
        "what,text",
        [
            *[("hypotheses", "d"), ("references", "c")],
            *[("sources", "a\nb"), ("targets", "c")],
        ],
    )
    def test_json_field_is_that_of_what_file_holds(
        self, tmp_path: Path, name: str, what: str, text: str
    ) -> None:
        assert read_texts(_write(tmp_path / name, _ROWS), what) == [text] * 2

    @pytest.mark.parametrize("name", ["x.txt", "x", "x.txt.gz", "x.en"])
    @pytest.mark.parametrize("num_rows", [1, 2, 5])
    def test_json_under_other_name_is_refused(
        self, tmp_path: Path, name: str, num_rows: int
    ) -> None:
        file = _write(tmp_path / name, _ROWS[:1] * num_rows)

        with pytest.raises(WarmupError, match="holds JSON lines, not text"):
            read_texts(file, "references")

    def test_text_with_braces_is_text(self, tmp_path: Path) -> None:
        file = tmp_path / "x"

        lines = ["", "{}", "{ text", '{"a": 1}', '{"a": 1}', '{"a": 1}']

        file.write_text("".join(f"{line}\n" for line in lines))

        assert read_texts(file, "references") == lines

    def test_blank_line_is_empty_text(self, tmp_path: Path) -> None:
        file = tmp_path / "x.jsonl"

        file.write_text('{"target": "a"}\n\n{"target": "b"}\n')

        assert read_texts(file, "references") == ["a", "", "b"]

    def test_column_is_that_of_what_file_holds(self, tmp_path: Path) -> None:
        file = tmp_path / "x.tsv"

        file.write_text("a\tb\n\n\td\n")

        assert read_texts(file, "sources") == ["a", "", ""]
        assert read_texts(file, "references") == ["b", "", "d"]

        places = TextPlaces(columns={"hypotheses": 1})

        assert read_texts(file, "hypotheses", places) == ["b", "", "d"]

    def test_column_that_nobody_knows_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "x.tsv"

        file.write_text("a\tb\n")

        with pytest.raises(WarmupError, match="`--columns hypotheses=1`"):
            read_texts(file, "hypotheses")

        file.write_text("a\tb\nc\n")

        with pytest.raises(WarmupError, match="Line 2 of .* too few columns"):
            read_texts(file, "references")


class TestReadReferences:
    def test_files_add_up(self, tmp_path: Path) -> None:
        first, second = tmp_path / "a", tmp_path / "b.tsv"

        first.write_text("a\nb\n\n")
        second.write_text("x\tc\n\n\n")

        assert read_references([first]) == [["a"], ["b"], [""]]

        # An empty line is no reference, unless there is no other.
        assert read_references([first, second]) == [["a", "c"], ["b"], [""]]

    def test_files_of_other_length_are_refused(self, tmp_path: Path) -> None:
        first, second = tmp_path / "a", tmp_path / "b"

        first.write_text("a\nb\n")
        second.write_text("a\n")

        with pytest.raises(WarmupError, match="b` has 1 lines but .*a` has 2"):
            read_references([first, second])

    def test_json_field_may_hold_list(self, tmp_path: Path) -> None:
        rows = [
            {"target": "a", "targets": ["a ", "", "b"], "x": {"y": ["c"]}},
            {"target": "a", "x": {"y": "d"}},
        ]

        file = _write(tmp_path / "x.jsonl", rows)

        assert read_references([file]) == [["a", "b"], ["a"]]

        places = TextPlaces(fields={"references": "x.y"})

        assert read_references([file], places) == [["c"], ["d"]]

        places = TextPlaces(fields={"references": "target"})

        assert read_references([file], places) == [["a"], ["a"]]

        places = TextPlaces(fields={"references": "x"})

        with pytest.raises(WarmupError, match="an object in field `x`.* list of str"):
            read_references([file], places)

    @pytest.mark.parametrize("targets", [None, [], [" "], ""])
    def test_target_takes_place_of_empty_list(
        self, tmp_path: Path, targets: object
    ) -> None:
        rows = [{"target": "a", "targets": targets}, {"targets": targets}]

        assert read_references([_write(tmp_path / "x.jsonl", rows)]) == [["a"], [""]]


class TestArguments:
    @staticmethod
    def _read(argv: Sequence[str], files: dict[str, list[Path]]) -> TextPlaces:
        parser = ArgumentParser()

        add_place_arguments(parser, list(files))

        return read_place_arguments(parser.parse_args(argv), files)

    def test_bare_field_is_that_of_files_that_have_it(self, tmp_path: Path) -> None:
        hyp = _write(tmp_path / "h.jsonl", [{"source": "a", "output": "b"}])
        ref = _write(tmp_path / "r.jsonl", [{"source": "a", "text": "c"}])

        files = {"hypotheses": [hyp], "references": [ref]}

        assert self._read(["--json-fields", "text"], files).fields == {
            "references": "text"
        }

        # Those of hypotheses are not it, as `output` says.
        with pytest.raises(WarmupError, match="say which of them"):
            self._read(["--json-fields", "source"], files)

        places = self._read(["--json-fields", "references=source"], files)

        assert places.fields == {"references": "source"}

    @pytest.mark.parametrize(
        "argv",
        [
            ["--json-fields", "nope"],
            ["--json-fields", "hypotheses=x"],
            ["--columns", "1"],
            ["--columns", "hypotheses=-1"],
            ["--columns", "hypotheses=\u00b2"],
            ["--columns", "nope=1"],
        ],
    )
    def test_argument_without_effect_is_refused(
        self, tmp_path: Path, argv: list[str]
    ) -> None:
        ref = _write(tmp_path / "r.jsonl", _ROWS)

        files = {"hypotheses": [tmp_path / "h.txt"], "references": [ref]}

        with pytest.raises(WarmupError, match=argv[1].replace("\u00b2", ".")):
            self._read(argv, files)

    def test_columns_are_named(self, tmp_path: Path) -> None:
        files = {"sources": [tmp_path / "s.tsv"], "targets": [tmp_path / "t.tsv.gz"]}

        places = self._read(["--columns", "sources=2", "targets=0"], files)

        assert places.columns == {"sources": 2, "targets": 0}


class TestCommands:
    """What else reads files of lines."""

    def test_files_to_translate(self, tmp_path: Path) -> None:
        file = _write(tmp_path / "x.jsonl.gz", _ROWS)

        assert [line.source for line in iter_files([file])] == ["a\nb"] * 2

        tsv = tmp_path / "x.tsv"

        tsv.write_text("a\tb\n")

        assert [line.source for line in iter_files([tsv])] == ["a"]

        # Whose columns are a source and what its translation begins with.
        [line] = iter_files([tsv], as_text=True)

        assert line.source == "a\tb"

    def test_files_to_score(self, tmp_path: Path) -> None:
        file = _write(tmp_path / "x.jsonl", _ROWS)

        lines = list(iter_parallel_files(file, file))

        assert [(line.source, line.target) for line in lines] == [("a\nb", "c")] * 2

    def test_held_out_files(self, tmp_path: Path) -> None:
        held_out = HeldOutText()

        held_out.add_file(
            _write(tmp_path / "x.jsonl", [{"source": "A dog.", "targets": ["A cat."]}])
        )

        tsv = tmp_path / "x.tsv"

        tsv.write_text("1\tA bird.\n")

        held_out.add_file(tsv)

        for text in ("A dog.", "A cat.", "A bird."):
            assert text in held_out

    def test_files_to_filter(self, tmp_path: Path) -> None:
        file = _write(tmp_path / "x.jsonl", _ROWS)

        with pytest.raises(WarmupError, match="no file of one sentence a line"):
            Corpus([file, file])
