# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence

import pytest

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.registry import (
    METRICS,
    MetricOptions,
    check_metric_names,
)


class TestCheckMetricNames:
    def test_all_metrics_are_known(self) -> None:
        check_metric_names(list(METRICS))

    @pytest.mark.parametrize(
        "names,message",
        [
            ([], "No metric is given; choose some of bleu, chrf,"),
            (["bleu", "meteor"], "`meteor` is not known; choose some of bleu,"),
            (["bleu", "ter", "bleu"], "`bleu` is given twice"),
        ],
    )
    def test_call_raises_error_when_names_are_wrong(
        self, names: Sequence[str], message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            check_metric_names(names)


@pytest.mark.parametrize(
    "name", ["bleu", "chrf", "ter", "rouge", "accuracy", "macro_f1"]
)
def test_metrics_give_the_scores_they_announce(name: str) -> None:
    references = ["A", "B", "A"]

    options = MetricOptions(target_lang="de", labels=["A", "B"])

    [row] = METRICS[name].create(options).measure([references], references, None)

    # A score that cannot be computed is reported under the same names.
    assert {m.key: m.name for m in row} == METRICS[name].names


def test_keys_are_unique() -> None:
    keys = [key for entry in METRICS.values() for key in entry.names]

    assert len(keys) == len(set(keys))
