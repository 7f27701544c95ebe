# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

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
    create_tiny_model,
    device,
    each_model,
    forward_alone,
    list_sentences,
    pad_rows,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import BeamSearch, BeamSearchConfig
from warmup_plugin.generation.beam import Hypothesis
from warmup_plugin.layout import DecoderRows, join_rows
from warmup_plugin.models.conditional import (
    ConditionalModel,
    EncodedSource,
    RowCoefs,
    RowDecoder,
    RowScores,
    create_conditional_model,
)
from warmup_plugin.models.rows import SourceMemory

SOURCES = [[5, 6, EOS_IDX], [7, 7, 5, 6, 5, EOS_IDX], [6, EOS_IDX], [7, 5, EOS_IDX]]


def search(
    model: Model | ConditionalModel,
    *,
    sources: Sequence[Sequence[int]] = SOURCES,
    prefix: Sequence[int] = (BOS_IDX,),
    max_warmup_len: int | None = 2,
    beam_size: int = 3,
    length_penalty: float = 1.0,
    max_len_a: float = 0.0,
    max_len_b: int = 6,
    vocab_size: int = VOCAB_SIZE,
) -> list[Hypothesis]:
    if not isinstance(model, ConditionalModel):
        model = create_conditional_model(model)

    config = BeamSearchConfig(
        beam_size=beam_size,
        length_penalty=length_penalty,
        max_len_a=max_len_a,
        max_len_b=max_len_b,
    )

    layout = create_layout(prefix_len=len(prefix), vocab_size=vocab_size)

    beam_search = BeamSearch(model, layout, config, max_warmup_len=max_warmup_len)

    seqs, seq_lens = pad_rows(sources)

    return beam_search(
        seqs, seq_lens, torch.tensor([prefix] * len(sources), device=device)
    )


@torch.no_grad()
def score_sequences(
    model: Model,
    source: Sequence[int],
    warmups: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    prefix: Sequence[int] = (BOS_IDX,),
    max_warmup_len: int | None,
) -> Tensor:
    """
    Computes log P(c|x) + log P(y|c,x) of sequences of one source. *Shape:*
    :math:`(B)`.
    """
    layout = create_layout(prefix_len=len(prefix))

    wrapper = create_conditional_model(model)

    target_seqs, target_seq_lens = pad_rows(
        [[*prefix, *target, EOS_IDX] for target in targets]
    )

    warmup_seqs, warmup_lens = pad_rows(warmups)

    num_rows = len(targets)

    rows = join_rows(
        layout,
        target_seqs,
        torch.tensor(target_seq_lens, device=device),
        warmup_seqs.long(),
        torch.tensor(warmup_lens, device=device),
        torch.tensor([n == max_warmup_len for n in warmup_lens], device=device),
        torch.tensor([max_warmup_len is not None] * num_rows, device=device),
        torch.arange(num_rows, device=device),
    )

    source_seqs = torch.tensor([source] * num_rows, device=device)

    encoded = wrapper.encode(source_seqs, BatchLayout.of(source_seqs))

    ban_mask = layout.warmup_ban_mask(wrapper.num_logits, device)

    scores = wrapper.score(encoded, rows, ban_mask)

    return scores.warmup_log_probs + scores.target_log_probs


@torch.no_grad()
def search_greedily(
    model: Model,
    source: Sequence[int],
    *,
    max_warmup_len: int | None,
    max_len: int,
) -> tuple[list[int], list[int]]:
    """Always takes the likeliest token; no cache, no batch, no tensors of state."""
    warmup: list[int] = []
    target: list[int] = []

    seq = [BOS_IDX]

    in_target = max_warmup_len is None

    while True:
        if in_target:
            allowed = [EOS_IDX, *WORDS] if len(target) < max_len else [EOS_IDX]
        elif len(warmup) == max_warmup_len:
            allowed = [SEPARATOR_IDX]
        else:
            allowed = [SEPARATOR_IDX, *WORDS]

        logits = forward_alone(model, source, seq)[-1]

        token = allowed[int(logits[allowed].argmax())]

        seq.append(token)

        if token == EOS_IDX:
            return warmup, target

        if token == SEPARATOR_IDX:
            in_target = True
        elif in_target:
            target.append(token)
        else:
            warmup.append(token)


