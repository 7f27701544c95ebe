# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
from fairseq2.data.tokenizers import Tokenizer, VocabularyInfo
from fairseq2.models.llama import LLaMATokenizerConfig, load_llama_tokenizer
from fairseq2.models.nllb.tokenizer import NllbTokenizerConfig, load_nllb_tokenizer

from tests.hub_files import (
    NLLB_LANGS,
    write_llama_tokenizer,
    write_nllb_tokenizer,
    write_qwen_tokenizer,
    write_t5_tokenizer,
)
from warmup_plugin.data.train_tokenizer import train_tokenizer
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.t5.tokenizer import load_t5_tokenizer
from warmup_plugin.tokenizers.codec import CodecOptions, TextCodec, create_codec
from warmup_plugin.tokenizers.hugging_face import load_hugging_face_tokenizer
from warmup_plugin.tokenizers.spm import load_warmup_spm


def create_seq2seq_codec(tokenizer: Tokenizer, **options: Any) -> TextCodec:
    return create_codec(tokenizer, CodecOptions(**options), reads_prompts=False)


def create_prompt_codec(tokenizer: Tokenizer, **options: Any) -> TextCodec:
    return create_codec(tokenizer, CodecOptions(**options), reads_prompts=True)


class TestSpm:
    def test_codec_frames_text(self, tokenizer_file: Path) -> None:
        tokenizer = load_warmup_spm(tokenizer_file)

        codec = create_seq2seq_codec(tokenizer, source_lang="src")

        text = tokenizer.create_raw_encoder()("puke kuse").tolist()

        encoded = codec.encode_source("puke kuse")

        assert (encoded.source, encoded.prefix) == ([*text, 3], [2])

        assert codec.encode_target("puke kuse") == [*text, 3]

        assert codec.encode_pair("puke", "puke kuse")[1] == [2, *text, 3]

        assert codec.decode(text) == "puke kuse"
        assert codec.decode([]) == ""

    def test_layout_bans_control_symbols(self, tokenizer_file: Path) -> None:
        layout = create_seq2seq_codec(load_warmup_spm(tokenizer_file)).layout

        # PAD 0, UNK 1, BOS 2, EOS 3, separator 4.
        assert layout.pad_idx == 0
        assert layout.eos_idx == 3
        assert layout.separator_idx == 4
        assert layout.prefix_len == 1
        assert layout.vocab_size == 120
        # EOS may follow an output, the separator a warmup.
        assert layout.banned_in_warmup == (0, 1, 2, 3)
        assert layout.banned_in_target == (0, 1, 2, 4)


class TestT5:
    def test_codec_frames_text(self, tmp_path: Path) -> None:
        size = write_t5_tokenizer(tmp_path)

        tokenizer = load_t5_tokenizer(tmp_path)

        prompt = "translate English to German: {source}"

        codec = create_seq2seq_codec(tokenizer, prompt=prompt)

        source, target = codec.encode_pair("A dog runs.", "Ein Hund.")

        assert source == [
            *tokenizer.encode("translate English to German: A dog runs."),
            1,
        ]
        assert target == [0, *tokenizer.encode("Ein Hund."), 1]

        layout = codec.layout

        assert layout.separator_idx == size - 1
        assert layout.prefix_len == 1
        assert layout.vocab_size == size

        # No other sentinel, PAD, EOS or unknown.
        assert layout.banned_in_warmup == (0, 1, 2, *range(size - 100, size - 1))
        assert layout.banned_in_target == (0, 2, *range(size - 100, size))

    def test_separator_is_any_sentinel(self, tmp_path: Path) -> None:
        size = write_t5_tokenizer(tmp_path)

        codec = create_seq2seq_codec(
            load_t5_tokenizer(tmp_path), separator="<extra_id_7>"
        )

        assert codec.layout.separator_idx == size - 8
        assert size - 8 not in codec.layout.banned_in_warmup
        assert size - 1 in codec.layout.banned_in_warmup


