# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What the docs say of configurations, and what users of fairseq2 0.4 find there."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from fairseq2.recipe.base import Recipe
from fairseq2.recipe.config import RegimeSection, TokenizerSection

import warmup_plugin.__main__
from scripts.config_tables import to_markdown
from scripts.make_config_docs import FILE, main, make_docs
from tests.common import create_tiny_model
from tests.configs import read_train_config
from tests.tiny_runs import (
    ROOT,
    assert_same_weights,
    load_weights,
    tiny_options,
    to_args,
)
from warmup_plugin.commands import evaluate, translate
from warmup_plugin.config_docs import get_class_doc, get_field_docs, get_field_owner
from warmup_plugin.criteria.config import KeepSection
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import read_split
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes import train
from warmup_plugin.recipes.common import RunTokenizerSection, TextPairsSection
from warmup_plugin.recipes.running import RecipeRunner, unstructure_config
from warmup_plugin.recipes.score import ScoreRecipe
from warmup_plugin.recipes.train import TranslationTrainRecipe
from warmup_plugin.recipes.translate import TranslationGenerateRecipe

MIGRATION: Final = ROOT / "docs" / "migrating_from_fairseq2_0.4.md"


@dataclass(kw_only=True)
class Plain:
    number: int = 1

    text: str = "a"
    """Says
    something."""

    last: int = 2


@dataclass(kw_only=True)
class Derived(Plain):
    """Has a docstring."""

    text: str = "b"

    further: int = 3
    """The last one."""


class TestGetFieldDocs:
    def test_call_reads_what_stands_below_a_field(self) -> None:
        assert get_field_docs(Plain) == {"text": "Says\nsomething."}

    def test_call_reads_bases_too(self) -> None:
        assert get_field_docs(Derived) == {
            "text": "Says\nsomething.",
            "further": "The last one.",
        }


class TestGetFieldOwner:
    def test_call_returns_last_class_that_declares_field(self) -> None:
        assert get_field_owner(Derived, "number") is Plain
        assert get_field_owner(Derived, "text") is Derived

        assert get_field_owner(RunTokenizerSection, "path") is TokenizerSection
        assert get_field_owner(RunTokenizerSection, "family") is RunTokenizerSection
        assert get_field_owner(TextPairsSection, "format") is TextPairsConfig

    def test_call_raises_error_when_there_is_no_field(self) -> None:
        with pytest.raises(ValueError, match="must have a field `nope`"):
            get_field_owner(Derived, "nope")


class TestGetClassDoc:
    def test_call_ignores_what_dataclass_writes(self) -> None:
        assert get_class_doc(Plain) == ""
        assert get_class_doc(RegimeSection) == ""

        assert get_class_doc(Derived) == "Has a docstring."
        assert get_class_doc(KeepSection).startswith("Chooses the candidates")


def read_tables(text: str) -> Iterator[list[list[str]]]:
    """Reads the rows of each table, without its head."""
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = []

        for line in table.splitlines()[2:]:
            cells = re.split(r"(?<!\\)\|", line)[1:-1]

            rows.append([cell.strip().replace("\\|", "|") for cell in cells])

        yield rows


def read_key(cell: str) -> str | None:
    match = re.fullmatch(r"`([\w.]+)`", cell)

    return match[1] if match else None


def list_keys(text: str) -> set[str]:
    rows = [row for table in read_tables(text) for row in table]

    return {key for row in rows if (key := read_key(row[0])) is not None}


