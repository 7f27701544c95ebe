# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.data.preparation.servers import serve
from warmup_plugin.data.preparation.data_folder import DataFolder
from warmup_plugin.data.preparation.download import Downloader
from warmup_plugin.data.preparation.summarization import prepare_summarization
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.errors import WarmupError

# As the authors write them.
DIALOGUE = {
    "fname": "train_0",
    "dialogue": "#Person1#: Hi.\n#Person2#: Bye. ",
    "summary": " They greet.",
    "topic": "greeting",
}

TEST_DIALOGUE = {
    "fname": "test_0",
    "dialogue": "#Person1#: Well?\n#Person2#: Well.",
    "summary1": "One asks.",
    "topic1": "asking",
    "summary2": "Two answers.",
    "topic2": "answering",
    "summary3": "All is well.",
    "topic3": "well",
}


def run(path: Path, name: str, **options: Any) -> DataFolder:
    folder = DataFolder(path, ["prepare_summarization.py"])

    prepare_summarization(
        folder,
        name,
        downloads=path / "downloads",
        downloader=Downloader(max_failures=1),
        **options,
    )

    return folder


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


class FakeDatasets(ModuleType):
    """Stands for the library ``datasets``, which tests need not have."""

    __version__ = "0.0"

    def __init__(self, rows: dict[str, list[dict[str, object]]]) -> None:
        super().__init__("datasets")

        self.rows = rows
        self.calls: list[tuple[object, ...]] = []

    def load_dataset(
        self, path: str, name: str | None, *, split: str, revision: str | None
    ) -> FakeDataset:
        self.calls.append((path, name, split, revision))

        if split not in self.rows:
            raise ConnectionError(f"Couldn't reach '{path}'\nand more")

        return FakeDataset(self.rows[split])


class FakeDataset(list[dict[str, object]]):
    _fingerprint = "f00"


class TestPrepareDialogsum:
    def test_call_downloads_and_converts(self, tmp_path: Path) -> None:
        files = {
            "/dialogsum.train.jsonl": json.dumps(DIALOGUE).encode(),
            "/dialogsum.dev.jsonl": json.dumps(DIALOGUE | {"fname": "dev_0"}).encode(),
            "/dialogsum.test.jsonl": json.dumps(TEST_DIALOGUE).encode(),
        }

        with serve(files=files) as server:
            for _ in range(2):
                folder = run(tmp_path, "dialogsum", url=server.url)

            assert len(server.requests) == 3

        assert read_rows(tmp_path / "train.jsonl") == [
            {
                "id": "train_0",
                "source": "#Person1#: Hi.\n#Person2#: Bye.",
                "target": "They greet.",
                "topics": ["greeting"],
            }
        ]

        assert read_rows(tmp_path / "test.jsonl") == [
            {
                "id": "test_0",
                "source": "#Person1#: Well?\n#Person2#: Well.",
                "target": "One asks.",
                "targets": ["One asks.", "Two answers.", "All is well."],
                "topics": ["asking", "answering", "well"],
            }
        ]

        text = folder.summarize("DialogSum")

        assert "CC BY-NC-SA 4.0" in text
        assert "`train` has 1 examples instead of the 12,460" in text
        assert re.search(r"train: source occurs in another split +1\n", text)

    def test_call_drops_empty_texts(self, tmp_path: Path) -> None:
        rows = [DIALOGUE | {"summary": " "}, DIALOGUE | {"dialogue": ""}, DIALOGUE]

        tmp_path.joinpath("dev.jsonl").write_text("\n\n".join(map(json.dumps, rows)))

        run(tmp_path / "out", "dialogsum", source=tmp_path, splits=["valid"])

        assert len(read_rows(tmp_path / "out" / "valid.jsonl")) == 1

        card = json.loads(tmp_path.joinpath("out", "DATA.json").read_text())

        assert card["entries"]["DialogSum"]["counts"] == {
            "valid: read": 3,
            "valid: dropped, an empty source or target": 2,
            "valid: written": 1,
        }

    @pytest.mark.parametrize(
        ("line", "text"),
        [
            ("{", "Line 1 of .* is not valid JSON"),
            ("[]", "Line 1 of .* is not a JSON object"),
            ('{"article": "a"}', "has not the fields `dialogue` and `summary`"),
            ('{"dialogue": "a", "summary": 1}', "has a summary that is no text"),
        ],
    )
    def test_call_refuses_bad_line(self, tmp_path: Path, line: str, text: str) -> None:
        tmp_path.joinpath("dialogsum.test.jsonl").write_text(line)

        with pytest.raises(WarmupError, match=text):
            run(tmp_path / "out", "dialogsum", source=tmp_path, splits=["test"])

    def test_call_refuses_wrong_folder(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match="has no `dialogsum.train.jsonl` or"):
            run(tmp_path / "out", "dialogsum", source=tmp_path)

        with pytest.raises(WarmupError, match="`--from .*` is not a folder"):
            run(tmp_path / "out", "dialogsum", source=tmp_path / "no")

    def test_real_dialogues(self, tmp_path: Path, real_data: Path) -> None:
        folder = run(
            tmp_path,
            "dialogsum",
            source=real_data / "dialogsum",
            splits=["valid", "test"],
        )

        assert "instead of" not in folder.summarize("DialogSum")

        for split in ("valid", "test"):
            pairs = read_split(TextPairsConfig(path=tmp_path), split)

            assert len(pairs) == 500
            assert not pairs.empty_mask().any()
            assert pairs.source(0).startswith("#Person1#: ")
            assert "\n#Person2#: " in pairs.source(0)

        rows = read_rows(tmp_path / "test.jsonl")

        assert all(len(row["targets"]) == 3 for row in rows)
        assert all(row["target"] == row["targets"][0] for row in rows)


