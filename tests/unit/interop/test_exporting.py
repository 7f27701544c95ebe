# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import shutil
from pathlib import Path
from subprocess import Popen
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch
from fairseq2.models.hg import HuggingFaceConverter
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from tests.common import assert_close
from tests.configs import create_runner
from tests.hub_files import (
    LLAMA_ROPE_SCALING,
    NLLB_LANGS,
    TEXT,
    WRITE_MODEL,
    write_json,
    write_nllb_tokenizer,
    write_t5_tokenizer,
)
from tests.tiny_runs import tiny_options, to_args
from tests.unit.interop.conftest import Case
from tests.unit.interop.hub import Hub, RemoteHub
from warmup_plugin.__main__ import main as plugin_main
from warmup_plugin.commands import generate
from warmup_plugin.errors import WarmupError
from warmup_plugin.interop.exporting import export_run
from warmup_plugin.interop.hub_tokenizer import write_hub_tokenizer
from warmup_plugin.interop.importing import import_model
from warmup_plugin.models.hugging_face.nllb import NllbHuggingFaceFormat
from warmup_plugin.models.t5.interop import T5HuggingFaceFormat
from warmup_plugin.recipes.train import main
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.tokenizers.spm import load_warmup_spm


def find_separator_idx(case: Case) -> int:
    """Returns the default separator as transformers numbers it."""
    tokenizer = AutoTokenizer.from_pretrained(str(case.hub_folder))

    name = {
        "nllb": "<s>",
        "llama": "<|reserved_special_token_0|>",
        "qwen": "<|vision_pad|>",
    }.get(case.kind, "<extra_id_0>")

    idx: int = tokenizer.convert_tokens_to_ids(name)

    return idx


def open_hubs(folder: Path, transformers5: Popen[str] | None) -> list[Hub | RemoteHub]:
    """Loads an encoder-decoder, in transformers 5 as well if it is there."""
    args = (str(folder), False, NLLB_LANGS)

    hubs: list[Hub | RemoteHub] = [Hub(*args)]

    if transformers5 is not None:
        hubs.append(RemoteHub(transformers5, *args))

    return hubs


class TestNllbTokenizer:
    @pytest.mark.parametrize("model_type", ["bpe", "unigram"])
    def test_tokens_are_those_of_the_import(
        self, tmp_path: Path, transformers5: Popen[str] | None, model_type: str
    ) -> None:
        write_nllb_tokenizer(tmp_path / "in", model_type=model_type)

        (tmp_path / "out").mkdir()

        write_hub_tokenizer(
            tmp_path / "in" / "sentencepiece.bpe.model",
            "nllb",
            {"langs": NLLB_LANGS},
            tmp_path / "out",
            model_family="nllb",
            source_lang="fra_Latn",
            target_lang="deu_Latn",
        )

        for folder in (tmp_path / "in", tmp_path / "out"):
            # It tells `AutoTokenizer` of the model.
            write_json(folder / "config.json", {"model_type": "m2m_100"})

        settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())

        # What it is called, transformers 5 makes of it.
        assert ("Nllb" in settings["tokenizer_class"]) == (model_type == "bpe")

        theirs = AutoTokenizer.from_pretrained(str(tmp_path / "in"))

        theirs.src_lang = "fra_Latn"

        for hub in open_hubs(tmp_path / "out", transformers5):
            for text in TEXT:
                ids = hub.encode(text)

                assert ids == theirs(text).input_ids

                assert hub.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


