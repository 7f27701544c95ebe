# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import Start, run
from tests.hub_files import write_qwen_tokenizer
from tests.tiny_runs import tiny_options, to_args

pytestmark = pytest.mark.integration

# Each of them takes a second or more.
LATE = {"transformers", "wandb", "sklearn", "scipy", "pandas"}

_TOKENIZER = """\
from warmup_plugin.late_imports import import_fairseq2

import_fairseq2()

import sys

from fairseq2.data.tokenizers.hg import load_hg_token_model

assert "transformers" not in sys.modules

model = load_hg_token_model(sys.argv[1])

from transformers import dynamic_module_utils

assert dynamic_module_utils.TIME_OUT_REMOTE_CODE == 0

print(model.decode(model.encode("A dog runs.")))
"""


def list_imports(output: str) -> set[str]:
    """Returns what was imported by a command with ``-X importtime``."""
    return set(re.findall(r"^import time:.*\| +([\w.]+)$", output, re.MULTILINE))


def test_commands_import_what_they_use(
    start: Start, tmp_path: Path, text_folder: Path, tokenizer_file: Path
) -> None:
    options = tiny_options(text_folder, tokenizer_file, generation__max_len_b=5)

    args = to_args(tmp_path / "run", options)

    imports = list_imports(
        run(start("train", "-X", "importtime", "-m", "recipes.train", *args))
    )

    assert "torch" in imports and "sacrebleu" in imports
    assert imports & LATE == set()

    command = ("-m", "warmup_plugin", "translate", tmp_path / "run")

    imports = list_imports(
        run(start("translate", "-X", "importtime", *command, text_folder / "test.src"))
    )

    assert "torch" in imports
    assert imports & LATE == set()


def test_tokenizer_of_fairseq2_still_works(start: Start, tmp_path: Path) -> None:
    write_qwen_tokenizer(tmp_path / "hub")

    output = run(start("tokenizer", "-c", _TOKENIZER, tmp_path / "hub"))

    assert output.splitlines()[-1] == "A dog runs."