def load_nllb(folder: Path) -> Tokenizer:
    write_nllb_tokenizer(folder)

    return load_nllb_tokenizer(
        folder / "sentencepiece.bpe.model",
        NllbTokenizerConfig(langs=NLLB_LANGS, default_lang="eng_Latn"),
    )


class TestNllb:
    def test_codec_puts_languages_first(self, tmp_path: Path) -> None:
        codec = create_seq2seq_codec(
            load_nllb(tmp_path), source_lang="eng_Latn", target_lang="deu_Latn"
        )

        source, target = codec.encode_pair("A dog.", "Ein Hund.")

        size = codec.layout.vocab_size

        deu, eng = size - 7, size - 6

        # The languages come first; a warmup follows them.
        assert (source[0], source[-1]) == (eng, 3)
        assert target[:2] == [3, deu] and target[-1] == 3
        assert codec.layout.prefix_len == 2

        assert codec.decode(target[2:-1]) == "Ein Hund."

        # `<s>` is spare.
        assert codec.layout.separator_idx == 2
        assert codec.layout.banned_in_warmup == (0, 1, 3, *range(size - 7, size))
        assert codec.layout.banned_in_target == (0, 1, 2, *range(size - 7, size))

    def test_language_of_warmups_begins_and_that_of_targets_ends_them(
        self, tmp_path: Path
    ) -> None:
        codec = create_seq2seq_codec(
            load_nllb(tmp_path),
            source_lang="deu_Latn",
            target_lang="fra_Latn",
            warmup_lang="eng_Latn",
        )

        source, target = codec.encode_pair("Ein Hund.", "A dog.")

        size = codec.layout.vocab_size

        deu, eng, fra = size - 7, size - 6, size - 5

        assert (source[0], source[-1]) == (deu, 3)
        assert codec.encode_source("Ein Hund.").prefix == target[:2] == [3, eng]
        assert codec.decode(target[2:-1]) == "A dog." and target[-1] == 3

        layout = codec.layout

        assert (layout.prefix_len, layout.separator_idx) == (2, fra)
        assert codec.separator == "__fra_Latn__"

        specials = {0, 1, 2, 3, *range(size - 7, size)}

        assert set(layout.banned_in_warmup) == specials - {fra}
        assert set(layout.banned_in_target) == specials - {3}

    def test_text_that_spells_the_separator_stays_text(self, tmp_path: Path) -> None:
        codec = create_seq2seq_codec(
            load_nllb(tmp_path), source_lang="eng_Latn", target_lang="deu_Latn"
        )

        assert 2 not in codec.encode_target("a <s> b")[:-1]

    @pytest.mark.parametrize(
        "lang,suggestion", [("de", ", unlike `deu_Latn`"), ("zz", "tokenizer;")]
    )
    def test_codec_names_unknown_language(
        self, tmp_path: Path, lang: str, suggestion: str
    ) -> None:
        with pytest.raises(
            WarmupError, match=f"`{lang}` is not a language.*{suggestion}"
        ):
            create_seq2seq_codec(
                load_nllb(tmp_path), source_lang="eng_Latn", target_lang=lang
            )


