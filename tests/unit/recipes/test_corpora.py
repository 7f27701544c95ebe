# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Training on tokens that are kept."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from fairseq2.gang import FakeGang, Gang

from tests.configs import create_runner, type_config
from tests.hub_files import NLLB_LANGS, write_nllb_tokenizer
from tests.tiny_runs import (
    assert_same_weights,
    load_weights,
    tiny_options,
    to_args,
    write_tiny_text,
)
from warmup_plugin.data.corpus_cache import CACHE_FOLDER
from warmup_plugin.recipes import corpora
from warmup_plugin.recipes.common import create_direction_codecs
from warmup_plugin.recipes.complete_config import complete_config, get_sections
from warmup_plugin.recipes.control import StopSignal
from warmup_plugin.recipes.corpora import CorpusReader, PatientGroup
from warmup_plugin.recipes.train import main
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.tokenizers.loading import load_tokenizer

MADE = "tokenising, once for all runs on this data"


def list_tokens_lines(text: str) -> list[str]:
    """Returns what the log says of data and tokens, without its clock."""
    return re.findall(r"(?:train|valid)[^:\n]*: .*(?:pairs|tokens).*", text)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_tiny_text(tmp_path / "data")


@pytest.mark.parametrize(
    "directions", [None, "{src-tgt: {}, tgt-src: {max_train_pairs: 12}}"]
)
def test_training_is_that_of_tokens_in_memory(
    tmp_path: Path,
    data: Path,
    tokenizer_file: Path,
    capsys: pytest.CaptureFixture[str],
    directions: str | None,
) -> None:
    def train(name: str, cache: object) -> str:
        options = tiny_options(
            data, tokenizer_file, dataset__cache=cache, dataset__directions=directions
        )

        assert main(to_args(tmp_path / name, options)) == 0

        return capsys.readouterr().err

    logs = [
        train("memory", "none"),
        train("made", tmp_path / "cache"),
        train("kept", tmp_path / "cache"),
    ]

    assert [log.count(MADE) for log in logs] == [0, 2, 0]

    # The same is told of the data, and once more where the tokens are.
    lines = [list_tokens_lines(log) for log in logs]

    assert len(lines[0]) >= 4
    assert [n for n in lines[2] if "are mapped from" not in n] == lines[0]
    assert len(lines[2]) == len(lines[0]) + 2

    for name in ("made", "kept"):
        assert_same_weights(
            load_weights(tmp_path / name, 2), load_weights(tmp_path / "memory", 2)
        )

    assert len(list(tmp_path.joinpath("cache").iterdir())) == 2


