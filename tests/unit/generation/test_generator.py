# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn import BatchLayout
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor
from torch.nn import Module
from typing_extensions import override

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    EOS_IDX,
    SEPARATOR_IDX,
    UNK_IDX,
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
from tests.plain import score_targets_plainly
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation import (
    GenerationConfig,
    Hypothesis,
    WarmupGenerator,
)
from warmup_plugin.layout import DecoderRows, ExcludedTokens, join_rows
from warmup_plugin.models.conditional import (
    ConditionalModel,
    EncodedSource,
    RowDecoder,
    RowScores,
)
from warmup_plugin.models.rows import SourceMemory
from warmup_plugin.models.scorable import create_conditional_model

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

    config = GenerationConfig(
        warmup="none" if max_warmup_len is None else "single",
        max_warmup_len=max_warmup_len or 1,
        beam_size=beam_size,
        length_penalty=length_penalty,
        max_len_a=max_len_a,
        max_len_b=max_len_b,
    )

    hypotheses = generate(
        model, config, sources=sources, prefix=prefix, vocab_size=vocab_size
    )

    return [group[0] for group in hypotheses]


def generate(
    model: Model | ConditionalModel,
    config: GenerationConfig,
    *,
    sources: Sequence[Sequence[int]] = SOURCES,
    prefix: Sequence[int] = (BOS_IDX,),
    vocab_size: int = VOCAB_SIZE,
    decode: Callable[[Sequence[int]], str] | None = None,
    num_template_tokens: int = 0,
    forced: Sequence[Sequence[int]] | None = None,
    line_numbers: Sequence[int] | None = None,
    plain_model: ConditionalModel | None = None,
    plain_begin_idx: int | None = None,
) -> list[list[Hypothesis]]:
    assert not config.validate().has_error()

    if not isinstance(model, ConditionalModel):
        model = create_conditional_model(model)

    generator = WarmupGenerator(
        model,
        create_layout(prefix_len=len(prefix), vocab_size=vocab_size),
        config,
        decode=decode,
        num_template_tokens=num_template_tokens,
        plain_model=plain_model,
        plain_begin_idx=plain_begin_idx,
    )

    seqs, seq_lens = pad_rows(sources)

    return generator(
        seqs,
        seq_lens,
        torch.tensor([prefix] * len(sources), device=device),
        forced=forced,
        line_numbers=line_numbers,
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
    leaves_separator_out: bool = False,
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

    excluded = layout.excluded_tokens(wrapper.num_logits, device)

    if max_warmup_len is None and not leaves_separator_out:
        # Plain fine-tuning.
        excluded = ExcludedTokens.none(device)

    scores = wrapper.score(encoded, rows, excluded)

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
        self, source: EncodedSource, rows: DecoderRows, excluded: ExcludedTokens
    ) -> RowScores:
        raise NotImplementedError()

    @override
    def compute_loss(self, *args: Any, **kwargs: Any) -> Tensor:
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
        self._num_beams = 1

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
    def select_beams(
        self, beams: Tensor, groups: Tensor | None, max_beams: int
    ) -> None:
        begins = torch.arange(beams.size(0)) if groups is None else groups

        self.select((begins.unsqueeze(1) * self._num_beams + beams).flatten())

        self._num_beams = beams.size(1)

    @override
    def fork(self, rows: Tensor) -> None:
        raise NotImplementedError()

    @override
    def rewind(self, past_lens: Tensor) -> None:
        self._pasts = [p[:n] for p, n in zip(self._pasts, past_lens.tolist())]

    @override
    def score(
        self, rows: DecoderRows, past_lens: Tensor, excluded: ExcludedTokens
    ) -> Tensor:
        raise NotImplementedError()


