# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Runs with several directions, from training to the scores of each."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.models.nllb.tokenizer import NllbTokenizerConfig, load_nllb_tokenizer

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    create_layout,
    create_tiny_model,
    pad_rows,
)
from tests.hub_files import (
    NLLB_LANGS,
    TEXT,
    write_nllb_model,
    write_nllb_tokenizer,
)
from tests.tiny_runs import (
    Options,
    assert_same_weights,
    load_weights,
    tiny_options,
    to_args,
)
from tests.unit.data.words import make_pairs, make_reader
from warmup_plugin.__main__ import main as run_command
from warmup_plugin.commands import evaluate, generate
from warmup_plugin.data.corpus import join_corpora
from warmup_plugin.data.tokenizing import tokenize_pairs
from warmup_plugin.generation import GenerationConfig, WarmupGenerator
from warmup_plugin.interop.importing import import_model
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.recipes import train
from warmup_plugin.recipes.common import create_direction_codecs
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import load_yaml

DIRECTIONS = ("src-tgt", "tgt-src")


@pytest.fixture(scope="module")
def scratch_options(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, tokenizer_file: Path
) -> Options:
    """The settings of a warmup run from scratch, whose directions differ in size."""
    data = tmp_path_factory.mktemp("data")

    for name in DIRECTIONS:
        shutil.copytree(text_folder, data / name)

    return tiny_options(
        data,
        tokenizer_file,
        criterion__name="warmup",
        dataset__directions="{src-tgt: {}, tgt-src: {max_train_pairs: 12}}",
        dataset__sampling_temperature=2.0,
        dataset__max_num_tokens=250,
        regime__num_steps=24,
        regime__validate_every_n_steps=8,
        regime__checkpoint_every_n_steps=8,
        regime__keep_last_n_checkpoints=3,
    )


@pytest.fixture(scope="module")
def scratch_run(
    tmp_path_factory: pytest.TempPathFactory, scratch_options: Options
) -> Path:
    """A run of several epochs; not to be changed but for its outputs."""
    out = tmp_path_factory.mktemp("runs") / "scratch"

    assert train.main(to_args(out, scratch_options)) == 0

    return out


def read_metrics(run: Path, category: str) -> list[dict[str, Any]]:
    text = (run / "metrics" / category).read_text("utf-8")

    return [json.loads(line) for line in text.splitlines()]