def test_what_has_changed_is_tokenised_anew(
    tmp_path: Path,
    data: Path,
    tokenizer_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"

    def train(name: str, **further: object) -> int:
        options = tiny_options(data, tokenizer_file, dataset__cache=cache, **further)

        assert main(to_args(tmp_path / name, options)) == 0

        return capsys.readouterr().err.count(MADE)

    assert train("first") == 2
    assert train("fewer", dataset__max_train_pairs=20) == 1
    assert train("shorter", dataset__max_target_len=30) == 2
    assert train("prompt", dataset__prompt="a {source}") == 2

    file = data / "valid.tgt"

    file.write_text(file.read_text().replace("a", "e"))

    assert train("changed") == 1
    assert train("again") == 0

    # Somebody has cleaned up, and a disk has failed.
    [folder, *others] = sorted(cache.glob("train-*"))

    for other in others:
        shutil.rmtree(other)

    folder.joinpath("sources.npy").write_bytes(b"")

    assert train("cleaned") == 1


def test_only_direction_is_no_run_without(
    tmp_path: Path,
    data: Path,
    tokenizer_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(name: str, directions: str | None) -> int:
        options = tiny_options(
            data,
            tokenizer_file,
            dataset__cache=tmp_path / "cache",
            dataset__format="plain",
            dataset__directions=directions,
        )

        assert main(to_args(tmp_path / name, options)) == 0

        return capsys.readouterr().err.count(MADE)

    # The text and all that is done to it is the same.
    assert train("without", None) == 2
    assert train("named", "{src-tgt: {}}") == 2
    assert train("again", None) == 0


def test_tokenizer_read_in_another_way_has_other_tokens(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_nllb_tokenizer(tmp_path / "tokenizer")

    def train(name: str, langs: Sequence[str]) -> int:
        options = tiny_options(
            data,
            tmp_path / "tokenizer" / "sentencepiece.bpe.model",
            dataset__cache=tmp_path / "cache",
            tokenizer__family="nllb",
            # The languages have their tokens in this order.
            tokenizer__config_overrides=f"{{langs: [{', '.join(langs)}], default_lang: eng_Latn}}",
            tokenizer__source_lang="deu_Latn",
            tokenizer__target_lang="fra_Latn",
        )

        assert main(to_args(tmp_path / name, options)) == 0

        return capsys.readouterr().err.count(MADE)

    assert train("first", NLLB_LANGS) == 2
    assert train("reversed", NLLB_LANGS[::-1]) == 2
    assert train("again", NLLB_LANGS) == 0


def test_references_of_training_text_do_not_matter(
    tmp_path: Path, data: Path, tokenizer_file: Path
) -> None:
    for split, targets in (("train", 3), ("valid", ["ta", "ba"])):
        sides = (data.joinpath(f"{split}.{lang}") for lang in ("src", "tgt"))

        lines = [
            json.dumps({"source": source, "target": target, "targets": targets})
            for source, target in zip(*(f.read_text().splitlines() for f in sides))
        ]

        data.joinpath(f"{split}.jsonl").write_text("\n".join(lines))

    options = tiny_options(
        data, tokenizer_file, dataset__format="jsonl", dataset__cache=tmp_path / "cache"
    )

    assert main(to_args(tmp_path / "run", options)) == 0


def test_what_a_killed_repair_has_left_stands_in_no_way(
    tmp_path: Path,
    data: Path,
    tokenizer_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache = tmp_path / "cache"

    options = tiny_options(data, tokenizer_file, dataset__cache=cache)

    assert main(to_args(tmp_path / "first", options)) == 0

    [folder] = cache.glob("train-*")

    shutil.copytree(folder, folder.with_name(f"{folder.name}.damaged"))

    folder.joinpath("sources.npy").unlink()
    folder.joinpath("folder").mkdir()

    assert main(to_args(tmp_path / "again", options)) == 0

    assert "is damaged and is made anew" in capsys.readouterr().err
    assert not folder.joinpath("folder").exists()


def test_large_split_is_kept_beside_data(
    tmp_path: Path,
    data: Path,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = data.joinpath("train.src").stat().st_size

    # The other split is smaller.
    monkeypatch.setattr(corpora, "LEAST_CACHED_BYTES", size)

    assert main(to_args(tmp_path / "run", tiny_options(data, tokenizer_file))) == 0

    [folder] = data.joinpath(CACHE_FOLDER).iterdir()

    assert folder.name.startswith("train-")


@pytest.mark.parametrize("has_cache", [False, True])
def test_large_split_of_somebody_else_is_kept_in_run(
    tmp_path: Path,
    data: Path,
    tokenizer_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_cache: bool,
) -> None:
    monkeypatch.setattr(corpora, "LEAST_CACHED_BYTES", 1)

    foreign = data

    # A folder of data that all may write to, and of caches that another user has made.
    if has_cache:
        foreign = data / CACHE_FOLDER

        foreign.mkdir()

    # Root may write anywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: path != foreign)

    assert main(to_args(tmp_path / "run", tiny_options(data, tokenizer_file))) == 0

    assert len(list(tmp_path.joinpath("run", CACHE_FOLDER).iterdir())) == 2
    assert not list(data.joinpath(CACHE_FOLDER).glob("*"))


def test_folder_of_nobody_is_refused(
    tmp_path: Path,
    data: Path,
    tokenizer_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = tiny_options(data, tokenizer_file, dataset__cache="~nobody_at_all/cache")

    assert main(to_args(tmp_path / "run", options)) != 0

    err = capsys.readouterr().err

    assert "`dataset.cache` is `~nobody_at_all/cache`, but there is no such user" in err
    assert "Traceback" not in err


def test_folder_that_cannot_be_made_is_named(
    tmp_path: Path,
    data: Path,
    tokenizer_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tmp_path.joinpath("file").write_text("")

    options = tiny_options(
        data, tokenizer_file, dataset__cache=tmp_path / "file" / "cache"
    )

    assert main(to_args(tmp_path / "run", options)) != 0

    err = capsys.readouterr().err

    assert f"{tmp_path}/file/cache` (Not a directory); set `dataset.cache`" in err
    assert "Traceback" not in err


class TestBehind:
    """Half of what an encoder reads is the source of another direction."""

    @pytest.fixture
    def get_model(self, monkeypatch: pytest.MonkeyPatch) -> Mock:
        monkeypatch.setattr(corpora, "has_tied_embeddings", lambda model: True)

        return Mock()

    @staticmethod
    def create_reader(
        folder: Path,
        data: Path,
        tokenizer_file: Path,
        directions: str,
        get_model: Callable[[], torch.nn.Module],
        *,
        gang: Gang | None = None,
        cache: str = "none",
    ) -> CorpusReader:
        options = tiny_options(
            data,
            tokenizer_file,
            dataset__cache=cache,
            dataset__format="plain",
            dataset__directions=directions,
        )

        runner = create_runner()

        run_dir = RunDir(folder / "run")

        config = complete_config(
            runner.resolver, run_dir, type_config(to_args(run_dir.path, options))
        )

        codecs = create_direction_codecs(
            load_tokenizer(tokenizer_file, "warmup_spm", None),
            get_sections(config),
            reads_prompts=False,
        )

        return CorpusReader(
            config,
            codecs,
            run_dir,
            gang or FakeGang(torch.device("cpu")),
            get_model,
            StopSignal(),
            reads_prompts=False,
        )

    def read(self, *args: Any) -> dict[str, list[tuple[list[int], list[int]]]]:
        """Returns what encoder and decoder read, by direction."""
        corpus = self.create_reader(*args).read("train", is_training=True)

        rows: dict[str, list[tuple[list[int], list[int]]]] = {}

        for idx, part in enumerate(corpus.part_indices):
            rows.setdefault(corpus.directions[part], []).append(
                (corpus.sources[idx].tolist(), corpus.targets[idx].tolist())
            )

        return rows

    def test_what_others_have_is_taken_as_it_stands_in_their_files(
        self, tmp_path: Path, data: Path, tokenizer_file: Path, get_model: Mock
    ) -> None:
        def read(directions: str) -> dict[str, list[tuple[list[int], list[int]]]]:
            return self.read(tmp_path, data, tokenizer_file, directions, get_model)

        both = read("{src-tgt: {behind: [tgt-src]}, tgt-src: {behind: [src-tgt]}}")

        one = read("{src-tgt: {behind: [tgt-src]}, tgt-src: {}}")
        other = read("{src-tgt: {}, tgt-src: {behind: [src-tgt]}}")

        assert both == {"src-tgt": one["src-tgt"], "tgt-src": other["tgt-src"]}
        assert one["src-tgt"] != other["src-tgt"]

    def test_all_processes_ask_for_the_model(
        self,
        tmp_path: Path,
        data: Path,
        tokenizer_file: Path,
        get_model: Mock,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """They build it together, so that one that asks alone would wait for the others."""
        args = (
            *(tmp_path, data, tokenizer_file),
            "{src-tgt: {}, tgt-src: {behind: [src-tgt]}}",
        )

        cache = tmp_path / "cache"

        first = self.create_reader(*args, get_model, cache=str(cache))

        first.read("train", is_training=True)

        [folder] = cache.iterdir()

        # What the second process hears of the first one.
        monkeypatch.setattr(PatientGroup, "__init__", lambda self, gang: None)
        monkeypatch.setattr(PatientGroup, "gather", lambda self, item: [folder, item])
        monkeypatch.setattr(CorpusReader, "_stop_together", lambda self: None)
        monkeypatch.setattr(CorpusReader, "_check_same", lambda self, corpus: None)

        gang = FakeGang(torch.device("cpu"), rank=1, size=2)

        second = self.create_reader(*args, get_model, gang=gang, cache=str(cache))

        get_model.reset_mock()

        second.read("train", is_training=True)

        get_model.assert_called_once()
