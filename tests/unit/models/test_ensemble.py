# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    EOS_IDX,
    SEPARATOR_IDX,
    VOCAB_SIZE,
    WORDS,
    Model,
    assert_close,
    create_layout,
    create_source,
    create_tiny_lm,
    create_tiny_model,
    device,
    each_model,
    forward_alone,
)
from tests.unit.test_layout import join
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import GenerationConfig, WarmupGenerator
from warmup_plugin.models.ensemble import EnsembleModel
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.sampling import draw_candidates
from warmup_plugin.scoring import score_candidates

SOURCES = [[5, 6, 7, EOS_IDX], [7, 5, EOS_IDX]]

TARGETS = [[BOS_IDX, 6, 5, EOS_IDX], [BOS_IDX, 7, EOS_IDX]]

WARMUPS = [[5, 6], [7]]


def create_members(kind: str) -> list[Model]:
    return [CREATE_MODEL[kind](seed=seed) for seed in (6, 7, 8)]


@torch.no_grad()
def average(models: list[Model], source: list[int], row: list[int]) -> Tensor:
    """Computes the mean of probabilities behind each token of a row. *Shape:* (S,V)."""
    probs = [forward_alone(m, source, row).softmax(dim=1) for m in models]

    return torch.stack(probs).mean(dim=0)


class TestEnsembleModel:
    @each_model
    def test_score_is_that_of_mean_of_probabilities(self, kind: str) -> None:
        models = create_members(kind)

        ensemble = EnsembleModel([create_conditional_model(m) for m in models])

        rows = join(TARGETS, WARMUPS)

        with torch.no_grad():
            source = ensemble.encode(*create_source(SOURCES))

            excluded = create_layout().excluded_tokens(VOCAB_SIZE, device)

            scores = ensemble.score(source, rows, excluded)

            # What has been fed is read no more.
            decoder = ensemble.start(source, rows.source_idx, rows.seqs.size(1) + 2)

            decoder.step(rows.seqs[:, :2])
            decoder.step(rows.seqs[:, 2:3])

            past_lens = torch.tensor([3, 2], device=device)

            again = decoder.score(rows, past_lens, excluded)

        for n, (warmup, (prefix, *target)) in enumerate(zip(WARMUPS, TARGETS)):
            written = [*warmup, SEPARATOR_IDX]

            probs = average(models, SOURCES[n], [prefix, *written, *target[:-1]])

            expected = [0.0, 0.0]

            for at, token in enumerate([*written, *target]):
                is_target = at >= len(written)

                allowed = (
                    [t for t in range(VOCAB_SIZE) if t != SEPARATOR_IDX]
                    if is_target
                    else [SEPARATOR_IDX, *WORDS]
                )

                prob = probs[at, token] / probs[at, allowed].sum()

                expected[is_target] += math.log(float(prob))

            assert_close(scores.warmup_log_probs[n], torch.tensor(expected[0]))
            assert_close(scores.target_log_probs[n], torch.tensor(expected[1]))
            assert_close(again[n], torch.tensor(expected[1]))

    @each_model
    @torch.no_grad()
    def test_warmups_that_it_has_drawn_are_scored(self, kind: str) -> None:
        ensemble = EnsembleModel(
            [create_conditional_model(model) for model in create_members(kind)]
        )

        source = ensemble.encode(*create_source(SOURCES))

        layout = create_layout()

        candidates = draw_candidates(
            *(ensemble, source, layout, torch.full((2, 1), BOS_IDX, device=device)),
            num_warmups=2,
            max_warmup_len=2,
        )

        targets = torch.tensor([[BOS_IDX, 6, 5, EOS_IDX], [BOS_IDX, 7, EOS_IDX, 0]])

        args = (targets.to(device), torch.tensor([4, 3], device=device))

        scores, expected = (
            score_candidates(ensemble, source, layout, c, *args).target_log_probs
            for c in (candidates, replace(candidates, past=None))
        )

        assert_close(scores, expected)

    @each_model
    @pytest.mark.parametrize(
        "warmup", ["single", "greedy_then_beam", "beam_then_beam", "sample"]
    )
    def test_generator_writes_by_it(self, kind: str, warmup: str) -> None:
        models = create_members(kind)

        def generate(members: list[Model]) -> list[list[int]]:
            generator = WarmupGenerator(
                EnsembleModel([create_conditional_model(m) for m in members]),
                create_layout(),
                GenerationConfig(
                    warmup=warmup,
                    beam_size=2,
                    max_warmup_len=3,
                    max_len_b=5,
                    num_warmups=4 if warmup == "sample" else 8,
                    rank_by="marginal" if warmup == "sample" else "log_prob",
                ),
            )

            source_seqs, source_layout = create_source(SOURCES)

            prefixes = torch.full((2, 1), BOS_IDX, device=device)

            groups = generator(source_seqs, source_layout.seq_lens, prefixes)

            for (best, *_), source in zip(groups, SOURCES):
                # Of the outputs found, the log-probability is that of the mean.
                probs = average(
                    members,
                    source,
                    [BOS_IDX, *best.warmup, SEPARATOR_IDX, *best.target],
                )

                begin = len(best.warmup) + 1

                log_prob = 0.0

                for at, token in enumerate([*best.target, EOS_IDX], start=begin):
                    total = 1.0 - float(probs[at, SEPARATOR_IDX])

                    log_prob += math.log(float(probs[at, token]) / total)

                assert best.target_log_prob == pytest.approx(log_prob, abs=1e-4)

            return [best.target for best, *_ in groups]

        # A model agrees with itself.
        assert generate(models[:1]) == generate([models[0], models[0]])

        generate(models)

    def test_init_refuses_models_that_do_not_go_together(self) -> None:
        first = create_conditional_model(create_tiny_model())

        lm = create_conditional_model(create_tiny_lm())

        with pytest.raises(WarmupError, match="Model 2 .* is decoder-only, but the fi"):
            EnsembleModel([first, lm])

        larger = create_conditional_model(create_tiny_model(vocab_size=9))

        with pytest.raises(WarmupError, match="Model 3 .* has 9 output tokens, but"):
            EnsembleModel([first, first, larger])