class TestSearch:
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

        # BOS, warmup, separator and output are read; EOS is only written.
        num_special = 1 if max_warmup_len is None else 2

        assert len(hypothesis.warmup) + len(hypothesis.target) == 12 - num_special

        assert model.longest == 12

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

                # BOS and separator.
                num_tokens = 1 + len(hypothesis.warmup) + len(hypothesis.target)

                if max_warmup_len is not None:
                    num_tokens += 1

                if isinstance(model, TransformerLM):
                    num_tokens += len(source)

                assert num_tokens <= 12

    @pytest.mark.parametrize("max_warmup_len", [10, 12, 40])
    def test_call_raises_error_when_warmup_leaves_no_room(
        self, max_warmup_len: int
    ) -> None:
        def babble(past: list[int]) -> dict[int, float]:
            return {5: 20.0}

        model = ScriptedModel(babble, max_target_len=12)

        with pytest.raises(
            WarmupError, match=f"to {max_warmup_len} .*12 tokens.*lower"
        ):
            search(model, max_warmup_len=max_warmup_len)

        # One token less, and one word fits.
        [hypothesis] = search(model, sources=[[5, EOS_IDX]], max_warmup_len=9)

        assert (len(hypothesis.warmup), len(hypothesis.target)) == (9, 1)

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

    @each_model
    def test_output_without_separator_is_as_likely_as_it_was_learned(
        self, kind: str
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2, seed=5)

        scores = {}

        for warmup in ("none", "bare"):
            config = create_config(warmup=warmup, beam_size=1, max_len_b=4)

            [[hypothesis]] = generate(model, config, sources=SOURCES[:1])

            assert hypothesis.warmup == [] and hypothesis.warmup_log_prob == 0.0

            scores[warmup] = (hypothesis.target, hypothesis.log_prob)

            expected = score_sequences(
                model,
                SOURCES[0],
                [[]],
                [hypothesis.target],
                max_warmup_len=None,
                leaves_separator_out=warmup == "bare",
            )

            assert hypothesis.log_prob == pytest.approx(float(expected), abs=1e-4)

        assert scores["bare"][0] == scores["none"][0]
        assert scores["bare"][1] > scores["none"][1]

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

    @pytest.mark.parametrize("early_stopping", [False, True])
    def test_search_goes_on_while_something_open_can_win(
        self, early_stopping: bool
    ) -> None:
        def write(past: list[int]) -> dict[int, float]:
            # Three short outputs end at once; the long one, a little less likely than
            # the first of them, has the best mean.
            if not past:
                return {EOS_IDX: 0.2, 5: 0.1, 6: 0.0}

            return {EOS_IDX: 20.0} if past[0] == 5 or len(past) == 5 else {6: 20.0}

        model = ScriptedModel(write)

        config = create_config(
            warmup="none",
            beam_size=2,
            early_stopping=early_stopping,
            max_len_a=0.0,
            max_len_b=5,
        )

        [[hypothesis]] = generate(model, config, sources=[[5, EOS_IDX]])

        assert hypothesis.target == ([5] if early_stopping else [6] * 5)

    def test_search_ends_where_nothing_open_can_win(self) -> None:
        num_steps = 0

        def write(past: list[int]) -> dict[int, float]:
            nonlocal num_steps

            num_steps = max(num_steps, len(past))

            # `5 EOS` is nearly certain; what goes on gets worse with each token.
            return {EOS_IDX: 9.0} if past == [5] else {5: 9.0, 6: 0.0, 7: 0.0}

        model = ScriptedModel(write)

        config = create_config(warmup="none", beam_size=3, max_len_a=0.0, max_len_b=50)

        [[hypothesis]] = generate(model, config, sources=[[5, EOS_IDX]])

        assert hypothesis.target == [5]
        assert num_steps < 5

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


def to_log_probs(model: Model, hypothesis: Hypothesis, source: Sequence[int]) -> Tensor:
    """Returns log P(c|x) + log P(y|c,x) of a hypothesis, not cached."""
    return score_sequences(
        model,
        source,
        [hypothesis.warmup],
        [hypothesis.target],
        max_warmup_len=MAX_WARMUP_LEN,
    )


MAX_WARMUP_LEN = 2


def create_config(**options: object) -> GenerationConfig:
    defaults: dict[str, object] = {
        "max_warmup_len": MAX_WARMUP_LEN,
        "max_len_a": 0.0,
        "max_len_b": 4,
        "beam_size": 3,
    }

    return GenerationConfig(**{**defaults, **options})  # type: ignore[arg-type]