class ScriptedModel(ConditionalModel):
    """Gives every row the logits that a function of its past returns."""

    def __init__(
        self,
        script: Callable[[list[int]], dict[int, float]],
        *,
        max_target_len: int = 64,
    ) -> None:
        """:param script: Returns the logits of a few tokens; the others get -20."""
        self._script = script
        self._max_target_len = max_target_len
        self.longest = 0

    @override
    def encode(self, source_seqs: Tensor, source_layout: BatchLayout) -> EncodedSource:
        memory = SourceMemory(
            source_layout.seq_lens, source_seqs.size(1), source_seqs.device
        )

        return EncodedSource(source_seqs, source_layout, memory)

    @override
    def start(
        self, source: EncodedSource, source_idx: Tensor, max_len: int
    ) -> RowDecoder:
        return ScriptedDecoder(self, self._script, source_idx.size(0))

    @override
    def score(
        self, source: EncodedSource, rows: DecoderRows, warmup_ban_mask: Tensor
    ) -> RowScores:
        raise NotImplementedError()

    @override
    def compute_loss(
        self,
        source_seqs: Tensor,
        source_layout: BatchLayout,
        rows: DecoderRows,
        coefs: RowCoefs,
        warmup_ban_mask: Tensor,
        *,
        label_smoothing: float = 0.0,
        passes: Sequence[Tensor] | None = None,
    ) -> Tensor:
        raise NotImplementedError()

    @property
    @override
    def num_logits(self) -> int:
        return VOCAB_SIZE

    @property
    @override
    def reads_prompts(self) -> bool:
        return False

    @property
    @override
    def max_source_len(self) -> int:
        return 64

    @override
    def get_max_target_len(self, source_len: int) -> int:
        return self._max_target_len

    @property
    @override
    def module(self) -> Module:
        raise NotImplementedError()


class ScriptedDecoder(RowDecoder):
    def __init__(
        self,
        model: ScriptedModel,
        script: Callable[[list[int]], dict[int, float]],
        num_rows: int,
    ) -> None:
        self._model = model
        self._script = script
        self._pasts: list[list[int]] = [[] for _ in range(num_rows)]

    @override
    def step(self, tokens: Tensor, rows: Tensor | None = None) -> Tensor:
        # A beam drops rows, it does not leave them out.
        assert rows is None

        logits = torch.full((len(self._pasts), VOCAB_SIZE), -20.0, device=device)

        for row, (past, step) in enumerate(zip(self._pasts, tokens.tolist())):
            past.extend(step)

            self._model.longest = max(self._model.longest, len(past))

            # Without the prefix.
            for token, logit in self._script(past[1:]).items():
                logits[row, token] = logit

        return logits

    @override
    def select(self, rows: Tensor) -> None:
        self._pasts = [list(self._pasts[i]) for i in rows.tolist()]

    @override
    def score(self, rows: DecoderRows, past_lens: Tensor) -> Tensor:
        raise NotImplementedError()