class TestT5Tokenizer:
    @pytest.mark.parametrize(
        "files",
        [["spiece.model"], ["tokenizer.json"], ["spiece.model", "tokenizer.json"]],
    )
    def test_files_without_description_are_described(
        self, tmp_path: Path, files: list[str]
    ) -> None:
        write_t5_tokenizer(tmp_path / "hub")

        theirs = AutoTokenizer.from_pretrained(str(tmp_path / "hub"))

        theirs.save_pretrained(str(tmp_path / "full"))

        for name in files:
            (tmp_path / "in").mkdir(exist_ok=True)

            shutil.copy(tmp_path / "full" / name, tmp_path / "in")

        self.write(tmp_path / "in", {}, tmp_path / "out")

        ours = AutoTokenizer.from_pretrained(str(tmp_path / "out"))

        for text in [*TEXT, "a <extra_id_3> b"]:
            assert ours(text).input_ids == theirs(text).input_ids

        assert len(ours) == len(theirs)

    def test_other_number_of_sentinels_is_kept(self, tmp_path: Path) -> None:
        size = write_t5_tokenizer(tmp_path / "in")

        for path in (tmp_path / "in", tmp_path / "in" / "spiece.model"):
            out = tmp_path / f"out_{path.name}"

            self.write(path, {"num_sentinels": 10}, out)

            tokenizer = AutoTokenizer.from_pretrained(str(out))

            assert len(tokenizer) == size - 90

            assert tokenizer.convert_tokens_to_ids("<extra_id_0>") == size - 91

    @staticmethod
    def write(path: Path, overrides: dict[str, Any], out: Path) -> None:
        out.mkdir()

        # As `export` does; it tells `AutoTokenizer` of the model.
        write_json(out / "config.json", {"model_type": "t5"})

        write_hub_tokenizer(
            path,
            "t5",
            overrides,
            out,
            model_family="t5",
            source_lang="",
            target_lang="",
        )


class TestExportRun:
    def test_import_comes_back_as_it_was(self, case: Case, tmp_path: Path) -> None:
        export_run(RunDir(case.imported), tmp_path / "out", checkpoint="last")

        kls = AutoModelForCausalLM if case.is_decoder_only else AutoModelForSeq2SeqLM

        before = kls.from_pretrained(str(case.hub_folder)).state_dict()
        after = kls.from_pretrained(str(tmp_path / "out")).state_dict()

        assert before.keys() == after.keys()

        for name in before:
            assert torch.equal(before[name], after[name]), name

        text = "ta rusuko <extra_id_0> so"

        assert AutoTokenizer.from_pretrained(str(tmp_path / "out"))(text).input_ids == (
            AutoTokenizer.from_pretrained(str(case.hub_folder))(text).input_ids
        )

    def test_export_is_imported_again(self, case: Case, tmp_path: Path) -> None:
        export_run(RunDir(case.imported), tmp_path / "out", checkpoint="last")

        model = import_model(str(tmp_path / "out"), tmp_path / "again")

        assert model.family == {"mt5": "t5"}.get(case.kind, case.kind)

        first = (case.imported / "checkpoints" / "model.yaml").read_text()

        assert (tmp_path / "again" / "checkpoints" / "model.yaml").read_text() == first

    def test_rows_without_token_are_suppressed(
        self, case: Case, tmp_path: Path
    ) -> None:
        export_run(RunDir(case.imported), tmp_path / "out", checkpoint="last")

        settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())

        config = json.loads((tmp_path / "out" / "config.json").read_text())

        tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "out"))

        rows = set(range(len(tokenizer), config["vocab_size"]))

        assert rows <= set(settings["suppress_tokens"])

        # It writes no warmup, and never a separator.
        separator_idx = find_separator_idx(case)

        assert separator_idx in settings["suppress_tokens"]

        if case.is_decoder_only:
            bos_idx = AutoTokenizer.from_pretrained(str(case.hub_folder)).bos_token_id

            assert config.get("bos_token_id") == bos_idx
        else:
            # Nobody has said what to translate to.
            assert "forced_bos_token_id" not in settings

        assert "not trained with it" in (tmp_path / "out" / "README.md").read_text()

        assert settings["eos_token_id"] not in settings["suppress_tokens"]
        assert settings["eos_token_id"] == tokenizer.eos_token_id

    @pytest.mark.parametrize("is_trained", [False, True])
    def test_all_languages_can_be_forced(
        self, tmp_path: Path, text_folder: Path, is_trained: bool
    ) -> None:
        WRITE_MODEL["nllb"](tmp_path / "hub")

        import_model(str(tmp_path / "hub"), tmp_path / "imported")

        case = Case("nllb", tmp_path / "hub", tmp_path / "imported", text_folder)

        run = case.train(tmp_path / "run") if is_trained else case.imported

        export_run(RunDir(run), tmp_path / "out", checkpoint="last")

        tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "out"))

        model: Any = AutoModelForSeq2SeqLM.from_pretrained(str(tmp_path / "out"))

        inputs = tokenizer("A dog runs.", return_tensors="pt")

        for lang in NLLB_LANGS:
            idx = tokenizer.convert_tokens_to_ids(lang)

            tokens = model.generate(**inputs, forced_bos_token_id=idx, max_new_tokens=4)

            assert tokens[0, 1] == idx, lang

    def test_llama_3_2_names_rope_theta_where_ctranslate2_looks(
        self, tmp_path: Path
    ) -> None:
        # CTranslate2 4.8 takes 10,000 otherwise. It leaves the scaling itself out, which
        # changes slow rotations only.
        WRITE_MODEL["llama"](tmp_path / "hub", rope_scaling=LLAMA_ROPE_SCALING)

        import_model(str(tmp_path / "hub"), tmp_path / "run")

        export_run(RunDir(tmp_path / "run"), tmp_path / "out", checkpoint="last")

        hub = AutoModelForCausalLM.from_pretrained(str(tmp_path / "hub"))

        model = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out"))

        tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "out"))

        ids = tokenizer("A dog runs through the snow.", return_tensors="pt").input_ids

        with torch.no_grad():
            expected = hub(ids).logits.log_softmax(dim=-1)

            assert_close(model(ids).logits.log_softmax(dim=-1), expected)

        converter = ctranslate2.converters.TransformersConverter(str(tmp_path / "out"))

        converter.convert(str(tmp_path / "ct2"))

        generator = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu")

        log_probs = generator.forward_batch(
            [tokenizer.convert_ids_to_tokens(ids[0])], return_log_probs=True
        )

        assert_close(torch.from_numpy(np.array(log_probs)), expected, rtol=0, atol=0.02)