class TestGreedyThenBeam:
    @each_model
    def test_warmup_is_greedy_and_output_best_behind_it(self, kind: str) -> None:
        model = CREATE_MODEL[kind](seed=1)

        targets = list_sentences(2)

        config = create_config(
            warmup="greedy_then_beam", beam_size=len(targets) + 2, max_len_b=2
        )

        for source, group in zip(SOURCES, generate(model, config)):
            warmup, _ = search_greedily(
                model, source, max_warmup_len=MAX_WARMUP_LEN, max_len=1
            )

            log_probs = score_sequences(
                model,
                source,
                [warmup] * len(targets),
                targets,
                max_warmup_len=MAX_WARMUP_LEN,
            ).tolist()

            scores = [
                log_prob / (len(warmup) + 1 + len(y) + 1)
                for y, log_prob in zip(targets, log_probs)
            ]

            best = max(range(len(targets)), key=scores.__getitem__)

            assert group[0].warmup == warmup
            assert group[0].target == targets[best]

            assert group[0].score == pytest.approx(scores[best], abs=2e-5)
            assert group[0].log_prob == pytest.approx(log_probs[best], abs=2e-5)


class TestBeamThenBeam:
    @torch.no_grad()
    @each_model
    @pytest.mark.parametrize("length_penalty", [0.0, 1.0])
    def test_both_are_the_best_of_all(self, kind: str, length_penalty: float) -> None:
        model = CREATE_MODEL[kind](seed=1)

        sentences = list_sentences(2)

        config = create_config(
            warmup="beam_then_beam",
            beam_size=len(sentences) + 2,
            max_len_b=2,
            length_penalty=length_penalty,
        )

        for source, group in zip(SOURCES, generate(model, config)):
            # Of all warmups, behind which one and the same output counts nothing.
            warmup_scores = []

            for c in sentences:
                log_prob = 0.0

                for at, token in enumerate([*c, SEPARATOR_IDX]):
                    logits = forward_alone(model, source, [BOS_IDX, *c[:at]])[-1]

                    allowed = [*WORDS, SEPARATOR_IDX]

                    # Forced at the limit, hence certain.
                    if at < MAX_WARMUP_LEN:
                        among = logits[allowed].log_softmax(0)

                        log_prob += float(among[allowed.index(token)])

                warmup_scores.append(
                    (log_prob / (len(c) + 1) ** length_penalty, log_prob)
                )

            best_warmup = max(range(len(sentences)), key=warmup_scores.__getitem__)

            warmup = sentences[best_warmup]

            log_probs = score_sequences(
                model,
                source,
                [warmup] * len(sentences),
                sentences,
                max_warmup_len=MAX_WARMUP_LEN,
            ).tolist()

            best = max(
                range(len(sentences)),
                key=lambda n: (
                    log_probs[n]
                    / (len(warmup) + 1 + len(sentences[n]) + 1) ** length_penalty
                ),
            )

            assert group[0].warmup == warmup
            assert group[0].target == sentences[best]

            assert group[0].log_prob == pytest.approx(log_probs[best], abs=2e-5)

            assert group[0].warmup_log_prob == pytest.approx(
                warmup_scores[best_warmup][1], abs=2e-5
            )

    def test_beam_of_one_is_greedy(self) -> None:
        model = create_tiny_model(seed=3)

        configs = [
            create_config(warmup=warmup, beam_size=1)
            for warmup in ("beam_then_beam", "greedy_then_beam")
        ]

        found, expected = (generate(model, config) for config in configs)

        for group, expected_group in zip(found, expected):
            assert group[0].warmup == expected_group[0].warmup
            assert group[0].target == expected_group[0].target
            assert group[0].log_prob == pytest.approx(expected_group[0].log_prob)


