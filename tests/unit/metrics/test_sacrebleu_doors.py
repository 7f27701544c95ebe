# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest
from sacrebleu.metrics.base import Metric

from tests.doors import Doors
from warmup_plugin.metrics.overlap import create_bleu, create_chrf, create_ter
from warmup_plugin.metrics.sacrebleu_doors import (
    aggregate_statistics,
    cached_references,
    compute_score,
    extract_statistics,
    read_references,
    score_sentence,
)

_METRICS: Final = (
    "sacrebleu.metrics.bleu:BLEU",
    "sacrebleu.metrics.chrf:CHRF",
    "sacrebleu.metrics.ter:TER",
)

DOORS: Final = Doors(
    "warmup_plugin/metrics/sacrebleu_doors.py",
    "sacrebleu",
    {
        door: [f"{metric}.{name}" for metric in _METRICS for name in names]
        for door, names in {
            "cached_references": ["_ref_cache", "_cache_references/2"],
            "extract_statistics": ["_extract_corpus_statistics/3"],
            "aggregate_statistics": ["_aggregate_and_compute/2"],
            "compute_score": ["_compute_score_from_stats/2"],
            "read_references": [
                "_extract_reference_info/2",
                "_preprocess_segment/2",
            ],
            "score_sentence": [
                "_compute_segment_statistics/3",
                "_preprocess_segment/2",
            ],
        }.items()
    }
    | {
        "find_spm_file": [
            "sacrebleu.tokenizers.tokenizer_spm:SPM_MODELS",
            "sacrebleu.utils:SACREBLEU_DIR",
        ]
    },
)

HYPOTHESES: Final = ["a dog runs fast", "the cat sat on a mat"]

REFERENCES: Final = [
    ["the dog runs fast", "the cat sat on the mat"],
    ["a dog is running", "a cat sits on the mat"],
]


@pytest.mark.parametrize("door,name", DOORS.cases())
def test_name_is_there(door: str, name: str) -> None:
    DOORS.check(door, name)


def test_no_other_name_is_reached() -> None:
    DOORS.check_complete()


@pytest.mark.parametrize(
    "create", [lambda: create_bleu("en"), create_chrf, lambda: create_ter("en")]
)
class TestScores:
    def test_corpus_score_is_that_of_sacrebleu(
        self, create: Callable[[], Metric]
    ) -> None:
        metric = create()

        with cached_references(metric, REFERENCES):
            stats = extract_statistics(metric, HYPOTHESES)

        score = aggregate_statistics(metric, stats).score

        assert score == create().corpus_score(HYPOTHESES, REFERENCES).score

        sums = [sum(column) for column in zip(*stats)]

        assert compute_score(metric, sums) == score

    def test_sentence_score_is_that_of_sacrebleu(
        self, create: Callable[[], Metric]
    ) -> None:
        metric = create()

        references = [column[0] for column in REFERENCES]

        score = score_sentence(
            metric, HYPOTHESES[0], read_references(metric, references)
        )

        assert score == create().sentence_score(HYPOTHESES[0], references).score
