# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.hub_files import TEXT
from warmup_plugin.data.train_tokenizer import MAX_LINE_BYTES, train_tokenizer
from warmup_plugin.errors import WarmupError
from warmup_plugin.tokenizers.hugging_face import (
    HuggingFaceTokenizer,
    load_hugging_face_tokenizer,
)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("text") / "text.txt", TEXT * 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"

    train(text, folder)

    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> HuggingFaceTokenizer:
    return load_hugging_face_tokenizer(folder)


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    return path


def train(text: Path, folder: Path, **options: object) -> None:
    kwargs: dict[str, object] = {"vocab_size": 300, **options}

    train_tokenizer([text], folder, model_type="byte_bpe", **kwargs)  # type: ignore[arg-type]


def read_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def make_texts() -> list[str]:
    """Makes text of any characters; those that Python calls surrogates are none."""
    rng = random.Random(1)

    ranges = [(0, 0x80), (0x80, 0xD800), (0xE000, 0x110000), (0x3000, 0x3040)]

    def make_char() -> str:
        return chr(rng.randrange(*rng.choice(ranges)))

    return ["".join(make_char() for _ in range(rng.randrange(30))) for _ in range(500)]


class TestTokenizer:
    @pytest.mark.parametrize(
        "line",
        [
            "「你好」，世界！（１２３）：；？。、",
            "👨‍👩‍👧 👋🏽 e\u0301 é ﬁ",
            "  two  spaces, \t a tab\r\n and lines \u2028 \x00 ",
            "don't 12345 <s> </s> [INST] {source}",
            "",
        ],
    )
    def test_text_comes_back(self, tokenizer: HuggingFaceTokenizer, line: str) -> None:
        assert tokenizer.decode(tokenizer.encode(line)) == line

    def test_any_text_comes_back_and_has_no_special_token(
        self, tokenizer: HuggingFaceTokenizer
    ) -> None:
        for text in make_texts():
            tokens = tokenizer.encode(text)

            assert tokenizer.decode(tokens) == text
            assert tokenizer.special_indices.isdisjoint(tokens)

    def test_text_that_spells_a_special_token_stays_text(self, tmp_path: Path) -> None:
        text = "<mid><sep> <eos> <pad>x<mid>"

        # Even if it is most of what there is to learn.
        train(write_lines(tmp_path / "a.txt", [text, *TEXT] * 50), tmp_path / "t")

        tokenizer = load_hugging_face_tokenizer(tmp_path / "t")

        tokens = tokenizer.encode(text)

        assert tokenizer.decode(tokens) == text
        assert tokenizer.special_indices.isdisjoint(tokens)

    def test_special_tokens_have_their_parts(
        self, tokenizer: HuggingFaceTokenizer
    ) -> None:
        info = tokenizer.vocab_info

        assert tokenizer.to_tokens(range(4)) == ["<pad>", "<eos>", "<sep>", "<mid>"]

        assert (info.pad_idx, info.eos_idx, info.bos_idx) == (0, 1, 3)
        assert info.unk_idx is None and info.size == 300

        # BOS by name alone.
        assert tokenizer.create_encoder(mode="prompt").prefix_indices is None

        assert tokenizer.default_separator == "<sep>"
        assert tokenizer.separators == ("<sep>",)
        assert tokenizer.prompt_end == "<mid>"

        tokens = tokenizer.encode_prompt("{source}<mid>", "A dog<mid>")

        assert tokens == [*tokenizer.encode("A dog<mid>"), 3]

    def test_transformers_reads_it(
        self, folder: Path, tokenizer: HuggingFaceTokenizer
    ) -> None:
        theirs = AutoTokenizer.from_pretrained(str(folder))

        encoded = theirs("A dog<mid>")

        assert encoded.input_ids == [*tokenizer.encode("A dog"), 3]

        # Llama refuses `token_type_ids`.
        assert encoded.keys() == {"input_ids", "attention_mask"}


