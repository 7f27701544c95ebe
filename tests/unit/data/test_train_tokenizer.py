# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor

from warmup_plugin.data.train_tokenizer import MAX_LINE_BYTES, train_tokenizer
from warmup_plugin.errors import WarmupError
from warmup_plugin.tokenizers.loading import load_tokenizer

LINES = [
    "A dog runs in the park.",
    "Ein Hund läuft im Park.",
    "Two men are talking.",
    "Zwei Männer reden.",
]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "text.txt", LINES * 20)


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    return path


class TestTrainTokenizer:
    def test_call_writes_special_tokens_at_their_indices(
        self, tmp_path: Path, text: Path
    ) -> None:
        report = train_tokenizer([text], tmp_path / "t.model", vocab_size=40)

        processor = SentencePieceProcessor(model_file=str(tmp_path / "t.model"))

        pieces = [processor.id_to_piece(i) for i in range(5)]

        assert pieces == ["<pad>", "<unk>", "<s>", "</s>", "<sep>"]
        assert processor.is_control(4)
        assert processor.vocab_size() == 40

        assert report.path == tmp_path / "t.model"
        assert report.vocab_size == 40
        assert report.num_lines == 80

    def test_call_writes_pieces_of_nllb(self, tmp_path: Path, text: Path) -> None:
        train_tokenizer([text], tmp_path / "t.model", vocab_size=39, family="nllb")

        processor = SentencePieceProcessor(model_file=str(tmp_path / "t.model"))

        # As the public model begins; fairseq2 puts PAD before them.
        pieces = [processor.id_to_piece(i) for i in range(3)]

        assert pieces == ["<unk>", "<s>", "</s>"]
        assert not any(processor.is_control(i) for i in range(3, 39))

        langs = ["eng_Latn", "deu_Latn"]

        tokenizer = load_tokenizer(
            tmp_path / "t.model", "nllb", {"langs": langs, "default_lang": langs[0]}
        )

        # PAD, the languages and three tokens that NLLB calls data.
        assert tokenizer.vocab_info.size == 39 + 1 + 2 + 3
        assert tokenizer.vocab_info.pad_idx == 0

        encoder = tokenizer.create_encoder(lang="deu_Latn", mode="target")

        assert tokenizer.create_decoder()(encoder(LINES[1])) == LINES[1]

    @pytest.mark.parametrize("model_type", ["unigram", "bpe"])
    def test_call_is_deterministic(
        self, tmp_path: Path, text: Path, model_type: str
    ) -> None:
        contents = set()

        for name in ("a.model", "b.model"):
            train_tokenizer(
                [text], tmp_path / name, vocab_size=40, model_type=model_type
            )

            contents.add((tmp_path / name).read_bytes())

        assert len(contents) == 1

    def test_call_reads_all_inputs_and_gzip(self, tmp_path: Path, text: Path) -> None:
        packed = tmp_path / "more.txt.gz"

        with gzip.open(packed, "wt", encoding="utf-8") as fp:
            fp.write("Жук\n" * 30)

        train_tokenizer([text, packed], tmp_path / "t.model", vocab_size=45)

        processor = SentencePieceProcessor(model_file=str(tmp_path / "t.model"))

        assert processor.unk_id() not in processor.encode("Жук")

    def test_call_reads_fields_of_json_lines(self, tmp_path: Path, text: Path) -> None:
        examples = [
            {"source": "\n".join(LINES[:2]), "target": LINES[2], "id": "Жук"},
            {"source": LINES[3], "target": "", "id": "Жук"},
        ]

        file = tmp_path / "train.jsonl"

        write_lines(file, [json.dumps(example) for example in examples * 20])

        report = train_tokenizer([file], tmp_path / "json.model", vocab_size=40)

        # Each line of a text is a sentence.
        assert (report.num_lines, report.num_empty_lines) == (80, 20)

        lines = write_lines(tmp_path / "lines.txt", LINES * 20)

        train_tokenizer([lines], tmp_path / "lines.model", vocab_size=40)

        models = [tmp_path / f"{name}.model" for name in ("json", "lines")]

        assert models[0].read_bytes() == models[1].read_bytes()

        with pytest.raises(
            WarmupError, match=r"^Line 1 of .* has no field `text` \(`--json-fields`\)"
        ):
            train_tokenizer(
                [file], tmp_path / "t.model", vocab_size=40, json_fields=["text"]
            )

    def test_call_raises_error_when_fields_are_of_no_use(
        self, tmp_path: Path, text: Path
    ) -> None:
        with pytest.raises(WarmupError, match="`--json-fields` is of no use"):
            train_tokenizer(
                [text], tmp_path / "t.model", vocab_size=40, json_fields=["source"]
            )

    def test_call_counts_lines_that_are_left_out(
        self, tmp_path: Path, text: Path
    ) -> None:
        extra = write_lines(
            tmp_path / "extra.txt", ["", "  ", "x" * (MAX_LINE_BYTES + 1)]
        )

        report = train_tokenizer([text, extra], tmp_path / "t.model", vocab_size=40)

        assert report.num_lines == 80
        assert report.num_empty_lines == 2
        assert report.num_long_lines == 1

    def test_default_gives_back_what_it_read(self, tmp_path: Path) -> None:
        lines = [
            "他说：“你好，世界！”（真的？）",
            "ＡＢＣ１２３，价格是￥５０；……",
            "ｶﾀｶﾅ と ㈱ ﬁ ½ x²",
            "नमस्ते। สวัสดี",
            "naïve naïve “q” — …",
        ]

        file = write_lines(tmp_path / "zh.txt", lines * 5)

        report = train_tokenizer([file], tmp_path / "t.model", vocab_size=65)

        assert report.num_changed_lines == 0

        processor = SentencePieceProcessor(model_file=str(tmp_path / "t.model"))

        for line in lines:
            assert processor.decode(processor.encode(line)) == line

    def test_call_counts_what_normalization_changes(self, tmp_path: Path) -> None:
        file = write_lines(tmp_path / "zh.txt", ["你好，世界！", "abc def"] * 20)

        report = train_tokenizer(
            [file], tmp_path / "t.model", vocab_size=19, normalization="nmt_nfkc"
        )

        assert report.num_changed_lines == 20

    @pytest.mark.parametrize("reserved", ["\u2585", "\0"])
    def test_lines_with_reserved_characters_are_learned_from(
        self, tmp_path: Path, reserved: str
    ) -> None:
        lines = ["the small dog", f"a quick {reserved} vixen"] * 20

        file = write_lines(tmp_path / "text.txt", lines)

        report = train_tokenizer([file], tmp_path / "t.model", vocab_size=24)

        assert (report.num_lines, report.num_reserved_lines) == (40, 20)

        processor = SentencePieceProcessor(model_file=str(tmp_path / "t.model"))

        assert processor.unk_id() not in processor.encode("a quick vixen")

    def test_call_reads_columns_of_tsv(self, tmp_path: Path) -> None:
        rows = [f"{a}\t{b}" for a, b in zip(LINES[::2], LINES[1::2])] * 20

        file = write_lines(tmp_path / "train.tsv", rows)

        train_tokenizer([file], tmp_path / "tsv.model", vocab_size=40)

        lines = write_lines(tmp_path / "lines.txt", LINES * 20)

        train_tokenizer([lines], tmp_path / "lines.model", vocab_size=40)

        models = [tmp_path / f"{name}.model" for name in ("tsv", "lines")]

        assert models[0].read_bytes() == models[1].read_bytes()

        write_lines(file, [*rows, "7\ta\tb"])

        with pytest.raises(WarmupError, match="Line 41 of .* has 3 columns"):
            train_tokenizer([file], tmp_path / "t.model", vocab_size=40)

    def test_call_creates_folder_of_output(self, tmp_path: Path, text: Path) -> None:
        output = tmp_path / "runs" / "demo" / "t.model"

        train_tokenizer([text], output, vocab_size=40)

        assert SentencePieceProcessor(model_file=str(output)).vocab_size() == 40

    def test_call_leaves_no_other_file_behind(self, tmp_path: Path, text: Path) -> None:
        train_tokenizer([text], tmp_path / "t.model", vocab_size=40)

        assert {p.name for p in tmp_path.iterdir()} == {"text.txt", "t.model"}

    def test_call_replaces_only_when_forced(self, tmp_path: Path, text: Path) -> None:
        output = tmp_path / "t.model"

        output.write_text("precious")

        with pytest.raises(WarmupError, match=r"exists already; .* `--force`\.$"):
            train_tokenizer([text], output, vocab_size=40)

        assert output.read_text() == "precious"

        train_tokenizer([text], output, vocab_size=40, force=True)

        assert SentencePieceProcessor(model_file=str(output)).vocab_size() == 40

    def test_call_keeps_existing_output_when_training_fails(
        self, tmp_path: Path, text: Path
    ) -> None:
        output = tmp_path / "t.model"

        output.write_text("precious")

        with pytest.raises(WarmupError):
            train_tokenizer([text], output, vocab_size=4000, force=True)

        assert output.read_text() == "precious"

    def test_call_raises_error_when_vocabulary_is_too_large(
        self, tmp_path: Path, text: Path
    ) -> None:
        output = tmp_path / "t.model"

        with pytest.raises(WarmupError, match=r"4000 tokens is too large") as info:
            train_tokenizer([text], output, vocab_size=4000)

        # The number in the remedy must be one that works.
        vocab_size = int(str(info.value).split("`--vocab-size` to ")[1].split()[0])

        train_tokenizer([text], output, vocab_size=vocab_size)

        with pytest.raises(WarmupError, match="too large"):
            train_tokenizer([text], output, vocab_size=vocab_size + 1, force=True)

    def test_call_raises_error_when_vocabulary_is_too_small(
        self, tmp_path: Path, text: Path
    ) -> None:
        output = tmp_path / "t.model"

        with pytest.raises(WarmupError, match=r"10 tokens has no room") as info:
            train_tokenizer([text], output, vocab_size=10)

        vocab_size = int(str(info.value).split("`--vocab-size` to ")[1].split()[0])

        train_tokenizer([text], output, vocab_size=vocab_size)

        with pytest.raises(WarmupError, match="has no room"):
            train_tokenizer([text], output, vocab_size=vocab_size - 1, force=True)

    @pytest.mark.parametrize(
        "options,message",
        [
            ({"vocab_size": 5}, "vocabulary size must be at least 6"),
            ({"model_type": "word"}, "`word` is not a known model type"),
            ({"family": "t5"}, "`t5` is not a family of tokenizers"),
            (
                {"family": "nllb", "model_type": "byte_bpe", "vocab_size": 300},
                "`--family` is for SentencePiece",
            ),
            ({"character_coverage": 0.5}, "coverage must be between 0.98 and 1"),
            ({"normalization": "foo"}, "`foo` is not a known normalization"),
            ({"num_threads": 0}, "number of threads must be at least 1"),
        ],
    )
    def test_call_raises_error_when_option_is_wrong(
        self, tmp_path: Path, text: Path, options: dict[str, object], message: str
    ) -> None:
        kwargs: dict[str, object] = {"vocab_size": 40, **options}

        with pytest.raises(WarmupError, match=message):
            train_tokenizer([text], tmp_path / "t.model", **kwargs)  # type: ignore[arg-type]

    @pytest.mark.parametrize("lines", [[], ["", " "], ["x" * 5000]])
    def test_call_raises_error_when_there_is_no_text(
        self, tmp_path: Path, lines: list[str]
    ) -> None:
        empty = write_lines(tmp_path / "empty.txt", lines)

        with pytest.raises(WarmupError, match=r"empty\.txt.*`--input`\.$"):
            train_tokenizer([empty], tmp_path / "t.model", vocab_size=40)

    def test_call_raises_error_when_text_has_only_invisible_characters(
        self, tmp_path: Path
    ) -> None:
        blank = write_lines(tmp_path / "blank.txt", ["\u200b", "\u0001"])

        with pytest.raises(WarmupError, match=r"No line of .*blank\.txt"):
            train_tokenizer([blank], tmp_path / "t.model", vocab_size=40)

    def test_call_raises_error_of_reader_unchanged(
        self, tmp_path: Path, text: Path
    ) -> None:
        bad = tmp_path / "bad.txt"

        bad.write_bytes(b"good\nb\xffad\n")

        # SentencePiece would wrap it in a `RuntimeError` with the place in the code.
        with pytest.raises(WarmupError, match=r"^[^\n]*bad\.txt[^\n]*2[^\n]*$"):
            train_tokenizer([text, bad], tmp_path / "t.model", vocab_size=40)

        with pytest.raises(WarmupError, match=r"nope\.txt"):
            train_tokenizer([tmp_path / "nope.txt"], tmp_path / "t", vocab_size=40)

    def test_call_lets_keyboard_interrupt_through(
        self, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(path: Path) -> None:
            raise KeyboardInterrupt()

        monkeypatch.setattr("warmup_plugin.data.text_lines.iter_lines", interrupt)

        with pytest.raises(KeyboardInterrupt):
            train_tokenizer([text], tmp_path / "t.model", vocab_size=40)

    def test_call_raises_error_when_output_cannot_be_used(
        self, tmp_path: Path, text: Path
    ) -> None:
        with pytest.raises(WarmupError, match=r"is a folder; name a file in it"):
            train_tokenizer([text], tmp_path, vocab_size=40)

        with pytest.raises(WarmupError, match=r"text\.txt` .* cannot be created"):
            train_tokenizer([text], text / "t.model", vocab_size=40)

        with pytest.raises(WarmupError, match=r"text\.txt/no` .* cannot be created"):
            train_tokenizer([text], text / "no" / "t.model", vocab_size=40)

        with pytest.raises(WarmupError, match=r"is also an input"):
            train_tokenizer([text], text, vocab_size=40, force=True)

        with pytest.raises(WarmupError, match=r"`--input`"):
            train_tokenizer([], tmp_path / "t.model", vocab_size=40)

    def test_call_raises_error_when_folder_is_not_writable(
        self, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Root may write anywhere, so permissions cannot be set for this test.
        monkeypatch.setattr(os, "access", lambda path, mode: False)

        with pytest.raises(WarmupError, match=r"is not writable"):
            train_tokenizer([text], tmp_path / "t.model", vocab_size=40)

    def test_call_raises_error_when_disk_is_full(
        self, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(fd: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail)

        with pytest.raises(WarmupError, match=r"\(No space left on device\)"):
            train_tokenizer([text], tmp_path / "t.model", vocab_size=40)

        assert {p.name for p in tmp_path.iterdir()} == {"text.txt"}
