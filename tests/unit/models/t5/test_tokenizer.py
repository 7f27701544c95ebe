# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fairseq2.error import NotSupportedError
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.hub_files import (
    TEXT,
    train_spm,
    write_json,
    write_mt5_tokenizer,
    write_t5_tokenizer,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.t5.tokenizer import (
    T5Tokenizer,
    T5TokenizerConfig,
    load_t5_tokenizer,
)


def write_fast(folder: Path) -> int:
    """Writes `tokenizer.json` alone, as transformers makes it."""
    size = write_t5_tokenizer(folder / "slow")

    AutoTokenizer.from_pretrained(str(folder / "slow")).save_pretrained(str(folder))

    (folder / "spiece.model").unlink()

    assert (folder / "tokenizer.json").is_file()

    return size


WRITE: dict[str, Callable[[Path], int]] = {
    "t5": write_t5_tokenizer,
    "mt5": write_mt5_tokenizer,
    "fast": write_fast,
}


@pytest.fixture(scope="module", params=WRITE)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, T5Tokenizer]:
    folder = tmp_path_factory.mktemp(request.param)

    size = WRITE[request.param](folder)

    return folder, size, load_t5_tokenizer(folder)


class TestT5Tokenizer:
    def test_call_equals_transformers(
        self, case: tuple[Path, int, T5Tokenizer]
    ) -> None:
        folder, size, tokenizer = case

        theirs = AutoTokenizer.from_pretrained(str(folder))

        for text in TEXT:
            indices = tokenizer.create_encoder(mode="source")(text).tolist()

            assert indices == theirs.encode(text)

            assert tokenizer.decode(indices) == text

        assert tokenizer.vocab_info.size == size == len(theirs)

    def test_sentinels_are_those_of_transformers(
        self, case: tuple[Path, int, T5Tokenizer]
    ) -> None:
        folder, _, tokenizer = case

        theirs = AutoTokenizer.from_pretrained(str(folder))

        for name in ("<extra_id_0>", "<extra_id_41>", "<extra_id_99>"):
            assert tokenizer.find_special(name) == theirs.convert_tokens_to_ids(name)

        assert len(tokenizer.separators) == 100
        assert tokenizer.default_separator == "<extra_id_0>"
        assert tokenizer.find_special("<extra_id_100>") is None
        # A piece of text is not special.
        assert tokenizer.find_special("▁") is None

    @pytest.mark.parametrize("text", ["a <extra_id_0> b", "<extra_id_0>", "x</s>y"])
    def test_text_that_spells_a_sentinel_stays_text(
        self, case: tuple[Path, int, T5Tokenizer], text: str
    ) -> None:
        _, _, tokenizer = case

        indices = tokenizer.encode(text)

        assert tokenizer.special_indices.isdisjoint(indices)

        if 2 not in indices:
            assert tokenizer.decode(indices) == text

    def test_create_encoder_frames_text_by_mode(
        self, case: tuple[Path, int, T5Tokenizer]
    ) -> None:
        _, _, tokenizer = case

        text = tokenizer.encode("A dog")

        def encode(mode: str | None) -> list[int]:
            indices: list[int] = tokenizer.create_encoder(mode=mode)("A dog").tolist()

            return indices

        assert encode(None) == encode("source") == [*text, 1]
        assert encode("target") == [0, *text, 1]
        assert encode("prompt") == [0, *text]
        assert tokenizer.create_raw_encoder()("A dog").tolist() == text

        with pytest.raises(NotSupportedError, match="`mode` must be"):
            tokenizer.create_encoder(mode="x")

    def test_decoder_drops_special_tokens(
        self, case: tuple[Path, int, T5Tokenizer]
    ) -> None:
        _, _, tokenizer = case

        encoder = tokenizer.create_encoder(mode="target")

        tokens = encoder.encode_as_tokens("A dog")

        assert tokens[0] == "<pad>" and tokens[-1] == "</s>"

        decoder = tokenizer.create_decoder()

        assert decoder(encoder("A dog")) == "A dog"
        assert decoder.decode_from_tokens(["<extra_id_0>", *tokens]) == "A dog"

        assert encoder.prefix_indices is not None
        assert tokenizer.create_raw_encoder().suffix_indices is None


