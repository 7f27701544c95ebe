# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The figures that training and validation show beside fairseq2's own."""

from __future__ import annotations

from fairseq2.metrics import (
    format_as_float,
    format_as_int,
    format_as_percentage,
    format_as_seconds,
)
from fairseq2.metrics.recorders import MetricDescriptor
from fairseq2.runtime.dependency import DependencyContainer


def register_metric_descriptors(container: DependencyContainer) -> None:
    """Gives our metrics their names on the console, in JSONL and in TensorBoard."""
    # fmt: off
    descriptors = [
        # In the place of "NLL Loss", to which it cannot be compared.
        MetricDescriptor("smoothed_loss",     "Label-Smoothed Loss",           100, format_as_float),
        # Of the pairs of a run with `plain` directions.
        MetricDescriptor("warmup_loss",       "Loss with Warmups",             101, format_as_float),
        MetricDescriptor("plain_loss",        "Loss without Warmup",           102, format_as_float),
        MetricDescriptor("smoothed_plain_loss", "Label-Smoothed Loss without Warmup", 102, format_as_float),
        # Of a validation; fairseq2 has those of BLEU, chrF++ and accuracy.
        MetricDescriptor("ter",               "TER",                           200, format_as_float),
        MetricDescriptor("spbleu",            "spBLEU",                        200, format_as_float, higher_better=True),
        MetricDescriptor("spbleu_1k",         "spBLEU-1K",                     200, format_as_float, higher_better=True),
        MetricDescriptor("comet",             "COMET",                         200, format_as_float, higher_better=True),
        MetricDescriptor("cometkiwi",         "CometKiwi",                     200, format_as_float, higher_better=True),
        MetricDescriptor("rouge1",            "ROUGE-1",                       200, format_as_float, higher_better=True),
        MetricDescriptor("rouge2",            "ROUGE-2",                       200, format_as_float, higher_better=True),
        MetricDescriptor("rougeL",            "ROUGE-L",                       200, format_as_float, higher_better=True),
        MetricDescriptor("rougeLsum",         "ROUGE-Lsum",                    200, format_as_float, higher_better=True),
        MetricDescriptor("language",          "In Language (%)",               200, format_as_float, higher_better=True),
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
        # Of minimum risk training, in the units of its metric.
        MetricDescriptor("sample_score",      "Score of Samples",              410, format_as_float, higher_better=True),
        MetricDescriptor("sample_best",       "Score of Best Sample",          411, format_as_float, higher_better=True),
        MetricDescriptor("sample_distinct",   "Distinct Samples (%)",          412, format_as_percentage),
        MetricDescriptor("time_left",         "Time Left",                     506, format_as_duration),
    ]
    # fmt: on

    for descriptor in descriptors:
        container.collection.register_instance(MetricDescriptor, descriptor)


def shorten_metric_lines(container: DependencyContainer) -> None:
    """
    Keeps the bookkeeping of a step out of the lines of the log; JSONL and TensorBoard have
    it.

    To be called by a recipe and not by the extension, which counts for the recipes of
    others as well.
    """
    # fmt: off
    descriptors = [
        MetricDescriptor("data_time",                 "Data Time",                       500, format_as_seconds, log=False),
        MetricDescriptor("compute_time",              "Compute Time",                    501, format_as_seconds, log=False),
        MetricDescriptor("lapse_time",                "Lapse Time",                      502, format_as_seconds, log=False),
        MetricDescriptor("total_time",                "Total Time",                      505, format_as_duration),
        MetricDescriptor("wall_time",                 "Wall Time",                       510, format_as_seconds, log=False),
        MetricDescriptor("num_examples",              "Number of Examples",              820, format_as_int, log=False),
        MetricDescriptor("num_elements",              "Number of Elements",              830, format_as_int, log=False),
        MetricDescriptor("num_source_elements",       "Number of Source Elements",       830, format_as_int, log=False),
        MetricDescriptor("num_target_elements",       "Number of Target Elements",       830, format_as_int, log=False),
        MetricDescriptor("padding",                   "Padding",                         835, format_as_int, log=False),
        MetricDescriptor("padding_ratio",             "Padding Ratio (%)",               835, format_as_percentage, log=False),
        MetricDescriptor("total_num_examples",        "Total Number of Examples",        840, format_as_int, log=False),
        MetricDescriptor("total_num_elements",        "Total Number of Elements",        850, format_as_int, log=False),
        MetricDescriptor("total_num_source_elements", "Total Number of Source Elements", 850, format_as_int, log=False),
        MetricDescriptor("total_num_target_elements", "Total Number of Target Elements", 850, format_as_int, log=False),
    ]
    # fmt: on

    for descriptor in descriptors:
        # The last of a name counts.
        container.collection.register_instance(MetricDescriptor, descriptor)


def format_as_duration(value: object) -> str:
    """Formats seconds with the two largest units that they need, such as ``1h 05m``."""
    if not isinstance(value, (int, float)):
        return f"{value}"

    minutes, seconds = divmod(round(value), 60)

    hours, minutes = divmod(minutes, 60)

    days, hours = divmod(hours, 24)

    if days > 0:
        return f"{days}d {hours:02d}h"

    if hours > 0:
        return f"{hours}h {minutes:02d}m"

    if minutes > 0:
        return f"{minutes}m {seconds:02d}s"

    return f"{seconds}s"
