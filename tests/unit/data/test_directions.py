# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.preparation.conftest import REAL_DATA
from tests.unit.data.words import make_reader
from warmup_plugin.data.corpus import Corpus, join_corpora
from warmup_plugin.data.directions import (
    choose_direction,
    get_pairs_config,
    list_directions,
    narrow_to_direction,
    split_direction,
)
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import TextPairs, read_split
from warmup_plugin.data.tokenizing import tokenize_pairs
from warmup_plugin.data.train_tokenizer import train_tokenizer
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes.common import create_direction_codecs
from warmup_plugin.tokenizers.loading import load_tokenizer
from warmup_plugin.tokenizers.spm import WARMUP_SPM_FAMILY

OPEN = {"path": None, "prompt": None, "source_token": None, "target_token": None}


def make_config(path: Path | None, *names: str, **dataset: object) -> dict[str, Any]:
    """Returns the config of a run with directions that say nothing."""
    return {
        "dataset": {
            **asdict(TextPairsConfig(path=path)),
            "prompt": None,
            "sampling_temperature": 3.0,
            "directions": {name: dict(OPEN) for name in names} or None,
            **dataset,
        },
        "tokenizer": {"source_lang": "a", "target_lang": "b", "separator": "<x>"},
        "criterion": {"name": "sft"},
    }


def read(config: dict[str, Any], name: str) -> list[tuple[str, str]]:
    """Returns the training pairs of a direction."""
    narrowed = narrow_to_direction(config, name, find_data=True)

    pairs = read_split(get_pairs_config(narrowed["dataset"]), "train")

    return list_pairs(pairs)


def list_pairs(pairs: TextPairs) -> list[tuple[str, str]]:
    return [(pairs.source(idx), pairs.target(idx)) for idx in range(len(pairs))]


def write(folder: Path, **files: str) -> Path:
    """Writes training files by their endings."""
    folder.mkdir(parents=True, exist_ok=True)

    for ending, text in files.items():
        (folder / f"train.{ending}").write_text(text, encoding="utf-8")

    return folder


class TestNames:
    def test_call_splits_at_the_hyphen(self) -> None:
        assert split_direction("en-de") == ("en", "de")
        assert split_direction("eng_Latn-deu_Latn") == ("eng_Latn", "deu_Latn")

    @pytest.mark.parametrize(
        "name", ["en", "en-", "-de", "en-de-fr", "a/en-de", "en- de "]
    )
    def test_call_raises_error_when_there_are_not_two(self, name: str) -> None:
        with pytest.raises(WarmupError, match=f"names `{name}`, which is no direction"):
            split_direction(name)

    def test_order_is_that_of_the_names(self) -> None:
        # As a YAML file that was written and read.
        assert list_directions(make_config(None, "en-de", "de-en")["dataset"]) == [
            "de-en",
            "en-de",
        ]


class TestMaxTrainPairs:
    def test_number_of_direction_goes_before_that_of_all(self) -> None:
        config = make_config(None, "en-de", "de-en", "en-fr", max_train_pairs=9)

        config["dataset"]["directions"]["en-de"]["max_train_pairs"] = 5
        config["dataset"]["directions"]["en-fr"]["max_train_pairs"] = None

        numbers = {
            name: narrow_to_direction(config, name)["dataset"]["max_train_pairs"]
            # `de-en` is as an earlier version has written it.
            for name in ("en-de", "de-en", "en-fr")
        }

        assert numbers == {"en-de": 5, "de-en": 9, "en-fr": 9}


class TestChoose:
    def test_run_with_one_direction_needs_none(self) -> None:
        config = make_config(None)

        assert choose_direction(config, None) is None
        assert choose_direction(config, "en-de") is None

        with pytest.raises(WarmupError, match="not trained on .* `de-en`; .* `en-de`"):
            choose_direction(config, "de-en")

    def test_several_directions_need_a_choice(self) -> None:
        config = make_config(None, "en-de", "de-en")

        assert choose_direction(config, "de-en") == "de-en"

        with pytest.raises(WarmupError, match="`--direction`: `de-en`, `en-de`"):
            choose_direction(config, None)

        with pytest.raises(WarmupError, match="not trained on the direction `en-fr`"):
            choose_direction(config, "en-fr")

    def test_only_one_of_several_needs_none(self) -> None:
        assert choose_direction(make_config(None, "en-de"), None) == "en-de"


class TestPlain:
    def test_plain_direction_has_learned_what_sft_has(self) -> None:
        config = make_config(None, "en-de", "de-en")

        config["criterion"] = {"name": "warmup", "label_smoothing": 0.2}

        config["dataset"]["directions"]["de-en"]["plain"] = True

        assert narrow_to_direction(config, "en-de")["criterion"]["name"] == "warmup"

        assert narrow_to_direction(config, "de-en")["criterion"] == {
            "name": "sft",
            "label_smoothing": 0.2,
            "writes_warmups": None,
        }

        # What is given is left as it is.
        assert config["criterion"]["name"] == "warmup"


