# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.preparation.servers import serve
from warmup_plugin.data.preparation import logiqa
from warmup_plugin.data.preparation.data_folder import DataFolder
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.logiqa import prepare_logiqa
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.errors import WarmupError


def make_row(number: int = 1, **changes: object) -> dict[str, object]:
    """Makes a question as the authors write them."""
    return {
        "id": number,
        "answer": 2,
        "text": f"All cats are grey. Tom is cat {number}. ",
        "question": "What follows?",
        "options": ["Tom is red.", "Tom is not.", "Tom is grey.", " A cat is Tom."],
        "type": {"Categorical Reasoning": True, "Conjunctive Reasoning": True},
    } | changes


def to_lines(*rows: dict[str, object]) -> bytes:
    # The authors' files end without a line feed.
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


def run(path: Path, **options: Any) -> DataFolder:
    folder = DataFolder(path, ["prepare_logiqa.py"])

    prepare_logiqa(
        folder,
        downloads=path / "downloads",
        downloader=Downloader(max_failures=1),
        **options,
    )

    return folder


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


class TestPrepareLogiqa:
    def test_call_downloads_and_converts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            logiqa,
            "_NUM_PUBLISHED",
            {"en": {"train": 3, "valid": 1, "test": 1}},
        )

        files = {
            "/train.txt": to_lines(make_row(1), make_row(2), make_row(3)),
            "/dev.txt": to_lines(make_row(4)),
            "/test.txt": to_lines(make_row(5)),
        }

        with serve(files=files) as server:
            for _ in range(2):
                folder = run(tmp_path, url=server.url)

            assert len(server.requests) == 3

        assert "instead of" not in folder.summarize("LogiQA 2.0 (en)")

        assert len(read_rows(tmp_path / "train.jsonl")) == 3
        assert len(read_rows(tmp_path / "valid.jsonl")) == 1

        assert read_rows(tmp_path / "test.jsonl") == [
            {
                "id": 5,
                "context": "All cats are grey. Tom is cat 5.",
                "question": "What follows?",
                "options": [
                    "Tom is red.",
                    "Tom is not.",
                    "Tom is grey.",
                    "A cat is Tom.",
                ],
                "answer": 2,
                "types": ["Categorical Reasoning", "Conjunctive Reasoning"],
                "source": "All cats are grey. Tom is cat 5.\nWhat follows?\nA. Tom is red.\nB. Tom is not.\nC. Tom is grey.\nD. A cat is Tom.",
                "target": "C",
            }
        ]

    @pytest.mark.parametrize(
        "options",
        [
            ["A.甲", "B．乙", "C、丙", "D. 丁"],
            ["A,甲", "B,乙", "C,丙", "D,丁"],
            ["Ａ.甲", "Ｂ，乙", "Ｃ：丙", "Ｄ。丁"],
            ["A.甲", "B.乙", "C丙", "D 丁"],
            ["（A）甲", "(B) 乙", "C)丙", "D）丁"],
        ],
    )
    def test_call_reads_chinese_files(self, tmp_path: Path, options: list[str]) -> None:
        row = make_row(options=options)

        del row["type"]

        tmp_path.joinpath("test_zh.txt").write_bytes(to_lines(row))

        run(tmp_path / "out", lang="zh", source=tmp_path, splits=["test"])

        question = read_rows(tmp_path / "out" / "test.jsonl")[0]

        # The letters are not said twice.
        assert question["options"] == ["甲", "乙", "丙", "丁"]
        assert question["source"].endswith("\nA. 甲\nB. 乙\nC. 丙\nD. 丁")
        assert question["types"] == []

        card = (tmp_path / "out" / "DATA.json").read_text(encoding="utf-8")

        assert "1 examples instead of the 1,594 that were published" in card

    def test_call_keeps_option_that_begins_like_a_letter(self, tmp_path: Path) -> None:
        # As in the real data: an abbreviation.
        options = ["Weeds.", "B. t. toxins.", "Crops.", "None."]

        tmp_path.joinpath("test.jsonl").write_bytes(to_lines(make_row(options=options)))

        run(tmp_path / "out", source=tmp_path, splits=["test"])

        assert read_rows(tmp_path / "out" / "test.jsonl")[0]["options"] == options

    @pytest.mark.parametrize("drop_overlap", [False, True])
    def test_call_counts_questions_of_other_splits(
        self, tmp_path: Path, drop_overlap: bool
    ) -> None:
        for name, rows in (
            ("train", [make_row(1), make_row(2), make_row(3)]),
            ("dev", [make_row(2, text="ALL cats are grey; Tom is cat 2")]),
            ("test", [make_row(3, answer=0)]),
        ):
            tmp_path.joinpath(f"{name}.txt").write_bytes(to_lines(*rows))

        run(tmp_path / "out", source=tmp_path, drop_overlap=drop_overlap)

        card = json.loads(tmp_path.joinpath("out", "DATA.json").read_text())

        counts = card["entries"]["LogiQA 2.0 (en)"]["counts"]

        assert counts["train: source occurs in another split"] == 2
        assert counts["train: written"] == (1 if drop_overlap else 3)

        ids = [row["id"] for row in read_rows(tmp_path / "out" / "train.jsonl")]

        assert ids == ([1] if drop_overlap else [1, 2, 3])

    @pytest.mark.parametrize(
        ("line", "text"),
        [
            (b"{", "Line 2 of .* is not valid JSON"),
            (b"[1]", "Line 2 of .* must have a string in field `text`"),
            (to_lines(make_row(options="A")), "must have a list in field `options`"),
            (to_lines(make_row(answer="C")), "must have a number in field `answer`"),
            (to_lines(make_row(answer=4)), "has 4 options and the answer 4"),
            (to_lines(make_row(options=["A"])), "has 1 options"),
        ],
    )
    def test_call_refuses_bad_line(
        self, tmp_path: Path, line: bytes, text: str
    ) -> None:
        tmp_path.joinpath("test.txt").write_bytes(to_lines(make_row()) + b"\n" + line)

        with pytest.raises(WarmupError, match=text):
            run(tmp_path / "out", source=tmp_path, splits=["test"])

        assert not tmp_path.joinpath("out", "test.jsonl").exists()

    def test_call_names_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match="has no `dev.txt` or `dev.jsonl`"):
            run(tmp_path / "out", source=tmp_path, splits=["valid"])

    def test_real_questions(self, tmp_path: Path, real_data: Path) -> None:
        folder = run(tmp_path, source=real_data / "logiqa2", splits=["valid", "test"])

        # As many as were published.
        assert "instead of" not in folder.summarize("LogiQA 2.0 (en)")

        for split, size in (("valid", 1569), ("test", 1572)):
            pairs = read_split(TextPairsConfig(path=tmp_path), split)

            rows = read_rows(tmp_path / f"{split}.jsonl")

            assert len(pairs) == len(rows) == size

            for idx, row in enumerate(rows):
                letter = "ABCD"[row["answer"]]

                assert pairs.target(idx) == letter

                right = row["options"][row["answer"]]

                assert f"\n{letter}. {right}" in pairs.source(idx)