class TestPlainWeight:
    @torch.no_grad()
    @each_model
    @pytest.mark.parametrize(
        ("has_plain_model", "plain_begin_idx"), [(False, None), (True, None), (True, 6)]
    )
    @pytest.mark.parametrize("warmup", ["greedy_then_beam", "sample"])
    def test_token_is_predicted_by_both_ways(
        self,
        kind: str,
        has_plain_model: bool,
        plain_begin_idx: int | None,
        warmup: str,
    ) -> None:
        model, plain_model = CREATE_MODEL[kind](seed=6), CREATE_MODEL[kind](seed=7)

        weight = 0.4

        config = GenerationConfig(
            warmup=warmup,
            max_warmup_len=3,
            plain_weight=weight,
            beam_size=1,
            num_warmups=3 if warmup == "sample" else 8,
            num_best=3 if warmup == "sample" else 1,
            max_len_a=0.0,
            max_len_b=5,
        )

        hypotheses = generate(
            model,
            config,
            plain_model=(
                create_conditional_model(plain_model) if has_plain_model else None
            ),
            plain_begin_idx=plain_begin_idx,
        )

        alone = generate(model, replace(config, plain_weight=0.0))

        differs = False

        for source, group, alone_group in zip(SOURCES, hypotheses, alone):
            # What is written first has one way; draws are in another order.
            if warmup == "greedy_then_beam":
                assert group[0].warmup == alone_group[0].warmup

            differs |= group != alone_group

            for hypothesis in group:
                begun: list[int] = []

                log_prob = 0.0

                while len(begun) < len(hypothesis.target) + 1:
                    draft = [BOS_IDX, *hypothesis.warmup, SEPARATOR_IDX, *begun]

                    plain = [plain_begin_idx or BOS_IDX, *begun]

                    if not has_plain_model:
                        plain.insert(1, SEPARATOR_IDX)

                    ways = [
                        (1.0 - weight, forward_alone(model, source, draft)[-1]),
                        (
                            weight,
                            forward_alone(
                                plain_model if has_plain_model else model, source, plain
                            )[-1],
                        ),
                    ]

                    for _, logits in ways:
                        logits[SEPARATOR_IDX] = -math.inf

                    joint = sum(w * logits.log_softmax(0) for w, logits in ways)

                    assert isinstance(joint, Tensor)

                    joint = joint.log_softmax(0)

                    written = [*hypothesis.target, EOS_IDX][len(begun)]

                    allowed = [*WORDS, EOS_IDX] if len(begun) < 5 else [EOS_IDX]

                    assert written == max(allowed, key=lambda t: float(joint[t]))

                    log_prob += float(joint[written])

                    begun.append(written)

                assert_close(
                    torch.tensor(hypothesis.target_log_prob), torch.tensor(log_prob)
                )

        assert differs

    @torch.no_grad()
    @each_model
    def test_beams_of_both_ways_go_on_together(self, kind: str) -> None:
        """Searches all outputs of up to two words by a beam that drops none."""
        model = CREATE_MODEL[kind](seed=6)

        config = GenerationConfig(
            warmup="greedy_then_beam",
            max_warmup_len=2,
            plain_weight=0.5,
            beam_size=40,
            num_best=40,
            max_len_a=0.0,
            max_len_b=2,
            length_penalty=0.0,
        )

        for source, group in zip(SOURCES, generate(model, config)):
            scores = {}

            for target in list_sentences(2):
                log_prob = 0.0

                for at, token in enumerate([*target, EOS_IDX]):
                    joint = torch.zeros(VOCAB_SIZE, device=device)

                    for written in (group[0].warmup, []):
                        row = [BOS_IDX, *written, SEPARATOR_IDX, *target[:at]]

                        logits = forward_alone(model, source, row)[-1]

                        logits[SEPARATOR_IDX] = -math.inf

                        joint += 0.5 * logits.log_softmax(0)

                    log_prob += float(joint.log_softmax(0)[token])

                scores[tuple(target)] = log_prob

            best = max(scores, key=lambda t: scores[t])

            assert tuple(group[0].target) == best

            assert_close(
                torch.tensor(group[0].target_log_prob), torch.tensor(scores[best])
            )