class TestNarrow:
    def test_sections_are_those_of_the_direction(self, tmp_path: Path) -> None:
        config = make_config(tmp_path, "en-de", "de-fr", prompt="p {source}")

        config["dataset"]["directions"]["de-fr"] = {
            "path": "elsewhere",
            "prompt": "q {source}",
            "source_token": "deu_Latn",
            "target_token": "fra_Latn",
        }

        narrowed = narrow_to_direction(config, "de-fr")

        dataset, tokenizer = narrowed["dataset"], narrowed["tokenizer"]

        assert (dataset["source_lang"], dataset["target_lang"]) == ("de", "fr")
        assert (dataset["path"], dataset["prompt"]) == ("elsewhere", "q {source}")
        assert dataset["directions"] is None
        assert dataset["sampling_temperature"] == 1.0
        assert tokenizer == {
            "source_lang": "deu_Latn",
            "target_lang": "fra_Latn",
            "separator": "<x>",
        }
        assert narrowed["criterion"] == {"name": "sft"}

        other = narrow_to_direction(config, "en-de")

        assert other["dataset"]["prompt"] == "p {source}"
        assert other["dataset"]["path"] == tmp_path
        assert other["tokenizer"]["target_lang"] is None

    def test_run_with_one_direction_stays_as_it_is(self, tmp_path: Path) -> None:
        config = make_config(tmp_path)

        assert narrow_to_direction(config, None, find_data=True) == config
        assert narrow_to_direction(config, "en-de", find_data=True) == config

    def test_data_may_have_moved(self, tmp_path: Path) -> None:
        config = make_config(Path("gone"), "en-de", "de-en")

        config["dataset"]["directions"]["de-en"]["path"] = "gone/too"

        write(tmp_path / "en-de", en="a\n", de="b\n")

        def find(name: str) -> object:
            narrowed = narrow_to_direction(
                config, name, data_dir=tmp_path, find_data=True
            )

            return narrowed["dataset"]["path"]

        assert find("en-de") == str(tmp_path / "en-de")
        assert find("de-en") == str(tmp_path)

    def test_moved_data_is_not_that_of_another_direction(self, tmp_path: Path) -> None:
        config = make_config(Path("gone"), "en-de", "de-en")

        for name in ("en-de", "de-en"):
            config["dataset"]["directions"][name]["path"] = f"gone/{name}"

        write(tmp_path / "en-de", en="a\n", de="b\n")

        narrowed = narrow_to_direction(config, "en-de", data_dir=tmp_path)

        assert narrowed["dataset"]["path"] == str(tmp_path / "en-de")

        with pytest.raises(WarmupError, match="has no folder `de-en`, but each of"):
            narrow_to_direction(config, "de-en", data_dir=tmp_path)


