# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.common import assert_close, assert_equal, device
from warmup_plugin.sampling.truncation import truncate_log_probs


def truncate(probs: list[float], top_k: int | None, top_p: float | None) -> Tensor:
    log_probs = torch.tensor([probs], device=device).log()

    return truncate_log_probs(log_probs, top_k, top_p).exp().squeeze(0)


class TestTruncateLogProbs:
    def test_top_k_keeps_likeliest(self) -> None:
        probs = truncate([0.1, 0.4, 0.2, 0.3], 2, None)

        # 0.4 / 0.7 and 0.3 / 0.7
        assert_close(probs, [0.0, 4 / 7, 0.0, 3 / 7])

    @pytest.mark.parametrize("top_k", [4, 5, 1000])
    def test_top_k_keeps_all_when_vocabulary_is_not_larger(self, top_k: int) -> None:
        assert_close(truncate([0.1, 0.4, 0.2, 0.3], top_k, None), [0.1, 0.4, 0.2, 0.3])

    @pytest.mark.parametrize("top_k", [1, 2, 3])
    def test_top_k_keeps_no_more_when_tokens_are_equally_likely(
        self, top_k: int
    ) -> None:
        probs = truncate([0.1, 0.3, 0.3, 0.3], top_k, None)

        assert_close(probs[probs > 0.0], [1 / top_k] * top_k)

        assert probs[0] == 0.0

    @pytest.mark.parametrize(
        ("top_p", "expected"),
        [
            (1e-9, [0.0, 1.0, 0.0, 0.0]),
            (0.39, [0.0, 1.0, 0.0, 0.0]),
            (0.41, [0.0, 4 / 7, 0.0, 3 / 7]),
            (0.69, [0.0, 4 / 7, 0.0, 3 / 7]),
            (0.71, [0.0, 4 / 9, 2 / 9, 3 / 9]),
            (0.91, [0.1, 0.4, 0.2, 0.3]),
            (1.0, [0.1, 0.4, 0.2, 0.3]),
        ],
    )
    def test_top_p_keeps_smallest_set_of_that_mass(
        self, top_p: float, expected: list[float]
    ) -> None:
        assert_close(truncate([0.1, 0.4, 0.2, 0.3], None, top_p), expected)

    @pytest.mark.parametrize(
        ("probs", "top_p", "num_kept"),
        [
            ([0.1] * 10, 0.4, 4),
            ([0.001] * 1000, 0.02, 20),
            ([0.42, 0.29, 0.27, 0.02], 0.42, 1),
            ([0.28, 0.25, 0.16, 0.13, 0.11, 0.07], 0.93, 5),
            ([0.3, 0.16, 0.15, 0.12, 0.11, 0.1, 0.03, 0.03], 0.73, 4),
        ],
    )
    def test_top_p_is_reached_by_exactly_that_mass(
        self, probs: list[float], top_p: float, num_kept: int
    ) -> None:
        # Rounded to fp32 they do not add up to that.
        truncated = truncate(probs, None, top_p)

        assert_close(truncated[truncated > 0.0], [p / top_p for p in probs[:num_kept]])

    def test_top_p_keeps_unlikeliest_token_when_all_mass_is_asked_for(self) -> None:
        # The last vanishes when it is added to the first, even in fp64.
        log_probs = torch.tensor([[0.0, -80.0]], device=device)

        assert_equal(truncate_log_probs(log_probs, None, 1.0), log_probs)

    @pytest.mark.parametrize(
        ("top_p", "expected"),
        # 0.4 / 0.7 = 0.57
        [(0.55, [0.0, 1.0, 0.0, 0.0]), (0.6, [0.0, 4 / 7, 0.0, 3 / 7])],
    )
    def test_top_p_is_a_share_of_what_top_k_keeps(
        self, top_p: float, expected: list[float]
    ) -> None:
        assert_close(truncate([0.1, 0.4, 0.2, 0.3], 2, top_p), expected)

    @pytest.mark.parametrize(
        ("top_k", "top_p"), [(2, None), (4, None), (None, 0.999), (None, 1.0), (3, 1.0)]
    )
    def test_call_never_keeps_banned_tokens(
        self, top_k: int | None, top_p: float | None
    ) -> None:
        probs = truncate([0.0, 0.75, 0.0, 0.25], top_k, top_p)

        assert_close(probs, [0.0, 0.75, 0.0, 0.25])

    def test_call_treats_rows_apart(self) -> None:
        log_probs = torch.tensor(
            [[0.9, 0.05, 0.05], [0.25, 0.35, 0.4]], device=device
        ).log()

        probs = truncate_log_probs(log_probs, None, 0.7).exp()

        assert_close(probs, [[1.0, 0.0, 0.0], [0.0, 7 / 15, 8 / 15]])

    def test_call_changes_nothing_when_nothing_is_cut(self) -> None:
        log_probs = torch.tensor([[0.25, 0.75]], device=device).log()

        assert_equal(truncate_log_probs(log_probs, None, None), log_probs)

    @pytest.mark.parametrize(("top_k", "top_p"), [(2, None), (None, 0.5), (2, 0.5)])
    def test_call_passes_on_what_is_not_a_number(
        self, top_k: int | None, top_p: float | None
    ) -> None:
        log_probs = torch.full((1, 4), math.nan, device=device)

        # Whoever draws from it has to find out.
        assert truncate_log_probs(log_probs, top_k, top_p).isnan().any()