class TestFromScratch:
    @pytest.mark.parametrize(
        "family,arch", [("nllb", "transformer_test"), ("t5", "t5_test")]
    )
    def test_run_of_own_tokenizer_is_exported(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        transformers5: Popen[str] | None,
        family: str,
        arch: str,
    ) -> None:
        options = tiny_options(
            text_folder,
            tokenizer_file,
            model__family=family,
            model__arch=arch,
            optimizer__config__lr=0.01,
            regime__num_steps=20,
            regime__validate_every_n_steps=20,
            regime__checkpoint_every_n_steps=20,
        )

        assert main(to_args(tmp_path / "run", options)) == 0

        export_run(RunDir(tmp_path / "run"), tmp_path / "out", checkpoint="best")

        with pytest.raises(WarmupError, match="not meant to read back.*`init_from="):
            import_model(str(tmp_path / "out"), tmp_path / "again")

        hubs = open_hubs(tmp_path / "out", transformers5)

        encoder = load_warmup_spm(tokenizer_file).create_encoder(mode="source")

        # PAD, UNK, BOS and EOS have other places in M2M100.
        order = {0: 1, 1: 3, 2: 0, 3: 2} if family == "nllb" else {}

        texts = (text_folder / "test.src").read_text().splitlines()

        for text in texts:
            indices = encoder(text).tolist()

            for hub in hubs:
                assert hub.encode(text) == [order.get(i, i) for i in indices]

                assert hub.decode(indices[:-1]) == text

        file = tmp_path / "out.txt"

        args = [str(tmp_path / "run"), "--no-rich", "--output", str(file)]

        assert generate.main([*args, "--beam-size", "1"]) == 0

        for text, line in zip(texts, file.read_text().splitlines()):
            for hub in hubs:
                assert hub.decode(hub.generate(text, None)).strip() == line


class TestFairseq2:
    def test_its_own_export_works(self, tmp_path: Path, text_folder: Path) -> None:
        texts = (text_folder / "train.tgt").read_text().splitlines()

        WRITE_MODEL["t5"](tmp_path / "hub", texts)

        import_model(str(tmp_path / "hub"), tmp_path / "imported")

        case = Case("t5", tmp_path / "hub", tmp_path / "imported", text_folder)

        run = case.train(tmp_path / "run", regime__export_hugging_face="true")

        folder = run / "checkpoints" / "step_2" / "hg"

        ours = tmp_path / "out"

        export_run(RunDir(run), ours, checkpoint="last")

        theirs = AutoModelForSeq2SeqLM.from_pretrained(str(folder)).state_dict()

        expected = AutoModelForSeq2SeqLM.from_pretrained(str(ours)).state_dict()

        for name in expected:
            assert torch.equal(theirs[name], expected[name]), name

    @pytest.mark.parametrize(
        ("family", "kls"),
        [("t5", T5HuggingFaceFormat), ("nllb", NllbHuggingFaceFormat)],
    )
    def test_it_converts_as_we_do(self, family: str, kls: type[object]) -> None:
        converter = create_runner().resolver.resolve(HuggingFaceConverter, key=family)

        assert isinstance(converter, kls)


