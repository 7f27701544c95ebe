# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq2.assets import AssetCard
from fairseq2.composition import _register_library
from fairseq2.data.tokenizers import TokenizerFamily
from fairseq2.device import CPU
from fairseq2.error import NotSupportedError
from fairseq2.gang import create_fake_gangs
from fairseq2.runtime.dependency import DependencyContainer
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from warmup_plugin.errors import WarmupError
from warmup_plugin.tokenizers.spm import (
    WARMUP_SPM_FAMILY,
    WarmupSpmConfig,
    WarmupSpmTokenizer,
    load_warmup_spm,
    register_warmup_spm_family,
)

# Spellings of special tokens are in the training text too: a trainer that learns
# them as pieces would let text end a warmup.
LINES = [
    "A dog runs in the park <sep> a dog.",
    "Ein Hund läuft im Park<sep>.",
    "Two men <s> are talking </s>.",
    "Zwei Männer reden <pad> < > / <unk>.",
]


def write_model(path: Path, **options: object) -> Path:
    model = io.BytesIO()

    kwargs: dict[str, Any] = {
        "sentence_iterator": iter(LINES * 50),
        "model_writer": model,
        "vocab_size": 38,
        "pad_id": 0,
        "unk_id": 1,
        "bos_id": 2,
        "eos_id": 3,
        "control_symbols": ["<sep>"],
        "minloglevel": 2,
        **options,
    }

    SentencePieceTrainer.train(**kwargs)

    path.write_bytes(model.getvalue())

    return path


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("spm") / "t.model")


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> WarmupSpmTokenizer:
    path = tmp_path_factory.mktemp("spm") / "t.model"

    return load_warmup_spm(write_model(path, model_type=request.param))


class TestWarmupSpmTokenizer:
    def test_vocab_info_works(self, tokenizer: WarmupSpmTokenizer) -> None:
        info = tokenizer.vocab_info

        assert (info.pad_idx, info.unk_idx, info.bos_idx, info.eos_idx) == (0, 1, 2, 3)
        assert info.size == 38
        assert tokenizer.find_special("<sep>") == 4
        assert tokenizer.default_separator == "<sep>"
        assert tokenizer.separators == ("<sep>",)
        assert tokenizer.special_indices == {0, 2, 3, 4}

    def test_create_encoder_frames_text_by_mode(
        self, tokenizer: WarmupSpmTokenizer
    ) -> None:
        text = "A dog runs."

        raw = tokenizer.create_raw_encoder()(text).tolist()

        assert len(raw) > 0 and all(idx > 4 for idx in raw)

        def encode(mode: str | None) -> list[int]:
            encoder = tokenizer.create_encoder(
                task="translation", lang="de", mode=mode, device=CPU
            )

            return encoder(text).tolist()

        assert encode(None) == [*raw, 3]
        assert encode("source") == [*raw, 3]
        assert encode("target") == [2, *raw, 3]
        assert encode("prompt") == [2, *raw]

    def test_create_encoder_frames_empty_text(
        self, tokenizer: WarmupSpmTokenizer
    ) -> None:
        assert tokenizer.create_encoder(mode="source")("").tolist() == [3]
        assert tokenizer.create_encoder(mode="target")("").tolist() == [2, 3]
        assert tokenizer.create_encoder(mode="prompt")("").tolist() == [2]

    def test_create_encoder_raises_error_when_argument_is_not_known(
        self, tokenizer: WarmupSpmTokenizer
    ) -> None:
        with pytest.raises(ValueError, match="^`task` must be 'translation'"):
            tokenizer.create_encoder(task="transcription")

        with pytest.raises(NotSupportedError, match="^`mode` must be .* 'foo'"):
            tokenizer.create_encoder(mode="foo")

    @pytest.mark.parametrize("token", ["<sep>", "<s>", "</s>", "<pad>"])
    @pytest.mark.parametrize(
        "template", ["{}", " {} ", "a{}b", "{0}{0}", "A dog {} runs", "<{}>", "{}dog"]
    )
    def test_encoder_never_makes_special_token_of_text(
        self, tokenizer: WarmupSpmTokenizer, token: str, template: str
    ) -> None:
        text = template.format(token)

        for encoder in (tokenizer.create_raw_encoder(), tokenizer.create_encoder()):
            indices = encoder(text).tolist()

            if encoder.suffix_indices is not None:
                assert indices.pop() == 3

            assert len(indices) > 0
            assert set(indices).isdisjoint({0, 2, 3, 4})

    def test_decoder_drops_special_tokens(self, tokenizer: WarmupSpmTokenizer) -> None:
        decoder = tokenizer.create_decoder()

        a, b = (tokenizer.create_raw_encoder()(t).tolist() for t in ("A dog", "reden"))

        for dtype in (torch.int64, torch.int32):
            seq = torch.tensor([2, 4, *a, 4, *b, 3, 0, 0], dtype=dtype)

            assert decoder(seq) == "A dog reden"

        assert decoder(torch.tensor([2, 4, 3, 0])) == ""
        assert decoder(torch.tensor([], dtype=torch.int64)) == ""

    def test_decoder_accepts_views_and_inference_tensors(
        self, tokenizer: WarmupSpmTokenizer
    ) -> None:
        decoder = tokenizer.create_decoder()

        seq = tokenizer.create_encoder(mode="target")("A dog runs.")

        # (S) -> (S, 2), of which a column is not contiguous.
        assert decoder(torch.stack([seq, seq], dim=1)[:, 1]) == "A dog runs."

        with torch.inference_mode():
            seq = seq.clone()

        assert decoder(seq) == "A dog runs."

    def test_decoder_raises_error_when_input_is_not_1d(
        self, tokenizer: WarmupSpmTokenizer
    ) -> None:
        with pytest.raises(ValueError, match="one dimensional"):
            tokenizer.create_decoder()(torch.tensor([[5, 6], [7, 8]]))

    def test_decode_from_tokens_drops_special_tokens(
        self, tokenizer: WarmupSpmTokenizer
    ) -> None:
        tokens = tokenizer.create_encoder(mode="target").encode_as_tokens("A dog")

        assert tokens[0] == "<s>" and tokens[-1] == "</s>"

        text = tokenizer.create_decoder().decode_from_tokens(["<sep>", *tokens])

        assert text == "A dog"