class TestBeamSearch:
    @each_model
    @pytest.mark.parametrize("max_warmup_len", [None, 1, 3])
    @pytest.mark.parametrize("seed", [0, 1, 6])
    def test_call_equals_greedy_search_when_beam_size_is_1(
        self, kind: str, seed: int, max_warmup_len: int | None
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2, seed=seed)

        hypotheses = search(
            model, beam_size=1, max_warmup_len=max_warmup_len, max_len_b=5
        )

        for source, hypothesis in zip(SOURCES, hypotheses):
            expected = search_greedily(
                model, source, max_warmup_len=max_warmup_len, max_len=5
            )

            assert (hypothesis.warmup, hypothesis.target) == expected

    @each_model
    @pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
    @pytest.mark.parametrize("max_warmup_len", [None, 1, 2])
    def test_call_finds_best_of_all_when_beam_is_wide(
        self, kind: str, max_warmup_len: int | None, length_penalty: float
    ) -> None:
        model = CREATE_MODEL[kind]()

        warmups: list[list[int]] = list_sentences(max_warmup_len or 0)

        pairs = [(c, y) for c in warmups for y in list_sentences(2)]

        hypotheses = search(
            model,
            beam_size=len(pairs) + 5,
            length_penalty=length_penalty,
            max_warmup_len=max_warmup_len,
            max_len_b=2,
        )

        for source, hypothesis in zip(SOURCES, hypotheses):
            log_probs = score_sequences(
                model,
                source,
                *zip(*pairs),
                max_warmup_len=max_warmup_len,
            ).tolist()

            # EOS counts, the separator too where there is one.
            num_special = 1 if max_warmup_len is None else 2

            scores = [
                log_prob / (len(c) + len(y) + num_special) ** length_penalty
                for (c, y), log_prob in zip(pairs, log_probs)
            ]

            best = max(range(len(pairs)), key=scores.__getitem__)

            assert (hypothesis.warmup, hypothesis.target) == pairs[best]

            assert hypothesis.score == pytest.approx(scores[best], abs=2e-5)
            assert hypothesis.log_prob == pytest.approx(log_probs[best], abs=2e-5)

    @each_model
    @pytest.mark.parametrize("prefix", [(BOS_IDX,), (BOS_IDX, 7)])
    @pytest.mark.parametrize("max_warmup_len", [None, 1, 4])
    @pytest.mark.parametrize("beam_size", [1, 2, 5])
    def test_scores_equal_uncached_scores(
        self,
        kind: str,
        beam_size: int,
        max_warmup_len: int | None,
        prefix: tuple[int, ...],
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        hypotheses = search(
            model,
            beam_size=beam_size,
            max_warmup_len=max_warmup_len,
            max_len_b=8,
            prefix=prefix,
        )

        for source, hypothesis in zip(SOURCES, hypotheses):
            log_prob = score_sequences(
                model,
                source,
                [hypothesis.warmup],
                [hypothesis.target],
                prefix=prefix,
                max_warmup_len=max_warmup_len,
            )

            assert_close(log_prob, [hypothesis.log_prob], rtol=0.0, atol=1e-4)

    @pytest.mark.parametrize("seed", range(8))
    def test_hypotheses_are_well_formed(self, seed: int) -> None:
        # The rows 8 and 9 of the embedding stand for no token.
        model = create_tiny_model(vocab_size=10, seed=seed)

        for max_warmup_len in (None, 1, 3):
            for beam_size in (1, 4):
                hypotheses = search(
                    model,
                    beam_size=beam_size,
                    max_warmup_len=max_warmup_len,
                    length_penalty=2.0,
                )

                assert len(hypotheses) == len(SOURCES)

                for hypothesis in hypotheses:
                    assert len(hypothesis.warmup) <= (max_warmup_len or 0)
                    assert len(hypothesis.target) <= 6

                    assert set(hypothesis.warmup) <= set(WORDS)
                    assert set(hypothesis.target) <= set(WORDS)

                    assert math.isfinite(hypothesis.score)

    @each_model
    @pytest.mark.parametrize("max_warmup_len", [None, 3])
    @pytest.mark.parametrize("beam_size", [1, 4])
    def test_hypothesis_does_not_depend_on_batch(
        self, kind: str, beam_size: int, max_warmup_len: int | None
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2, seed=5)

        def run(sources: Sequence[Sequence[int]]) -> list[Hypothesis]:
            return search(
                model,
                sources=sources,
                beam_size=beam_size,
                max_warmup_len=max_warmup_len,
                # The limits differ from source to source.
                max_len_a=0.7,
                max_len_b=1,
                length_penalty=2.0,
            )

        together = run(SOURCES)

        backwards = run(SOURCES[::-1])[::-1]

        for source, one, two in zip(SOURCES, together, backwards):
            [alone] = run([source])

            assert len(alone.target) <= int(0.7 * len(source) + 1)

            for other in (one, two):
                assert (other.warmup, other.target) == (alone.warmup, alone.target)

                assert other.score == pytest.approx(alone.score, abs=1e-5)

        # At least one of them is at its limit, or the limits were not tested.
        assert any(
            len(hypothesis.target) == int(0.7 * len(source) + 1)
            for source, hypothesis in zip(SOURCES, together)
        )

    @pytest.mark.parametrize("beam_size", [1, 3])
    @pytest.mark.parametrize("max_warmup_len", [None, 4])
    def test_lengths_are_limited_when_model_never_ends(
        self, max_warmup_len: int | None, beam_size: int
    ) -> None:
        def babble(past: list[int]) -> dict[int, float]:
            return {5: 20.0, 6: 19.0, 7: 18.0}

        sources = [[5, 5, 5, EOS_IDX], [5, EOS_IDX]]

        hypotheses = search(
            ScriptedModel(babble),
            sources=sources,
            beam_size=beam_size,
            max_warmup_len=max_warmup_len,
            max_len_a=1.5,
            max_len_b=2,
        )

        for source, hypothesis in zip(sources, hypotheses):
            assert len(hypothesis.warmup) == (max_warmup_len or 0)
            assert len(hypothesis.target) == 1.5 * len(source) + 2

    @pytest.mark.parametrize("max_warmup_len", [None, 4])
    def test_lengths_are_limited_by_model(self, max_warmup_len: int | None) -> None:
        def babble(past: list[int]) -> dict[int, float]:
            return {5: 20.0}

        model = ScriptedModel(babble, max_target_len=12)

        [hypothesis] = search(
            model,
            sources=[[5, EOS_IDX]],
            max_warmup_len=max_warmup_len,
            max_len_b=1000,
        )

        # BOS, warmup, separator and output are read; EOS is only written. All of it
        # is at most twelve tokens long.
        num_special = 2 if max_warmup_len is None else 3

        assert len(hypothesis.warmup) + len(hypothesis.target) == 12 - num_special

        assert model.longest == 11

    @each_model
    def test_prompt_counts_in_limit_of_model(self, kind: str) -> None:
        # An encoder-decoder reads its source apart.
        model = CREATE_MODEL[kind](max_seq_len=12)

        sources = [[5, 6, 7, EOS_IDX], [7, EOS_IDX]]

        # What follows the longer prompt must not shorten the output of the other.
        for max_warmup_len in (None, 2):
            together = search(
                model, sources=sources, max_warmup_len=max_warmup_len, max_len_b=1000
            )

            for source, hypothesis in zip(sources, together):
                [alone] = search(
                    model,
                    sources=[source],
                    max_warmup_len=max_warmup_len,
                    max_len_b=1000,
                )

                assert (hypothesis.warmup, hypothesis.target) == (
                    alone.warmup,
                    alone.target,
                )

                # BOS, separator and EOS.
                num_tokens = 2 + len(hypothesis.warmup) + len(hypothesis.target)

                if max_warmup_len is not None:
                    num_tokens += 1

                if isinstance(model, TransformerLM):
                    num_tokens += len(source)

                assert num_tokens <= 12

    @pytest.mark.parametrize("max_warmup_len", [9, 12, 40])
    def test_call_raises_error_when_warmup_leaves_no_room(
        self, max_warmup_len: int
    ) -> None:
        def babble(past: list[int]) -> dict[int, float]:
            return {5: 20.0}

        model = ScriptedModel(babble, max_target_len=12)

        with pytest.raises(WarmupError, match=f"is {max_warmup_len}.*12 tokens.*lower"):
            search(model, max_warmup_len=max_warmup_len)

        # One token less, and one word fits.
        [hypothesis] = search(model, sources=[[5, EOS_IDX]], max_warmup_len=8)

        assert (len(hypothesis.warmup), len(hypothesis.target)) == (8, 1)

    def test_forced_separator_costs_nothing(self) -> None:
        def write(past: list[int]) -> dict[int, float]:
            # One word with certainty, then it would rather go on.
            if SEPARATOR_IDX in past:
                return {EOS_IDX: 20.0}

            return {5: 20.0, SEPARATOR_IDX: -20.0}

        [hypothesis] = search(
            ScriptedModel(write), sources=[[5, EOS_IDX]], max_warmup_len=1
        )

        assert (hypothesis.warmup, hypothesis.target) == ([5], [])

        assert hypothesis.log_prob == pytest.approx(0.0, abs=1e-6)

    def test_forced_end_costs_what_it_costs(self) -> None:
        def babble(past: list[int]) -> dict[int, float]:
            return {5: 0.0, EOS_IDX: -5.0}

        [hypothesis] = search(
            ScriptedModel(babble),
            sources=[[5, EOS_IDX]],
            max_warmup_len=None,
            max_len_b=2,
            length_penalty=2.0,
        )

        # Two words and EOS, over three tokens squared.
        assert hypothesis.target == [5, 5]

        expected = -5.0 - 3 * math.log(1 + math.exp(-5.0))

        assert hypothesis.log_prob == pytest.approx(expected, abs=1e-5)
        assert hypothesis.score == pytest.approx(expected / 9, abs=1e-5)

    def test_wider_beam_escapes_garden_path(self) -> None:
        def mislead(past: list[int]) -> dict[int, float]:
            # 5 looks better than 6, but only 6 leads to a certain end.
            if not past:
                return {5: 0.5, 6: 0.0}

            if past[-1] == 6:
                return {EOS_IDX: 20.0}

            return {5: 0.0, 6: 0.0, 7: 0.0, EOS_IDX: 0.0}

        for beam_size, expected in ((1, 5), (2, 6)):
            [hypothesis] = search(
                ScriptedModel(mislead),
                sources=[[5, EOS_IDX]],
                max_warmup_len=None,
                beam_size=beam_size,
                length_penalty=0.0,
            )

            assert hypothesis.target[0] == expected

    def test_length_penalty_favours_long_output(self) -> None:
        def write(past: list[int]) -> dict[int, float]:
            # `5 EOS` or `6 6 6 EOS`; the long one is a little less likely.
            if not past:
                return {5: 0.1, 6: 0.0}

            return {EOS_IDX: 20.0} if past == [5] or len(past) == 3 else {6: 20.0}

        for length_penalty, expected in ((0.0, [5]), (1.0, [6, 6, 6])):
            [hypothesis] = search(
                ScriptedModel(write),
                sources=[[5, EOS_IDX]],
                max_warmup_len=None,
                length_penalty=length_penalty,
            )

            assert hypothesis.target == expected

    @pytest.mark.parametrize("step_nr", [0, 2])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_call_raises_error_when_model_has_diverged(
        self, value: float, step_nr: int
    ) -> None:
        def diverge(past: list[int]) -> dict[int, float]:
            return {5: 0.0, 6: value if len(past) >= step_nr else 0.0}

        with pytest.raises(
            WarmupError, match="not a number.*use an earlier checkpoint"
        ):
            search(ScriptedModel(diverge))


class TestBeamSearchConfig:
    def test_validate_returns_errors(self) -> None:
        config = BeamSearchConfig(beam_size=0, max_len_a=-1.0, max_len_b=0)

        result = config.validate()

        assert len(result.errors) == 3

        assert len(BeamSearchConfig().validate().errors) == 0