class TestTraining:
    def test_log_tells_of_each_direction(self, scratch_run: Path) -> None:
        log = "".join(
            f.read_text("utf-8") for f in (scratch_run / "logs").rglob("*.log")
        )

        assert "src-tgt, train: all 60 pairs kept." in log
        assert "tgt-src, train (the first 12 of 60 pairs): all 12 pairs kept." in log

        # sqrt(60) : sqrt(12)
        assert (
            "train, each epoch: src-tgt 69.4% (50 of its 60 pairs), tgt-src 30.6% (22 of its 12 pairs)"
            in log
        )

    def test_each_direction_is_scored(self, scratch_run: Path) -> None:
        rows = read_metrics(scratch_run, "valid/valid.jsonl")

        assert len(rows) == 3

        for row in rows:
            for name, key in (("BLEU", "bleu"), ("chrF++", "chrf")):
                scores = [row[f"{key}_{direction}"] for direction in DIRECTIONS]

                assert row[name] == pytest.approx(sum(scores) / 2, abs=1e-3)

        # Which picks the best checkpoint.
        for step, score in RunDir(scratch_run).scores().items():
            assert score == pytest.approx(rows[step // 8 - 1]["chrF++"])

    def test_run_that_was_stopped_goes_on_as_if_it_had_not_been(
        self, tmp_path: Path, scratch_run: Path, scratch_options: Options
    ) -> None:
        out = tmp_path / "run"

        args = to_args(out, scratch_options)

        shutil.copytree(scratch_run, out)

        # As it was after step 8, in the second epoch.
        for step in (16, 24):
            shutil.rmtree(out / "checkpoints" / f"step_{step}")

            (out / "checkpoints" / "scores" / f"step_{step}.txt").unlink()

        assert train.main(args) == 0

        assert_same_weights(load_weights(out, 24), load_weights(scratch_run, 24))

    def test_run_with_other_temperature_is_refused(
        self,
        scratch_run: Path,
        scratch_options: Options,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        options = {**scratch_options, "dataset.sampling_temperature": 3.0}

        assert train.main(to_args(scratch_run, options)) == 2

        assert "dataset.sampling_temperature" in capsys.readouterr().err


class TestUse:
    def test_generate_translates_one_direction(
        self, scratch_run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert generate.main([str(scratch_run)]) == 2

        assert (
            "choose one with `--direction`: `src-tgt`, `tgt-src`"
            in capsys.readouterr().err
        )

        run: dict[str, Any] = load_yaml(scratch_run / "run.yaml")

        data = Path(run["dataset"]["path"])

        for name in DIRECTIONS:
            assert generate.main([str(scratch_run), "--direction", name]) == 0

            file = scratch_run / "generate" / f"test.{name}.best.txt.jsonl"

            sources = [
                json.loads(line)["source"]
                for line in file.read_text("utf-8").splitlines()
            ]

            side = name.split("-")[0]

            lines = (data / name / f"test.{side}").read_text("utf-8").splitlines()

            assert sources == lines

    def test_what_is_read_depends_on_direction(
        self,
        scratch_run: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        def translate(*args: str) -> tuple[int, str, str]:
            monkeypatch.setattr(
                sys, "stdin", io.TextIOWrapper(io.BytesIO(b"puke kuse ta momu\n"))
            )

            capfd.readouterr()

            status = run_command(
                ["translate", str(scratch_run), "--no-rich", "--jsonl", *args]
            )

            return status, *capfd.readouterr()

        scores = set()

        for name in DIRECTIONS:
            status, out, _ = translate("--direction", name)

            assert status == 0

            scores.add(json.loads(out)["log_prob"])

        # The prompts differ.
        assert len(scores) == 2

        status, _, err = translate()

        assert status == 2 and "choose one with `--direction`" in err

        status, _, err = translate("--direction", "src-xx")

        assert status == 2 and "not trained on the direction `src-xx`" in err

    def test_models_of_an_ensemble_write_in_the_direction_of_the_run(
        self,
        tmp_path: Path,
        scratch_run: Path,
        sft_run: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        def translate(*args: object) -> tuple[int, str, str]:
            line = io.TextIOWrapper(io.BytesIO(b"ta"))

            monkeypatch.setattr(sys, "stdin", line)

            capfd.readouterr()

            status = run_command(["translate", *map(str, args), "--no-rich", "--jsonl"])

            return status, *capfd.readouterr()

        def keep(name: str, **values: object) -> Path:
            copy = shutil.copytree(scratch_run, tmp_path / name)

            config: dict[str, Any] = dict(load_yaml(copy / "run.yaml"))

            config["dataset"]["directions"] = {
                name: {**config["dataset"]["directions"][name], **values}
            }

            (copy / "run.yaml").write_text(json.dumps(config), "utf-8")

            return copy

        one, other = keep("tgt-src"), keep("src-tgt", prompt="x: {source}")

        alone = translate(one)

        assert alone[0] == 0 and translate(one, "--ensemble", scratch_run)[0] == 0

        # The other one would begin otherwise.
        several = (scratch_run, "--direction", "src-tgt", "--ensemble")

        for args, message in [
            (
                (one, "--ensemble", sft_run),
                f"The run in `{sft_run}` has another source language (`src`, not `tgt`) and another target language",
            ),
            (
                (*several, scratch_run, one),
                f"The run in `{one}` was trained on `tgt-src`, not on `src-tgt`, in which that in `{scratch_run}` translates;",
            ),
            (
                (*several, other),
                f"The run in `{other}` has another prompt (`x: {{source}}`, not ",
            ),
        ]:
            status, _, err = translate(*args)

            assert status == 2 and message in err

    def test_evaluate_scores_all_directions(
        self, tmp_path: Path, scratch_run: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        args = [str(scratch_run), "--num-bootstrap", "0"]

        assert evaluate.main([*args, "--json", str(tmp_path / "all.json")]) == 0

        out = capsys.readouterr().out

        assert out.index("src-tgt:") < out.index("tgt-src:")

        reports = json.loads((tmp_path / "all.json").read_text())["directions"]

        assert list(reports) == list(DIRECTIONS)
        assert [r["target_lang"] for r in reports.values()] == ["tgt", "src"]

        for name in DIRECTIONS:
            assert (scratch_run / "evaluate" / f"test.{name}.best.json").is_file()

        args += ["--direction", "tgt-src", "--json", str(tmp_path / "one.json")]

        assert evaluate.main(args) == 0

        one = json.loads((tmp_path / "one.json").read_text())

        assert one["systems"] == reports["tgt-src"]["systems"]

        assert evaluate.main([str(scratch_run), "--target-lang", "de"]) == 2

    def test_score_and_report_take_a_direction(
        self, tmp_path: Path, scratch_run: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        run, page = str(scratch_run), tmp_path / "report.html"

        assert run_command(["report", run, "-o", str(page)]) == 2
        assert "choose one with `--direction`" in capfd.readouterr().err

        args = ["report", run, "-o", str(page), "--direction", "tgt-src"]

        assert run_command([*args, "--num-bootstrap", "0"]) == 0

        # Made for it.
        assert (scratch_run / "score" / "test.tgt-src.best.jsonl").is_file()

        # Curves are those of all.
        assert run_command(["report", run, "-o", str(page), "--curves-only"]) == 0

        assert run_command(["score", run, "--direction", "src-tgt"]) == 0
        assert (scratch_run / "score" / "test.src-tgt.best.jsonl").is_file()

    def test_run_is_compared_with_one_of_a_single_direction(
        self,
        tmp_path: Path,
        scratch_run: Path,
        sft_run: Path,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        # It gets translations, which other tests do not expect.
        single = shutil.copytree(sft_run, tmp_path / "sft")

        args = ["compare", str(single), str(scratch_run), "--num-bootstrap", "10"]

        assert run_command(args) == 2
        assert (
            f"The run in `{scratch_run}` was trained on several directions; choose one with `--direction`"
            in capfd.readouterr().err
        )

        args += ["--num-randomization", "10"]

        assert run_command([*args, "--direction", "src-tgt"]) == 0

        # The other run knows one direction only.
        assert run_command([*args, "--direction", "tgt-src"]) == 2
        assert (
            f"The run in `{single}` was not trained on the direction `tgt-src`"
            in capfd.readouterr().err
        )

    def test_export_sets_prompt_of_direction(
        self, tmp_path: Path, scratch_run: Path
    ) -> None:
        args = ["export", str(scratch_run), str(tmp_path / "hf")]

        assert run_command(args) == 2
        assert run_command([*args, "--direction", "tgt-src"]) == 0

        assert "src: " in (tmp_path / "hf" / "README.md").read_text("utf-8")


def test_rows_of_a_batch_begin_with_the_token_of_their_language(tmp_path: Path) -> None:
    write_nllb_tokenizer(tmp_path)

    tokenizer = load_nllb_tokenizer(
        tmp_path / "sentencepiece.bpe.model",
        NllbTokenizerConfig(langs=NLLB_LANGS, default_lang="eng_Latn"),
    )

    sections = {"path": None, "prompt": None}

    tokens = {"en": "eng_Latn", "de": "deu_Latn", "fr": "fra_Latn"}

    config = {
        "dataset": {
            "prompt": None,
            "path": None,
            "directions": {
                f"{source}-{target}": {
                    **sections,
                    "source_token": tokens[source],
                    "target_token": tokens[target],
                }
                for source, target in (("en", "de"), ("de", "en"), ("en", "fr"))
            },
        },
        "tokenizer": {"separator": None},
    }

    codecs = create_direction_codecs(tokenizer, config, reads_prompts=False)

    corpora = {}

    for n, (name, codec) in enumerate(codecs.items()):
        pairs = make_pairs(tmp_path, [("A dog.", "Ein Hund.")] * (n + 1))

        corpora[name] = tokenize_pairs(
            pairs, codec, max_source_len=99, max_target_len=99
        )

    [batch] = next(make_reader(join_corpora(corpora), max_num_tokens=900))

    example: Any = batch.example

    codec = codecs["en-de"]

    assert sorted(example["directions"]) == ["de-en"] + ["en-de"] * 2 + ["en-fr"] * 3

    for n, name in enumerate(example["directions"]):
        source, target = name.split("-")

        names = codec.to_tokens(batch.target_seqs[n, :2].tolist())

        assert names == ["</s>", f"__{tokens[target]}__"]

        names = codec.to_tokens(batch.source_seqs[n, :1].tolist())

        assert names == [f"__{tokens[source]}__"]


def test_nllb_reads_reversed_folder_and_writes_each_language(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_nllb_model(tmp_path / "hub")

    import_model(str(tmp_path / "hub"), tmp_path / "imported")

    english, german = [TEXT[0], TEXT[1]] * 4, [TEXT[2], TEXT[3]] * 4

    # There is no folder `en-de`.
    folder = tmp_path / "data" / "de-en"

    folder.mkdir(parents=True)

    for split in ("train", "valid", "test"):
        pairs = zip(german, english)

        (folder / f"{split}.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))

    options = tiny_options(
        tmp_path / "data",
        None,
        model__arch=None,
        init_from=tmp_path / "imported",
        criterion__name="warmup",
        dataset__directions="{en-de: {}, de-en: {}}",
        dataset__source_lang=None,
        dataset__target_lang=None,
        dataset__max_target_len=60,
        dataset__max_train_pairs=6,
    )

    out = tmp_path / "run"

    assert train.main(to_args(out, options)) == 0

    log = "".join(f.read_text("utf-8") for f in (out / "logs").rglob("*.log"))

    assert "en-de, train (the first 6 of 8 pairs): all 6 pairs kept." in log
    assert "en-de, valid: all 8 pairs kept." in log

    run: dict[str, Any] = load_yaml(out / "run.yaml")

    tokens = {
        name: (d["source_token"], d["target_token"])
        for name, d in run["dataset"]["directions"].items()
    }

    assert tokens == {
        "en-de": ("eng_Latn", "deu_Latn"),
        "de-en": ("deu_Latn", "eng_Latn"),
    }

    for name, sources in (("en-de", english), ("de-en", german)):
        assert generate.main([str(out), "--direction", name]) == 0

        file = out / "generate" / f"test.{name}.best.txt.jsonl"

        records = list(map(json.loads, file.read_text("utf-8").splitlines()))

        assert [record["source"] for record in records] == sources

    args = ["export", str(out), str(tmp_path / "hf"), "--direction", "de-en"]

    assert run_command(args) == 0

    assert "deu_Latn to eng_Latn" in (tmp_path / "hf" / "README.md").read_text("utf-8")


def test_score_is_what_was_validated(tmp_path: Path, scratch_options: Options) -> None:
    options: Options = {
        **scratch_options,
        "dataset.directions": "{src-tgt: {}, tgt-src: {plain: true}}",
        "regime.num_steps": 2,
        "regime.validate_every_n_steps": 2,
        "regime.checkpoint_every_n_steps": 2,
    }

    out = tmp_path / "run"

    assert train.main(to_args(out, options)) == 0

    [row] = read_metrics(out, "valid/valid.jsonl")

    args = [str(out), "--direction", "tgt-src", "--split", "valid"]

    assert run_command(["score", *args]) == 0

    file = out / "score" / "valid.tgt-src.best.jsonl"

    records = list(map(json.loads, file.read_text("utf-8").splitlines()))

    num_tokens = sum(record["num_target_tokens"] for record in records)

    loss = -sum(record["log_prob"] for record in records) / num_tokens

    # The separator, one token of 120, has no part in either.
    assert row["Loss without Warmup"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.parametrize("warmup", ["none", "single", "sample"])
def test_what_is_generated_depends_on_the_prefix_of_its_own_row(warmup: str) -> None:
    model = create_conditional_model(create_tiny_model())

    generator = WarmupGenerator(
        model, create_layout(), GenerationConfig(warmup=warmup, max_warmup_len=3)
    )

    seqs, seq_lens = pad_rows([[5, 6, EOS_IDX]] * 3)

    # What stands for the language.
    prefixes = torch.tensor([[BOS_IDX], [6], [7]])

    together = generator(seqs, seq_lens, prefixes, line_numbers=[4, 4, 4])

    alone = [
        generator(seqs[n : n + 1], [3], prefixes[n : n + 1], line_numbers=[4])[0]
        for n in range(3)
    ]

    assert [g[0].target for g in together] == [g[0].target for g in alone]

    assert [g[0].score for g in together] == pytest.approx([g[0].score for g in alone])

    assert len({g[0].score for g in alone}) == 3