class TestPrepareWithDatasets:
    ARTICLE: dict[str, object] = {
        "article": "Long.",
        "highlights": "Sh .\nort .",
        "id": "x",
    }

    def test_call_loads_by_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets = FakeDatasets(
            {split: [self.ARTICLE] for split in ("train", "validation", "test")}
        )

        monkeypatch.setitem(sys.modules, "datasets", datasets)

        for _ in range(2):
            folder = run(tmp_path, "cnn_dailymail", revision="abc")

        # The second time, nothing is loaded.
        assert datasets.calls == [
            ("abisee/cnn_dailymail", "3.0.0", split, "abc")
            for split in ("train", "validation", "test")
        ]

        assert read_rows(tmp_path / "valid.jsonl") == [
            {"id": "x", "source": "Long.", "target": "Sh .\nort ."}
        ]

        assert "ROUGE-Lsum" in folder.summarize("CNN/DailyMail")

        version = json.loads(tmp_path.joinpath("DATA.json").read_text())["entries"][
            "CNN/DailyMail"
        ]["origin"]["version"]

        assert "revision abc" in version and "test f00" in version

    def test_call_reads_json_lines_without_library(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)

        row = {"document": "Long.", "summary": "Short.", "id": "x"}

        tmp_path.joinpath("validation.jsonl").write_text(json.dumps(row))

        run(tmp_path / "out", "xsum", source=tmp_path, splits=["valid"])

        assert read_rows(tmp_path / "out" / "valid.jsonl") == [
            {"id": "x", "source": "Long.", "target": "Short."}
        ]

    def test_call_explains_missing_library(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)

        with pytest.raises(WarmupError, match="XSum is loaded with .* not installed"):
            run(tmp_path, "xsum")

        assert list(tmp_path.iterdir()) == []

    def test_call_explains_failure_of_library(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "datasets", FakeDatasets({}))

        with pytest.raises(
            WarmupError, match=r"\(Couldn't reach 'EdinburghNLP/xsum'\)"
        ):
            run(tmp_path, "xsum")

    def test_call_loads_clone_of_hub(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        datasets = pytest.importorskip("datasets")

        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

        source = tmp_path / "cnn_dailymail"

        source.joinpath("3.0.0").mkdir(parents=True)

        for split in ("train", "validation", "test"):
            datasets.Dataset.from_list([self.ARTICLE]).to_parquet(
                source / "3.0.0" / f"{split}-00000-of-00001.parquet"
            )

        files = "\n".join(
            f"  - split: {split}\n    path: 3.0.0/{split}-*"
            for split in ("train", "validation", "test")
        )

        source.joinpath("README.md").write_text(
            f"---\nconfigs:\n- config_name: 3.0.0\n  data_files:\n{files}\n---\n"
        )

        run(tmp_path / "out", "cnn_dailymail", source=source)

        assert read_rows(tmp_path / "out" / "test.jsonl")[0]["source"] == "Long."
