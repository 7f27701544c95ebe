# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fairseq2.datasets import Seq2SeqBatch
from fairseq2.gang import FakeGang, Gangs
from typing_extensions import override

from tests.common import create_layout
from warmup_plugin.data.corpus import Corpus
from warmup_plugin.data.reader import TextPairReader
from warmup_plugin.data.split_files import TextPairsConfig
from warmup_plugin.data.text_pairs import TextPairs, read_split
from warmup_plugin.data.tokenizing import tokenize_pairs
from warmup_plugin.tokenizers.codec import EncodedText, TextCodec

PAD_IDX, BOS_IDX, EOS_IDX = 0, 2, 3


class WordCodec(TextCodec):
    """Encodes a word as 10 plus its length."""

    def __init__(self) -> None:
        super().__init__(create_layout(), "<sep>")

    @override
    def encode_source(self, source: str) -> EncodedText:
        return EncodedText([*self._encode(source), EOS_IDX], [BOS_IDX])

    @override
    def encode_target(self, target: str) -> list[int]:
        return [*self._encode(target), EOS_IDX]

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        raise NotImplementedError()

    @override
    def to_tokens(self, tokens: Sequence[int]) -> list[str]:
        raise NotImplementedError()

    @property
    @override
    def num_template_tokens(self) -> int:
        return 0

    @property
    @override
    def template(self) -> str:
        return "{source}"

    def _encode(self, text: str) -> list[int]:
        return [10 + len(word) for word in text.split()]


def make_pairs(folder: Path, rows: Sequence[tuple[str, str]]) -> TextPairs:
    text = "".join(f"{source}\t{target}\n" for source, target in rows)

    folder.joinpath("train.tsv").write_text(text, encoding="utf-8")

    return read_split(TextPairsConfig(path=folder), "train")


def make_corpus(folder: Path, num_pairs: int = 200, seed: int = 1) -> Corpus:
    """Makes pairs of 1 to 20 words a side whose text tells them apart."""
    rng = np.random.default_rng(seed)

    def make_text() -> str:
        return " ".join("x" * rng.integers(1, 50) for _ in range(rng.integers(1, 21)))

    rows = [(make_text(), make_text()) for _ in range(num_pairs)]

    return tokenize_pairs(
        make_pairs(folder, rows), WordCodec(), max_source_len=99, max_target_len=99
    )


def make_gangs(rank: int = 0, size: int = 1) -> Gangs:
    gang = FakeGang(torch.device("cpu"))

    dp_gang = FakeGang(torch.device("cpu"), rank=rank, size=size)

    return Gangs(root=dp_gang, dp=dp_gang, rdp=dp_gang, sdp=gang, tp=gang, pp=gang)


def make_reader(
    corpus: Corpus,
    *,
    rank: int = 0,
    size: int = 1,
    max_num_tokens: int = 100,
    shuffle: bool = True,
    seed: int = 2,
    num_accumulate: int = 1,
    **options: Any,
) -> TextPairReader:
    return TextPairReader(
        corpus,
        make_gangs(rank, size),
        max_num_tokens=max_num_tokens,
        shuffle=shuffle,
        seed=seed,
        pad_idx=PAD_IDX,
        num_accumulate=num_accumulate,
        **options,
    )


def get_example(batch: Seq2SeqBatch) -> dict[str, list[object]]:
    return cast("dict[str, list[object]]", batch.example)


def read_epoch(reader: TextPairReader) -> list[list[list[int]]]:
    """Reads to the end and returns, for each step, the indices of its batches."""
    epoch = [
        [cast("list[int]", get_example(batch)["indices"]) for batch in step]
        for step in reader
    ]

    reader.reset()

    return epoch


def flatten(epoch: list[list[list[int]]]) -> list[int]:
    return [idx for step in epoch for batch in step for idx in batch]
