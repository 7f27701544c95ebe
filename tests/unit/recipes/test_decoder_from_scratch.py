# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""A decoder-only model with a tokenizer of ours, from training to transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
import torch
from fairseq2.device import CPU
from fairseq2.gang import create_fake_gangs
from fairseq2.nn import BatchLayout
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.common import assert_close
from tests.tiny_runs import Options, tiny_options, to_args
from warmup_plugin.commands import generate, score
from warmup_plugin.data.train_tokenizer import train_tokenizer
from warmup_plugin.interop.checkpoints import load_model_config
from warmup_plugin.interop.exporting import export_run
from warmup_plugin.models.families import find_family
from warmup_plugin.recipes import train
from warmup_plugin.runs.outputs import details_file
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.tokenizers.hugging_face import load_hugging_face_tokenizer


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Options:
    tokenizer = tmp_path_factory.mktemp("tokenizer") / "bpe"

    inputs = [text_folder / "train.src", text_folder / "train.tgt"]

    train_tokenizer(inputs, tokenizer, vocab_size=300, model_type="byte_bpe")

    return tiny_options(
        text_folder,
        tokenizer,
        model__family="llama",
        model__arch="llama_test",
        criterion__name="warmup",
        dataset__prompt="'to {target_lang}: {source}<mid>'",
        regime__num_steps=4,
        regime__validate_every_n_steps=4,
        regime__checkpoint_every_n_steps=4,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, options: Options) -> Path:
    """A run of a few steps; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "decoder"

    assert train.main(to_args(out, options)) == 0

    return out


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"

    export_run(RunDir(run), folder, checkpoint="last")

    return folder


class TestDecoderFromScratch:
    def test_model_fits_tokenizer(self, run: Path) -> None:
        family, config = load_model_config(RunDir(run))

        model_config: Any = config

        assert family == "llama"
        assert (model_config.vocab_size, model_config.pad_idx) == (300, 0)

    def test_lines_are_translated(self, run: Path, tmp_path: Path) -> None:
        text, output = tmp_path / "in.txt", tmp_path / "out.txt"

        # No character of the last one is in what the tokenizer was trained on.
        text.write_text("ta momu\n\n，😀 <mid>\n", encoding="utf-8")

        args = [str(run), "--no-rich", "--input", str(text), "--output", str(output)]

        assert generate.main(args) == 0

        lines = details_file(output).read_text("utf-8").splitlines()

        records = [json.loads(line) for line in lines]

        assert [r["source"] for r in records] == ["ta momu", "", "，😀 <mid>"]

        assert records[1]["output"] == ""

        assert records[0]["warmup"] and not any("<" in r["output"] for r in records)

    def test_pairs_are_scored(
        self, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("a.src", "a.tgt"):
            (tmp_path / name).write_text("ta momu\n")

        files = ["--source", tmp_path / "a.src", "--target", tmp_path / "a.tgt"]

        capfd.readouterr()

        assert score.main([str(run), "--no-rich", *map(str, files)]) == 0

        assert float(capfd.readouterr().out.split()[0]) < 0.0

    def test_transformers_has_the_same_logits(self, run: Path, exported: Path) -> None:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(exported), output_loading_info=True
        )

        hub_model, info = loaded

        assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))  # fmt: skip

        hub_config = hub_model.config

        assert hub_config.tie_word_embeddings

        assert (hub_config.pad_token_id, hub_config.eos_token_id) == (0, 1)

        text = "to tgt: ta momu puke<mid>"

        ids = AutoTokenizer.from_pretrained(str(exported))(text).input_ids

        tokenizer = load_hugging_face_tokenizer(RunDir(run).tokenizer_folder)

        assert ids == tokenizer.encode_prompt("to tgt: {source}<mid>", "ta momu puke")

        family, config = load_model_config(RunDir(run))

        model = find_family(family).load_custom_model(
            RunDir(run).model_path(4), config, create_fake_gangs(CPU), torch.float32, load_rank0_only=False, mmap=False, restrict=True
        ).eval()  # fmt: skip

        seqs = torch.tensor([ids])

        with torch.no_grad():
            theirs = hub_model.eval()(seqs).logits

            ours = model(seqs, BatchLayout.of(seqs))

        # fp32; sums of the same products in another order.
        assert_close(theirs, ours, rtol=1e-4, atol=1e-4)

    def test_ctranslate2_writes_what_transformers_does(
        self, exported: Path, tmp_path: Path
    ) -> None:
        converter = ctranslate2.converters.TransformersConverter(str(exported))

        converter.convert(str(tmp_path / "ct2"))

        generator = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu")

        hub_model: Any = AutoModelForCausalLM.from_pretrained(str(exported))

        tokenizer = AutoTokenizer.from_pretrained(str(exported))

        ids = tokenizer("to tgt: ta momu puke<mid>", return_tensors="pt").input_ids

        to_tokens = tokenizer.convert_ids_to_tokens

        suppressed = hub_model.generation_config.suppress_tokens

        [result] = generator.generate_batch(
            [to_tokens(ids[0])],
            beam_size=1,
            max_length=8,
            include_prompt_in_result=False,
            return_end_token=True,
            suppress_sequences=[to_tokens([idx]) for idx in suppressed],
        )

        theirs = hub_model.generate(ids, do_sample=False, max_new_tokens=8)

        assert result.sequences_ids[0] == theirs[0, ids.size(1) :].tolist()

    def test_card_example_runs(
        self,
        exported: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(exported.parent)

        card = (exported / "README.md").read_text(encoding="utf-8")

        assert "<mid>" in card

        exec(card.split("```python\n")[1].split("```")[0], {})

        assert capfd.readouterr().out.endswith("\n")


def test_direction_is_trained_behind_sources_of_another(
    tmp_path: Path, options: Options
) -> None:
    def count(name: str, behind: str) -> dict[str, int]:
        directions = f"{{src-tgt: {{}}, tgt-src: {{{behind}}}}}"

        further: Options = {
            "dataset.directions": directions,
            "dataset.max_num_tokens": 40_000,
            "criterion.name": "sft",
            # One batch, which holds all.
            "regime.num_steps": 1,
            "regime.validate_every_n_steps": 1,
            "regime.checkpoint_every_n_steps": 1,
        }

        assert train.main(to_args(tmp_path / name, {**options, **further})) == 0

        counts = {}

        for split in ("train", "valid/valid"):
            file = tmp_path / name / "metrics" / f"{split}.jsonl"

            record = json.loads(file.read_text().splitlines()[0])

            counts[split] = record["Number of Source Elements"]

        return counts

    alone, behind = count("alone", ""), count("behind", "behind: [src-tgt]")

    assert behind["train"] > 1.2 * alone["train"]
    assert behind["valid/valid"] == alone["valid/valid"]
