# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Warmups gain where a detour pays, and are written in the language of the detour."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Final

import pytest
from sacrebleu.metrics import BLEU

from tests.tiny_runs import to_args
from warmup_plugin.data.synthetic import write_text
from warmup_plugin.recipes import generate, train
from warmup_plugin.tokenizers.training import train_tokenizer

SYLLABLES: Final = [c + v for c in "dfghklmnrstv" for v in "aeiou"]


def write_ciphers(folder: Path) -> None:
    """
    Writes three languages of sixty words each, one for one and in the same order.

    A hundred pairs A→B hold each word eight times; the legs, a hundred times.
    """
    rng = Random(1)

    sizes = {
        "a-b": {"train": 100, "valid": 30, "test": 100},
        "a-p": {"train": 1500, "valid": 30, "test": 1},
        "p-b": {"train": 1500, "valid": 30, "test": 1},
    }

    for direction, splits in sizes.items():
        for split, size in splits.items():
            rows = [
                [rng.choice(SYLLABLES) for _ in range(rng.randint(4, 6))]
                for _ in range(size)
            ]

            for lang in direction.split("-"):
                lines = [" ".join(lang + syllable for syllable in row) for row in rows]

                write_text(folder / direction / f"{split}.{lang}", lines)


@pytest.mark.integration
def test_warmups_gain_by_pivot_that_nobody_asked_for(tmp_path: Path) -> None:
    data, tokenizer = tmp_path / "data", tmp_path / "tokenizer"

    write_ciphers(data)

    files = [data / "a-p" / "train.a", data / "a-p" / "train.p", data / "p-b/train.b"]

    # All words are tokens.
    train_tokenizer(files, tokenizer, vocab_size=440, model_type="byte_bpe")

    def train_model(name: str, preset: str, **options: object) -> Path:
        settings = {key.replace("__", "."): value for key, value in options.items()}

        out = tmp_path / name

        args = to_args(out, settings, "--config-file", f"translation/{preset}")

        assert train.main(args) == 0

        return out

    legs = train_model(
        "legs",
        "demo_pivot_legs",
        dataset__path=data,
        tokenizer__path=tokenizer,
        model__arch="llama_test",
        regime__num_steps=300,
        regime__validate_every_n_steps=300,
        regime__checkpoint_every_n_steps=300,
        lr_scheduler__config__num_warmup_steps=50,
    )

    references = (data / "a-b" / "test.b").read_text().splitlines()

    scores = {}

    for name in ("sft", "warmup"):
        out = train_model(
            name,
            f"demo_pivot_{name}",
            dataset__path=data / "a-b",
            init_from=legs,
            regime__num_steps=80,
            regime__validate_every_n_steps=20,
            regime__checkpoint_every_n_steps=20,
            regime__publish_metrics_every_n_steps=10,
            **({"warmup__max_warmup_len": 10} if name == "warmup" else {}),
        )

        assert generate.main([str(out), "--split", "test"]) == 0

        outputs = (out / "generate" / "test.best.txt").read_text().splitlines()

        scores[name] = BLEU().corpus_score(outputs, [references]).score

    file = tmp_path / "warmup" / "generate" / "test.best.txt.jsonl"

    warmups = [json.loads(line)["warmup"] for line in file.read_text().splitlines()]

    words = [word for warmup in warmups for word in warmup.split()]

    assert sum(word[0] == "p" for word in words) > 0.8 * len(words)

    assert scores["warmup"] > scores["sft"] + 3
