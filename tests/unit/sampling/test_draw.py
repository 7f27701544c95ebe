# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from fairseq2.models.transformer import TransformerModel
from torch import Tensor

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    PAD_IDX,
    SEPARATOR_IDX,
    WORDS,
    assert_close,
    assert_equal,
    create_candidates,
    create_layout,
    create_source,
    create_tiny_model,
    device,
    get_embedding,
    get_last_layer_norm,
    list_sentences,
    pad_rows,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import DecoderLayout, join_rows
from warmup_plugin.models import conditional
from warmup_plugin.models.conditional import TransformerConditional, evaluation_mode
from warmup_plugin.sampling import Candidates, draw_candidates
from warmup_plugin.sampling.draw import sample_tokens

SOURCES = [[5, 6, EOS_IDX], [7, 7, 5, 6, 5, EOS_IDX]]


def draw(
    model: TransformerModel,
    num_warmups: int,
    max_warmup_len: int,
    *,
    sources: Sequence[Sequence[int]] = SOURCES,
    layout: DecoderLayout | None = None,
    prefix: Sequence[int] = (BOS_IDX,),
    temperature: float = 1.0,
    seed: int = 0,
) -> Candidates:
    torch.manual_seed(seed)

    wrapper = TransformerConditional(model)

    with torch.no_grad():
        source = wrapper.encode(*create_source(sources))

    return draw_candidates(
        wrapper,
        source,
        layout or create_layout(prefix_len=len(prefix)),
        torch.tensor([prefix] * len(sources), device=device),
        num_warmups=num_warmups,
        max_warmup_len=max_warmup_len,
        temperature=temperature,
    )


@torch.no_grad()
def rescore(
    model: TransformerModel,
    candidates: Candidates,
    *,
    sources: Sequence[Sequence[int]] = SOURCES,
    layout: DecoderLayout | None = None,
    prefix: Sequence[int] = (BOS_IDX,),
) -> Tensor:
    """Scores warmups in one pass without cache. *Shape:* :math:`(N,K)`."""
    layout = layout or create_layout(prefix_len=len(prefix))

    wrapper = TransformerConditional(model)

    target_seqs, target_seq_lens = pad_rows([[*prefix, EOS_IDX]] * len(sources))

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

    source = wrapper.encode(*create_source(sources))

    ban_mask = layout.warmup_ban_mask(wrapper.num_logits, device)

    scores = wrapper.score(source, rows, ban_mask)

    return scores.warmup_log_probs.view_as(candidates.proposal_log_probs)


@torch.no_grad()
def enumerate_log_probs(
    model: TransformerModel, max_warmup_len: int, temperature: float
) -> tuple[list[tuple[int, ...]], Tensor]:
    """
    Lists every warmup and its log-probability for each source of ``SOURCES``.

    Nothing of the package is used but the model itself: one forward without cache for
    every single prefix.
    """
    warmups = [tuple(words) for words in list_sentences(max_warmup_len)]

    allowed = torch.tensor([SEPARATOR_IDX, *WORDS], device=device)

    log_probs = torch.zeros((len(SOURCES), len(warmups)), device=device)

    for n, source in enumerate(SOURCES):
        for i, warmup in enumerate(warmups):
            inputs = create_source([[BOS_IDX, *warmup]])

            # (S, 4)
            logits = model(*create_source([source]), *inputs)[0][:, allowed]

            step_log_probs = (logits / temperature).log_softmax(dim=-1)

            for step_nr, token in enumerate(warmup):
                log_probs[n, i] += step_log_probs[step_nr, 1 + WORDS.index(token)]

            if len(warmup) < max_warmup_len:
                log_probs[n, i] += step_log_probs[-1, 0]

    return warmups, log_probs


def to_lists(candidates: Candidates) -> list[tuple[int, ...]]:
    return [
        tuple(seq[:seq_len])
        for seq, seq_len in zip(candidates.seqs.tolist(), candidates.seq_lens.tolist())
    ]