class TestFindData:
    def test_own_folder_goes_first(self, tmp_path: Path) -> None:
        write(tmp_path, en="no\n", de="nein\n")
        write(tmp_path / "de-en", en="no\n", de="nein\n")
        write(tmp_path / "en-de", en="yes\n", de="ja\n")

        assert read(make_config(tmp_path, "en-de"), "en-de") == [("yes", "ja")]

    @pytest.mark.parametrize(
        "files",
        [
            {"en": "yes\n", "de": "ja\n"},
            {"tsv": "ja\tyes\n"},
            {"jsonl": json.dumps({"source": "ja", "target": "yes"}) + "\n"},
        ],
    )
    def test_folder_of_the_other_way_is_read_in_reverse(
        self, tmp_path: Path, files: dict[str, str]
    ) -> None:
        write(tmp_path, en="no\n", de="nein\n")
        write(tmp_path / "de-en", **files)

        config = make_config(tmp_path, "en-de", "de-en")

        assert read(config, "en-de") == [("yes", "ja")]
        assert read(config, "de-en") == [("ja", "yes")]

    def test_references_are_not_those_of_the_other_way(self, tmp_path: Path) -> None:
        row = {"source": "ja", "target": "yes", "targets": ["yes", "yeah"]}

        write(tmp_path / "de-en", jsonl=json.dumps(row) + "\n")

        config = make_config(tmp_path, "en-de", "de-en")

        references = {}

        for name in ("en-de", "de-en"):
            narrowed = narrow_to_direction(config, name, find_data=True)

            pairs = read_split(get_pairs_config(narrowed["dataset"]), "train")

            references[name] = pairs.references(0)

        assert references == {"en-de": ["ja"], "de-en": ["yes", "yeah"]}

    def test_manifest_is_not_read_in_reverse(self, tmp_path: Path) -> None:
        write(tmp_path / "de-en" / "train")

        (tmp_path / "de-en" / "train" / "MANIFEST").write_text("de-en\t1\n")

        with pytest.raises(WarmupError, match="cannot be read in reverse .* `en-de`"):
            read(make_config(tmp_path, "en-de"), "en-de")

    def test_files_of_several_languages_are_a_direction_each_way(
        self, tmp_path: Path
    ) -> None:
        # What lies there besides is of no direction.
        write(tmp_path, en="yes\n", de="ja\n", fr="oui\n", tsv="a\tb\n")

        config = make_config(tmp_path, "en-de", "fr-en", "de-fr")

        assert read(config, "en-de") == [("yes", "ja")]
        assert read(config, "fr-en") == [("oui", "yes")]
        assert read(config, "de-fr") == [("ja", "oui")]

    def test_folder_of_its_own_is_read_forward(self, tmp_path: Path) -> None:
        config = make_config(None, "en-de")

        config["dataset"]["directions"]["en-de"]["path"] = str(
            write(tmp_path / "x", tsv="yes\tja\n")
        )

        assert read(config, "en-de") == [("yes", "ja")]

    def test_error_names_what_was_looked_for(self, tmp_path: Path) -> None:
        write(tmp_path, en="yes\n", tsv="a\tb\n")

        config = make_config(tmp_path, "en-de")

        with pytest.raises(
            WarmupError,
            match=r"no data of the direction `en-de` \(looked for the folders `en-de` and "
            r"`de-en`, and plain files that end in `.en` and `.de`, gzipped or not\)",
        ):
            read(config, "en-de")

        config["dataset"]["format"] = "tsv"

        with pytest.raises(
            WarmupError, match=r"the folders `en-de` and `de-en`\); add"
        ):
            read(config, "en-de")

    @pytest.mark.parametrize(
        "path,message", [(None, "set `dataset.path`"), ("nope", "nope` does not exist")]
    )
    def test_missing_folder_is_told_as_ever(
        self, tmp_path: Path, path: str | None, message: str
    ) -> None:
        root = None if path is None else tmp_path / path

        with pytest.raises(WarmupError, match=message):
            read(make_config(root, "en-de"), "en-de")


def test_flores_is_read_tokenised_and_sampled_in_eight_directions(
    tmp_path: Path,
) -> None:
    folder = REAL_DATA / "flores101"

    if not folder.is_dir():
        pytest.skip(f"FLORES is not in {folder} (WARMUP_TEST_DATA)")

    others = ("de", "fr", "ru", "zh")

    names = [n for lang in others for n in (f"en-{lang}", f"{lang}-en")]

    config = make_config(folder, *names, prompt="{target_lang}: {source}")

    texts = [folder / f"devtest.{lang}" for lang in ("en", *others)]

    train_tokenizer(texts, tmp_path / "spm.model", vocab_size=4000)

    tokenizer = load_tokenizer(tmp_path / "spm.model", WARMUP_SPM_FAMILY, None)

    config["tokenizer"] = {"source_lang": None, "target_lang": None, "separator": None}

    codecs = create_direction_codecs(tokenizer, config, reads_prompts=False)

    corpora: dict[str, Corpus] = {}

    for name, codec in codecs.items():
        narrowed = narrow_to_direction(config, name, find_data=True)

        pairs = read_split(get_pairs_config(narrowed["dataset"]), "devtest")

        # Of the languages, those with other letters lose most.
        corpora[name] = tokenize_pairs(
            pairs, codec, max_source_len=60, max_target_len=60
        )

        lang, other = split_direction(name)

        lines = {
            side: folder.joinpath(f"devtest.{side}").read_text("utf-8").split("\n")
            for side in (lang, other)
        }

        assert len(pairs) == 1012
        assert pairs.source(7) == lines[lang][7].strip()
        assert pairs.target(7) == lines[other][7].strip()

    corpus = join_corpora(corpora)

    sizes = corpus.sizes()

    assert len(sizes) == 8 and sizes.sum() == len(corpus)
    assert sizes.min() < 0.9 * sizes.max()

    reader = make_reader(corpus, sampling_temperature=5.0, max_num_tokens=1000)

    rows = np.concatenate(reader._plan)

    assert len(rows) == len(corpus)

    counts = np.bincount(corpus.part_indices[rows], minlength=8)

    shares = sizes ** (1 / 5) / (sizes ** (1 / 5)).sum()

    assert np.abs(counts - len(corpus) * shares).max() <= 1

    # Directions are mixed, and each row has the text and the prompt of its own.
    [batch] = next(reader)

    example: Any = batch.example

    assert len(set(example["directions"])) > 1

    for n, name in enumerate(example["directions"]):
        source, target = codecs[name].encode_pair(
            example["sources"][n], *example["references"][n]
        )

        assert batch.source_seqs[n, : len(source)].tolist() == source
        assert batch.target_seqs[n, : len(target)].tolist() == target