class TestErrors:
    def test_run_without_checkpoint(self, tmp_path: Path, case: Case) -> None:
        shutil.copytree(case.imported, tmp_path / "run")

        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step_0")

        with pytest.raises(WarmupError, match="has no checkpoint"):
            export_run(RunDir(tmp_path / "run"), tmp_path / "out", checkpoint="best")

        assert not (tmp_path / "out").exists()

    def test_damaged_checkpoint(self, tmp_path: Path, case: Case) -> None:
        shutil.copytree(case.imported, tmp_path / "run")

        [file] = (tmp_path / "run").rglob("sdp_00.pt")

        file.write_bytes(b"junk")

        with pytest.raises(WarmupError, match="sdp_00.pt` is damaged"):
            export_run(RunDir(tmp_path / "run"), tmp_path / "out", checkpoint="last")

        # Of an earlier version.
        file.with_name("sdp_00.pt.sha256").unlink()

        with pytest.raises(WarmupError, match="sdp_00.pt` is damaged; restore"):
            export_run(RunDir(tmp_path / "run"), tmp_path / "out", checkpoint="last")

    def test_pickled_code_in_checkpoint_is_not_run(
        self, tmp_path: Path, case: Case, capfd: pytest.CaptureFixture[str]
    ) -> None:
        from tests.unit.interop.test_importing import Harm

        shutil.copytree(case.imported, tmp_path / "run")

        [file] = (tmp_path / "run").rglob("sdp_00.pt")

        torch.save({"x": Harm()}, file)

        file.with_name("sdp_00.pt.sha256").unlink()

        with pytest.raises(WarmupError, match="sdp_00.pt` is damaged; restore"):
            export_run(RunDir(tmp_path / "run"), tmp_path / "out", checkpoint="last")

        assert "harm" not in capfd.readouterr().out

    def test_lost_tokenizer(self, tmp_path: Path, case: Case) -> None:
        shutil.copytree(case.imported, tmp_path / "run")

        for path in (RunDir(tmp_path / "run").tokenizer_path,):
            assert path is not None

            shutil.rmtree(path) if path.is_dir() else path.unlink()

        with pytest.raises(WarmupError, match="is not in its directory"):
            export_run(RunDir(tmp_path / "run"), tmp_path / "out", checkpoint="last")

    @pytest.mark.parametrize(
        "family,model_family",
        [("t5", "nllb"), ("nllb", "t5"), ("hugging_face", "t5"), ("char", "llama")],
    )
    def test_tokenizer_of_another_kind_of_model(
        self, tmp_path: Path, family: str, model_family: str
    ) -> None:
        # The rows of the model would be those of other tokens.
        with pytest.raises(WarmupError, match="has no form in transformers"):
            write_hub_tokenizer(
                tmp_path,
                family,
                {},
                tmp_path,
                model_family=model_family,
                source_lang="",
                target_lang="",
            )

    def test_output_is_not_replaced(self, tmp_path: Path, case: Case) -> None:
        (tmp_path / "out").write_text("mine")

        with pytest.raises(WarmupError, match="exists already"):
            export_run(RunDir(case.imported), tmp_path / "out", checkpoint="last")


class TestCommands:
    def test_import_and_export_work(
        self, case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        run, out = str(tmp_path / "run"), str(tmp_path / "out")

        assert plugin_main(["import", str(case.hub_folder), run]) == 0

        captured = capfd.readouterr().out

        assert captured.startswith(f"{run}: family ")
        assert f"init_from={run}\n" in captured
        assert captured.count("\n") == 2

        assert plugin_main(["export", run, out, "--checkpoint", "0"]) == 0

        captured = capfd.readouterr().out

        assert captured.startswith(f"{out}: ") and captured.endswith(" of step 0\n")

    def test_errors_are_one_line(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        out = str(tmp_path / "out")

        for name in ("import", "export"):
            assert plugin_main([name, str(tmp_path / "none"), out]) == 2

            captured = capfd.readouterr()

            assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