class TestSample:
    @each_model
    @pytest.mark.parametrize("beam_size", [1, 3])
    def test_log_probs_equal_uncached_ones(self, kind: str, beam_size: int) -> None:
        # Most warmups of a source differ in length, so its rows go on from different
        # places.
        model = CREATE_MODEL[kind](num_layers=2, seed=3)

        config = create_config(
            warmup="sample",
            num_warmups=24,
            num_best=24,
            beam_size=beam_size,
            temperature=3.0,
        )

        groups = generate(model, config)

        for group in groups:
            # Several warmups lead to the same output.
            assert len({tuple(h.target) for h in group}) == len(group) < 24

        for source, group in zip(SOURCES, groups):
            assert [h.score for h in group] == sorted(
                (h.score for h in group), reverse=True
            )

            for hypothesis in group:
                assert_close(
                    to_log_probs(model, hypothesis, source),
                    [hypothesis.log_prob],
                    rtol=0.0,
                    atol=1e-4,
                )

                assert sum(hypothesis.token_log_probs) == pytest.approx(
                    hypothesis.log_prob, abs=1e-5
                )

                tokens = hypothesis.tokens(create_layout(), has_warmup=True)

                assert len(hypothesis.token_log_probs) == len(tokens)

    def test_warmups_are_drawn_from_model(self) -> None:
        model = create_tiny_model(seed=2)

        source = SOURCES[0]

        config = create_config(warmup="sample", num_warmups=1, beam_size=1, max_len_b=1)

        counts: dict[tuple[int, ...], int] = {}

        num_lines = 3000

        groups = generate(
            model,
            config,
            sources=[source] * num_lines,
            line_numbers=range(num_lines),
        )

        for group in groups:
            key = tuple(group[0].warmup)

            counts[key] = counts.get(key, 0) + 1

        log_probs: dict[tuple[int, ...], float] = {
            tuple(group[0].warmup): group[0].warmup_log_prob for group in groups
        }

        assert len(counts) > 4

        for warmup, count in counts.items():
            share = math.exp(log_probs[warmup])

            deviation = math.sqrt(share * (1.0 - share) / num_lines)

            assert abs(count / num_lines - share) < 5.0 * deviation

    @pytest.mark.parametrize("sampling", [False, True])
    def test_draws_belong_to_line(self, sampling: bool) -> None:
        model = create_tiny_model(seed=2)

        config = create_config(
            warmup="sample",
            num_warmups=3,
            num_best=3,
            beam_size=1,
            sampling=sampling,
            max_len_a=1.0,
        )

        def run(lines: Sequence[int]) -> dict[int, list[tuple[list[int], list[int]]]]:
            groups = generate(
                model,
                config,
                sources=[SOURCES[line % 4] for line in lines],
                line_numbers=lines,
            )

            return {
                line: [(h.warmup, h.target) for h in group]
                for line, group in zip(lines, groups)
            }

        together = run([0, 1, 2, 3, 4, 5, 6, 7])

        assert {**run([7, 2]), **run([4]), **run([5, 6, 0, 1, 3])} == together

        # Lines of the same text have draws of their own, and so has another seed.
        assert any(together[n] != together[n + 4] for n in range(4))

        config.seed = 3

        assert run(range(8)) != together

    @each_model
    def test_marginal_is_mean_over_all_warmups(self, kind: str) -> None:
        model = CREATE_MODEL[kind](seed=4)

        config = create_config(
            warmup="sample",
            rank_by="marginal",
            num_warmups=5,
            num_best=5,
            beam_size=1,
            length_penalty=0.5,
        )

        groups = generate(model, config)

        config.rank_by = "log_prob"

        all_candidates = generate(model, config)

        for source, group, candidates in zip(SOURCES, groups, all_candidates):
            # Outputs are distinct, and none is lost.
            outputs = [tuple(h.target) for h in group]

            assert sorted(outputs) == sorted({tuple(h.target) for h in candidates})

            for hypothesis in group:
                terms = []

                for candidate in draw_candidates(model, source, config):
                    joint = score_sequences(
                        model,
                        source,
                        [candidate.warmup],
                        [hypothesis.target],
                        max_warmup_len=MAX_WARMUP_LEN,
                    )

                    terms.append(float(joint) - candidate.warmup_log_prob)

                expected = float(torch.tensor(terms).logsumexp(0)) - math.log(5)

                length = len(hypothesis.target) + 1

                assert hypothesis.score == pytest.approx(
                    expected / math.sqrt(length), abs=1e-4
                )

            weights = [h.weight or 0.0 for h in group]

            assert sum(weights) == pytest.approx(1.0)

            assert group[0].score == max(h.score for h in group)

    def test_mbr_takes_output_closest_to_all(self) -> None:
        model = create_tiny_model(seed=4)

        def decode(tokens: Sequence[int]) -> str:
            return " ".join("abcdefghijkl"[t] * 2 for t in tokens)

        config = create_config(
            warmup="sample",
            rank_by="mbr",
            num_warmups=6,
            num_best=6,
            beam_size=1,
            sampling=True,
        )

        groups = generate(model, config, decode=decode)

        for source, group in zip(SOURCES, groups):
            drawn = [decode(h.target) for h in draw_candidates(model, source, config)]

            assert {decode(h.target) for h in group} == set(drawn)

            metric = CHRF(word_order=2)

            for hypothesis in group:
                text = decode(hypothesis.target)

                utilities = [
                    100.0 if text == t else metric.sentence_score(text, [t]).score
                    for t in drawn
                ]

                assert hypothesis.score == pytest.approx(sum(utilities) / 6)

                assert hypothesis.weight == pytest.approx(drawn.count(text) / 6)

            assert group[0].score == max(h.score for h in group)

    def test_mbr_needs_decoder(self) -> None:
        config = create_config(warmup="sample", rank_by="mbr")

        with pytest.raises(WarmupError, match="`rank_by` is `mbr`"):
            generate(create_tiny_model(), config)


