# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Warmups of NLLB in a language between those of source and target.

``</s> eng_Latn c fra_Latn y </s>``: training, every command, and what transformers and
CTranslate2 make of the exported model.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch

from tests.hub_files import NLLB_LANGS, WRITE_MODEL
from tests.tiny_runs import load_weights
from tests.unit.interop.conftest import Case
from tests.unit.interop.hub import MAX_WARMUP_LEN, Hub
from tests.unit.interop.test_round_trip import (
    SOURCES,
    find_separator,
    split,
    translate,
)
from tests.unit.recipes.test_start import start
from warmup_plugin.__main__ import main as run_command
from warmup_plugin.commands import evaluate, generate, score
from warmup_plugin.interop.exporting import export_run
from warmup_plugin.interop.importing import import_model
from warmup_plugin.recipes.line_recipes import describe_job
from warmup_plugin.recipes.translate import GenerateConfig
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import load_yaml


@pytest.fixture(scope="module")
def nllb(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Case:
    folder = tmp_path_factory.mktemp("nllb")

    texts = [
        line
        for name in ("train.src", "train.tgt")
        for line in (text_folder / name).read_text(encoding="utf-8").splitlines()
    ]

    WRITE_MODEL["nllb"](folder / "hub", texts)

    import_model(str(folder / "hub"), folder / "imported")

    return Case("nllb", folder / "hub", folder / "imported", text_folder)


@pytest.fixture(scope="module")
def pivot_run(nllb: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from German to French by way of English; not to be changed."""
    return nllb.train(
        tmp_path_factory.mktemp("pivot") / "run",
        criterion__name="warmup",
        tokenizer__source_lang="deu_Latn",
        tokenizer__target_lang="fra_Latn",
        tokenizer__warmup_lang="eng_Latn",
        warmup__sft_weight=0.5,
        # The rows of the languages move little enough to be compared below.
        lr_scheduler__config__num_warmup_steps=1000,
    )


@pytest.fixture(scope="module")
def hub(nllb: Case, pivot_run: Path) -> tuple[Hub, Path]:
    folder = pivot_run.parent / "exported"

    export_run(RunDir(pivot_run), folder, checkpoint="last")

    return Hub(str(folder), False, NLLB_LANGS), folder


def test_training_begins_with_the_rows_of_the_pretrained_model(
    nllb: Case, pivot_run: Path
) -> None:
    config: dict[str, Any] = load_yaml(pivot_run / "run.yaml")

    assert config["warmup"]["separator_init"] == "none"

    before, after = load_weights(nllb.imported, 0), load_weights(pivot_run, 2)

    [name] = [n for n in before if n.endswith("decoder_frontend.embed.weight")]

    # That of French is no copy of EOS.
    torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "given,expected",
    [
        ({}, ("eng_Latn", None, "eos", "none")),
        ({"tokenizer__warmup_lang": "deu_Latn"}, ("deu_Latn", None, "eos", "none")),
        # One replaces the other.
        ({"tokenizer__separator": "<s>"}, (None, "<s>", "separator", "eos")),
        ({"criterion__name": "sft"}, (None, None, "separator", "eos")),
        # As before there was this setting.
        (
            {"tokenizer__warmup_end": "separator"},
            ("eng_Latn", None, "separator", "none"),
        ),
    ],
)
def test_run_that_starts_from_another_keeps_the_language(
    nllb: Case,
    pivot_run: Path,
    tmp_path: Path,
    given: dict[str, object],
    expected: tuple[str | None, str | None, str, str],
) -> None:
    options = nllb.options(
        init_from=pivot_run,
        criterion__name="warmup",
        tokenizer__source_lang=None,
        tokenizer__target_lang=None,
    )

    options.update({name.replace("__", "."): value for name, value in given.items()})

    config = start(tmp_path / "run", options)

    tokenizer = config["tokenizer"]

    assert tokenizer["target_lang"] == "fra_Latn"

    init = config["warmup"]["separator_init"]

    names = ("warmup_lang", "separator", "warmup_end")

    assert (*(tokenizer[name] for name in names), init) == expected


def test_commands_write_both_languages(
    pivot_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for record in translate(pivot_run, tmp_path):
        tokens = record["hypotheses"][0]["tokens"]

        langs = [token for token in tokens if token.endswith("_Latn__")]

        assert langs == ["__fra_Latn__"] and tokens[-1] == "</s>"
        assert tokens.index(langs[0]) <= MAX_WARMUP_LEN

    # The output without warmup still follows its language.
    for name in ("none", "empty"):
        args = [str(pivot_run), "--no-rich", "--warmup", name, "--input"]

        args += [str(tmp_path / "in.txt"), "--output", str(tmp_path / f"{name}.txt")]

        assert generate.main(args) == 0

    assert (tmp_path / "none.txt").read_text() == (tmp_path / "empty.txt").read_text()

    assert evaluate.main([str(pivot_run)]) == 0

    assert score.main([str(pivot_run), "--no-rich", "--jsonl", "--num-warmups", "2", "--output", str(tmp_path / "s.jsonl")]) == 0  # fmt: skip

    for line in (tmp_path / "s.jsonl").read_text().splitlines():
        assert json.loads(line)["marginal_log_prob"] is not None

    capfd.readouterr()


def test_output_of_other_warmups_is_not_gone_on_with() -> None:
    config = GenerateConfig()

    before = describe_job(config)

    config.tokenizer.warmup_lang = "eng_Latn"

    assert describe_job(config) != before


def test_translate_reads_standard_input(
    pivot_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = [record["output"] for record in translate(pivot_run, tmp_path)]

    text = io.TextIOWrapper(io.BytesIO("\n".join(SOURCES).encode()))

    monkeypatch.setattr(sys, "stdin", text)

    capfd.readouterr()

    assert run_command(["translate", str(pivot_run), "--beam-size", "1"]) == 0

    assert capfd.readouterr().out.splitlines() == expected


def test_transformers_writes_the_same(
    pivot_run: Path, hub: tuple[Hub, Path], tmp_path: Path
) -> None:
    model, folder = hub

    eng, fra = model.tokenizer.convert_tokens_to_ids(["eng_Latn", "fra_Latn"])

    assert model.settings["forced_bos_token_id"] == eng

    suppressed = set(model.settings["suppress_tokens"])

    # All languages can be forced.
    assert not suppressed & set(model.tokenizer.convert_tokens_to_ids(NLLB_LANGS))
    assert model.tokenizer.convert_tokens_to_ids("<s>") in suppressed

    assert find_separator(folder, "warmup") == fra

    card = (folder / "README.md").read_text(encoding="utf-8")

    assert "languages deu_Latn to fra_Latn" in card
    assert "`fra_Latn` (id" in card
    assert "`eng_Latn`, whose token begins what is written" in card

    for record in translate(pivot_run, tmp_path):
        warmup, output = split(model.generate(record["source"], fra), fra)

        assert model.decode(output).strip() == record["output"].strip()
        assert model.decode(warmup).strip() == record["warmup"].strip()


def test_card_example_runs(
    hub: tuple[Hub, Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _, folder = hub

    monkeypatch.chdir(folder.parent)

    card = (folder / "README.md").read_text(encoding="utf-8")

    exec(card.split("```python\n")[1].split("```")[0], {})

    assert capfd.readouterr().out.endswith("\n")


def test_ctranslate2_writes_the_same(hub: tuple[Hub, Path], tmp_path: Path) -> None:
    model, folder = hub

    converter = ctranslate2.converters.TransformersConverter(str(folder))

    converter.convert(str(tmp_path / "ct2"))

    translator = ctranslate2.Translator(str(tmp_path / "ct2"), device="cpu")

    to_tokens = model.tokenizer.convert_ids_to_tokens

    vocabulary = json.loads((tmp_path / "ct2" / "shared_vocabulary.json").read_text())

    for source in SOURCES:
        ids = torch.tensor([model.encode(source)])

        theirs = model.model.generate(
            ids, do_sample=False, num_beams=1, max_new_tokens=30
        )[0].tolist()  # fmt: skip

        [translation] = translator.translate_batch(
            [to_tokens(ids[0])],
            target_prefix=[["eng_Latn"]],
            beam_size=1,
            max_decoding_length=30,
            return_end_token=True,
            suppress_sequences=[
                [vocabulary[idx]] for idx in model.settings["suppress_tokens"]
            ],
        )

        ours = model.tokenizer.convert_tokens_to_ids(translation.hypotheses[0])

        # The token that the decoder starts with.
        theirs = theirs[1:]

        length = min(len(ours), len(theirs))

        assert length > 1 and ours[:length] == theirs[:length]


def test_plain_direction_learns_to_write_the_warmups_language(
    nllb: Case, tmp_path: Path
) -> None:
    # Its outputs begin as the warmups of the other one do. By name it comes first.
    run = nllb.train(
        tmp_path / "run",
        criterion__name="warmup",
        dataset__directions="{tgt-src: {source_token: deu_Latn, target_token: fra_Latn}, src-tgt: {source_token: deu_Latn, target_token: eng_Latn, plain: true}}",
        dataset__source_lang=None,
        dataset__target_lang=None,
        tokenizer__source_lang=None,
        tokenizer__target_lang=None,
        tokenizer__warmup_lang="eng_Latn",
    )

    for name, has_warmup in (("tgt-src", True), ("src-tgt", False)):
        assert generate.main([str(run), "--no-rich", "--direction", name]) == 0

        file = run / "generate" / f"test.{name}.best.txt.jsonl"

        for line in file.read_text(encoding="utf-8").splitlines():
            assert (json.loads(line)["warmup"] is not None) == has_warmup


def test_sft_run_begins_its_outputs_by_its_own_token(
    nllb: Case, pivot_run: Path, tmp_path: Path
) -> None:
    langs: dict[str, object] = {
        "tokenizer__source_lang": "deu_Latn",
        "tokenizer__target_lang": "fra_Latn",
    }

    sft_run = nllb.train(tmp_path / "sft", criterion__name="sft", **langs)

    source = tmp_path / "in.txt"

    source.write_text("".join(f"{text}\n" for text in SOURCES), encoding="utf-8")

    def write(run_dir: Path, *options: object) -> list[str]:
        output = tmp_path / "out.txt"

        args = [run_dir, source, "--output", output, "--beam-size", 1, *options]

        assert run_command(["translate", *map(str, args)]) == 0

        return output.read_text(encoding="utf-8").splitlines()

    # With nearly all of the weight the SFT run writes alone.
    both = write(pivot_run, "--ensemble", sft_run, "--plain-weight", 0.9999)

    assert both == write(sft_run)