def flatten(config: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


@pytest.fixture(scope="module")
def docs() -> str:
    return make_docs()


class TestMakeDocs:
    def test_file_is_up_to_date(self, docs: str) -> None:
        assert (
            FILE.read_text(encoding="utf-8") == docs
        ), "run `python scripts/make_config_docs.py`"

    @pytest.mark.parametrize(
        "title,recipe",
        [
            ("Training", TranslationTrainRecipe()),
            ("Generating", TranslationGenerateRecipe()),
            ("Scoring", ScoreRecipe()),
        ],
    )
    def test_every_key_of_a_recipe_is_described(
        self, docs: str, title: str, recipe: Recipe
    ) -> None:
        runner = RecipeRunner[Any](recipe, recipe.config_kls)

        values = unstructure_config(recipe.config_kls())

        config = unstructure_config(runner.structure(values))

        parts = re.split(r"^## (\w+)$", docs, flags=re.MULTILINE)

        chapters = dict(zip(parts[1::2], parts[2::2]))

        described = list_keys(chapters[title])

        # A section that another recipe has as well is described once.
        for place in re.findall(r"see \[(\w+)\]\(#", chapters[title]):
            described |= list_keys(chapters[place])

        # Both generators have the same settings.
        keys = {re.sub(r"^seq_", "seq2seq_", key) for key in flatten(config)}

        # Settings that are null, the tables of which list what may be set.
        keys -= {"warmup.sampler.config", "warmup.objective.config", "reference_model"}

        assert len(keys) > 60

        assert sorted(keys - described) == []

    def test_each_of_our_fields_has_a_meaning(self, docs: str) -> None:
        # fairseq2 does not describe all of its own.
        ours = re.sub(r"\*Keys of fairseq2:\*\n\n(\|.*\n)+", "", docs)

        rows = [row for table in read_tables(ours) for row in table if len(row) == 4]

        assert len(rows) > 80

        assert [row[0] for row in rows if not row[3]] == []

        names = [row[0] for row in rows if row[3] == "*(fairseq2)*"]

        assert names == [f"`tokenizer.{n}`" for n in ("name", "path", "config_overrides")]  # fmt: skip

    def test_defaults_are_those_of_our_recipes(self, docs: str) -> None:
        # fairseq2's are `static`, 0.999 and none.
        assert "| `trainer.mixed_precision.mode` | `auto` or `off` or `static` | `off` |" in docs  # fmt: skip
        assert "| `optimizer.config.betas` | [float, float] | `[0.9, 0.98]` |" in docs
        assert "| `regime.score_metric` | str or null | `task` |" in docs

    def test_components_of_other_names_are_described(self, docs: str) -> None:
        for name in ("adamw", "adafactor", "myle", "polynomial_decay", "independent"):
            assert f" is `{name}`:\n" in docs

        assert "(`warmup.objective.config=null`): `elbo`, `best`, `joint`." in docs


class TestChoosing:
    """The docs say how to choose another component."""

    @pytest.mark.parametrize(
        "pairs",
        [
            ["optimizer.name=adafactor", "optimizer.config={lr: 0.002}"],
            ["lr_scheduler.name=passthrough", "lr_scheduler.config=null"],
        ],
    )
    def test_name_with_settings_works(self, pairs: list[str]) -> None:
        args = ["OUT", "--no-rich", "--config", *pairs]

        read_train_config(args)

    def test_name_alone_does_not(self) -> None:
        with pytest.raises(
            WarmupError, match=r"^The config cannot be read: `optimizer.config"
        ):
            read_train_config(["OUT", "--config", "optimizer.name=adafactor"])

    def test_set_works_in_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "config.yaml"

        file.write_text("optimizer: {_set_: {name: adafactor, config: {lr: 0.002}}}\n")

        args = ["OUT", "--no-rich", "--config-file", str(file)]

        config = read_train_config(args)

        assert config["optimizer"]["config"]["beta2_decay"] == -0.8


class TestToMarkdown:
    @pytest.mark.parametrize(
        "text,expected",
        [
            ("If ``None``,\n``True``.", "If `null`, `true`."),
            ("See :class:`Foo` and :attr:`~a.b`.", "See `Foo` and `a.b`."),
            # As fairseq2 has it.
            (":attr`run_id` has", "`run_id` has"),
            ("the `docs <https://a.b/c>`_.", "the [docs](https://a.b/c)."),
            ("`x` and ``y``: `z`", "`x` and `y`: `z`"),
        ],
    )
    def test_call_turns_rest_into_one_line(self, text: str, expected: str) -> None:
        assert to_markdown(text) == expected


class TestMain:
    def test_check_finds_file_that_is_stale(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = tmp_path / "config.md"

        args = ["--output", str(file)]

        assert main([*args, "--check"]) == 1

        assert "run `python scripts/make_config_docs.py`" in capsys.readouterr().err

        assert main(args) == 0

        assert main([*args, "--check"]) == 0

        with file.open("a", encoding="utf-8") as fp:
            fp.write("x")

        assert main([*args, "--check"]) == 1


def read_section(title: str) -> str:
    """Returns a section of the page for users of fairseq2 0.4."""
    text = MIGRATION.read_text(encoding="utf-8")

    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)

    assert match is not None, title

    return match[1]


def read_blocks(title: str, language: str) -> list[str]:
    section = read_section(title)

    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def list_named_keys(cell: str) -> set[str]:
    """Returns the keys that a cell names, without the values it gives them."""
    return set(re.findall(r"`((?:[a-z_]\w*\.)+[a-z_]\w*)(?:=[^`]*)?`", cell))


def list_known_keys() -> set[str]:
    """Returns all keys of our recipes, and the sections they are in."""
    keys = list_keys(FILE.read_text(encoding="utf-8"))

    return keys | {key.rpartition(".")[0] for key in keys}


class TestMigrationPage:
    def test_our_keys_exist(self) -> None:
        known = list_known_keys()

        [table] = read_tables(read_section("Keys of training"))

        named = set()

        for old, _, ours, _ in table:
            # The name of 0.4 is still right.
            same = "the same" in ours

            named |= list_named_keys(old if same else ours)

        assert len(named) > 35

        assert sorted(named - known) == []

    def test_keys_said_to_be_gone_are_gone(self) -> None:
        known = list_known_keys()

        [table] = read_tables(read_section("What has no counterpart"))

        named = set().union(*(list_named_keys(row[0]) for row in table))

        # fairseq2 has it, our recipe refuses it.
        assert named & known == {"regime.num_data_epochs"}

        assert len(named) > 6

    def test_our_options_exist(self, capsys: pytest.CaptureFixture[str]) -> None:
        section = read_section("Keys of translation and evaluation")

        options = {
            option
            for row in next(read_tables(section))
            for option in re.findall(r"`(--[a-z-]+)", row[1])
        }

        assert len(options) > 10

        for main_of_command in (translate.main, evaluate.main):
            with pytest.raises(SystemExit):
                main_of_command(["--help"])

        known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))

        assert sorted(options - known) == []

    def test_preset_resolves(self, tmp_path: Path) -> None:
        [block] = read_blocks("Keys of training", "yaml")

        file = tmp_path / "preset.yaml"

        file.write_text(block, encoding="utf-8")

        args = ["OUT", "--no-rich", "--config-file", str(file)]

        config = read_train_config(args)

        assert config["lr_scheduler"]["config"]["start_lr"] == 1e-7

    def test_old_model_takes_keys_of_the_page(self) -> None:
        [block] = read_blocks("Going on from a trained model", "sh")

        command = shlex.split(block)

        pairs = command[command.index("--config") + 1 :]

        args = ["OUT", "--no-rich", "--config", *pairs]

        read_train_config(args)

    def test_links_exist(self) -> None:
        for file in (MIGRATION, FILE):
            links = re.findall(r"\]\(([^)#\s]+)", file.read_text(encoding="utf-8"))

            paths = [link for link in links if "://" not in link]

            assert paths

            assert [p for p in paths if not (file.parent / p).exists()] == []


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the example of the page has written its data."""
    folder = tmp_path_factory.mktemp("example")

    script = read_blocks("An example", "sh")[0]

    subprocess.run(["sh", "-e", "-c", script], cwd=folder, check=True)

    return folder


PROGRAMS: Final[dict[str, Callable[[list[str]], int]]] = {
    "warmup_plugin": warmup_plugin.__main__.main,
    "recipes.train": train.main,
    "recipes.evaluate": evaluate.main,
}


class TestOldModel:
    """The page says that a model file of fairseq2 0.4 goes on, and how to keep it."""

    def test_one_step_without_learning_rate_adopts_it(
        self, tmp_path: Path, text_folder: Path, tokenizer_file: Path
    ) -> None:
        section = " ".join(read_section("Going on from a trained model").split())

        # The settings of the last sentence.
        match = re.search(r"`(regime\.num_steps=1 [^`]*)`", section)

        assert match is not None

        unchanging = dict(pair.split("=") for pair in match[1].split())

        weights = create_tiny_model(vocab_size=120).state_dict()

        # As 0.3.0 and 0.4.6 call them.
        assert "encoder_frontend.embed.weight" in weights
        assert "decoder.layers.0.encoder_decoder_attn.output_proj.bias" in weights

        file = tmp_path / "model.pt"

        torch.save({"model": weights, "model_key": "model", "fs2": True}, file)

        options = tiny_options(
            text_folder,
            tokenizer_file,
            model__family="nllb",
            model__path=file,
            dataset__max_source_len=60,
            dataset__max_target_len=60,
            **unchanging,
        )

        options["model.arch"] = "null"

        # What `model.yaml` says of the model that the test creates.
        options["model.config_overrides"] = (
            "{model_dim: 16, max_seq_len: 64, vocab_size: 120, pad_idx: 0,"
            " num_encoder_layers: 1, num_decoder_layers: 1, ffn_inner_dim: 32,"
            " num_encoder_attn_heads: 2, num_decoder_attn_heads: 2}"
        )

        assert train.main(to_args(tmp_path / "run", options)) == 0

        adopted = {
            name.partition(":")[2]: weight
            for name, weight in load_weights(tmp_path / "run", 1).items()
        }

        assert_same_weights(adopted, weights)


class TestExample:
    @pytest.mark.parametrize("format_", ["auto", "manifest"])
    def test_our_reader_reads_the_old_layout(self, example: Path, format_: str) -> None:
        config = TextPairsConfig(path=example / "DATA", format=format_)

        pairs = read_split(config, "train")

        assert [(pairs.source(i), pairs.target(i)) for i in range(len(pairs))] == [
            ("a man sleeps", "ein Mann schläft"),
            ("a woman reads", "eine Frau liest"),
            ("two dogs run", "zwei Hunde rennen"),
            ("a child sings", "ein Kind singt"),
            ("a dog sleeps", "ein Hund schläft"),
            ("the man reads", "der Mann liest"),
        ]

        assert len(read_split(config, "valid")) == 2
        assert len(read_split(config, "test")) == 2

    def test_commands_run(
        self,
        example: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(example)

        for line in read_blocks("An example", "sh")[1].splitlines():
            command = shlex.split(line)

            module = command[2]

            if module == "recipes.train":
                steps = [pair for pair in command if pair.startswith("regime.")]

                assert len(steps) == 3

                command = [arg for arg in command if arg not in steps]

                command += [f"{pair.split('=')[0]}=1" for pair in steps]

                command += ["regime.publish_metrics_every_n_steps=1"]

            # In this process, which has fairseq2 loaded: a start costs 8 seconds.
            status = PROGRAMS[module](command[3:])

            assert status == 0, line

            output = capfd.readouterr().out

        # Of the last one, `translate`.
        assert len(output.splitlines()) == 2

        log_text = (example / "runs" / "mt" / "logs" / "rank_0.log").read_text()

        assert "train: all 6 pairs kept." in log_text