def draw_candidates(
    model: Model, source: Sequence[int], config: GenerationConfig
) -> list[Hypothesis]:
    """Returns the candidates of a source, not ranked, equal ones included."""
    generator = WarmupGenerator(
        create_conditional_model(model), create_layout(), config, decode=str
    )

    seqs, seq_lens = pad_rows([source])

    prefixes = torch.tensor([[BOS_IDX]], device=device)

    return generator.generate_candidates(
        seqs, seq_lens, prefixes, line_numbers=[SOURCES.index(list(source))]
    )[0]


class TestEmptyWarmup:
    @each_model
    @pytest.mark.parametrize("length_penalty", [0.0, 1.0])
    def test_call_finds_best_of_all_when_beam_is_wide(
        self, kind: str, length_penalty: float
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        outputs = list_sentences(2)

        config = create_config(
            warmup="empty",
            beam_size=len(outputs) + 5,
            length_penalty=length_penalty,
            max_len_b=2,
        )

        for source, [hypothesis] in zip(SOURCES, generate(model, config)):
            with torch.no_grad():
                log_probs = score_targets_plainly(
                    model,
                    [source] * len(outputs),
                    [[BOS_IDX, *y, EOS_IDX] for y in outputs],
                ).tolist()

            scores = [
                log_prob / (len(y) + 1) ** length_penalty
                for y, log_prob in zip(outputs, log_probs)
            ]

            best = max(range(len(outputs)), key=scores.__getitem__)

            assert (hypothesis.warmup, hypothesis.target) == ([], outputs[best])

            # The separator is given and costs nothing.
            assert hypothesis.score == pytest.approx(scores[best], abs=2e-5)
            assert hypothesis.log_prob == pytest.approx(log_probs[best], abs=2e-5)
            assert hypothesis.warmup_log_prob == 0.0

    def test_separator_is_counted_in_limit_of_model(self) -> None:
        def babble(past: list[int]) -> dict[int, float]:
            assert past[0] == SEPARATOR_IDX

            return {5: 20.0}

        model = ScriptedModel(babble, max_target_len=12)

        config = create_config(warmup="empty", max_len_a=0.0, max_len_b=1000)

        [[hypothesis]] = generate(model, config, sources=[[5, EOS_IDX]])

        # Behind BOS and separator; EOS is not read.
        assert hypothesis.target == [5] * 10

        assert model.longest == 12


class TestTokenLogProbs:
    @each_model
    @pytest.mark.parametrize("beam_size", [1, 3])
    @pytest.mark.parametrize(
        "warmup", ["none", "empty", "single", "greedy_then_beam", "sample"]
    )
    def test_each_part_has_probabilities_among_its_tokens(
        self, warmup: str, beam_size: int, kind: str
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        config = create_config(warmup=warmup, beam_size=beam_size, max_warmup_len=2)

        # Plain fine-tuning knows no separator.
        in_target = [
            t for t in range(VOCAB_SIZE) if warmup == "none" or t != SEPARATOR_IDX
        ]

        for source, [hypothesis] in zip(SOURCES, generate(model, config)):
            given = [BOS_IDX, SEPARATOR_IDX] if warmup == "empty" else [BOS_IDX]

            target = [*hypothesis.target, EOS_IDX]

            written = target

            if warmup not in ("none", "empty"):
                written = [*hypothesis.warmup, SEPARATOR_IDX, *target]

            with torch.no_grad():
                logits = forward_alone(model, source, [*given, *written[:-1]])

            expected = []

            num_warmup = len(written) - len(target)

            for n, token in enumerate(written):
                allowed = [SEPARATOR_IDX, *WORDS] if n < num_warmup else in_target

                log_probs = logits[len(given) - 1 + n, allowed].log_softmax(dim=0)

                expected.append(float(log_probs[allowed.index(token)]))

            if len(hypothesis.warmup) == 2:
                # It was forced.
                expected[2] = 0.0

            assert hypothesis.token_log_probs == pytest.approx(expected, abs=2e-5)


class TestSampling:
    @pytest.mark.parametrize("warmup", ["none", "single", "greedy_then_beam"])
    def test_outputs_are_drawn_from_model(self, warmup: str) -> None:
        a, b = WORDS[:2]

        def script(past: list[int]) -> dict[int, float]:
            if warmup != "none" and SEPARATOR_IDX not in past:
                return {a: math.log(0.7), SEPARATOR_IDX: math.log(0.3)}

            if past and past[-1] == b:
                return {EOS_IDX: 0.0}

            # Behind an empty warmup other outputs are likely.
            share = 0.2 if past and past[0] == SEPARATOR_IDX else 0.6

            return {b: math.log(share), EOS_IDX: math.log(1.0 - share)}

        num_draws = 4000

        config = create_config(
            warmup=warmup, max_warmup_len=1, sampling=True, num_best=num_draws
        )

        group = generate(ScriptedModel(script), config, sources=SOURCES[:1])[0]

        assert len(group) == num_draws

        outputs = [(tuple(h.warmup), tuple(h.target)) for h in group]

        Outputs = dict[tuple[tuple[int, ...], tuple[int, ...]], float]

        all_expected: dict[str, Outputs] = {
            "none": {((), (b,)): 0.6, ((), ()): 0.4},
            "single": {
                ((a,), (b,)): 0.42,
                ((a,), ()): 0.28,
                ((), (b,)): 0.06,
                ((), ()): 0.24,
            },
            "greedy_then_beam": {((a,), (b,)): 0.6, ((a,), ()): 0.4},
        }

        for key, share in all_expected[warmup].items():
            deviation = math.sqrt(share * (1.0 - share) / num_draws)

            assert abs(outputs.count(key) / num_draws - share) < 4.0 * deviation

    def test_top_k_of_one_is_greedy(self) -> None:
        model = create_tiny_model(seed=6)

        drawn = generate(model, create_config(sampling=True, top_k=1))

        searched = generate(model, create_config(beam_size=1))

        assert [g[0].target for g in drawn] == [g[0].target for g in searched]
        assert [g[0].warmup for g in drawn] == [g[0].warmup for g in searched]

    def test_low_temperature_is_nearly_greedy(self) -> None:
        model = create_tiny_model(seed=6)

        drawn = generate(model, create_config(sampling=True, temperature=1e-4))

        searched = generate(model, create_config(beam_size=1))

        for a, b in zip(drawn, searched):
            assert a[0].target == b[0].target

            # The probability is the model's, not the tempered one.
            assert a[0].log_prob == pytest.approx(b[0].log_prob, abs=1e-5)


ALL_WARMUPS = pytest.mark.parametrize(
    "options",
    [
        {"warmup": "none"},
        {"warmup": "empty"},
        {"warmup": "single"},
        {"warmup": "single", "beam_size": 1},
        {"warmup": "greedy_then_beam"},
        {"warmup": "sample", "num_warmups": 3},
        {"warmup": "single", "sampling": True, "num_best": 3},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)


class TestControls:
    @ALL_WARMUPS
    @pytest.mark.parametrize("seed", range(3))
    def test_min_len_holds(self, options: dict[str, object], seed: int) -> None:
        model = create_tiny_model(seed=seed)

        config = create_config(
            **options, min_len_a=0.5, min_len_b=1, max_len_a=0.5, max_len_b=2
        )

        for source, group in zip(SOURCES, generate(model, config)):
            for h in group:
                least = int(0.5 * len(source) + 1)

                assert least <= len(h.target) <= least + 1

                assert math.isfinite(h.log_prob)

    def test_prompt_does_not_count_in_limits(self) -> None:
        model = ScriptedModel(lambda past: {WORDS[0]: 5.0})

        config = create_config(warmup="none", max_len_a=1.0, max_len_b=1, beam_size=1)

        groups = generate(model, config, num_template_tokens=2)

        for source, group in zip(SOURCES, groups):
            assert len(group[0].target) == max(len(source) - 2, 1) + 1

    @ALL_WARMUPS
    def test_forced_beginning_is_kept(self, options: dict[str, object]) -> None:
        model = create_tiny_model(seed=3)

        config = create_config(**options)

        # The last one is longer than the limit.
        forced = [[5], [], [6, 5], [5, 5, 6, 6, 5, 7]]

        groups = generate(model, config, forced=forced)

        free = generate(model, config)

        for source, group, beginning, free_group in zip(SOURCES, groups, forced, free):
            for h in group:
                assert h.target[: len(beginning)] == beginning

                # Its probability counts as the model gives it.
                if options["warmup"] == "empty":
                    with torch.no_grad():
                        expected = score_targets_plainly(
                            model, [source], [[BOS_IDX, *h.target, EOS_IDX]]
                        )

                    assert_close(expected, [h.log_prob], rtol=0.0, atol=1e-4)
                elif options["warmup"] != "none":
                    assert_close(
                        to_log_probs(model, h, source),
                        [h.log_prob],
                        rtol=0.0,
                        atol=1e-4,
                    )

            if not beginning:
                for h, other in zip(group, free_group, strict=True):
                    assert (h.warmup, h.target) == (other.warmup, other.target)

    def test_forced_beginning_must_fit_model(self) -> None:
        model = ScriptedModel(lambda past: {}, max_target_len=8)

        with pytest.raises(WarmupError, match="A forced beginning of 9 tokens"):
            generate(model, create_config(), forced=[[5] * 9, [], [], []])

    @ALL_WARMUPS
    @pytest.mark.parametrize("size", [1, 2])
    def test_no_ngram_is_repeated(self, options: dict[str, object], size: int) -> None:
        config = create_config(
            **options, no_repeat_ngram_size=size, min_len_b=3, max_len_b=7
        )

        repeated = False

        for seed in range(4):
            model = create_tiny_model(seed=seed)

            for group in generate(model, config):
                for h in group:
                    ngrams = list(zip(*(h.target[i:] for i in range(size))))

                    assert len(ngrams) == len(set(ngrams))

            config_without = create_config(**options, min_len_b=3, max_len_b=7)

            for group in generate(model, config_without):
                ngrams = list(zip(*(group[0].target[i:] for i in range(size))))

                repeated = repeated or len(ngrams) > len(set(ngrams))

        # The limit has done something.
        assert repeated

    def test_ngram_of_warmup_and_output_is_none(self) -> None:
        a, b = WORDS[:2]

        def script(past: list[int]) -> dict[int, float]:
            # Warmup "a b", output "a b": the pair stands once in the output.
            return {
                0: {a: 9.0},
                1: {b: 9.0},
                2: {SEPARATOR_IDX: 9.0},
                3: {a: 9.0},
                4: {b: 9.0},
            }.get(len(past), {EOS_IDX: 9.0})

        config = create_config(no_repeat_ngram_size=2, beam_size=1, max_warmup_len=3)

        groups = generate(ScriptedModel(script), config)

        assert groups[0][0].warmup == [a, b]
        assert groups[0][0].target == [a, b]

    def test_unknown_token_is_banned_unless_allowed(self) -> None:
        def script(past: list[int]) -> dict[int, float]:
            return {UNK_IDX: 9.0, WORDS[0]: 5.0} if len(past) < 2 else {EOS_IDX: 9.0}

        for ban_unk, expected in ((True, WORDS[0]), (False, UNK_IDX)):
            config = create_config(warmup="none", ban_unk=ban_unk)

            group = generate(ScriptedModel(script), config)[0]

            assert group[0].target[0] == expected

    @pytest.mark.parametrize("warmup", ["none", "empty", "single", "greedy_then_beam"])
    def test_num_best_hypotheses_are_distinct_and_ordered(self, warmup: str) -> None:
        model = create_tiny_model(seed=7)

        config = create_config(warmup=warmup, num_best=3)

        best = generate(model, create_config(warmup=warmup))

        for group, best_group in zip(generate(model, config), best):
            assert len(group) == 3
            assert len(best_group) == 1

            assert group[0] == best_group[0]

            assert len({(tuple(h.warmup), tuple(h.target)) for h in group}) == 3

            scores = [h.score for h in group]

            assert scores == sorted(scores, reverse=True)
