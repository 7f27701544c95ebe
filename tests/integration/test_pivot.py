# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Warmups gain where a detour pays, and are written in the language of the detour."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Final

import pytest
from sacrebleu.metrics.bleu import BLEU

from tests.tiny_runs import to_args
from warmup_plugin.commands import generate
from warmup_plugin.data.synthetic import write_text
from warmup_plugin.data.train_tokenizer import train_tokenizer
from warmup_plugin.recipes import train

SYLLABLES: Final = [c + v for c in "dfghk" for v in "aeiou"]

SIZES: Final = {
    "a-b": {"train": 16, "valid": 20, "test": 60},
    "a-p": {"train": 1000, "valid": 10, "test": 1},
    "p-b": {"train": 1000, "valid": 10, "test": 1},
}


def write_ciphers(folder: Path) -> None:
    """
    Writes three languages of 25 words each, one for one and in the same order.

    The legs hold each word over a hundred times, the pairs A→B two or three times.
    """
    rng = Random(1)

    for direction, splits in SIZES.items():
        for split, size in splits.items():
            rows = [rng.choices(SYLLABLES, k=rng.randint(3, 5)) for _ in range(size)]

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

    def train_model(name: str, preset: str, num_steps: int, **options: object) -> Path:
        settings = {key.replace("__", "."): value for key, value in options.items()}

        for key in ("num_steps", "validate_every_n_steps", "checkpoint_every_n_steps"):
            settings[f"regime.{key}"] = num_steps

        out = tmp_path / name

        args = to_args(out, settings, "--config-file", f"translation/{preset}")

        assert train.main(args) == 0

        return out

    legs = train_model(
        "legs",
        "demo_pivot_legs",
        150,
        model__arch="llama_test",
        dataset__path=data,
        tokenizer__path=tokenizer,
        # What reads drafts from the beginning learns in less time.
        dataset__directions=json.dumps(
            {
                "a-p": {"prompt": "{source}<mid>"},
                "p-b": {"prompt": "{source}<mid>", "behind": ["a-p"]},
            }
        ),
        dataset__max_num_tokens=800,
        lr_scheduler__config__num_warmup_steps=30,
    )

    references = (data / "a-b" / "test.b").read_text().splitlines()

    scores = {}

    for name, num_steps in (("sft", 40), ("warmup", 20)):
        out = train_model(
            name,
            f"demo_pivot_{name}",
            num_steps,
            dataset__path=data / "a-b",
            init_from=legs,
            **({"warmup__max_warmup_len": 8} if name == "warmup" else {}),
        )

        assert generate.main([str(out), "--split", "test"]) == 0

        outputs = (out / "generate" / "test.best.txt").read_text().splitlines()

        scores[name] = BLEU().corpus_score(outputs, [references]).score

    file = tmp_path / "warmup" / "generate" / "test.best.txt.jsonl"

    warmups = [json.loads(line)["warmup"] for line in file.read_text().splitlines()]

    words = [word for warmup in warmups for word in warmup.split()]

    # 99 % of 250 words; 41 BLEU against 3.
    assert sum(word[0] == "p" for word in words) > 0.8 * len(words) > 100

    assert scores["warmup"] > scores["sft"] + 10
