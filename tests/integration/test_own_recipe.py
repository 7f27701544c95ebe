# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The code of ``docs/in_your_own_recipe.md``, as its readers would run it."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from fairseq2.recipe.cli import main
from torch import Tensor

from tests.commands import Start, run
from tests.common import assert_close
from tests.hub_files import write_nllb_tokenizer
from tests.tiny_runs import ROOT, tiny_options, to_args
from tests.unit.criteria.cases import (
    compute_grads,
    create_batch,
    create_criterion,
    create_sharp_model,
)
from warmup_plugin import Criterion, CriterionContext, create_sft_criterion
from warmup_plugin.commands.generate import main as generate
from warmup_plugin.recipes.train import main as train
from warmup_plugin.runs.yaml_files import load_yaml

PAGE = (ROOT / "docs" / "in_your_own_recipe.md").read_text(encoding="utf-8")

[RECIPE, CRITERION] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

[WARMUPS, REFERENCE] = re.findall(r"```diff\n(.*?)```", PAGE, re.DOTALL)

[PROJECT] = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)

MODEL = "{model_dim: 32, vocab_size: 300, pad_idx: 0, max_seq_len: 64, num_encoder_layers: 1, num_decoder_layers: 1, num_encoder_attn_heads: 2, num_decoder_attn_heads: 2, ffn_inner_dim: 32}"


