# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.common import (
    BOS_IDX,
    CREATE_MODEL,
    EOS_IDX,
    PAD_IDX,
    SEPARATOR_IDX,
    UNK_IDX,
    WORDS,
    Model,
    assert_close,
    assert_equal,
    create_candidates,
    create_layout,
    create_source,
    create_tiny_model,
    device,
    each_model,
    forward_alone,
    get_embedding,
    get_last_layer_norm,
    pad_rows,
)
from tests.unit.sampling.cases import (
    SOURCES,
    assert_follows,
    draw_with,
    each_kind,
    enumerate_log_probs,
    to_indices,
    to_lists,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import join_rows
from warmup_plugin.models.conditional import evaluation_mode
from warmup_plugin.models.row_decoder import CachedRowDecoder
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.sampling import (
    Candidates,
    concat_candidates,
    draw_candidates,
    sample_tokens,
)

Settings = dict[str, Any]

PROPOSALS: list[Settings] = [
    {},
    {"temperature": 0.7},
    {"temperature": 2.0},
    {"top_k": 2},
    {"top_p": 0.7, "temperature": 2.0},
    {"top_p": 0.9, "top_k": 3},
]


def draw(
    model: Model,
    num_warmups: int,
    max_warmup_len: int,
    *,
    sources: Sequence[Sequence[int]] = SOURCES,
    prefix: Sequence[int] = (BOS_IDX,),
    seed: int = 0,
    **settings: Any,
) -> Candidates:
    """
    :param settings: The temperature and the like.
    """
    return draw_with(
        partial(draw_candidates, **settings),
        model,
        num_warmups,
        max_warmup_len,
        sources=sources,
        prefix=prefix,
        seed=seed,
    )


@torch.no_grad()
def rescore(
    model: Model, candidates: Candidates, *, prefix: Sequence[int] = (BOS_IDX,)
) -> Tensor:
    """Scores warmups in one pass without cache. *Shape:* :math:`(N,K)`."""
    layout = create_layout(prefix_len=len(prefix))

    wrapper = create_conditional_model(model)

    target_seqs, target_seq_lens = pad_rows([[*prefix, EOS_IDX]] * len(SOURCES))

    rows = join_rows(
        layout,
        target_seqs,
        torch.tensor(target_seq_lens, device=device),
        candidates.seqs,
        candidates.seq_lens,
        candidates.cut,
        torch.ones_like(candidates.cut),
        candidates.source_idx(),
    )

    source = wrapper.encode(*create_source(SOURCES))

    excluded = layout.excluded_tokens(wrapper.num_logits, device)

    scores = wrapper.score(source, rows, excluded)

    return scores.warmup_log_probs.view_as(candidates.proposal_log_probs)


def get_warmup_log_probs(candidates: Candidates) -> Tensor:
    assert candidates.warmup_log_probs is not None

    return candidates.warmup_log_probs


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor | None]]:
    """Records the tokens and the rows of each step."""
    steps: list[tuple[Tensor, Tensor | None]] = []

    step = CachedRowDecoder.step

    def record(
        self: CachedRowDecoder, tokens: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        steps.append((tokens, rows))

        return step(self, tokens, rows)

    monkeypatch.setattr(CachedRowDecoder, "step", record)

    return steps


class TestDrawCandidates:
    @pytest.mark.parametrize("settings", PROPOSALS, ids=str)
    @each_kind
    def test_call_follows_proposal(
        self,
        kind: str,
        settings: Settings,
        steps: list[tuple[Tensor, Tensor | None]],
    ) -> None:
        model = CREATE_MODEL[kind]()

        warmups, log_probs = enumerate_log_probs(model, 3, **settings)

        # Forced separators included, all that can be drawn has probability 1.
        assert_close(log_probs.exp().sum(dim=1), [1.0, 1.0])

        candidates = draw(model, 3_000, 3, **settings)

        idx = to_indices(candidates, warmups)

        for n in range(len(SOURCES)):
            counts = idx[n].bincount(minlength=len(warmups))

            assert_follows(counts, log_probs[n].exp())

        # What is written alike was fed once.
        assert steps[-1][0].size(0) <= len(SOURCES) * len(warmups)

    @pytest.mark.parametrize("settings", PROPOSALS, ids=str)
    @each_kind
    def test_log_probs_are_those_of_enumeration(
        self, kind: str, settings: Settings
    ) -> None:
        model = CREATE_MODEL[kind]()

        candidates = draw(model, 50, 2, **settings)

        warmups, proposal_log_probs = enumerate_log_probs(model, 2, **settings)

        idx = to_indices(candidates, warmups)

        expected = proposal_log_probs.gather(1, idx)

        assert_close(candidates.proposal_log_probs, expected, rtol=0.0, atol=2e-5)

        # a is the model's own, whatever the proposal.
        expected = enumerate_log_probs(model, 2)[1].gather(1, idx)

        actual = get_warmup_log_probs(candidates)

        assert_close(actual, expected, rtol=0.0, atol=2e-5)

    @pytest.mark.parametrize("temperature", [1.0, 1.5])
    @each_kind
    def test_empty_warmup_is_enumerated(self, kind: str, temperature: float) -> None:
        model = CREATE_MODEL[kind]()

        warmups, tempered = enumerate_log_probs(model, 2, temperature=temperature)

        candidates = draw(model, 3_000, 2, temperature=temperature, with_empty=True)

        idx = to_indices(candidates, warmups)

        # The first one, and no other.
        assert warmups[0] == ()
        assert_equal(idx.eq(0).sum(dim=1), [1, 1])
        assert_equal(idx[:, 0], [0, 0])

        a = enumerate_log_probs(model, 2)[1].gather(1, idx)

        actual = get_warmup_log_probs(candidates)

        assert_close(actual, a, rtol=0.0, atol=2e-5)

        # The others from the rest, whose probability is that without the empty one.
        rest = tempered.exp()

        rest[:, 0] = 0.0

        rest = rest / rest.sum(dim=1, keepdim=True)

        for n in range(len(SOURCES)):
            counts = idx[n, 1:].bincount(minlength=len(warmups))

            assert_follows(counts, rest[n])

        # The mean of e^(a + b - q) over all K counts the empty one once.
        expected = rest.log().gather(1, idx) + math.log(2_999 / 3_000)

        expected[:, 0] = -math.log(3_000)

        assert_close(candidates.proposal_log_probs, expected, rtol=0.0, atol=2e-5)

    @each_model
    def test_greedy_warmup_is_the_one_that_generation_writes(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        candidates = draw(model, 1, 4, greedy=True)

        for n, source in enumerate(SOURCES):
            warmup: list[int] = []

            log_prob = 0.0

            while len(warmup) < 4:
                logits = forward_alone(model, source, [BOS_IDX, *warmup])[-1]

                log_probs = logits[[SEPARATOR_IDX, *WORDS]].log_softmax(dim=0)

                best = int(log_probs.argmax())

                log_prob += float(log_probs[best])

                if best == 0:
                    break

                warmup.append(WORDS[best - 1])

            assert to_lists(candidates)[n] == tuple(warmup)

            for log_probs in (
                candidates.proposal_log_probs,
                get_warmup_log_probs(candidates),
            ):
                assert float(log_probs[n, 0]) == pytest.approx(log_prob, abs=2e-5)

    @pytest.mark.parametrize("prefix", [(BOS_IDX,), (BOS_IDX, 7)])
    @pytest.mark.parametrize("num_warmups", [1, 3, 64])
    @each_kind
    def test_log_probs_equal_uncached_scores(
        self, kind: str, num_warmups: int, prefix: tuple[int, ...]
    ) -> None:
        model = CREATE_MODEL[kind](num_layers=2)

        # Long warmups: many steps with and without compaction.
        for seed, temperature in ((0, 1.0), (1, 1.0), (2, 0.7)):
            candidates = draw(
                model,
                num_warmups,
                12,
                prefix=prefix,
                seed=seed,
                temperature=temperature,
            )

            expected = rescore(model, candidates, prefix=prefix)

            actual = get_warmup_log_probs(candidates)

            assert_close(actual, expected, rtol=0.0, atol=1e-4)

            difference = (candidates.proposal_log_probs - actual).abs().max()

            if temperature == 1.0:
                assert difference == 0.0
            else:
                assert difference > 0.1

    @each_kind
    def test_rows_are_fed_until_they_end(
        self, kind: str, steps: list[tuple[Tensor, Tensor | None]]
    ) -> None:
        num_warmups = 50

        model = CREATE_MODEL[kind]()

        candidates = draw(model, num_warmups, 6)

        (prefixes, rows), *steps = steps

        # One row a source stands for all that begin alike.
        assert_equal(prefixes, [[BOS_IDX], [BOS_IDX]])

        assert rows is None

        # The last token of a cut warmup is not fed.
        assert len(steps) == 5

        source_idx = candidates.source_idx().unsqueeze(1)

        for step_nr, (tokens, _) in enumerate(steps):
            writes = candidates.seq_lens > step_nr

            begun = candidates.seqs[writes, : step_nr + 1]

            # Once for all that have written the same, if there is one that goes on.
            begun = torch.cat([source_idx[writes], begun], dim=1).unique(dim=0)

            assert_equal(tokens.flatten().sort()[0], begun[:, -1].sort()[0])

        assert 2 < tokens.size(0) < num_warmups

    @each_kind
    @pytest.mark.parametrize("temperature", [1.0, 0.3])
    def test_rows_that_begin_alike_go_on_as_if_alone(
        self, kind: str, temperature: float
    ) -> None:
        num_warmups = 12

        model = CREATE_MODEL[kind](num_layers=2)

        conditional = create_conditional_model(model)

        layout = create_layout()

        num_rows = len(SOURCES) * num_warmups

        uniforms = torch.rand((num_rows, 6), dtype=torch.float64)

        def draw_for(num_repeats: int, num_drawn: int) -> Candidates:
            sources = [s for s in SOURCES for _ in range(num_repeats)]

            prefixes = torch.full((len(sources), 1), BOS_IDX, device=device)

            with torch.no_grad():
                return draw_candidates(
                    conditional,
                    conditional.encode(*create_source(sources)),
                    layout,
                    prefixes,
                    num_warmups=num_drawn,
                    max_warmup_len=6,
                    temperature=temperature,
                    uniforms=uniforms.to(device),
                )

        candidates, alone = draw_for(1, num_warmups), draw_for(num_warmups, 1)

        # Or nothing would be shared.
        assert bool(candidates.duplicates().any())

        assert_equal(candidates.seqs, alone.seqs)
        assert_equal(candidates.cut, alone.cut)

        for log_probs in ("proposal_log_probs", "warmup_log_probs"):
            assert_close(
                getattr(candidates, log_probs).flatten(),
                getattr(alone, log_probs).flatten(),
                rtol=0.0,
                atol=1e-5,
            )

    def test_call_draws_from_restricted_vocabulary(self) -> None:
        # The rows 8 and 9 of the embedding stand for no token.
        model = create_tiny_model(vocab_size=10)

        candidates = draw(model, 500, 3)

        assert candidates.num_warmups == 500
        assert candidates.seqs.dtype == torch.int64
        assert candidates.proposal_log_probs.dtype == torch.float32
        assert get_warmup_log_probs(candidates).dtype == torch.float32

        at = torch.arange(candidates.seqs.size(1), device=device)

        written = at < candidates.seq_lens.unsqueeze(1)

        # Neither separator nor control symbols nor what is no token at all.
        assert set(candidates.seqs[written].tolist()) == set(WORDS)

        assert set(candidates.seqs[~written].tolist()) == {PAD_IDX}

        # Only a forced separator makes a warmup cut.
        assert_equal(candidates.cut, candidates.seq_lens == 3)

        assert set(candidates.seq_lens.tolist()) == {0, 1, 2, 3}

        assert_equal(candidates.source_idx(), [0] * 500 + [1] * 500)

    def test_banned_tokens_are_never_drawn(self) -> None:
        model = create_tiny_model()

        with torch.no_grad():
            # Whatever the decoder says, it points at EOS and away from the words.
            _, bias = get_last_layer_norm(model).parameters()

            embedding = get_embedding(model)

            bias.copy_(50.0 * (embedding[EOS_IDX] - embedding[list(WORDS)].mean(dim=0)))

        for settings in PROPOSALS:
            candidates = draw(model, 100, 2, **settings)

            tokens = set(candidates.seqs.flatten().tolist())

            assert tokens <= {PAD_IDX, *WORDS}

            log_probs = rescore(model, candidates)

            assert_close(get_warmup_log_probs(candidates), log_probs, atol=1e-4, rtol=0)

    @pytest.mark.parametrize("max_warmup_len", [1, 2])
    def test_forced_separator_costs_nothing(self, max_warmup_len: int) -> None:
        model = create_tiny_model()

        candidates = draw(model, 2000, max_warmup_len, sources=SOURCES[:1])

        # P(c|x) of all outcomes sums to 1.
        probs = dict(zip(to_lists(candidates), candidates.proposal_log_probs[0].exp()))

        assert len(probs) == 1 + 3 + (9 if max_warmup_len == 2 else 0)

        assert float(sum(probs.values())) == pytest.approx(1.0, abs=1e-5)

    @each_kind
    def test_call_works_when_all_warmups_are_empty(self, kind: str) -> None:
        model = CREATE_MODEL[kind]()

        point_at_separator(model)

        candidates = draw(model, 4, 3)

        assert_equal(candidates.seqs, [[PAD_IDX]] * 8)
        assert_equal(candidates.seq_lens, [0] * 8)
        assert_equal(candidates.cut, [False] * 8)

        assert_close(candidates.proposal_log_probs, rescore(model, candidates))

    def test_call_is_reproducible(self) -> None:
        model = create_tiny_model()

        one, same, other = (draw(model, 32, 4, seed=seed) for seed in (1, 1, 2))

        assert_equal(one.seqs, same.seqs)
        assert_equal(one.proposal_log_probs, same.proposal_log_probs)

        assert to_lists(one) != to_lists(other)

    def test_candidates_of_source_are_independent(self) -> None:
        warmups, log_probs = enumerate_log_probs(create_tiny_model(), 1)

        # Many sources, two candidates each.
        candidates = draw(create_tiny_model(), 2, 1, sources=SOURCES[:1] * 4_000)

        first, second = to_indices(candidates, warmups).unbind(dim=1)

        probs = log_probs[0].exp()

        counts = (first * len(warmups) + second).bincount(minlength=16)

        assert_follows(counts, probs.outer(probs).flatten())

    @each_kind
    def test_call_needs_evaluation_mode(self, kind: str) -> None:
        model = CREATE_MODEL[kind](num_layers=2, dropout_p=0.5).train()

        with evaluation_mode(model):
            candidates = draw(model, 16, 6)

            log_probs = rescore(model, candidates)

        assert model.training

        # Dropout would make any two passes differ.
        assert_close(candidates.proposal_log_probs, log_probs, rtol=0.0, atol=1e-4)

        assert (candidates.proposal_log_probs - rescore(model, candidates)).abs().max() > 0.1  # fmt: skip

    def test_call_does_not_record_gradients(self) -> None:
        candidates = draw(create_tiny_model(), 2, 2)

        assert not candidates.proposal_log_probs.requires_grad
        assert not get_warmup_log_probs(candidates).requires_grad

    @pytest.mark.parametrize("settings", PROPOSALS, ids=str)
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_call_raises_error_when_model_has_diverged(
        self, value: float, settings: Settings
    ) -> None:
        model = create_tiny_model()

        with torch.no_grad():
            _, bias = get_last_layer_norm(model).parameters()

            bias.fill_(value)

        with pytest.raises(WarmupError, match="not a number.*`optimizer.config.lr`"):
            draw(model, 2, 3, **settings)

    def test_call_raises_error_when_model_has_diverged_for_one_source(self) -> None:
        model = create_tiny_model()

        with torch.no_grad():
            # The first source does not hold it, nor does any warmup.
            get_embedding(model)[UNK_IDX] = math.nan

        with pytest.raises(WarmupError, match="not a number"):
            draw(model, 2, 3, sources=[SOURCES[0], [UNK_IDX, EOS_IDX]])


def point_at_separator(model: Model) -> None:
    """Makes the separator certain, whatever the decoder reads."""
    separator = torch.tensor([SEPARATOR_IDX], device=device)

    model.final_proj.register_forward_hook(
        lambda module, args, logits: logits.index_fill(-1, separator, 50.0)
    )


class TestCandidates:
    def test_duplicates_marks_all_but_first(self) -> None:
        candidates = create_candidates(
            [
                [[5], [5, 6], [5], [], [5], []],
                # Another source's warmups are no duplicates, nor is a prefix.
                [[5], [5, 5], [6, 5], [5, 6], [6], []],
            ],
            max_warmup_len=2,
        )

        assert_equal(
            candidates.duplicates(),
            [[False, False, True, False, True, True], [False] * 6],
        )

        distinct, places = candidates.distinct()

        assert_equal(distinct, [0, 1, 3, 6, 7, 8, 9, 10, 11])

        assert_equal(places, [0, 1, 0, 2, 0, 2, 3, 4, 5, 6, 7, 8])


class TestConcatCandidates:
    def test_call_puts_sources_one_after_the_other(self) -> None:
        short, long = (
            create_candidates(warmups, max_warmup_len=3)
            for warmups in ([[[5], []]], [[[6, 7, 5], [6]], [[], [7, 7]]])
        )

        short = replace(
            short,
            proposal_log_probs=torch.tensor([[-1.0, -2.0]], device=device),
            warmup_log_probs=torch.tensor([[-0.5, -0.25]], device=device),
        )

        long = replace(long, warmup_log_probs=torch.ones((2, 2), device=device))

        joined = concat_candidates([short, long], PAD_IDX)

        assert to_lists(joined) == [(5,), (), (6, 7, 5), (6,), (), (7, 7)]

        # Told apart by their padding.
        assert_equal(joined.seqs[0], [5, PAD_IDX, PAD_IDX])

        assert_equal(joined.cut, [False, False, True, False, False, False])

        assert_equal(joined.proposal_log_probs, [[-1.0, -2.0], [0.0, 0.0], [0.0, 0.0]])

        assert_equal(
            get_warmup_log_probs(joined), [[-0.5, -0.25], [1.0, 1.0], [1.0, 1.0]]
        )

        assert_equal(joined.source_idx(), [0, 0, 1, 1, 2, 2])

    def test_past_is_dropped(self) -> None:
        parts = [draw(create_tiny_model(), 2, 2, seed=seed) for seed in (0, 1)]

        assert parts[0].past is not None

        assert concat_candidates(parts, PAD_IDX).past is None

    def test_unknown_log_probs_stay_unknown(self) -> None:
        part = create_candidates([[[5], []]], max_warmup_len=3)

        known = replace(part, warmup_log_probs=part.proposal_log_probs)

        assert concat_candidates([known, part], PAD_IDX).warmup_log_probs is None


VOCAB_SIZES = [2, 63, 64, 65, 128, 150, 1000]


def patch_rand(monkeypatch: pytest.MonkeyPatch, values: Sequence[float]) -> None:
    """Lets ``torch.rand`` return these numbers, one after the other in each row."""

    def rand(size: Any, **kwargs: Any) -> Tensor:
        assert kwargs["dtype"] == torch.float64

        return torch.tensor(values, **kwargs).view(-1, 1).expand(size).clone()

    monkeypatch.setattr(torch, "rand", rand)


class TestSampleTokens:
    @pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
    def test_call_follows_distribution(self, vocab_size: int) -> None:
        torch.manual_seed(0)

        # Not normalised, some of them impossible.
        logits = 2.0 * torch.randn(vocab_size, device=device) - 3.0

        logits[3::7] = -torch.inf

        num_rows, num_samples = 1_000, 40

        tokens, log_probs = sample_tokens(logits.expand(num_rows, -1), num_samples)

        assert tokens.shape == log_probs.shape == (num_rows, num_samples)

        counts = tokens.flatten().bincount(minlength=vocab_size)

        assert_follows(counts, logits.softmax(dim=0))

        assert_close(log_probs, logits.log_softmax(dim=0)[tokens])

    def test_rows_have_their_own_distributions(self) -> None:
        torch.manual_seed(0)

        logits = torch.randn((3, 70), device=device)

        tokens, log_probs = sample_tokens(logits, 10_000)

        for row in range(3):
            counts = tokens[row].bincount(minlength=70)

            assert_follows(counts, logits[row].softmax(dim=0))

        assert_close(log_probs, logits.log_softmax(dim=1).gather(1, tokens))

    def test_samples_of_row_are_independent(self) -> None:
        torch.manual_seed(0)

        logits = torch.tensor([0.0, 1.0, 0.5, -1.0], device=device)

        tokens, _ = sample_tokens(logits.expand(5_000, -1), 3)

        probs = logits.softmax(dim=0)

        for i, j in ((0, 1), (0, 2), (1, 2)):
            counts = (4 * tokens[:, i] + tokens[:, j]).bincount(minlength=16)

            assert_follows(counts, probs.outer(probs).flatten())

    @pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
    def test_call_meets_inverse_of_cumulative_distribution(
        self, monkeypatch: pytest.MonkeyPatch, vocab_size: int
    ) -> None:
        # A number in the middle of each token's share, and at its borders.
        for shift in (0.5, 1e-9, 1.0 - 1e-9):
            values = [(token + shift) / vocab_size for token in range(vocab_size)]

            patch_rand(monkeypatch, values)

            logits = torch.zeros((vocab_size, vocab_size), device=device)

            tokens, _ = sample_tokens(logits)

            assert_equal(tokens.squeeze(1), list(range(vocab_size)))

    @pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
    @pytest.mark.parametrize("u", [0.0, 1e-300, 0.5, 1.0 - 2.0**-53, 1.0])
    def test_call_draws_only_token_there_is(
        self, monkeypatch: pytest.MonkeyPatch, u: float, vocab_size: int
    ) -> None:
        patch_rand(monkeypatch, [u])

        # Each token alone, whatever its logit.
        logits = torch.full((vocab_size, vocab_size), -torch.inf, device=device)

        logits.diagonal().copy_(torch.linspace(-80.0, 80.0, vocab_size, device=device))

        tokens, log_probs = sample_tokens(logits, 2)

        assert_equal(tokens[:, 1], list(range(vocab_size)))

        assert_equal(log_probs, torch.zeros_like(log_probs))

    @pytest.mark.parametrize(
        ("u", "expected"), [(0.0, 2), (1.0 - 2.0**-53, 4), (1.0, 4)]
    )
    def test_call_never_draws_what_is_impossible(
        self, monkeypatch: pytest.MonkeyPatch, u: float, expected: int
    ) -> None:
        patch_rand(monkeypatch, [u])

        # Also where the last block is all impossible.
        for width in (7, 64, 65, 200):
            probs = torch.zeros((1, width), device=device)

            probs[0, 2:5] = torch.tensor([0.5, 0.2, 0.3], device=device)

            for scale in (1.0, 0.9999, 1.0001):
                tokens, _ = sample_tokens(probs.mul(scale).log())

                assert_equal(tokens, [[expected]])

    def test_rounding_never_draws_what_is_impossible(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)

        # Two blocks of tokens that differ by many orders of magnitude, so that every sum
        # rounds; the first and the last token of each are impossible.
        logits = 8.0 * torch.randn((200, 128), device=device)

        logits[:, [0, 63, 64, 127]] = -torch.inf

        probs = (logits - logits.amax(dim=1, keepdim=True)).exp().double()

        border = probs[:, :64].sum(dim=1) / probs.sum(dim=1)

        for num_units in range(-12, 13):
            # The numbers next to where one block ends and the other one begins.
            patch_rand(monkeypatch, (border + num_units * 2.0**-54).tolist())

            tokens, _ = sample_tokens(logits)

            assert bool((probs.gather(1, tokens) > 0.0).all())

    def test_call_hardly_draws_what_is_hardly_possible(self) -> None:
        torch.manual_seed(0)

        logits = torch.full((130,), math.log(1e-30), device=device)

        logits[[40, 70]] = 0.0

        # The first of each block and the last of all among them.
        tokens, log_probs = sample_tokens(logits.expand(20_000, -1), 5)

        assert set(tokens.flatten().tolist()) == {40, 70}

        assert_close(log_probs, torch.full_like(log_probs, math.log(0.5)))

    @pytest.mark.parametrize("vocab_size", [2, 66])
    def test_call_reaches_tail_of_distribution(
        self, monkeypatch: pytest.MonkeyPatch, vocab_size: int
    ) -> None:
        patch_rand(monkeypatch, [1.0 - 5e-10])

        # In fp32 the last one would vanish beside the first.
        logits = torch.full((1, vocab_size), -torch.inf, device=device)

        logits[0, 0], logits[0, -1] = -1e-9, math.log(1e-9)

        tokens, log_probs = sample_tokens(logits)

        assert_equal(tokens, [[vocab_size - 1]])

        assert_close(log_probs, [[math.log(1e-9)]])

    @pytest.mark.parametrize("vocab_size", VOCAB_SIZES)
    def test_call_draws_some_token_when_probabilities_are_not_numbers(
        self, vocab_size: int
    ) -> None:
        logits = torch.randn((4, vocab_size), device=device)

        logits[0] = math.nan
        logits[1, -1] = math.nan
        logits[2, 0] = math.inf
        logits[3] = -math.inf

        # An index out of range would abort a GPU before anybody can tell why.
        tokens, log_probs = sample_tokens(logits, 50)

        assert bool((tokens >= 0).all()) and bool((tokens < vocab_size).all())

        # By this the caller finds them.
        assert not bool(log_probs.isfinite().any())