class TestLoadT5Tokenizer:
    def test_call_takes_file_and_number_of_sentinels(self, tmp_path: Path) -> None:
        size = write_t5_tokenizer(tmp_path)

        file = tmp_path / "spiece.model"

        assert load_t5_tokenizer(file).vocab_info.size == size

        config = T5TokenizerConfig(num_sentinels=10)

        assert load_t5_tokenizer(file, config).vocab_info.size == size - 90

        # `extra_ids` beside it counts; without that there are 100.
        settings = tmp_path / "tokenizer_config.json"

        settings.write_text('{"extra_ids": 0}')

        tokenizer = load_t5_tokenizer(file)

        assert tokenizer.vocab_info.size == size - 100
        assert tokenizer.default_separator is None

        settings.unlink()

        assert load_t5_tokenizer(file).vocab_info.size == size

    def test_call_ignores_truncation_and_padding_of_file(self, tmp_path: Path) -> None:
        write_fast(tmp_path)

        expected = load_t5_tokenizer(tmp_path).encode(TEXT[0])

        # As a training script may leave them.
        theirs = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))

        theirs.enable_truncation(3)
        theirs.enable_padding(length=64)

        theirs.save(str(tmp_path / "tokenizer.json"))

        assert len(expected) > 3
        assert load_t5_tokenizer(tmp_path).encode(TEXT[0]) == expected

    @pytest.mark.parametrize("known_by", ["added_tokens", "tokenizer_config"])
    def test_call_refuses_tokens_that_spiece_lacks(
        self, tmp_path: Path, known_by: str
    ) -> None:
        write_t5_tokenizer(tmp_path)

        theirs = AutoTokenizer.from_pretrained(str(tmp_path))

        theirs.add_tokens(["<ctl>"])

        theirs.save_pretrained(str(tmp_path))

        # Newer versions of transformers write the one, older ones the other.
        if known_by == "added_tokens":
            size = len(theirs)

            write_json(tmp_path / "tokenizer_config.json", {"extra_ids": 100})
            write_json(tmp_path / "added_tokens.json", {"<ctl>": size - 1})

        with pytest.raises(WarmupError, match=r"added to `spiece.model` \(<ctl>\)"):
            load_t5_tokenizer(tmp_path)

        # What the message says.
        (tmp_path / "spiece.model").unlink()

        tokenizer = load_t5_tokenizer(tmp_path)

        assert tokenizer.encode("a <ctl>") == theirs.encode("a <ctl>")[:-1]

    @pytest.mark.parametrize(
        "name,content,message",
        [
            (None, b"", "neither `spiece.model` nor `tokenizer.json`"),
            ("spiece.model", b"", "cannot be read as a SentencePiece model"),
            ("spiece.model", b"junk", "cannot be read as a SentencePiece model"),
            ("tokenizer.json", b"{", "cannot be read as a `tokenizer.json`"),
        ],
    )
    def test_call_raises_error_when_there_is_none(
        self, tmp_path: Path, name: str | None, content: bytes, message: str
    ) -> None:
        if name is not None:
            (tmp_path / name).write_bytes(content)

        with pytest.raises(WarmupError, match=message):
            load_t5_tokenizer(tmp_path)

    def test_call_raises_error_when_file_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match="x.model` does not exist"):
            load_t5_tokenizer(tmp_path / "x.model")

    def test_call_raises_error_when_it_is_of_another_model(
        self, tmp_path: Path
    ) -> None:
        file = tmp_path / "spiece.model"

        file.write_bytes(train_spm())

        with pytest.raises(WarmupError, match="not of T5 or mT5"):
            load_t5_tokenizer(file)

    def test_call_raises_error_when_settings_are_broken(self, tmp_path: Path) -> None:
        write_t5_tokenizer(tmp_path)

        (tmp_path / "tokenizer_config.json").write_text("{")

        with pytest.raises(WarmupError, match="cannot be read as JSON"):
            load_t5_tokenizer(tmp_path)

    def test_config_is_checked(self) -> None:
        assert T5TokenizerConfig(num_sentinels=-1).validate().has_error()