def patch(code: str, diff: str) -> str:
    """Applies a diff whose hunks are found by their text."""
    for hunk in diff.split("@@\n")[1:]:
        lines = hunk.splitlines()

        old = "\n".join(line[1:] for line in lines if not line.startswith("+"))
        new = "\n".join(line[1:] for line in lines if not line.startswith("-"))

        assert code.count(old) == 1, old

        code = code.replace(old, new)

    return code


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs whose target is the source backwards, and a tokenizer for them."""
    folder = tmp_path_factory.mktemp("data")

    random = Random(0)

    texts: list[str] = []

    for split, num in (("train", 40), ("valid", 5)):
        sources = [
            " ".join(random.choices("man dog red house old big".split(), k=n % 4 + 1))
            for n in range(num)
        ]

        targets = [" ".join(reversed(source.split())) for source in sources]

        for lang, lines in (("deu_Latn", sources), ("eng_Latn", targets)):
            text = "".join(f"{line}\n" for line in lines)

            (folder / f"{split}.{lang}").write_text(text)

        texts += sources + targets

    write_nllb_tokenizer(folder / "tokenizer", texts)

    return folder


RunRecipe = Callable[..., str]


@pytest.fixture
def run_recipe(
    tmp_path: Path,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> RunRecipe:
    """Runs a recipe of somebody else in this process; returns what it has logged."""
    monkeypatch.syspath_prepend(tmp_path)

    def run_recipe(name: str, code: str, *pairs: str, status: int = 0) -> str:
        (tmp_path / f"{name}.py").write_text(code)

        importlib.invalidate_caches()

        recipe = importlib.import_module(name).MyRecipe()

        options = [
            f"data.folder={data}",
            "data.batch_size=8",
            f"model.config_overrides={MODEL}",
            f"tokenizer.path={data / 'tokenizer' / 'sentencepiece.bpe.model'}",
            "tokenizer.family=nllb",
            "tokenizer.config_overrides={langs: [deu_Latn, eng_Latn], default_lang: deu_Latn}",
            "trainer.mixed_precision.mode=off",
            "regime.num_steps=2",
            "regime.validate_every_n_steps=2",
            "regime.publish_metrics_every_n_steps=1",
            "common.no_sweep_dir=true",
        ]

        out = tmp_path / f"{name}_out"

        args = [str(out), "--no-rich", "--config", *options, *pairs]

        monkeypatch.setattr(sys, "argv", [name, *args])

        try:
            main(recipe)
        except SystemExit as ex:
            assert ex.code == status
        else:
            assert status == 0

        return capfd.readouterr().err

    return run_recipe


def read_metrics(out: Path) -> dict[str, Any]:
    """Returns the figures of the last step."""
    lines = (out / "metrics" / "train.jsonl").read_text().splitlines()

    record: dict[str, Any] = json.loads(lines[-1])

    return record


def find_imports(code: str) -> set[str]:
    """Lists the modules of ours that are imported."""
    return {
        name
        for line in code.splitlines()
        for name in re.findall(r"^\+?\s*(?:from|import) (warmup_plugin\S*)", line)
    }


class TestOwnRecipe:
    def test_warmups_take_few_lines_that_import_package_alone(self) -> None:
        added = [line for line in WARMUPS.splitlines() if line.startswith("+")]

        assert len([line for line in added if line != "+"]) <= 20

        assert not find_imports(RECIPE)

        for code in (WARMUPS, CRITERION):
            assert find_imports(code) == {"warmup_plugin"}

        # Nothing else of anyone's.
        assert not [line for line in added if "from " in line]

    def test_recipe_trains_alone_and_goes_on_with_warmups(
        self, tmp_path: Path, run_recipe: RunRecipe
    ) -> None:
        run_recipe("plain_recipe", RECIPE, "regime.checkpoint_every_n_steps=2")

        assert "NLL Loss" in read_metrics(tmp_path / "plain_recipe_out")

        checkpoint = tmp_path / "plain_recipe_out" / "checkpoints" / "step_2" / "model"

        log = run_recipe(
            "warmup_recipe",
            patch(patch(RECIPE, WARMUPS), REFERENCE),
            f"model.path={checkpoint}",
            f"reference_model={{path: {checkpoint}, family: nllb, config_overrides: {MODEL}}}",
            "criterion.name=warmup",
            "warmup.num_warmups=3",
            "warmup.max_warmup_len=4",
            "warmup.objective.name=best",
            "warmup.sampler.name=stochastic_beam",
            "warmup.keep.name=top",
            "warmup.sft_weight=0.5",
            "warmup.kl_weight=0.1",
            "seq2seq_generator.config.max_warmup_len=4",
        )

        assert "Validation Metrics (step 2) - Accuracy: 0" in log

        metrics = read_metrics(tmp_path / "warmup_recipe_out")

        assert metrics["Warmups per Source (K)"] == 3

        # Independent draws of a model that knows no warmups would repeat the empty one.
        assert metrics["Duplicate Warmups (%)"] == 0

    @pytest.mark.parametrize(
        "name,pairs,message",
        [
            (
                "recipe_a",
                ["criterion.name=warmup", "warmup.objective.name=joint"],
                "`warmup.objective.name` is `joint`, which needs warmups that all differ",
            ),
            (
                "recipe_b",
                ["criterion.name=warmup", "warmup.objective.name=nope"],
                "`warmup.objective.name` is `nope`, which is not registered",
            ),
            (
                "recipe_c",
                ["criterion.name=warmup", "warmup.kl_weight=0.1"],
                "there is no model to hold the warmups near to; set `reference_model`.",
            ),
            (
                "recipe_d",
                ["criterion.name=warmup", "warmup.max_warmup_len=5"],
                "set `max_warmup_len` in its config to 5.",
            ),
            (
                "recipe_e",
                ["criterion.name=sft"],
                "`criterion.name` is `sft`, which teaches no warmups, but the generator",
            ),
        ],
    )
    def test_setting_that_does_not_fit_is_one_sentence(
        self, run_recipe: RunRecipe, name: str, pairs: list[str], message: str
    ) -> None:
        log = run_recipe(name, patch(RECIPE, WARMUPS), *pairs, status=2)

        assert message in log

        assert "Traceback" not in log


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Installs the package of the page into a folder."""
    folder = tmp_path / "site"

    info = folder / "short_first-1.0.dist-info"

    info.mkdir(parents=True)

    [entry_points] = re.findall(r"entry-points\.(.*)", PROJECT, re.DOTALL)

    entry_points = f"[{entry_points}".replace('"', "")

    (folder / "short_first.py").write_text(CRITERION)

    (info / "METADATA").write_text("Name: short-first\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)

    monkeypatch.syspath_prepend(folder)

    return folder


class TestOwnCriterion:
    def test_our_recipes_find_it(
        self,
        tmp_path: Path,
        package: Path,
        start: Start,
        text_folder: Path,
        tokenizer_file: Path,
    ) -> None:
        out = tmp_path / "run"

        options = tiny_options(
            text_folder,
            tokenizer_file,
            criterion__name="short_first",
            criterion__config__weight=0.5,
        )

        command = ["-m", "recipes.train", *to_args(out, options)]

        path = f"{package}:{ROOT}"

        run(start("train", *command, PYTHONPATH=path))

        section = load_yaml(out / "run.yaml")["criterion"]

        assert section == {
            "name": "short_first",
            "config": {"weight": 0.5},
            "label_smoothing": 0.1,
            "writes_warmups": False,
        }

        # What it has learned to write begins with no warmup.
        assert generate([str(out)]) == 0

        records = (out / "generate" / "test.best.txt.jsonl").read_text().splitlines()

        assert {json.loads(record)["warmup"] for record in records} == {None}

    @pytest.mark.parametrize(
        "key,value,message",
        [
            ("weight", 2, "`criterion.config.weight` must be from 0 to 1."),
            ("nope", 1, "nope` is not known"),
        ],
    )
    def test_bad_setting_is_one_sentence(
        self,
        tmp_path: Path,
        package: Path,
        text_folder: Path,
        tokenizer_file: Path,
        capfd: pytest.CaptureFixture[str],
        key: str,
        value: object,
        message: str,
    ) -> None:
        options = tiny_options(
            text_folder, tokenizer_file, criterion__name="short_first"
        )

        options[f"criterion.config.{key}"] = value

        assert train(to_args(tmp_path / "run", options)) == 2

        log = capfd.readouterr().err

        assert message in log

        assert "criterion" in log and "Traceback" not in log

    def test_recipe_of_somebody_else_finds_it(
        self, tmp_path: Path, package: Path, run_recipe: RunRecipe
    ) -> None:
        run_recipe(
            "mine",
            patch(RECIPE, WARMUPS),
            "criterion.name=short_first",
            "criterion.config.weight=0.5",
            "seq2seq_generator.config.warmup=none",
        )

        assert "NLL Loss" in read_metrics(tmp_path / "mine_out")

    def test_weight_acts(self, package: Path) -> None:
        module = importlib.import_module("short_first")

        def compute(weight: float) -> Tensor:
            model = create_sharp_model("transformer")

            def create(context: CriterionContext) -> Criterion:
                criterion: Criterion = module.ShortFirst(
                    context, module.ShortFirstConfig(weight=weight)
                )

                return criterion

            return compute_grads(model, create_criterion(model, create), create_batch())

        model = create_sharp_model("transformer")

        sft = create_criterion(model, create_sft_criterion)

        assert_close(compute(0.0), compute_grads(model, sft, create_batch()))

        assert not compute(0.5).allclose(compute(0.0))
