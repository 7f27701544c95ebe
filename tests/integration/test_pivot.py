# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Warmups gain where a detour pays, and are written in the language of the detour."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sacrebleu.metrics.bleu import BLEU

from tests.tiny_runs import to_args
from warmup_plugin.commands import generate
from warmup_plugin.data.synthetic_pivot import write_synthetic_pivot
from warmup_plugin.data.train_tokenizer import train_tokenizer
from warmup_plugin.recipes import train


@pytest.mark.integration
def test_warmups_gain_by_pivot_that_nobody_asked_for(tmp_path: Path) -> None:
    data, tokenizer = tmp_path / "data", tmp_path / "tokenizer"

    write_synthetic_pivot(data, num_valid=30, num_test=60)

    files = [data / "a-p" / "train.a", data / "a-p" / "train.p", data / "p-b/train.b"]

    train_tokenizer(files, tokenizer, vocab_size=1000, model_type="byte_bpe")

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
        # What reads drafts from the beginning learns in less time.
        dataset__directions=json.dumps(
            {
                "a-p": {"prompt": "{source}<mid>"},
                "p-b": {"prompt": "{source}<mid>", "behind": ["a-p"]},
            }
        ),
        regime__num_steps=200,
        regime__validate_every_n_steps=100,
        regime__checkpoint_every_n_steps=100,
    )

    references = (data / "a-b" / "test.b").read_text().splitlines()

    scores = {}

    for name in ("sft", "warmup"):
        out = train_model(
            name,
            f"demo_pivot_{name}",
            dataset__path=data / "a-b",
            init_from=legs,
            regime__num_steps=20 if name == "warmup" else 40,
            regime__validate_every_n_steps=20,
            regime__checkpoint_every_n_steps=20,
            regime__publish_metrics_every_n_steps=10,
        )

        assert generate.main([str(out), "--split", "test"]) == 0

        outputs = (out / "generate" / "test.best.txt").read_text().splitlines()

        scores[name] = BLEU().corpus_score(outputs, [references]).score

    file = tmp_path / "warmup" / "generate" / "test.best.txt.jsonl"

    warmups = [json.loads(line)["warmup"] for line in file.read_text().splitlines()]

    words = [word for warmup in warmups for word in warmup.split()]

    pivot = set((data / "a-p" / "train.p").read_text().split())

    # Words of one language are none of another.
    assert not pivot & set((data / "a-b" / "train.b").read_text().split())

    assert sum(word in pivot for word in words) > 0.5 * len(words)

    assert scores["warmup"] > scores["sft"] + 2
