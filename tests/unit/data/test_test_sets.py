# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import sacrebleu

from tests.tiny_runs import tiny_options, to_args, write_tiny_text
from warmup_plugin.data.split_files import (
    TextPairsConfig,
    list_split_files,
)
from warmup_plugin.data.test_sets import find_test_set, is_test_set, make_file_name
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes.train import main
from warmup_plugin.report.curves import read_curves


def write_set(
    folder: Path, monkeypatch: pytest.MonkeyPatch, references: Sequence[str]
) -> list[tuple[str, str]]:
    """Lets sacreBLEU find a set; returns what it was asked for."""
    asked = []

    files = [folder / f"ref_{n}" for n in range(len(references))]

    for file, text in zip(files, references):
        file.write_text(text, encoding="utf-8")

    folder.joinpath("src").write_text("a\nb\nc\n", encoding="utf-8")

    def get_source(name: str, pair: str) -> str:
        asked.append((name, pair))

        return str(folder / "src")

    monkeypatch.setattr(sacrebleu, "get_source_file", get_source)

    monkeypatch.setattr(
        sacrebleu, "get_reference_files", lambda name, pair: [str(f) for f in files]
    )

    return asked


class TestReadSplit:
    @pytest.mark.parametrize(
        "langs", [("en", "de"), ("eng_Latn", "deu_Latn"), ("en-US", "de_AT")]
    )
    def test_set_is_a_split(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, langs: tuple[str, str]
    ) -> None:
        asked = write_set(tmp_path, monkeypatch, ["A\nB\nC\n"])

        # There is no data folder.
        config = TextPairsConfig(source_lang=langs[0], target_lang=langs[1])

        pairs = read_split(config, "sacrebleu:wmt24")

        assert asked == [("wmt24", "en-de")]

        assert [pairs.source(n) for n in range(len(pairs))] == ["a", "b", "c"]
        assert [pairs.references(n) for n in range(3)] == [["A"], ["B"], ["C"]]
        assert pairs.origin == f"the test set `sacrebleu:wmt24` of `{'-'.join(langs)}`"

        list_split_files(config, "sacrebleu:wmt24")

        assert list_split_files(config, "sacrebleu:wmt24") == [
            tmp_path / "src",
            tmp_path / "ref_0",
        ]

    def test_set_has_several_references(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_set(tmp_path, monkeypatch, ["A\nB\n\n", "AA\n\n\n"])

        pairs = read_split(TextPairsConfig(), "sacrebleu:wmt20/tworefs")

        # The second one is not there for all.
        assert [pairs.references(n) for n in range(3)] == [
            ["A", "AA"],
            ["B"],
            # None at all is an empty one.
            [""],
        ]

    def test_set_names_its_documents(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_set(tmp_path, monkeypatch, ["A\nB\nC\n"])

        pairs = read_split(TextPairsConfig(), "sacrebleu:wmt24")

        assert pairs.document(0) is None

        tmp_path.joinpath("src.docid").write_text("d1\nd1\nd2\n")

        pairs = read_split(TextPairsConfig(), "sacrebleu:wmt24")

        assert [pairs.document(n) for n in range(3)] == ["d1", "d1", "d2"]

        tmp_path.joinpath("src.docid").write_text("d1\n")

        with pytest.raises(WarmupError, match="src.docid` has 1 lines, but the test"):
            read_split(TextPairsConfig(), "sacrebleu:wmt24")

    @pytest.mark.parametrize("references", [["A\nB\n"], ["A\nB\nC\n", "AA\n"]])
    def test_files_of_different_length_are_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, references: list[str]
    ) -> None:
        write_set(tmp_path, monkeypatch, references)

        with pytest.raises(WarmupError, match="lines, but"):
            read_split(TextPairsConfig(), "sacrebleu:wmt24")


class TestFindTestSet:
    def test_unknown_set_is_refused(self) -> None:
        with pytest.raises(
            WarmupError, match="`sacrebleu:wmt99` is no test set.*wmt24"
        ):
            find_test_set("sacrebleu:wmt99", "en", "de")

    def test_other_languages_are_refused(self) -> None:
        with pytest.raises(WarmupError, match="has no `fr-zu`; it has .*`en-cs`"):
            find_test_set("sacrebleu:wmt24", "fr", "zu")

    @pytest.mark.parametrize("error", [OSError("no\nnetwork"), SystemExit(1)])
    def test_failed_download_is_one_sentence(
        self, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        def fail(name: str, pair: str) -> str:
            raise error

        monkeypatch.setattr(sacrebleu, "get_source_file", fail)

        with pytest.raises(WarmupError, match="cannot be downloaded .(no network|1)."):
            find_test_set("sacrebleu:wmt24", "en", "de")


def test_other_splits_are_none() -> None:
    assert is_test_set("sacrebleu:wmt24")
    assert not is_test_set("wmt24")


@pytest.mark.parametrize("name", ["wmt14", "wmt14/full"])
def test_set_is_decoded_in_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer_file: Path, name: str
) -> None:
    data = write_tiny_text(tmp_path / "data")

    for side in ("src", "tgt"):
        lang = {"src": "en", "tgt": "de"}[side]

        for file in data.glob(f"*.{side}"):
            file.rename(file.with_suffix(f".{lang}"))

    write_set(tmp_path, monkeypatch, ["A\nB\nC\n"])

    options = tiny_options(
        data,
        tokenizer_file,
        dataset__source_lang="en",
        dataset__target_lang="de",
        dataset__valid_split=f"sacrebleu:{name}",
        generation__max_len_b=5,
    )

    assert main(to_args(tmp_path / "run", options)) == 0

    assert read_curves(tmp_path / "run", f"sacrebleu:{name}").valid


def test_names_of_files_are_plain() -> None:
    assert make_file_name("sacrebleu:wmt21/dev") == "sacrebleu-wmt21-dev"
    assert make_file_name("dev.v2") == "dev.v2"
