# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fairseq2.error import NotSupportedError
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from tests.hub_files import TEXT, write_json, write_llama_tokenizer
from warmup_plugin.errors import WarmupError
from warmup_plugin.tokenizers.hugging_face import (
    HuggingFaceTokenizer,
    HuggingFaceTokenizerConfig,
    load_hugging_face_tokenizer,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")

    write_llama_tokenizer(folder)

    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HuggingFaceTokenizer:
    return load_hugging_face_tokenizer(folder)


class TestHuggingFaceTokenizer:
    @pytest.mark.parametrize("text", TEXT)
    def test_encode_equals_transformers(
        self, tokenizer: HuggingFaceTokenizer, text: str
    ) -> None:
        assert tokenizer.encode(text) == tokenizer.tok.encode(
            text, add_special_tokens=False
        )

        assert tokenizer.decode(tokenizer.encode(text)) == text

    def test_text_that_spells_a_special_token_stays_text(
        self, tokenizer: HuggingFaceTokenizer
    ) -> None:
        text = "a <|reserved_special_token_0|> b"

        indices = tokenizer.encode(text)

        assert tokenizer.special_indices.isdisjoint(indices)

        assert tokenizer.decode(indices) == text

    def test_decode_leaves_spaces_as_they_are(
        self, tokenizer: HuggingFaceTokenizer
    ) -> None:
        # The tokenizer says `clean_up_tokenization_spaces`.
        assert tokenizer.decode(tokenizer.encode("a , b .")) == "a , b ."

    def test_create_encoder_frames_text_by_mode(
        self, tokenizer: HuggingFaceTokenizer
    ) -> None:
        text = tokenizer.encode("A dog")

        bos, eos = tokenizer.vocab_info.bos_idx, tokenizer.vocab_info.eos_idx

        def encode(mode: str | None) -> list[int]:
            indices: list[int] = tokenizer.create_encoder(mode=mode)("A dog").tolist()

            return indices

        assert encode(None) == [bos, *text, eos]
        assert encode("prompt") == [bos, *text]
        assert encode("prompt_response") == encode("target") == [*text, eos]
        assert encode("as_is") == text
        assert tokenizer.create_raw_encoder()("A dog").tolist() == text

        with pytest.raises(NotSupportedError, match="`mode` must be"):
            tokenizer.create_encoder(mode="x")

    def test_encoder_names_tokens(self, tokenizer: HuggingFaceTokenizer) -> None:
        encoder = tokenizer.create_encoder()

        tokens = encoder.encode_as_tokens("A dog")

        assert tokens[0] == "<|begin_of_text|>" and tokens[-1] == "<|end_of_text|>"

        assert encoder.prefix_indices is not None
        assert encoder.suffix_indices is not None
        assert tokenizer.create_raw_encoder().prefix_indices is None

        assert tokenizer.create_decoder().decode_from_tokens(tokens) == "A dog"
        assert tokenizer.create_decoder()(encoder("A dog")) == "A dog"

    def test_vocab_info_counts_added_tokens(
        self, tokenizer: HuggingFaceTokenizer
    ) -> None:
        info = tokenizer.vocab_info

        assert info.size == len(tokenizer.tok) > tokenizer.tok.vocab_size
        assert info.eos_idx is not None and info.eos_idx < info.size
        # As the public one.
        assert info.pad_idx is None

    def test_default_separator_of_smollm2(self) -> None:
        specials = ["<|im_start|>", "<|im_end|>", "<repo_name>", "<file_sep>"]

        tok = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.BPE()), eos_token="<|im_end|>"
        )

        tok.add_special_tokens({"additional_special_tokens": specials})

        assert HuggingFaceTokenizer(tok).default_separator == "<file_sep>"


class TestLoadHuggingFaceTokenizer:
    def test_call_takes_other_eos(self, folder: Path) -> None:
        config = HuggingFaceTokenizerConfig(eos_token="<|eot_id|>")

        tokenizer = load_hugging_face_tokenizer(folder, config)

        assert tokenizer.vocab_info.eos_idx == tokenizer.find_special("<|eot_id|>")

    def test_call_reads_what_transformers_5_has_saved(
        self, folder: Path, tokenizer: HuggingFaceTokenizer, tmp_path: Path
    ) -> None:
        for file in folder.iterdir():
            shutil.copy(file, tmp_path)

        file = tmp_path / "tokenizer_config.json"

        settings = json.loads(file.read_text(encoding="utf-8"))

        write_json(file, {**settings, "tokenizer_class": "TokenizersBackend"})

        saved = load_hugging_face_tokenizer(tmp_path)

        for text in TEXT:
            assert saved.encode(text) == tokenizer.encode(text)

        assert saved.vocab_info == tokenizer.vocab_info

    def test_call_raises_error_when_eos_is_unknown(self, folder: Path) -> None:
        config = HuggingFaceTokenizerConfig(eos_token="<|x|>")

        with pytest.raises(
            WarmupError, match=r"no end-of-sequence token `<\|x\|>`; name one"
        ):
            load_hugging_face_tokenizer(folder, config)

    def test_call_raises_error_when_there_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match="has no `tokenizer.json`; name"):
            load_hugging_face_tokenizer(tmp_path)

    @pytest.mark.parametrize("content", ["{", {"model": {}}])
    def test_call_raises_error_when_it_is_broken(
        self, tmp_path: Path, content: object
    ) -> None:
        if isinstance(content, str):
            tmp_path.joinpath("tokenizer.json").write_text(content)
        else:
            write_json(tmp_path / "tokenizer.json", content)

        write_json(
            tmp_path / "tokenizer_config.json",
            {"tokenizer_class": "PreTrainedTokenizerFast"},
        )

        with pytest.raises(WarmupError, match="cannot be read .*; copy its files"):
            load_hugging_face_tokenizer(tmp_path)
