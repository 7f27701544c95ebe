# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
from pathlib import Path

import pytest

from warmup_plugin.__main__ import main
from warmup_plugin.data.train_tokenizer import MAX_LINE_BYTES

LINES = ["A dog runs in the park.", "Ein Hund läuft im Park."]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"

    path.write_text("\n".join(LINES * 20) + "\n", encoding="utf-8")

    return path


def run(output: Path, *args: str | Path) -> int:
    return main(["train-tokenizer", str(output), *(str(a) for a in args)])


class TestTrainTokenizer:
    def test_command_writes_model_and_reports(
        self, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "t.model"

        extra = tmp_path / "extra.txt"

        extra.write_text("\n\n" + "x" * (MAX_LINE_BYTES + 1) + "\n")

        assert run(output, "--input", text, extra, "--vocab-size", "30") == 0

        assert output.stat().st_size > 0

        assert capsys.readouterr().out.splitlines() == [
            f"{output}: 30 tokens from 40 lines",
            "left out 2 empty lines",
            "left out 1 lines over 4192 bytes",
        ]

    def test_command_makes_model_that_loads(self, tmp_path: Path, text: Path) -> None:
        from warmup_plugin.tokenizers.spm import load_warmup_spm

        output = tmp_path / "t.model"

        run(output, "--input", text, "--vocab-size", "30", "--model-type", "bpe")

        tokenizer = load_warmup_spm(output)

        encoder = tokenizer.create_encoder(mode="target")

        assert tokenizer.create_decoder()(encoder(LINES[1])) == LINES[1]
        assert tokenizer.find_special("<sep>") == 4

    def test_command_passes_options_on(
        self, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for option, value in (
            ("--model-type", "foo"),
            ("--family", "foo"),
            ("--character-coverage", "0.5"),
            ("--normalization", "foo"),
            ("--num-threads", "0"),
        ):
            status = run(
                tmp_path / "t", "--input", text, "--vocab-size", "30", option, value
            )

            assert status == 2

            # The option that the remedy names must exist.
            assert f"`{option}`" in capsys.readouterr().err

    def test_command_reads_json_lines(
        self, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = [{"source": "x", "text": line} for line in LINES * 20]

        file = tmp_path / "train.jsonl"

        file.write_text("".join(json.dumps(row) + "\n" for row in rows))

        args = ["--vocab-size", "30", "--input"]

        assert run(tmp_path / "a.model", *args, text) == 0

        further = ["--json-fields", "text"]

        assert run(tmp_path / "b.model", *args, file, *further) == 0

        models = [(tmp_path / name).read_bytes() for name in ("a.model", "b.model")]

        assert models[0] == models[1]

        # Those of the data by default.
        assert run(tmp_path / "c.model", *args, file) == 2

        assert "has no field `target`" in capsys.readouterr().err

    def test_command_replaces_only_when_forced(
        self, tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "t.model"

        output.touch()

        assert run(output, "--input", text, "--vocab-size", "30") == 2

        err = capsys.readouterr().err

        assert err.startswith("error: The output ") and err.count("\n") == 1

        assert run(output, "--input", text, "--vocab-size", "30", "--force") == 0

    def test_command_exits_when_argument_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(SystemExit, match="2"):
            run(tmp_path / "t.model", "--vocab-size", "30")
