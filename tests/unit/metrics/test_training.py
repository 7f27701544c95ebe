# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.runtime.dependency import DependencyContainer

from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.metrics.training import register_metric_descriptors

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
