# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from warmup_plugin.metrics.translation import Comparison as Comparison
from warmup_plugin.metrics.translation import MetricScore as MetricScore
from warmup_plugin.metrics.translation import (
    compare_translations as compare_translations,
)
from warmup_plugin.metrics.translation import format_table as format_table
from warmup_plugin.metrics.translation import score_translations as score_translations
from warmup_plugin.metrics.translation import to_json as to_json