class TestLoadWarmupSpm:
    def test_call_works_with_other_separator(self, tmp_path: Path) -> None:
        path = write_model(tmp_path / "t.model", control_symbols=["<a>", "<b>"])

        tokenizer = load_warmup_spm(path, WarmupSpmConfig(separator="<b>"))

        assert tokenizer.default_separator == "<b>"
        assert tokenizer.find_special("<b>") == 5

        # Neither of them is ever generated as text.
        assert tokenizer.special_indices == {0, 2, 3, 4, 5}

        seq = tokenizer.create_encoder(mode="target")("dog")

        # The decoder drops the separator that was asked for.
        seq = torch.cat([seq, torch.tensor([5])])

        assert tokenizer.create_decoder()(seq) == "dog"

    def test_call_works_when_path_is_not_ascii(
        self, tmp_path: Path, model_path: Path
    ) -> None:
        path = tmp_path / "größe 1.model"

        path.write_bytes(model_path.read_bytes())

        assert load_warmup_spm(path).vocab_info.size == 38

    def test_call_raises_error_when_file_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match=r"nope\.model` does not exist; ") as info:
            load_warmup_spm(tmp_path / "nope.model")

        assert "`python -m warmup_plugin train-tokenizer`" in str(info.value)

    def test_call_raises_error_when_path_is_folder(self, tmp_path: Path) -> None:
        with pytest.raises(WarmupError, match=r"cannot be read \(Is a directory\)"):
            load_warmup_spm(tmp_path)

    @pytest.mark.parametrize("content", [b"", b"{}\n", b"\x00\xffgarbage" * 99])
    def test_call_raises_error_when_file_is_corrupt(
        self, tmp_path: Path, content: bytes
    ) -> None:
        path = tmp_path / "bad.model"

        path.write_bytes(content)

        with pytest.raises(WarmupError, match=r"bad\.model` is not a SentencePiece"):
            load_warmup_spm(path)

    def test_call_raises_error_when_file_is_cut(
        self, tmp_path: Path, model_path: Path
    ) -> None:
        path = tmp_path / "cut.model"

        path.write_bytes(model_path.read_bytes()[:-100])

        with pytest.raises(WarmupError, match=r"cut\.model` is not a SentencePiece"):
            load_warmup_spm(path)

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"pad_id": -1}, "has no padding token; train one with `python -m"),
            ({"bos_id": -1}, "has no beginning-of-sequence token; train one with"),
            ({"eos_id": -1}, "has no end-of-sequence token; train one with"),
            ({"control_symbols": []}, "has no control symbol `<sep>` .* train one"),
            # Text could write such a separator.
            (
                {"control_symbols": [], "user_defined_symbols": ["<sep>"]},
                "has no control symbol `<sep>`",
            ),
        ],
    )
    def test_call_raises_error_when_token_is_missing(
        self, tmp_path: Path, options: dict[str, object], message: str
    ) -> None:
        ids = {"pad_id": 0, "unk_id": 1, "bos_id": 2, "eos_id": 3}

        path = write_model(
            tmp_path / "t.model", **{**ids, "hard_vocab_limit": False, **options}
        )

        with pytest.raises(WarmupError, match=message):
            load_warmup_spm(path)

    @pytest.mark.parametrize("separator", ["<s>", "</s>", "<pad>"])
    def test_call_raises_error_when_separator_has_another_role(
        self, model_path: Path, separator: str
    ) -> None:
        assert SentencePieceProcessor(model_file=str(model_path)).is_control(2)

        with pytest.raises(WarmupError, match="set `separator` to another"):
            load_warmup_spm(model_path, WarmupSpmConfig(separator=separator))


class TestWarmupSpmConfig:
    def test_validate_returns_error_when_separator_is_empty(self) -> None:
        assert WarmupSpmConfig(separator="").validate().has_error()
        assert not WarmupSpmConfig().validate().has_error()


class TestRegisterWarmupSpmFamily:
    def test_call_makes_family_that_loads_and_reports_errors(
        self, tmp_path: Path, model_path: Path
    ) -> None:
        # Not `init_fairseq2()`, which works once in a process.
        container = DependencyContainer()

        _register_library(container, no_progress=True)

        # An installed package has registered it already.
        if WARMUP_SPM_FAMILY not in set(container.iter_keys(TokenizerFamily)):
            register_warmup_spm_family(container)

        family = container.resolve(TokenizerFamily, key=WARMUP_SPM_FAMILY)

        assert family.kls is WarmupSpmTokenizer
        assert family.config_kls is WarmupSpmConfig

        gangs = create_fake_gangs(CPU)

        tokenizer = family.load_custom_tokenizer(model_path, WarmupSpmConfig(), gangs)

        assert isinstance(tokenizer, WarmupSpmTokenizer)

        # fairseq2 must not wrap it in an error that prints a stack trace.
        with pytest.raises(WarmupError, match="does not exist"):
            family.load_custom_tokenizer(tmp_path / "no", WarmupSpmConfig(), gangs)

        bad = AssetCard("bad", {"tokenizer": str(tmp_path / "no")})

        with pytest.raises(WarmupError, match="does not exist"):
            family.load_tokenizer(bad, gangs, None)
