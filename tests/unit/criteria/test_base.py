# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fairseq2.gang import create_fake_gangs
from fairseq2.metrics import MetricBag
from torch import Tensor
from torch.optim import SGD

from tests.common import assert_close, create_tiny_model, device
from tests.unit.criteria.cases import (
    create_batch,
    create_criterion,
    create_metric_bag,
    get_metric,
)
from warmup_plugin.criteria import Criterion, CriterionContext, base
from warmup_plugin.criteria.base import CriterionTrainUnit, num_target_tokens
from warmup_plugin.criteria.sft import create_sft_criterion
from warmup_plugin.criteria.warmup import create_warmup_criterion


class TestCriterionTrainUnit:
    @pytest.mark.parametrize("factory", [create_sft_criterion, create_warmup_criterion])
    def test_process_batch_returns_sum_and_target_tokens(
        self, factory: Callable[[CriterionContext], Criterion]
    ) -> None:
        model = create_tiny_model()

        criterion = create_criterion(model, factory)

        steps: list[int] = []

        optimizer = SGD(model.parameters(), lr=0.1)

        unit = CriterionTrainUnit(
            criterion, optimizer, create_fake_gangs(device), on_step=steps.append
        )

        metric_bag = MetricBag(device)

        unit.prepare_metric_bag(metric_bag)

        unit.set_step_nr(3)

        assert steps == [3]

        torch.manual_seed(0)

        loss, num_targets = unit.process_batch(create_batch(), metric_bag)

        torch.manual_seed(0)

        expected = criterion.compute_loss(
            create_batch(), create_metric_bag(criterion), step_nr=3
        )

        assert_close(loss, expected)

        # Three words and EOS, one word and EOS; fairseq2 itself would say 17.
        assert num_targets == num_target_tokens(create_batch()) == 6

        # Nine source tokens.
        assert get_metric(metric_bag, "num_examples") == 2
        assert get_metric(metric_bag, "num_source_elements") == 9
        assert get_metric(metric_bag, "num_target_elements") == 6
        assert get_metric(metric_bag, "num_elements") == 15

    def test_draw_share_is_share_of_step(self) -> None:
        model = create_tiny_model()

        optimizer = SGD(model.parameters(), lr=0.1)

        criterion = create_criterion(model)

        unit = CriterionTrainUnit(
            criterion, optimizer, create_fake_gangs(device), on_step=lambda _: None
        )

        metric_bag = MetricBag(device)

        unit.prepare_metric_bag(metric_bag)

        unit.set_step_nr(1)

        loss, _ = unit.process_batch(create_batch(), metric_bag)

        assert isinstance(loss, Tensor)

        loss.backward()

        optimizer.step()

        values: dict[str, object] = {}

        unit.process_metric_values(values)

        share = values["draw_share"]

        assert isinstance(share, float)

        assert 0.0 < share < 1.0

        # Both clocks begin anew.
        values = {}

        unit.process_metric_values(values)

        assert "draw_share" not in values

        unit.set_step_nr(2)

        optimizer.step()

        unit.process_metric_values(values)

        assert values["draw_share"] == 0.0

    def test_sft_has_no_share_of_drawing(self) -> None:
        model = create_tiny_model()

        optimizer = SGD(model.parameters(), lr=0.1)

        unit = CriterionTrainUnit(
            create_criterion(model, create_sft_criterion),
            optimizer,
            create_fake_gangs(device),
            on_step=lambda _: None,
        )

        unit.set_step_nr(1)

        optimizer.step()

        values: dict[str, object] = {}

        unit.process_metric_values(values)

        assert values == {}

    @pytest.mark.parametrize(
        "factory,smoothing,plain,name",
        [
            (create_sft_criterion, 0.1, False, "smoothed_loss"),
            (create_sft_criterion, 0.0, False, "nll_loss"),
            # That of the objective is reported without.
            (create_warmup_criterion, 0.1, False, "nll_loss"),
            (create_warmup_criterion, 0.1, True, "smoothed_loss"),
        ],
    )
    def test_loss_with_label_smoothing_says_so(
        self,
        factory: Callable[[CriterionContext], Criterion],
        smoothing: float,
        plain: bool,
        name: str,
    ) -> None:
        model = create_tiny_model()

        criterion = create_criterion(
            model,
            factory,
            label_smoothing=smoothing,
            plain_directions=["en-de"] if plain else [],
        )

        unit = CriterionTrainUnit(
            criterion,
            SGD(model.parameters(), lr=0.1),
            create_fake_gangs(device),
            on_step=lambda _: None,
        )

        values: dict[str, object] = {"nll_loss": 2.0}

        unit.process_metric_values(values)

        assert values == {name: 2.0}

    def test_time_left_is_of_steps_of_this_process(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = create_tiny_model()

        now = 100.0

        monkeypatch.setattr(base, "monotonic", lambda: now)

        unit = CriterionTrainUnit(
            create_criterion(model, create_sft_criterion, label_smoothing=0.0),
            SGD(model.parameters(), lr=0.1),
            create_fake_gangs(device),
            on_step=lambda _: None,
            num_steps=20,
        )

        # Resumed; two steps of three seconds, validations included.
        for step_nr in (11, 12):
            unit.set_step_nr(step_nr)

            now += 3.0

        values: dict[str, object] = {}

        unit.process_metric_values(values)

        assert values == {"time_left": 8 * 3.0}

        unit.set_step_nr(20)

        values = {}

        unit.process_metric_values(values)

        assert values == {}

    def test_gain_that_was_not_measured_is_not_logged(self) -> None:
        model = create_tiny_model()

        optimizer = SGD(model.parameters(), lr=0.1)

        unit = CriterionTrainUnit(
            create_criterion(model),
            optimizer,
            create_fake_gangs(device),
            on_step=lambda step_nr: None,
        )

        values: dict[str, object] = {"warmup_gain": 0.0, "warmup_ess": 0.0}

        unit.process_metric_values(values)

        assert values == {"warmup_ess": 0.0}

        values = {"warmup_gain": -0.1}

        unit.process_metric_values(values)

        assert values == {"warmup_gain": -0.1}
