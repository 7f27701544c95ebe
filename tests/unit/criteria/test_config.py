# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any

import pytest
from fairseq2.utils.validation import Validatable

from warmup_plugin.criteria import CriterionSection, WarmupSection
from warmup_plugin.criteria.config import KeepSection, ObjectiveSection


def check(section: Validatable, *messages: str) -> None:
    """Asserts that these errors are found, and no others."""
    errors = section.validate().errors

    assert len(errors) == len(messages)

    for error, message in zip(errors, messages):
        assert message in error


class TestWarmupSection:
    def test_defaults_are_valid(self) -> None:
        check(WarmupSection())

    @pytest.mark.parametrize(
        ("field", "value", "message"),
        [
            ("num_warmups", 0, "must be greater than or equal to 1."),
            ("max_warmup_len", 0, "must be greater than or equal to 1."),
            ("sft_weight", -0.1, "must be greater than or equal to 0."),
            ("weight_temperature", 0.0, "must be greater than or equal to 0.0001"),
            ("weight_temperature", -1.0, "must be greater than or equal to 0.0001"),
            ("entropy_weight", -0.1, "must be greater than or equal to 0."),
            ("kl_weight", -0.1, "must be greater than or equal to 0."),
            ("sft_weight", float("inf"), "must be greater than or equal to 0."),
            ("kl_weight", float("nan"), "must be greater than or equal to 0."),
            ("entropy_weight", float("nan"), "must be greater than or equal to 0."),
            (
                "weight_temperature",
                float("nan"),
                "must be greater than or equal to 0.0001",
            ),
            ("max_num_tokens", 0, "must be greater than or equal to 1."),
            ("draft_steps", -1, "must be greater than or equal to 0."),
            ("plain_path", "none", "must be `empty` or `bare`, but is `none`."),
            ("separator_init", "bos", "must be `eos` or `none`, but is `bos`."),
            ("separator_init", None, "must be `eos` or `none`, but is `None`."),
            ("reference_separator_init", "bos", "must be `eos` or `none`, but is "),
            ("len_schedule", [], "must be a list of pairs of step and length"),
            ("len_schedule", [[1, 2, 3]], "must be a list of pairs of step and len"),
        ],
    )
    def test_validate_names_invalid_field(
        self, field: str, value: Any, message: str
    ) -> None:
        check(WarmupSection(**{field: value}), f"`{field}` {message}")

    @pytest.mark.parametrize(
        ("schedule", "message"),
        [
            ([[5, 3], [5, 2]], "The steps of `len_schedule` must be ascending."),
            ([[5, 3], [4, 2]], "The steps of `len_schedule` must be ascending."),
            ([[-1, 3], [4, 2]], "The steps of `len_schedule` must be ascending."),
            ([[0, 9]], "must be from 0 to `max_warmup_len` (8)."),
            ([[0, 8], [5, -1]], "must be from 0 to `max_warmup_len` (8)."),
        ],
    )
    def test_validate_names_invalid_schedule(
        self, schedule: list[list[int]], message: str
    ) -> None:
        check(WarmupSection(len_schedule=schedule), message)

    def test_validate_accepts_schedule(self) -> None:
        check(WarmupSection(len_schedule=[[0, 8], [100, 0], [101, 5]]))

    def test_enumeration_of_empty_warmup_needs_another_draw(self) -> None:
        message = "`num_warmups` must be at least 2 with `with_empty`"

        check(WarmupSection(with_empty=True, num_warmups=1), message)

        check(WarmupSection(with_empty=True, num_warmups=2))

    @pytest.mark.parametrize("name", ["marginal", "best", "elbo", "joint"])
    def test_enumeration_of_empty_warmup_needs_objective_that_knows_it(
        self, name: str
    ) -> None:
        section = WarmupSection(with_empty=True, objective=ObjectiveSection(name=name))

        if name in ("marginal", "best"):
            check(section)
        else:
            check(section, f"`objective.name` `{name}` does not know; use `marginal`")

    def test_validate_names_all_errors(self) -> None:
        section = WarmupSection(max_warmup_len=0, sft_weight=-1.0, max_num_tokens=-1)

        check(section, "`max_warmup_len`", "`sft_weight`", "`max_num_tokens`")

    @pytest.mark.parametrize("name", ["resample", "top", "mass", "all"])
    def test_more_may_be_kept_than_are_drawn(self, name: str) -> None:
        check(WarmupSection(num_warmups=1, keep=KeepSection(name=name, num=5)))


class TestKeepSection:
    @pytest.mark.parametrize(
        ("kwargs", "message"),
        [
            (
                {"name": "nope"},
                "`name` must be `resample`, `top`, `mass` or `all`, but is `nope`",
            ),
            ({"num": 0}, "`num` must be greater than or equal to 1."),
            ({"mass": 0.0}, "`mass` must be greater than 0 and less than or equal"),
            ({"mass": 1.1}, "`mass` must be greater than 0 and less than or equal"),
        ],
    )
    def test_validate_names_invalid_field(
        self, kwargs: dict[str, Any], message: str
    ) -> None:
        check(KeepSection(**kwargs), message)

    @pytest.mark.parametrize("name", ["resample", "top", "mass", "all"])
    def test_validate_accepts_bounds(self, name: str) -> None:
        check(KeepSection(name=name, num=1, mass=1.0))


class TestCriterionSection:
    def test_defaults_are_valid(self) -> None:
        check(CriterionSection())

    @pytest.mark.parametrize("label_smoothing", [-0.1, 1.0])
    def test_validate_names_invalid_field(self, label_smoothing: float) -> None:
        check(CriterionSection(label_smoothing=label_smoothing), "`label_smoothing`")

    @pytest.mark.parametrize("name", ["sft", "warmup"])
    def test_what_is_known_of_criterion_is_not_to_be_set(self, name: str) -> None:
        section = CriterionSection(name=name, writes_warmups=True)

        check(section, f"`writes_warmups` is known of `{name}`; leave it out.")

        check(CriterionSection(name="mine", writes_warmups=True))
