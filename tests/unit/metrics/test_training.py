# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import pytest
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.recipe.composition.metric_recorders import (
    _register_metric_descriptors,
)
from fairseq2.runtime.dependency import DependencyContainer

from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.metrics.training import (
    format_as_duration,
    register_metric_descriptors,
    shorten_metric_lines,
)

# Those that fairseq2 itself describes.
_KNOWN = {"bleu", "chrf", "accuracy"}


def test_scores_of_validations_have_descriptors() -> None:
    container = DependencyContainer()

    register_metric_descriptors(container)

    descriptors = {
        descriptor.name: descriptor
        for descriptor in container.collection.resolve(MetricDescriptor)
    }

    keys = {
        key for entry in METRICS.values() if entry.in_validation for key in entry.names
    }

    # Without one a score can neither be shown nor choose the best checkpoint.
    assert keys - _KNOWN <= descriptors.keys()

    # Registered twice, ours would replace that of fairseq2.
    assert not _KNOWN & descriptors.keys()

    better = {key: descriptors[key].higher_better for key in keys - _KNOWN}

    assert {key for key, is_higher in better.items() if not is_higher} == {"ter"}


def test_shortened_lines_leave_names_and_order_as_they_are() -> None:
    container = DependencyContainer()

    _register_metric_descriptors(container)

    shorten_metric_lines(container)

    seen: dict[str, MetricDescriptor] = {}

    hidden = set()

    for descriptor in container.collection.resolve(MetricDescriptor):
        before = seen.get(descriptor.name)

        # JSONL and TensorBoard have the names, and runs are compared by them.
        if before is not None:
            assert descriptor.display_name == before.display_name
            assert descriptor.priority == before.priority

        seen[descriptor.name] = descriptor

        if not descriptor.log:
            hidden.add(descriptor.name)

    assert {"wall_time", "padding", "total_num_elements"} <= hidden
    assert not {"nll_loss", "lr", "total_time", "elements_per_second"} & hidden


@pytest.mark.parametrize(
    "value,text",
    [
        (0.4, "0s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (3900.0, "1h 05m"),
        (2 * 86400 + 3 * 3600, "2d 03h"),
        ("x", "x"),
    ],
)
def test_format_as_duration(value: object, text: str) -> None:
    assert format_as_duration(value) == text
