# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The figures that training and validation show beside fairseq2's own."""

from __future__ import annotations

from fairseq2.metrics import format_as_float, format_as_int, format_as_percentage
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.runtime.dependency import DependencyContainer


def register_metric_descriptors(container: DependencyContainer) -> None:
    """Gives our metrics their names on the console, in JSONL and in TensorBoard."""
    # fmt: off
    descriptors = [
        # Of a validation; fairseq2 has those of BLEU, chrF++ and accuracy.
        MetricDescriptor("ter",               "TER",                           200, format_as_float),
        MetricDescriptor("rouge1",            "ROUGE-1",                       200, format_as_float, higher_better=True),
        MetricDescriptor("rouge2",            "ROUGE-2",                       200, format_as_float, higher_better=True),
        MetricDescriptor("rougeL",            "ROUGE-L",                       200, format_as_float, higher_better=True),
        MetricDescriptor("rougeLsum",         "ROUGE-Lsum",                    200, format_as_float, higher_better=True),
        MetricDescriptor("macro_f1",          "Macro-F1",                      200, format_as_float, higher_better=True),
        MetricDescriptor("warmup_k",          "Warmups per Source (K)",        400, format_as_int),
        MetricDescriptor("warmup_ess",        "Effective Sample Size",         401, format_as_float),
        MetricDescriptor("warmup_len",        "Warmup Length",                 402, format_as_float),
        MetricDescriptor("warmup_entropy",    "Warmup Entropy (nats)",         403, format_as_float),
        MetricDescriptor("warmup_empty",      "Empty Warmups (%)",             404, format_as_percentage),
        MetricDescriptor("warmup_cut",        "Cut Warmups (%)",               405, format_as_percentage),
        MetricDescriptor("warmup_duplicate",  "Duplicate Warmups (%)",         406, format_as_percentage),
        MetricDescriptor("warmup_repetition", "Repetition in Warmups (%)",     407, format_as_percentage),
        MetricDescriptor("warmup_gain",       "Gain over No Warmup (nats)",    408, format_as_float),
        MetricDescriptor("draw_share",        "Share of Step Drawing (%)",     409, format_as_percentage),
    ]
    # fmt: on

    for descriptor in descriptors:
        container.collection.register_instance(MetricDescriptor, descriptor)
