# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Final

import pytest
import torch
from fairseq2.models.transformer import TransformerModel
from torch import Tensor

from tests.common import (
    BOS_IDX,
    EOS_IDX,
    PAD_IDX,
    SEPARATOR_IDX,
    assert_close,
    assert_equal,
    create_layout,
    create_source,
    create_tiny_model,
    device,
    get_last_layer_norm,
)
from tests.unit.sampling.cases import assert_follows, to_lists
from warmup_plugin.errors import WarmupError
from warmup_plugin.layout import join_rows
from warmup_plugin.models.encoder_decoder import TransformerConditional
from warmup_plugin.sampling import Candidates
from warmup_plugin.sampling.stochastic_beam import (
    _extend,
    _log1mexp,
    draw_distinct_candidates,
)

VOCAB_SIZE: Final = 10

WORDS: Final = range(5, VOCAB_SIZE)

SOURCES: Final = [[5, 6, EOS_IDX], [7, 9, 5, 8, 5, EOS_IDX]]

PREFIXES: Final = [[BOS_IDX, 5], [BOS_IDX, 8]]

TARGET: Final = [6, 9, EOS_IDX]


def create_model(*, num_layers: int = 1) -> TransformerModel:
    # Two rows of its embedding stand for no token.
    return create_tiny_model(vocab_size=VOCAB_SIZE + 2, num_layers=num_layers, seed=4)


def draw(
    model: TransformerModel,
    num_warmups: int,
    max_warmup_len: int,
    *,
    num_repeats: int = 1,
    seed: int = 1,
) -> Candidates:
    """Draws for both sources in turn, ``num_repeats`` times each."""
    torch.manual_seed(seed)

    wrapper = TransformerConditional(model)

    with torch.no_grad():
        source = wrapper.encode(*create_source(SOURCES * num_repeats))

    return draw_distinct_candidates(
        wrapper,
        source,
        create_layout(prefix_len=2, vocab_size=VOCAB_SIZE),
        torch.tensor(PREFIXES * num_repeats, device=device),
        num_warmups=num_warmups,
        max_warmup_len=max_warmup_len,
    )


def list_warmups(max_warmup_len: int) -> list[tuple[int, ...]]:
    return [
        words
        for length in range(max_warmup_len + 1)
        for words in product(WORDS, repeat=length)
    ]


@torch.no_grad()
def score(
    model: TransformerModel,
    source_nr: int,
    warmups: Sequence[tuple[int, ...]],
    max_warmup_len: int,
) -> tuple[Tensor, Tensor]:
    """
    Computes a and b of warmups of a source.

    Nothing of the package is used but the model itself: a forward without cache.

    :returns: *Shape:* :math:`(C)` each.
    """
    allowed = [SEPARATOR_IDX, *WORDS]

    prefix = PREFIXES[source_nr]

    rows = [[*prefix, *warmup, SEPARATOR_IDX, *TARGET] for warmup in warmups]

    # (C, S, V)
    logits = model(
        *create_source([SOURCES[source_nr]] * len(rows)), *create_source(rows)
    )

    logits = logits.double()

    warmup_log_probs = logits[:, :, allowed].log_softmax(dim=2).tolist()

    # The separator has no probability in y.
    logits[:, :, SEPARATOR_IDX] = -torch.inf

    target_log_probs = logits.log_softmax(dim=2).tolist()

    scores = torch.zeros((2, len(rows)), dtype=torch.float64, device=device)

    for i, warmup in enumerate(warmups):
        # A separator after a warmup of full length costs nothing.
        for step_nr, token in enumerate([*warmup, SEPARATOR_IDX][:max_warmup_len]):
            at = len(prefix) - 1 + step_nr

            scores[0, i] += warmup_log_probs[i][at][allowed.index(token)]

        for step_nr, token in enumerate(TARGET):
            at = len(prefix) + len(warmup) + step_nr

            scores[1, i] += target_log_probs[i][at][token]

    return scores[0], scores[1]


def to_indices(candidates: Candidates, warmups: Sequence[tuple[int, ...]]) -> Tensor:
    """
    Finds the candidates of the two sources in the list of all warmups.

    :returns: *Shape:* :math:`(2,R,K)`, R repeats.
    """
    numbers = {warmup: i for i, warmup in enumerate(warmups)}

    idx = torch.tensor([numbers[w] for w in to_lists(candidates)], device=device)

    return idx.view(-1, 2, candidates.num_warmups).transpose(0, 1)


