# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import pytest

from tests.common import CREATE_MODEL, assert_equal, create_tiny_model
from tests.unit.sampling.cases import draw_with, each_kind, to_lists
from warmup_plugin.sampling import WarmupSampler, draw_candidates
from warmup_plugin.sampling.samplers import (
    IndependentConfig,
    StochasticBeamSampler,
    create_independent_sampler,
)
from warmup_plugin.sampling.stochastic_beam import draw_distinct_candidates


def assert_draws_alike(one: WarmupSampler, other: WarmupSampler) -> None:
    model = create_tiny_model()

    a, b = (draw_with(sampler, model, 5, 3) for sampler in (one, other))

    assert to_lists(a) == to_lists(b)

    assert_equal(a.proposal_log_probs, b.proposal_log_probs)


class TestCreateIndependentSampler:
    @pytest.mark.parametrize(
        "settings",
        [{}, {"temperature": 0.5}, {"temperature": 3.0, "top_k": 2}, {"top_p": 0.6}],
        ids=str,
    )
    def test_call_works(self, settings: dict[str, Any]) -> None:
        sampler = create_independent_sampler(IndependentConfig(**settings))

        assert_draws_alike(sampler, partial(draw_candidates, **settings))

        # Draws with replacement may be equal.
        assert not getattr(sampler, "distinct", False)

    @pytest.mark.parametrize(
        ("settings", "warns"),
        [
            ({}, False),
            ({"temperature": 0.5}, False),
            ({"top_k": 5}, True),
            ({"top_p": 0.9}, True),
        ],
    )
    def test_call_warns_when_distribution_is_cut(
        self, caplog: pytest.LogCaptureFixture, settings: dict[str, Any], warns: bool
    ) -> None:
        with caplog.at_level(logging.WARNING, logger="fairseq2"):
            create_independent_sampler(IndependentConfig(**settings))

        assert len(caplog.messages) == int(warns)

        if warns:
            assert "no importance weight corrects" in caplog.messages[0]


class TestStochasticBeamSampler:
    @each_kind
    def test_call_draws_distinct_warmups(self, kind: str) -> None:
        sampler = StochasticBeamSampler()

        assert sampler.distinct

        candidates = draw_with(sampler, CREATE_MODEL[kind](), 6, 2)

        assert not bool(candidates.duplicates().any())

    def test_call_works(self) -> None:
        assert_draws_alike(StochasticBeamSampler(), draw_distinct_candidates)


class TestIndependentConfig:
    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("temperature", 0.0, "`temperature` must be greater than or equal to"),
            ("temperature", 1e-40, "`temperature` must be greater than or equal to"),
            ("temperature", -1.0, "`temperature` must be greater than or equal to"),
            (
                "temperature",
                float("inf"),
                "`temperature` must be greater than or equal to",
            ),
            ("top_k", 0, "`top_k` must be greater than or equal to 1."),
            ("top_p", 0.0, "`top_p` must be greater than 0 and less"),
            ("top_p", 1.1, "`top_p` must be greater than 0 and less"),
        ],
    )
    def test_validate_names_invalid_field(
        self, field: str, value: float, message: str
    ) -> None:
        config = IndependentConfig(**{field: value})  # type: ignore[arg-type]

        [error] = config.validate().errors

        assert error.startswith(message)

    def test_validate_accepts_bounds(self) -> None:
        config = IndependentConfig(temperature=0.01, top_k=1, top_p=1.0)

        assert not config.validate().errors

        assert not IndependentConfig().validate().errors
