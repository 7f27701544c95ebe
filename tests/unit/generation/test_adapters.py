# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any

import pytest
import torch
from fairseq2.data.tokenizers import VocabularyInfo
from fairseq2.generation.sampling import SamplingSeq2SeqGenerator
from fairseq2.generation.sampling.sampler import TopKSampler
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn import BatchLayout
from torch import Tensor

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    EOS_IDX,
    PAD_IDX,
    SEPARATOR_IDX,
    UNK_IDX,
    VOCAB_SIZE,
    assert_close,
    create_layout,
    create_tiny_model,
    device,
    pad_rows,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import GenerationConfig, WarmupGenerator
from warmup_plugin.generation.adapters import (
    WarmupHypothesis,
    WarmupSeq2SeqGenerator,
    WarmupSequenceGenerator,
)
from warmup_plugin.models.scorable import create_conditional_model

SOURCES = [[5, 6, EOS_IDX], [7, 7, 5, 6, EOS_IDX], [6, EOS_IDX]]


def create_core(
    model: torch.nn.Module, *, prefix_len: int = 1, **options: Any
) -> WarmupGenerator:
    defaults: dict[str, Any] = {
        "max_warmup_len": 2,
        "max_len_a": 0.0,
        "max_len_b": 5,
    }

    config = GenerationConfig(**{**defaults, **options})

    return WarmupGenerator(
        create_conditional_model(model), create_layout(prefix_len=prefix_len), config
    )


def to_batch(seqs: list[list[int]]) -> tuple[Tensor, BatchLayout]:
    padded, lens = pad_rows(seqs)

    return padded, BatchLayout.of(padded, lens)


class TestWarmupSeq2SeqGenerator:
    def test_call_returns_what_core_does(self) -> None:
        core = create_core(create_tiny_model(), num_best=2)

        generator = WarmupSeq2SeqGenerator(core)

        source_seqs, source_layout = to_batch(SOURCES)

        prompts = to_batch([[BOS_IDX], [BOS_IDX, 6, 5], [BOS_IDX, 7]])

        output = generator(source_seqs, source_layout, *prompts)

        expected = core(
            source_seqs,
            source_layout.seq_lens,
            prompts[0][:, :1],
            forced=[[], [6, 5], [7]],
        )

        num_generated = 0

        for group, expected_group in zip(output.hypotheses, expected, strict=True):
            for h, parts in zip(group, expected_group, strict=True):
                assert isinstance(h, WarmupHypothesis)

                assert h.parts == parts

                tokens = [*parts.warmup, SEPARATOR_IDX, *parts.target, EOS_IDX]

                assert h.seq.tolist() == tokens

                assert h.score is not None and h.step_scores is not None

                assert_close(h.score, parts.score)
                assert_close(h.step_scores, parts.token_log_probs)

                num_generated += len(tokens)

        assert output.counters.num_generated_elements == num_generated
        assert output.counters.generation_time > 0.0

        assert generator.model is core.model.module

    def test_greedy_output_of_plain_model_is_that_of_fairseq2(self) -> None:
        source_seqs, source_layout = to_batch(SOURCES)

        prompts = to_batch([[BOS_IDX]] * 3)

        info = VocabularyInfo(VOCAB_SIZE, UNK_IDX, BOS_IDX, EOS_IDX, PAD_IDX)

        num_compared = 0

        for seed in range(6):
            model = create_tiny_model(seed=seed)

            stock = SamplingSeq2SeqGenerator(
                model, info, TopKSampler(1), max_gen_len=(0.0, 6), temperature=1.0
            )

            ours = WarmupSeq2SeqGenerator(
                create_core(model, warmup="none", beam_size=1, ban_unk=False)
            )

            expected = stock(source_seqs, source_layout, *prompts).hypotheses

            output = ours(source_seqs, source_layout, *prompts).hypotheses

            for group, expected_group in zip(output, expected):
                seq = expected_group[0].seq.tolist()

                # fairseq2 bans neither BOS nor the separator.
                if not {BOS_IDX, SEPARATOR_IDX} & set(seq):
                    assert group[0].seq.tolist() == seq

                    num_compared += 1

        assert num_compared > 3

    def test_prompt_must_hold_prefix(self) -> None:
        core = create_core(create_tiny_model(), prefix_len=2)

        with pytest.raises(
            WarmupError, match="A prompt has 1 tokens, but each decoder"
        ):
            WarmupSeq2SeqGenerator(core)(*to_batch(SOURCES), *to_batch([[BOS_IDX]] * 3))

    @pytest.mark.parametrize(
        "options",
        [
            {"beam_size": 3},
            {"warmup": "sample", "num_warmups": 2, "beam_size": 2},
            {"sampling": True, "num_best": 2},
        ],
    )
    def test_hook_sees_every_step(self, options: dict[str, Any]) -> None:
        generator = WarmupSeq2SeqGenerator(create_core(create_tiny_model(), **options))

        steps: list[int] = []

        def hook(
            prompt_indices: Tensor,
            seqs: Tensor,
            step_scores: Tensor | None,
            prefill: bool,
        ) -> None:
            assert step_scores is not None

            assert set(prompt_indices.tolist()) <= {0, 1, 2}

            assert seqs.shape == step_scores.shape
            assert seqs.size(0) == prompt_indices.size(0)

            steps.append(seqs.size(1))

        handle = generator.register_step_hook(hook)

        generator(*to_batch(SOURCES), *to_batch([[BOS_IDX]] * 3))

        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) > 2

        handle.remove()

        num_steps = len(steps)

        generator(*to_batch(SOURCES), *to_batch([[BOS_IDX]] * 3))

        assert len(steps) == num_steps


class TestWarmupSequenceGenerator:
    def test_call_returns_what_core_does(self) -> None:
        model = CREATE_MODEL["llama"]()

        assert isinstance(model, TransformerLM)

        core = create_core(model)

        generator = WarmupSequenceGenerator(core)

        prompts = [[5, 6, 7], [7, 5], [6, 6, 5, 7]]

        output = generator(*to_batch(prompts))

        sources, layout = to_batch([p[:-1] for p in prompts])

        expected = core(
            sources,
            layout.seq_lens,
            torch.tensor([[7], [5], [7]], device=device),
        )

        for group, expected_group in zip(output.hypotheses, expected, strict=True):
            assert isinstance(group[0], WarmupHypothesis)

            assert group[0].parts.warmup == expected_group[0].warmup
            assert group[0].parts.target == expected_group[0].target

        assert generator.model is model

    def test_prompt_of_one_token_is_refused(self) -> None:
        generator = WarmupSequenceGenerator(create_core(CREATE_MODEL["llama"]()))

        with pytest.raises(WarmupError, match="A prompt has only one token"):
            generator(*to_batch([[5, 6], [7]]))