class TestTrainTokenizer:
    def test_call_is_deterministic(
        self, tmp_path: Path, text: Path, folder: Path
    ) -> None:
        train(text, tmp_path / "again")

        assert read_files(tmp_path / "again") == read_files(folder)

        assert read_files(folder).keys() == {"tokenizer.json", "tokenizer_config.json"}

    def test_call_reads_gzip_and_json_lines(self, tmp_path: Path, folder: Path) -> None:
        packed = tmp_path / "train.jsonl.gz"

        # A text of several lines is several sentences.
        line = json.dumps({"a": "\n".join(TEXT), "b": "x"})

        with gzip.open(packed, "wt", encoding="utf-8") as fp:
            fp.write(f"{line}\n" * 5)

        train(packed, tmp_path / "t", json_fields=["a"])

        assert read_files(tmp_path / "t") == read_files(folder)

    def test_call_reports_lines(self, tmp_path: Path) -> None:
        text = write_lines(tmp_path / "a", [*TEXT * 5, "", "x" * (MAX_LINE_BYTES + 1)])

        report = train_tokenizer(
            [text], tmp_path / "t", model_type="byte_bpe", vocab_size=300
        )

        assert report.path == tmp_path / "t"
        assert report.vocab_size == 300

        counts = (report.num_lines, report.num_empty_lines, report.num_long_lines)

        assert counts == (5 * len(TEXT), 1, 1)

    def test_call_replaces_only_when_forced(self, tmp_path: Path, text: Path) -> None:
        train(text, tmp_path / "t")

        files = read_files(tmp_path / "t")

        with pytest.raises(
            WarmupError, match="holds a tokenizer already; .* `--force`"
        ):
            train(text, tmp_path / "t", vocab_size=290)

        assert read_files(tmp_path / "t") == files

        train(text, tmp_path / "t", vocab_size=290, force=True)

        assert load_hugging_face_tokenizer(tmp_path / "t").vocab_info.size == 290

    def test_call_raises_error_when_output_is_a_file(
        self, tmp_path: Path, text: Path
    ) -> None:
        (tmp_path / "t.model").touch()

        with pytest.raises(WarmupError, match="t.model` is a file, .*; name a folder"):
            train(text, tmp_path / "t.model", force=True)

    def test_call_raises_error_when_vocabulary_is_too_large(
        self, tmp_path: Path, text: Path
    ) -> None:
        with pytest.raises(WarmupError, match="4000 tokens is too large") as info:
            train(text, tmp_path / "t", vocab_size=4000)

        # The number in the remedy must be one that works.
        vocab_size = int(str(info.value).split("`--vocab-size` to ")[1].split()[0])

        train(text, tmp_path / "t", vocab_size=vocab_size)

    def test_call_raises_error_when_there_is_no_text(self, tmp_path: Path) -> None:
        empty = write_lines(tmp_path / "empty.txt", ["", " "])

        with pytest.raises(WarmupError, match=r"No line of .*empty\.txt"):
            train(empty, tmp_path / "t")

    def test_call_raises_error_of_reader_unchanged(self, tmp_path: Path) -> None:
        bad = tmp_path / "bad.txt"

        bad.write_bytes(b"good\nb\xffad\n")

        with pytest.raises(WarmupError, match=r"^[^\n]*bad\.txt[^\n]*2[^\n]*$"):
            train(bad, tmp_path / "t")

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"vocab_size": 259}, "must be at least 260"),
            ({"character_coverage": 0.99}, "`--character-coverage` is for Sentence"),
            ({"normalization": "nmt_nfkc"}, "`--normalization` is for Sentence"),
            ({"num_threads": 4}, "`--num-threads` is for Sentence"),
        ],
    )
    def test_call_raises_error_when_option_is_wrong(
        self, tmp_path: Path, text: Path, options: dict[str, object], message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            train(text, tmp_path / "t", **options)

        assert not (tmp_path / "t").exists()
