# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from warmup_plugin.data.preparation.data_folder import (
    DataFolder,
    Inputs,
    Origin,
)
from warmup_plugin.errors import WarmupError

ORIGIN = Origin(
    title="A set",
    page="https://example.org",
    version="1",
    license="CC0 | public domain",
    citation="A paper",
)

INPUTS = Inputs(sources={"https://example.org/a": "0" * 64}, settings={"max": 1.5})


def open_folder(path: Path, *, force: bool = False) -> DataFolder:
    command = ["python", "scripts/prepare_a.py", "my data", "--from", "x"]

    return DataFolder(path, command, force=force)


def prepare(
    path: Path, key: str = "A", name: str = "a.en", text: str = "one\ntwo\n"
) -> None:
    folder = open_folder(path)

    folder.start(key, INPUTS, [name])

    path.joinpath(name).write_text(text)

    folder.finish(
        key, [name], origin=ORIGIN, counts={"pairs read": 12345}, notes=["Mind this."]
    )


class TestDataFolder:
    def test_is_done_when_nothing_changed(self, tmp_path: Path) -> None:
        path = tmp_path / "sub" / "data"

        assert not open_folder(path).is_done("A", INPUTS)

        # Only what is written makes the folder.
        assert not path.exists()

        prepare(path)

        assert open_folder(path).is_done("A", INPUTS)
        assert not open_folder(path).is_done("B", INPUTS)

    @pytest.mark.parametrize(
        "inputs",
        [
            Inputs(sources=INPUTS.sources, settings={"max": 2.5}),
            Inputs(sources={"https://example.org/a": "1" * 64}, settings={"max": 1.5}),
        ],
    )
    def test_is_not_done_when_inputs_changed(
        self, tmp_path: Path, inputs: Inputs
    ) -> None:
        prepare(tmp_path)

        assert not open_folder(tmp_path).is_done("A", inputs)

    def test_is_not_done_when_file_changed(self, tmp_path: Path) -> None:
        prepare(tmp_path)

        tmp_path.joinpath("a.en").write_text("one\ntwx\n")

        assert not open_folder(tmp_path).is_done("A", INPUTS)

        tmp_path.joinpath("a.en").unlink()

        assert not open_folder(tmp_path).is_done("A", INPUTS)

    def test_is_not_done_in_another_version(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prepare(tmp_path)

        monkeypatch.setattr(
            "warmup_plugin.data.preparation.data_folder.__version__", "9.9"
        )

        assert not open_folder(tmp_path).is_done("A", INPUTS)

    def test_start_marks_what_a_killed_run_leaves(self, tmp_path: Path) -> None:
        folder = open_folder(tmp_path)

        folder.start("A", INPUTS, ["a.en"])

        tmp_path.joinpath("a.en").write_text("one\n")

        # Killed here.
        assert not open_folder(tmp_path).is_done("A", INPUTS)
        assert "**Unfinished.**" in tmp_path.joinpath("DATA.md").read_text()

        # The file is ours and may be replaced.
        prepare(tmp_path)

        assert open_folder(tmp_path).is_done("A", INPUTS)

    def test_start_replaces_other_files_only_when_forced(self, tmp_path: Path) -> None:
        tmp_path.joinpath("a.en").write_text("mine\n")

        with pytest.raises(
            WarmupError, match=r"a\.en` exists and is not of A: .*force"
        ):
            open_folder(tmp_path).start("A", INPUTS, ["a.en"])

        assert [f.name for f in tmp_path.iterdir()] == ["a.en"]

        prepare(tmp_path / "other")

        # Of another data set.
        with pytest.raises(WarmupError, match="is not of B"):
            open_folder(tmp_path / "other").start("B", INPUTS, ["a.en"])

        open_folder(tmp_path, force=True).start("A", INPUTS, ["a.en"])

    def test_finish_takes_files_over(self, tmp_path: Path) -> None:
        prepare(tmp_path, "A")

        prepare(tmp_path, "B", "b.en")

        folder = open_folder(tmp_path, force=True)

        folder.start("C", INPUTS, ["a.en"])
        folder.finish("C", ["a.en"], origin=ORIGIN, counts={})

        entries = json.loads(tmp_path.joinpath("DATA.json").read_text())["entries"]

        assert list(entries) == ["B", "C"]

    def test_card_tells_all(self, tmp_path: Path) -> None:
        prepare(tmp_path)

        sha256 = hashlib.sha256(b"one\ntwo\n").hexdigest()

        entry = json.loads(tmp_path.joinpath("DATA.json").read_text())["entries"]["A"]

        assert entry["origin"]["license"] == "CC0 | public domain"
        assert entry["files"] == {"a.en": {"lines": 2, "sha256": sha256}}
        assert entry["counts"] == {"pairs read": 12345}
        assert entry["inputs"]["sources"] == INPUTS.sources
        assert entry["command"] == "python scripts/prepare_a.py 'my data' --from x"
        assert entry["date"].startswith("20") and entry["date"].endswith("UTC")

        page = tmp_path.joinpath("DATA.md").read_text()

        for text in (
            "## A\n",
            "| licence | CC0 \\| public domain |",
            "| page | https://example.org |",
            "| setting `max` | `1.5` |",
            "\nMind this.\n",
            "| pairs read | 12,345 |",
            f"| `a.en` | 2 | `{sha256}` |",
            f"| `https://example.org/a` | `{'0' * 64}` |",
        ):
            assert text in page

    def test_summarize_tells_licence_counts_and_state(self, tmp_path: Path) -> None:
        prepare(tmp_path)

        lines = open_folder(tmp_path).summarize("A").splitlines()

        assert lines[0] == "A (licence: CC0 | public domain): there already, intact"
        assert lines[1].split() == ["pairs", "read", "12,345"]
        assert "a.en" in lines[-1]

    @pytest.mark.parametrize("text", ["{", "[]", '{"format": 9}', '{"format": 1}'])
    def test_init_refuses_what_is_no_card(self, tmp_path: Path, text: str) -> None:
        tmp_path.joinpath("DATA.json").write_text(text)

        with pytest.raises(WarmupError, match="is not a data card of this version"):
            open_folder(tmp_path)

    def test_init_refuses_file(self, tmp_path: Path) -> None:
        file = tmp_path / "a"

        file.touch()

        with pytest.raises(WarmupError, match="is a file: name a folder"):
            open_folder(file)