@pytest.fixture
def selections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Records each compaction: the rows before and after."""
    selections: list[tuple[int, int]] = []

    kls = conditional._TransformerRowDecoder

    select = kls.select

    def record(self: Any, rows: Tensor) -> None:
        selections.append((self._encoded.size(0), rows.size(0)))

        select(self, rows)

    monkeypatch.setattr(kls, "select", record)

    return selections


class TestDrawCandidates:
    @pytest.mark.parametrize(
        ("max_warmup_len", "temperature"), [(2, 1.0), (3, 1.0), (3, 0.7), (2, 2.0)]
    )
    def test_call_follows_distribution_of_model(
        self,
        max_warmup_len: int,
        temperature: float,
        selections: list[tuple[int, int]],
    ) -> None:
        model = create_tiny_model()

        warmups, log_probs = enumerate_log_probs(model, max_warmup_len, temperature)

        # Forced separators included, all warmups together have probability 1.
        assert_close(log_probs.exp().sum(dim=1), [1.0, 1.0])

        num_warmups = 4_000

        candidates = draw(model, num_warmups, max_warmup_len, temperature=temperature)

        # Finished rows were left out on the way.
        assert selections and all(after < before for before, after in selections)

        drawn = to_lists(candidates)

        for n in range(len(SOURCES)):
            counts = Counter(drawn[n * num_warmups : (n + 1) * num_warmups])

            assert set(counts) <= set(warmups)

            # (count, expected) of each cell; rare warmups share the first.
            cells = [(0.0, 0.0)]

            for warmup, log_prob in zip(warmups, log_probs[n].tolist()):
                expected = num_warmups * math.exp(log_prob)

                if expected >= 10.0:
                    cells.append((counts[warmup], expected))
                else:
                    cells[0] = (cells[0][0] + counts[warmup], cells[0][1] + expected)

            if cells[0][1] == 0.0:
                del cells[0]

            chi_square = sum((x - expected) ** 2 / expected for x, expected in cells)

            freedom = len(cells) - 1

            assert freedom >= 12

            # Mean and standard deviation of the chi-square distribution.
            assert chi_square < freedom + 4 * math.sqrt(2 * freedom)

        # Both sources differ, or mixing them up would not be seen.
        assert (log_probs[0] - log_probs[1]).abs().max() > 0.2

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_proposal_log_probs_are_those_of_enumeration(
        self, temperature: float
    ) -> None:
        model = create_tiny_model()

        warmups, log_probs = enumerate_log_probs(model, 2, temperature)

        candidates = draw(model, 50, 2, temperature=temperature)

        idx = [warmups.index(warmup) for warmup in to_lists(candidates)]

        expected = log_probs.gather(1, torch.tensor(idx, device=device).view(2, 50))

        assert_close(candidates.proposal_log_probs, expected, rtol=0.0, atol=2e-5)

    @pytest.mark.parametrize("prefix", [(BOS_IDX,), (BOS_IDX, 7)])
    @pytest.mark.parametrize("num_warmups", [1, 3, 64])
    def test_proposal_log_probs_equal_uncached_scores(
        self, num_warmups: int, prefix: tuple[int, ...]
    ) -> None:
        model = create_tiny_model(num_layers=2)

        # Long warmups: many steps with and without compaction.
        for seed in range(3):
            candidates = draw(model, num_warmups, 12, prefix=prefix, seed=seed)

            log_probs = rescore(model, candidates, prefix=prefix)

            assert_close(candidates.proposal_log_probs, log_probs, rtol=0.0, atol=1e-4)

    def test_temperature_is_part_of_proposal_but_not_of_score(self) -> None:
        model = create_tiny_model()

        candidates = draw(model, 16, 4, temperature=0.5)

        difference = candidates.proposal_log_probs - rescore(model, candidates)

        assert difference.abs().max() > 0.1

        assert not candidates.on_policy

    def test_warmups_are_well_formed(self) -> None:
        # The rows 8 and 9 of the embedding stand for no token.
        model = create_tiny_model(vocab_size=10)

        candidates = draw(model, 500, 3)

        assert candidates.num_warmups == 500
        assert candidates.on_policy
        assert candidates.seqs.dtype == torch.int64
        assert candidates.proposal_log_probs.dtype == torch.float32

        at = torch.arange(candidates.seqs.size(1), device=device)

        written = at < candidates.seq_lens.unsqueeze(1)

        # Neither separator nor control symbols nor what is no token at all.
        assert set(candidates.seqs[written].tolist()) == set(WORDS)

        assert set(candidates.seqs[~written].tolist()) == {PAD_IDX}

        # Only a forced separator makes a warmup cut.
        assert_equal(candidates.cut, candidates.seq_lens == 3)

        assert set(candidates.seq_lens.tolist()) == {0, 1, 2, 3}

        assert_equal(candidates.source_idx(), [0] * 500 + [1] * 500)

    def test_forced_separator_costs_nothing(self) -> None:
        model = create_tiny_model()

        # The first word alone: P(c|x) of the four outcomes sums to 1.
        candidates = draw(model, 2000, 1, sources=SOURCES[:1])

        probs = dict(zip(to_lists(candidates), candidates.proposal_log_probs[0].exp()))

        assert set(probs) == {(), *((word,) for word in WORDS)}

        assert float(sum(probs.values())) == pytest.approx(1.0, abs=1e-5)

    def test_all_empty_warmups_have_one_column(self) -> None:
        model = create_tiny_model()

        with torch.no_grad():
            # Whatever the decoder says, it points at the separator.
            weight, bias = get_last_layer_norm(model).parameters()

            weight.zero_()

            bias.copy_(20.0 * get_embedding(model)[SEPARATOR_IDX])

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

    def test_call_needs_evaluation_mode(self) -> None:
        model = create_tiny_model(num_layers=2, dropout_p=0.5).train()

        with evaluation_mode(model):
            candidates = draw(model, 16, 6)

            log_probs = rescore(model, candidates)

        assert model.training

        # Dropout would make any two passes differ.
        assert_close(candidates.proposal_log_probs, log_probs, rtol=0.0, atol=1e-4)

        assert (candidates.proposal_log_probs - rescore(model, candidates)).abs().max() > 0.1  # fmt: skip

    def test_call_does_not_record_gradients(self) -> None:
        model = create_tiny_model()

        assert not draw(model, 2, 2).proposal_log_probs.requires_grad

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_call_raises_error_when_model_has_diverged(self, value: float) -> None:
        model = create_tiny_model()

        with torch.no_grad():
            _, bias = get_last_layer_norm(model).parameters()

            bias.fill_(value)

        with pytest.raises(WarmupError, match="not a number"):
            draw(model, 2, 3)


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


class TestSampleTokens:
    def test_call_follows_distribution(self) -> None:
        torch.manual_seed(0)

        probs = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05, 0.0], device=device)

        num_rows = 50_000

        tokens = sample_tokens(probs.log().expand(num_rows, -1))

        counts = tokens.bincount(minlength=6)

        assert counts[1] == 0 and counts[5] == 0

        errors = (num_rows * probs * (1.0 - probs)).sqrt()

        assert bool(((counts - num_rows * probs).abs() <= 4 * errors).all())

    @pytest.mark.parametrize(
        ("u", "expected"), [(0.0, 2), (1.0 - 2.0**-53, 4), (1.0, 4)]
    )
    def test_call_never_draws_what_is_impossible(
        self, monkeypatch: pytest.MonkeyPatch, u: float, expected: int
    ) -> None:
        def rand(size: Any, **kwargs: Any) -> Tensor:
            return torch.full(size, u, **kwargs)

        monkeypatch.setattr(torch, "rand", rand)

        probs = [[0.0, 0.0, 0.5, 0.2, 0.3, 0.0, 0.0]]

        for scale in (1.0, 0.9999, 1.0001):
            log_probs = torch.tensor(probs, device=device).mul(scale).log()

            assert_equal(sample_tokens(log_probs), [expected])

    def test_call_reaches_tail_of_distribution(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def rand(size: Any, **kwargs: Any) -> Tensor:
            return torch.full(size, 1.0 - 5e-10, **kwargs)

        monkeypatch.setattr(torch, "rand", rand)

        # In fp32 the second would vanish beside the first.
        log_probs = torch.tensor([[-1e-9, math.log(1e-9)]], device=device)

        assert_equal(sample_tokens(log_probs), [1])

    def test_call_draws_some_token_when_probabilities_are_not_numbers(self) -> None:
        log_probs = torch.full((3, 5), math.nan, device=device)

        # An index out of range would abort a GPU before anybody can tell why.
        assert bool((sample_tokens(log_probs) < 5).all())
