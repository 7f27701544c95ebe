# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import torch
from torch import Tensor

from tests.common import Model, assert_close, create_tiny_model
from tests.unit.criteria.cases import (
    create_batch,
    create_criterion,
    create_metric_bag,
    get_metric,
)
from tests.unit.models.test_lora import adapt


def compute_adapter_grads(
    model: Model, reference: Model, kl_weight: float = 0.5
) -> tuple[dict[str, Tensor], float]:
    """Takes a training step but for the optimizer's part; returns its loss as well."""
    criterion = create_criterion(
        model, reference=reference, kl_weight=kl_weight, num_warmups=3, max_warmup_len=3
    )

    torch.manual_seed(0)

    metric_bag = create_metric_bag(criterion)

    model.zero_grad()

    criterion.compute_loss(create_batch(), metric_bag, step_nr=1).backward()

    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    return grads, get_metric(metric_bag, "nll_loss")


def test_model_without_its_adapter_is_its_own_reference() -> None:
    model = adapt(create_tiny_model())

    # Two models.
    expected, expected_loss = compute_adapter_grads(model, create_tiny_model())

    grads, loss = compute_adapter_grads(model, model)

    assert loss == expected_loss

    assert grads.keys() == expected.keys()

    for name, grad in grads.items():
        assert_close(grad, expected[name])

    # Or nothing would be shown.
    others, _ = compute_adapter_grads(model, create_tiny_model(), kl_weight=0.1)

    assert any((others[name] - grads[name]).abs().max() > 1e-3 for name in grads)
