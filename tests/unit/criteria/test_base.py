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
from warmup_plugin.criteria import Criterion, CriterionContext
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
        assert criterion.draw_time.get_elapsed_time() == 0.0

        values = {}

        unit.process_metric_values(values)

        assert "draw_share" not in values

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