class TestDrawDistinctCandidates:
    @pytest.mark.parametrize("num_warmups", [1, 3])
    @pytest.mark.parametrize("max_warmup_len", [2, 3])
    def test_first_candidate_follows_distribution_of_model(
        self, max_warmup_len: int, num_warmups: int
    ) -> None:
        model = create_model()

        warmups = list_warmups(max_warmup_len)

        candidates = draw(model, num_warmups, max_warmup_len, num_repeats=3_000)

        idx = to_indices(candidates, warmups)[:, :, 0]

        for source_nr in range(2):
            a, _ = score(model, source_nr, warmups, max_warmup_len)

            # Forced separators included, all warmups together have probability 1.
            assert float(a.exp().sum()) == pytest.approx(1.0)

            assert_follows(idx[source_nr].bincount(minlength=a.size(0)), a.exp())

    @pytest.mark.parametrize("max_warmup_len", [2, 3])
    def test_candidates_are_drawn_without_replacement(
        self, max_warmup_len: int
    ) -> None:
        model = create_model()

        warmups = list_warmups(max_warmup_len)

        candidates = draw(model, 2, max_warmup_len, num_repeats=5_000)

        idx = to_indices(candidates, warmups)

        for source_nr in range(2):
            probs = score(model, source_nr, warmups, max_warmup_len)[0].exp()

            # Extensions perturbed afresh, without the condition on their maximum, fail
            # here, and so do ones that are merely shifted to it.
            # P(i) P(j) / (1 - P(i)), (C, C)
            pair_probs = probs.outer(probs) / (1.0 - probs).unsqueeze(1)

            pair_probs.fill_diagonal_(0.0)

            first, second = idx[source_nr].unbind(dim=1)

            pairs = first * len(warmups) + second

            assert_follows(
                pairs.bincount(minlength=pair_probs.numel()), pair_probs.flatten()
            )

    @pytest.mark.parametrize("max_warmup_len", [2, 3])
    @pytest.mark.parametrize("num_warmups", [2, 6])
    def test_weighted_sum_is_unbiased(
        self, num_warmups: int, max_warmup_len: int
    ) -> None:
        model = create_model()

        warmups = list_warmups(max_warmup_len)

        num_repeats = 4_000

        candidates = draw(model, num_warmups, max_warmup_len, num_repeats=num_repeats)

        assert candidates.warmup_log_probs is not None

        idx = to_indices(candidates, warmups)

        # (2 R, K) -> (2, R, K)
        log_weights = (
            (candidates.warmup_log_probs - candidates.proposal_log_probs)
            .double()
            .view(num_repeats, 2, num_warmups)
            .transpose(0, 1)
        )

        for source_nr in range(2):
            a, b = score(model, source_nr, warmups, max_warmup_len)

            # P(y|x), and P(c|x) summed over all c.
            for f in (b, torch.zeros_like(b)):
                log_terms = log_weights[source_nr] + f[idx[source_nr]]

                # (R)
                estimates = log_terms.exp().mean(dim=1)

                exact = (a + f).exp().sum()

                error = estimates.std() / math.sqrt(num_repeats)

                # So small that a wrong q would be seen.
                assert error < 0.02 * exact

                assert (estimates.mean() - exact).abs() < 4 * error

    def test_inclusion_is_as_likely_as_claimed(self) -> None:
        model = create_model()

        warmups = list_warmups(2)

        num_repeats = 5_000

        candidates = draw(model, 3, 2, num_repeats=num_repeats)

        # 1 / P(G > threshold): (2, R, K)
        factors = (
            (-candidates.proposal_log_probs - math.log(3))
            .exp()
            .view(num_repeats, 2, 3)
            .transpose(0, 1)
        )

        idx = to_indices(candidates, warmups)

        for source_nr in range(2):
            # Where c is not among the three, the factor is zero.
            # (R, C)
            estimates = torch.zeros((num_repeats, len(warmups)), device=device)

            estimates.scatter_(1, idx[source_nr], factors[source_nr])

            often = estimates.count_nonzero(dim=0) >= 500

            assert often.sum() >= 8

            errors = estimates.std(dim=0) / math.sqrt(num_repeats)

            # For each warmup on its own, the mean is one.
            deviations = (estimates.mean(dim=0) - 1.0).abs() / errors

            assert float(deviations[often].max()) < 4.0

    @pytest.mark.parametrize("max_warmup_len", [1, 2, 3])
    def test_call_finds_all_warmups_when_as_many_are_asked_for(
        self, max_warmup_len: int
    ) -> None:
        model = create_model()

        warmups = list_warmups(max_warmup_len)

        num_warmups = len(warmups)

        candidates = draw(model, num_warmups, max_warmup_len)

        assert candidates.warmup_log_probs is not None

        # Each is certain to be drawn.
        assert_close(
            candidates.proposal_log_probs,
            torch.full((2, num_warmups), -math.log(num_warmups), device=device),
        )

        idx = to_indices(candidates, warmups)

        for source_nr in range(2):
            assert sorted(idx[source_nr, 0].tolist()) == list(range(num_warmups))

            a, b = score(model, source_nr, warmups, max_warmup_len)

            log_weights = (
                candidates.warmup_log_probs[source_nr]
                - candidates.proposal_log_probs[source_nr]
            )

            log_terms = log_weights.double() + b[idx[source_nr, 0]]

            assert_close(
                log_terms.exp().mean(), (a + b).exp().sum(), rtol=1e-5, atol=0.0
            )

    def test_inclusion_is_not_certain_when_one_warmup_is_left_out(self) -> None:
        candidates = draw(create_model(), len(list_warmups(1)) - 1, 1)

        assert bool((candidates.proposal_log_probs < -math.log(5) - 1e-6).any())

    def test_call_raises_error_when_there_are_too_few_warmups(self) -> None:
        model = create_model()

        # The empty warmup and five words.
        with pytest.raises(WarmupError, match="only 6 different warmups of at most 1"):
            draw(model, 7, 1)

        assert draw(model, 6, 1).num_warmups == 6

    @pytest.mark.parametrize(
        ("num_warmups", "max_warmup_len"), [(1, 1), (5, 2), (8, 3)]
    )
    def test_warmups_are_well_formed(
        self, num_warmups: int, max_warmup_len: int
    ) -> None:
        candidates = draw(create_model(), num_warmups, max_warmup_len, num_repeats=500)

        assert candidates.num_warmups == num_warmups
        assert candidates.seqs.dtype == torch.int64
        assert candidates.proposal_log_probs.dtype == torch.float32

        assert not candidates.duplicates().any()

        at = torch.arange(candidates.seqs.size(1), device=device)

        written = at < candidates.seq_lens.unsqueeze(1)

        # Neither separator nor control symbols nor what is no token at all.
        assert set(candidates.seqs[written].tolist()) == set(WORDS)

        assert set(candidates.seqs[~written].tolist()) == {PAD_IDX}

        # Only a forced separator makes a warmup cut.
        assert_equal(candidates.cut, candidates.seq_lens == max_warmup_len)

        assert set(candidates.seq_lens.tolist()) == set(range(max_warmup_len + 1))

    @pytest.mark.parametrize("num_warmups", [1, 3, 24])
    def test_warmup_log_probs_equal_uncached_scores(self, num_warmups: int) -> None:
        model = create_model(num_layers=2)

        # Many steps, in which beams end, are reordered and pushed out.
        candidates = draw(model, num_warmups, 12, num_repeats=2)

        assert candidates.warmup_log_probs is not None

        warmups = to_lists(candidates)

        log_probs = candidates.warmup_log_probs.double().flatten().split(num_warmups)

        for n in range(4):
            a, _ = score(model, n % 2, warmups[n * num_warmups :][:num_warmups], 12)

            assert_close(log_probs[n], a, rtol=0.0, atol=1e-4)

    @pytest.mark.parametrize("num_warmups", [1, 8])
    def test_past_is_that_of_warmups(self, num_warmups: int) -> None:
        model = create_model(num_layers=2)

        layout = create_layout(prefix_len=2, vocab_size=VOCAB_SIZE)

        candidates = draw(model, num_warmups, 4)

        assert candidates.past is not None

        rows = join_rows(
            layout,
            torch.tensor([[*prefix, *TARGET] for prefix in PREFIXES], device=device),
            torch.tensor([2 + len(TARGET)] * 2, device=device),
            candidates.seqs,
            candidates.seq_lens,
            candidates.cut,
            torch.ones_like(candidates.cut),
            candidates.source_idx(),
        )

        past = candidates.past

        excluded = layout.excluded_tokens(VOCAB_SIZE, device)

        with torch.no_grad():
            target_log_probs = past.decoder.score(rows, past.seq_lens, excluded)

        target_log_probs = target_log_probs.double().view(2, num_warmups)

        warmups = to_lists(candidates)

        for n in range(2):
            _, b = score(model, n, warmups[n * num_warmups :][:num_warmups], 4)

            assert_close(target_log_probs[n], b, rtol=0.0, atol=1e-4)

    def test_sources_do_not_influence_each_other(self) -> None:
        model = create_model()

        warmups = list_warmups(2)

        candidates = draw(model, len(warmups), 2, num_repeats=3)

        assert candidates.warmup_log_probs is not None

        idx = to_indices(candidates, warmups)

        scores = [score(model, n, warmups, 2)[0] for n in range(2)]

        for n in range(6):
            a = scores[n % 2][idx[n % 2, n // 2]]

            assert_close(
                candidates.warmup_log_probs[n].double(), a, rtol=0.0, atol=2e-5
            )

        # They differ, or mixing them up would not be seen.
        assert (scores[0] - scores[1]).abs().max() > 0.2

    def test_call_is_reproducible(self) -> None:
        model = create_model()

        one, same, other = (draw(model, 8, 3, seed=seed) for seed in (3, 3, 4))

        assert_equal(one.seqs, same.seqs)
        assert_equal(one.proposal_log_probs, same.proposal_log_probs)

        assert to_lists(one) != to_lists(other)

    def test_call_does_not_record_gradients(self) -> None:
        assert not draw(create_model(), 2, 2).proposal_log_probs.requires_grad

    @pytest.mark.parametrize("num_warmups", [1, 3, 40])
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_call_raises_error_when_model_has_diverged(
        self, value: float, num_warmups: int
    ) -> None:
        model = create_model()

        with torch.no_grad():
            _, bias = get_last_layer_norm(model).parameters()

            bias.fill_(value)

        with pytest.raises(WarmupError, match="not a number"):
            draw(model, num_warmups, 3)


class TestExtend:
    @pytest.mark.parametrize("noise", [-1000.0, -20.0, 0.0, 2.0, 40.0, 1000.0])
    @pytest.mark.parametrize("log_prob", [0.0, -1e4])
    def test_call_is_stable(self, log_prob: float, noise: float) -> None:
        torch.manual_seed(0)

        log_probs = torch.full((3,), log_prob, dtype=torch.float64, device=device)

        logits = torch.tensor([[0.0, -50.0, -torch.inf, 3.0]] * 3, device=device)

        # Far from what would be drawn freely, exponentials overflow or vanish.
        given = log_probs + noise

        next_log_probs, perturbed, tokens = _extend(log_probs, given, logits, 3)

        assert set(tokens.flatten().tolist()) == {0, 1, 3}

        expected = logits.log_softmax(dim=1).gather(1, tokens) + log_prob

        assert_close(next_log_probs, expected.double(), rtol=1e-6, atol=1e-6)

        # The largest is what it has to be, and the others are below.
        assert_equal(perturbed[:, 0], given)

        assert perturbed.isfinite().all()

        assert bool((perturbed.diff(dim=1) <= 0.0).all())


class TestLog1mexp:
    def test_call_is_accurate_at_both_ends(self) -> None:
        x = torch.tensor(
            [0.0, -1e-20, -math.log(2.0), -1.0, -50.0, -torch.inf],
            dtype=torch.float64,
            device=device,
        )

        # -1e-20 is a warmup that was drawn though it was as unlikely as that.
        expected = [
            -math.inf,
            math.log(1e-20),
            -math.log(2.0),
            math.log(1.0 - math.exp(-1.0)),
            -math.exp(-50.0),
            0.0,
        ]

        assert_close(_log1mexp(x), expected, rtol=1e-12, atol=0.0)
