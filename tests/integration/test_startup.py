# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import Start, run
from tests.hub_files import write_qwen_tokenizer
from tests.tiny_runs import tiny_options, to_args
from warmup_plugin.data.train_tokenizer import train_tokenizer

pytestmark = pytest.mark.integration

# Each of them takes a twentieth of a second to two. torch's optimizers import its compiler,
# and with it sympy, triton and FSDP.
LATE = {
    *("transformers", "wandb", "sklearn", "scipy", "pandas", "matplotlib", "s3fs"),
    *(
        "sacrebleu",
        "aiohttp",
        "jinja2",
        "torch.utils.tensorboard",
        "torcheval.metrics.classification",
        "torcheval.metrics.functional.classification",
        "huggingface_hub.file_download",
    ),
}

COMPILER = {
    *("torch._dynamo", "sympy", "triton"),
    *("torch.distributed.fsdp", "torch.distributed.tensor"),
}

_JOBS = """\
import json
import sys

from warmup_plugin.__main__ import main

run_dir, source, target, *late = sys.argv[1:]

for command in (
    ("translate", run_dir, source),
    ("score", run_dir, "--source", source, "--target", target),
    ("generate", run_dir),
    ("evaluate", run_dir, "--num-bootstrap", "0"),
):
    assert main(command) == 0

    print("imported", command[0], *(set(late) & set(sys.modules)))
"""

_TOKENIZER = """\
from warmup_plugin.late_imports import import_fairseq2

import_fairseq2()

import sys

import torch
from fairseq2 import init_fairseq2
from fairseq2.data.tokenizers.hg import load_hg_token_model
from fairseq2.gang import create_fake_gangs
from fairseq2.models.family import ModelFamily

resolver = init_fairseq2()

gangs = create_fake_gangs(torch.device("cpu"))

for name in ("nllb", "t5", "llama", "qwen", "mistral"):
    family = resolver.resolve(ModelFamily, key=name)

    config = family.config_kls()

    for key in ("num_layers", "num_encoder_layers", "num_decoder_layers"):
        if hasattr(config, key):
            setattr(config, key, 1)

    model = family.create_new_model(config, gangs, torch.float32, True, False)

    assert next(model.parameters()).is_meta

    assert not {"torch._dynamo", "sympy", "transformers"} & set(sys.modules), name

from pathlib import Path

from warmup_plugin.tokenizers.hugging_face import load_hugging_face_tokenizer

load_hugging_face_tokenizer(Path(sys.argv[2]))

# What comes with all models of transformers takes four seconds.
assert "transformers" in sys.modules
assert not {"transformers.models.auto.auto_factory", "sklearn"} & set(sys.modules)

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

    output = run(start("train", "-X", "importtime", "-m", "recipes.train", *args))

    # Those of the run itself are behind it.
    head, found, _ = output.partition("Train Metrics (step 1)")

    assert found

    imports = list_imports(head)

    assert "torch" in imports
    # It is to validate by BLEU.
    assert imports & LATE == {"sacrebleu"}

    source, target = (text_folder / f"test.{lang}" for lang in ("src", "tgt"))

    # One process: what a later command imports is not there when an earlier one ends.
    output = run(
        start(
            *("jobs", "-c", _JOBS, tmp_path / "run", source, target),
            *sorted(LATE | COMPILER),
        )
    )

    assert [
        line.split()[1:] for line in output.splitlines() if line.startswith("imported")
    ] == [["translate"], ["score"], ["generate"], ["evaluate", "sacrebleu"]]


def test_tokenizers_import_what_they_use(
    start: Start, tmp_path: Path, text_folder: Path
) -> None:
    write_qwen_tokenizer(tmp_path / "hub")

    train_tokenizer(
        [text_folder / "train.src"],
        tmp_path / "ours",
        model_type="byte_bpe",
        vocab_size=262,
    )

    output = run(
        start("tokenizer", "-c", _TOKENIZER, tmp_path / "hub", tmp_path / "ours")
    )

    assert output.splitlines()[-1] == "A dog runs."