class TestPrompts:
    def test_last_token_of_prompt_begins_rows(self, tmp_path: Path) -> None:
        size = write_llama_tokenizer(tmp_path)

        tokenizer = load_hugging_face_tokenizer(tmp_path)

        codec = create_prompt_codec(
            tokenizer,
            prompt="From {source_lang} to {target_lang}: {source}\n",
            source_lang="en",
            target_lang="de",
        )

        encoded = codec.encode_source("A dog {runs}.")

        bos = size - 8

        assert [*encoded.source, *encoded.prefix] == [
            bos,
            *tokenizer.encode("From en to de: A dog {runs}.\n"),
        ]

        assert len(encoded.prefix) == codec.layout.prefix_len == 1

        assert codec.encode_target("Ein Hund.") == [
            *tokenizer.encode("Ein Hund."),
            size - 7,
        ]

        assert codec.decode(tokenizer.encode("Ein , Hund .")) == "Ein , Hund ."

        layout = codec.layout

        assert layout.separator_idx == size - 6
        assert layout.vocab_size == size
        assert set(range(size - 8, size)) - {size - 6} == set(layout.banned_in_warmup)
        assert set(range(size - 8, size)) - {size - 7} == set(layout.banned_in_target)

    def test_default_prompt_ends_with_line_feed(self, tmp_path: Path) -> None:
        write_qwen_tokenizer(tmp_path)

        tokenizer = load_hugging_face_tokenizer(tmp_path)

        encoded = create_prompt_codec(tokenizer).encode_source("A dog")

        # Qwen has no BOS.
        assert [*encoded.source, *encoded.prefix] == tokenizer.encode("A dog\n")

    def test_default_prompt_ends_with_token_where_there_is_one(
        self, tmp_path: Path
    ) -> None:
        text = tmp_path / "text.txt"

        text.write_text("A dog\n")

        train_tokenizer([text], tmp_path / "t", vocab_size=260, model_type="byte_bpe")

        tokenizer = load_hugging_face_tokenizer(tmp_path / "t")

        codec = create_prompt_codec(tokenizer)

        assert codec.template == "{source}<mid>"

        encoded = codec.encode_source("A dog")

        assert (encoded.source, encoded.prefix) == (tokenizer.encode("A dog"), [3])

        layout = codec.layout

        assert (layout.pad_idx, layout.eos_idx, layout.separator_idx) == (0, 1, 2)

        assert layout.banned_in_warmup == (0, 1, 3)
        assert layout.banned_in_target == (0, 2, 3)

    def test_pad_that_is_eos_may_end_output(self, tmp_path: Path) -> None:
        size = write_qwen_tokenizer(tmp_path)

        layout = create_prompt_codec(load_hugging_face_tokenizer(tmp_path)).layout

        assert layout.pad_idx == layout.eos_idx == size - 4
        assert layout.eos_idx in layout.banned_in_warmup
        assert layout.eos_idx not in layout.banned_in_target
        # <|vision_pad|>
        assert layout.separator_idx == size - 1

    def test_template_may_name_special_tokens_but_source_not(
        self, tmp_path: Path
    ) -> None:
        size = write_llama_tokenizer(tmp_path)

        tokenizer = load_hugging_face_tokenizer(tmp_path)

        codec = create_prompt_codec(
            tokenizer,
            prompt="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n{source}<|eot_id|>",
        )

        source = "ask <|eot_id|> now"

        encoded = codec.encode_source(source)

        # BOS is not doubled.
        assert [*encoded.source, *encoded.prefix] == [
            size - 8,
            size - 3,
            *tokenizer.encode("user"),
            size - 2,
            *tokenizer.encode(f"\n{source}"),
            size - 1,
        ]

        assert tokenizer.tok.decode(tokenizer.encode(source)) == source

        # transformers adds BOS by itself.
        assert codec.template.startswith("<|start_header_id|>user")

    def test_encode_source_refuses_prompt_of_one_token(self, tmp_path: Path) -> None:
        write_qwen_tokenizer(tmp_path)

        codec = create_prompt_codec(
            load_hugging_face_tokenizer(tmp_path), prompt="{source}"
        )

        with pytest.raises(WarmupError, match="source 'A' has only 1 token"):
            codec.encode_source("A")

    def test_fairseq2_tokenizer_is_adapted(self, tmp_path: Path) -> None:
        write_llama_tokenizer(tmp_path)

        ours = create_prompt_codec(load_hugging_face_tokenizer(tmp_path))

        theirs = create_prompt_codec(
            load_llama_tokenizer(tmp_path, LLaMATokenizerConfig(impl="hg"))
        )

        assert theirs.encode_pair("A dog", "Ein") == ours.encode_pair("A dog", "Ein")

        # Its own `vocab_info` leaves added tokens out, EOS among them.
        assert theirs.layout.vocab_size == ours.layout.vocab_size
        assert theirs.layout.eos_idx == ours.layout.eos_idx

        # `<|finetune_right_pad_id|>`, which this family pads with.
        assert theirs.layout.separator_idx == ours.layout.separator_idx


