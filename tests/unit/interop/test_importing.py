# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub_files import NLLB_LANGS, WRITE_MODEL, write_json, write_t5_model
from tests.tiny_runs import to_args
from tests.unit.interop.conftest import Case
from warmup_plugin.commands import generate
from warmup_plugin.errors import WarmupError
from warmup_plugin.interop.importing import import_model
from warmup_plugin.recipes import train
from warmup_plugin.runs.run_dir import RunDir
from warmup_plugin.runs.yaml_files import load_yaml


class TestImportModel:
    def test_import_is_a_run_that_translates(self, case: Case, tmp_path: Path) -> None:
        text = tmp_path / "in.txt"

        text.write_text("ta rusuko\n\nmomu\n")

        output = tmp_path / "out.txt"

        args = [str(case.imported), "--input", str(text), "--output", str(output)]

        config = ["--beam-size", "2"]

        if case.kind == "nllb":
            config += ["--config", "tokenizer.source_lang=eng_Latn", "tokenizer.target_lang=deu_Latn"]  # fmt: skip

        assert generate.main([*args, "--no-rich", *config]) == 0

        assert output.read_text().count("\n") == 3

    def test_card_names_model_and_tokenizer(self, case: Case) -> None:
        run_dir = RunDir(case.imported)

        card = run_dir.card_file.read_text(encoding="utf-8")

        family = {"mt5": "t5"}.get(case.kind, case.kind)

        assert "name: imported\n" in card
        assert f"model_family: {family}\n" in card
        assert "checkpoint: ./checkpoints/step_0/model\n" in card

        tokenizer_family = "hugging_face" if case.is_decoder_only else family

        assert f"tokenizer_family: {tokenizer_family}\n" in card

    def test_t5_does_not_translate_in_float16(
        self, case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        text = tmp_path / "in.txt"

        text.write_text("ta\n")

        args = ["--input", str(text), "--output", str(tmp_path / "out.txt")]

        langs = {"nllb": ["tokenizer.source_lang=eng_Latn", "tokenizer.target_lang=deu_Latn"]}  # fmt: skip

        status = generate.main([str(case.imported), "--no-rich", *args, "--config", "model.dtype=float16", *langs.get(case.kind, [])])  # fmt: skip

        if case.kind in ("t5", "mt5"):
            assert status == 2
            assert "overflow in float16" in capfd.readouterr().err
        else:
            assert status == 0

    def test_card_trains_and_translates_by_name(
        self, case: Case, tmp_path: Path
    ) -> None:
        options = case.options(
            init_from=None,
            model__name="imported",
            tokenizer__name="imported",
            criterion__name="warmup",
            common__assets__extra_paths=f"[{RunDir(case.imported).card_file}]",
        )

        assert train.main(to_args(tmp_path / "run", options)) == 0

        # The run has no tokenizer of its own.
        assert RunDir(tmp_path / "run").tokenizer_path is None

        output = tmp_path / "out.txt"

        args = [str(tmp_path / "run"), "--no-rich", "--output", str(output)]

        assert generate.main([*args, "--beam-size", "1"]) == 0

        assert output.read_text().count("\n") == 5

    def test_sources_are_told(self, case: Case) -> None:
        [start] = json.loads(RunDir(case.imported).versions_file.read_text())

        assert start["imported_from"] == str(case.hub_folder)

    def test_separator_is_kept(self, case: Case, tmp_path: Path) -> None:
        separator = {
            "t5": "<extra_id_5>",
            "mt5": "<extra_id_5>",
            "nllb": "<MINED_DATA>",
            "llama": "<|reserved_special_token_1|>",
            "qwen": "<|im_start|>",
        }[case.kind]

        model = import_model(str(case.hub_folder), tmp_path / "m", separator=separator)

        assert model.separator == separator

        config = RunDir(tmp_path / "m").load_config()

        tokenizer = config["tokenizer"]

        assert isinstance(tokenizer, dict) and tokenizer["separator"] == separator

    @pytest.mark.parametrize("kind", WRITE_MODEL)
    def test_bin_files_and_shards_are_read(self, tmp_path: Path, kind: str) -> None:
        model = WRITE_MODEL[kind](tmp_path / "hub")

        (tmp_path / "hub" / "model.safetensors").unlink()

        model.save_pretrained(str(tmp_path / "hub"), safe_serialization=False, max_shard_size="50KB")  # fmt: skip

        assert (tmp_path / "hub" / "pytorch_model.bin.index.json").is_file()

        import_model(str(tmp_path / "hub"), tmp_path / "out")

        assert RunDir(tmp_path / "out").checkpoint_steps() == [0]

    def test_name_on_the_hub_is_found_in_its_cache(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The layout of the cache of `huggingface_hub`; there is no network.
        repo = tmp_path / "cache" / "models--org--tiny-t5"

        write_t5_model(repo / "snapshots" / ("0" * 40))

        (repo / "refs").mkdir()

        (repo / "refs" / "main").write_text("0" * 40)

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(repo.parent))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

        model = import_model("org/tiny-t5", tmp_path / "out")

        assert model.family == "t5"

        with pytest.raises(WarmupError, match="`org/other` is not a folder, and as"):
            import_model("org/other", tmp_path / "out2")

        assert not (tmp_path / "out2").exists()


def change_json(file: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file

        content = json.loads(path.read_text()) if path.exists() else {}

        write_json(path, {**content, **values})

    return change


def change_weights(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:  # fmt: skip

    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"

        weights = load_file(file)

        change(weights)

        save_file(weights, file, {"format": "pt"})

    return apply


def write(file: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        folder.joinpath(file).write_bytes(content)

    return apply


def remove(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"

    file.write_bytes(file.read_bytes()[:-1000])


class Harm:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return print, ("harm",)


def write_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    torch.save({"shared.weight": Harm()}, folder / "pytorch_model.bin")


CASES: list[tuple[str, Callable[[Path], None], str]] = [
    ("t5", remove("config.json"), "config.json"),
    ("t5", write("config.json", b"{"), "not JSON"),
    ("t5", change_json("config.json", model_type="bert"), "`model_type` is 'bert'"),
    (
        "t5",
        change_json("config.json", feed_forward_proj="gated-silu"),
        "feed_forward_proj",
    ),
    ("t5", remove("model.safetensors"), "safetensors"),
    ("t5", truncate, "damaged or incomplete"),
    ("t5", write_pickle, "holds Python code, which is not run"),
    (
        "t5",
        change_weights(lambda w: w.pop("encoder.final_layer_norm.weight")),
        "encoder.layer_norm.weight",
    ),
    (
        "t5",
        change_weights(lambda w: w.update({"extra.weight": torch.ones(2)})),
        "extra.weight",
    ),
    ("t5", change_json("config.json", num_layers=3), "encoder.layers.2"),
    ("t5", change_json("config.json", d_ff=48), "ffn"),
    ("t5", change_json("tokenizer_config.json", extra_ids=500), "but its tokenizer"),
    ("t5", remove("spiece.model"), "neither `spiece.model` nor"),
    ("t5", write("spiece.model", b"x"), "cannot be read as a SentencePiece model"),
    ("nllb", remove("sentencepiece.bpe.model"), "is missing; copy the tokenizer"),
    ("nllb", write("sentencepiece.bpe.model", b"x"), "not the SentencePiece model"),
    ("nllb", write("tokenizer_config.json", b"["), "cannot be read as JSON"),
    (
        "nllb",
        change_json(
            "tokenizer_config.json",
            added_tokens_decoder={"7": {"content": "deu_Latn"}},
        ),
        "has the language `deu_Latn` at 7",
    ),
    (
        "nllb",
        change_json("tokenizer_config.json", additional_special_tokens=[{"x": 1}]),
        "are not described as transformers does it",
    ),
    (
        "nllb",
        change_json("tokenizer_config.json", added_tokens_decoder={"a": "b"}),
        "are not described as transformers does it",
    ),
    ("llama", remove("tokenizer.json"), "has no `tokenizer.json`"),
    ("llama", change_json("config.json", rms_norm_eps=1e-3), "rms_norm_eps"),
    ("qwen", change_json("config.json", model_type="llama"), ""),
]


@pytest.fixture(scope="module")
def hub_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")

    for kind in ("t5", "nllb", "llama", "qwen"):
        WRITE_MODEL[kind](folder / kind)

    return folder


class TestErrors:
    @pytest.mark.parametrize("kind,damage,message", CASES)
    def test_call_says_one_sentence_and_writes_nothing(
        self,
        tmp_path: Path,
        hub_folders: Path,
        capfd: pytest.CaptureFixture[str],
        kind: str,
        damage: Callable[[Path], None],
        message: str,
    ) -> None:
        shutil.copytree(hub_folders / kind, tmp_path / "hub")

        damage(tmp_path / "hub")

        with pytest.raises(WarmupError) as info:
            import_model(str(tmp_path / "hub"), tmp_path / "out")

        text = str(info.value)

        assert message in text and text.endswith(".") and "\n" not in text

        # Neither the output nor a folder beside it.
        assert [path.name for path in tmp_path.iterdir()] == ["hub"]

        assert "harm" not in capfd.readouterr().out

    def test_separator_must_be_special(self, hub_folders: Path, tmp_path: Path) -> None:
        with pytest.raises(
            WarmupError, match="no special token `<sep>`.*; give `--sep"
        ):
            import_model(str(hub_folders / "t5"), tmp_path / "out", separator="<sep>")

    def test_folder_must_exist(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match="is not a folder"):
            import_model(str(tmp_path / "none"), tmp_path / "out")

    def test_output_is_not_replaced(self, hub_folders: Path, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes").write_text("mine")

        with pytest.raises(WarmupError, match="exists already; name another"):
            import_model(str(hub_folders / "t5"), tmp_path / "out")

        assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes"]

    def test_missing_languages_are_those_of_nllb(
        self, hub_folders: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(hub_folders / "nllb", tmp_path / "hub")

        write_json(tmp_path / "hub" / "tokenizer_config.json", {})

        # 202 of them, for which this model has no rows.
        with pytest.raises(WarmupError, match="but its tokenizer"):
            import_model(str(tmp_path / "hub"), tmp_path / "out")

    def test_languages_are_found_as_transformers_5_names_them(
        self, hub_folders: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(hub_folders / "nllb", tmp_path / "hub")

        file = tmp_path / "hub" / "tokenizer_config.json"

        settings = json.loads(file.read_text(encoding="utf-8"))

        settings["extra_special_tokens"] = settings.pop("additional_special_tokens")

        write_json(file, settings)

        import_model(str(tmp_path / "hub"), tmp_path / "out")

        config: dict[str, Any] = load_yaml(RunDir(tmp_path / "out").run_file)

        assert config["tokenizer"]["config_overrides"]["langs"] == NLLB_LANGS


@pytest.mark.parametrize("is_named", [False, True])
def test_language_that_was_added_is_not_lost(tmp_path: Path, is_named: bool) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    WRITE_MODEL["nllb"](tmp_path / "hub")

    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "hub"))

    model: Any = AutoModelForSeq2SeqLM.from_pretrained(str(tmp_path / "hub"))

    # As a language among others, or as any other token.
    if is_named:
        names = [*tokenizer.additional_special_tokens, "gsw_Latn"]

        tokenizer.add_special_tokens({"additional_special_tokens": names})
    else:
        tokenizer.add_tokens(["gsw_Latn"], special_tokens=True)

    model.resize_token_embeddings(len(tokenizer))

    tokenizer.save_pretrained(str(tmp_path / "new"))

    model.save_pretrained(str(tmp_path / "new"))

    with pytest.raises(WarmupError, match="added token `gsw_Latn` at .* would lose it"):
        import_model(str(tmp_path / "new"), tmp_path / "out")


def test_import_leaves_run_config_that_starts_runs(case: Case) -> None:
    config = load_yaml(RunDir(case.imported).run_file)

    assert isinstance(config["criterion"], dict)

    # Until it is trained to, the model writes no warmup.
    assert config["criterion"]["name"] == "sft"