class TestErrors:
    @pytest.mark.parametrize(
        "options,message",
        [
            ({"warmup_lang": "en"}, "`en` is not a.*, unlike `eng_Latn`; set `tokenizer.warmup_lang`"),
            ({"warmup_lang": "deu_Latn"}, "`tokenizer.warmup_lang` is the language of the targets"),
            ({"warmup_lang": "fra_Latn", "separator": "<s>"}, "`tokenizer.separator` is `<s>`, but"),
        ],
    )  # fmt: skip
    def test_language_of_warmups_must_be_another_one(
        self, tmp_path: Path, options: dict[str, str], message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            create_seq2seq_codec(load_nllb(tmp_path), target_lang="deu_Latn", **options)

    def test_language_of_warmups_needs_tokens_of_languages(
        self, tmp_path: Path, tokenizer_file: Path
    ) -> None:
        write_llama_tokenizer(tmp_path)

        with pytest.raises(WarmupError, match="no tokens of languages.*an NLLB"):
            create_seq2seq_codec(load_warmup_spm(tokenizer_file), warmup_lang="en")

        with pytest.raises(WarmupError, match="no tokens of languages.*an NLLB"):
            create_prompt_codec(load_hugging_face_tokenizer(tmp_path), warmup_lang="en")

    def test_separator_must_be_known(self, tmp_path: Path) -> None:
        write_t5_tokenizer(tmp_path)

        with pytest.raises(
            WarmupError, match="no special token `<sep>`.*such as `<extra_id_"
        ):
            create_seq2seq_codec(load_t5_tokenizer(tmp_path), separator="<sep>")

    def test_separator_must_be_spare(self, tmp_path: Path) -> None:
        write_t5_tokenizer(tmp_path)

        with pytest.raises(WarmupError, match="`</s>` already pads, begins or ends"):
            create_seq2seq_codec(load_t5_tokenizer(tmp_path), separator="</s>")

    def test_tokenizer_must_be_known(self) -> None:
        with pytest.raises(WarmupError, match="`object`, which has no separator"):
            create_seq2seq_codec(cast(Any, object()))

    def test_tokenizer_must_have_pad(self, tokenizer_file: Path) -> None:
        tokenizer = load_warmup_spm(tokenizer_file)

        tokenizer._vocab_info = VocabularyInfo(9, 1, 2, 3, None)

        with pytest.raises(WarmupError, match="no PAD or no EOS"):
            create_seq2seq_codec(tokenizer)

    @pytest.mark.parametrize("prompt", ["{src}", "", "{source} {source}"])
    def test_prompt_must_hold_source_once(
        self, tokenizer_file: Path, prompt: str
    ) -> None:
        with pytest.raises(WarmupError, match="must hold `{source}` once"):
            create_seq2seq_codec(load_warmup_spm(tokenizer_file), prompt=prompt)

    def test_tokenizer_must_be_of_the_kind_of_model(
        self, tmp_path: Path, tokenizer_file: Path
    ) -> None:
        with pytest.raises(WarmupError, match="cannot write the prompts"):
            create_prompt_codec(load_warmup_spm(tokenizer_file))

        write_llama_tokenizer(tmp_path)

        with pytest.raises(WarmupError, match="but the model is an encoder-decoder"):
            create_seq2seq_codec(load_hugging_face_tokenizer(tmp_path))
