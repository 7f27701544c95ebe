# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence

import pytest

from warmup_plugin.config_docs import get_field_docs
from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics import metricx, registry
from warmup_plugin.metrics.comet_score import DEFAULT_KIWI_MODEL, DEFAULT_MODEL
from warmup_plugin.metrics.registry import (
    METRICS,
    MetricOptions,
    check_metric_names,
    warn_of_missing_language,
)
from warmup_plugin.metrics.translation import evaluate_systems


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
        "names,message",
        [
            ([], "No metric is given"),
            (["nope"], "`nope` is not known"),
            (["bleu", "bertscore"], "`bertscore` runs a model of its own in this"),
        ],
    )
    def test_validation_is_offered_what_it_can_score(
        self, names: Sequence[str], message: str
    ) -> None:
        known = "some of bleu, chrf, ter, spbleu, spbleu_1k, comet, cometkiwi, rouge, language, accuracy, macro_f1."

        with pytest.raises(WarmupError, match=message) as exc_info:
            check_metric_names(names, in_validation=True)

        assert str(exc_info.value).endswith(known)

    def test_validation_has_metrics(self) -> None:
        names = [name for name, entry in METRICS.items() if entry.in_validation]

        check_metric_names(names, in_validation=True)


class TestWarnOfMissingLanguage:
    @pytest.fixture(autouse=True)
    def first_time(self) -> None:
        registry._warn_once.cache_clear()

    @pytest.mark.parametrize(
        "metrics,references,names",
        [
            (
                ["bleu", "chrf", "ter"],
                ["狗在跑。", "A dog."],
                "the words of BLEU and TER are",
            ),
            (["ter"], ["いぬがはしる"], "the words of TER are"),
            (["bleu", "ter"], ["개가 달린다."], "the words of BLEU are"),
            (["bleu"], ["สุนัขวิ่ง"], "the words of BLEU are"),
        ],
    )
    def test_evaluation_warns_once(
        self,
        metrics: list[str],
        references: list[str],
        names: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        for _ in range(2):
            evaluate_systems(
                {"a": references}, references, metrics=metrics, num_bootstrap=0
            )

        [message] = caplog.messages

        assert names in message
        assert "`--target-lang`" in message and "13a" in message

    @pytest.mark.parametrize(
        "metrics,options,reference",
        [
            (["bleu", "ter"], {}, "A dog runs through the whole town of 北京."),
            (["bleu", "ter"], {"target_lang": "zh"}, "狗在跑。"),
            (["bleu"], {"bleu_tokenize": "char"}, "狗在跑。"),
            (["chrf"], {}, "狗在跑。"),
            (["ter"], {}, "개가 달린다."),
        ],
    )
    def test_nothing_is_said_without_reason(
        self,
        metrics: list[str],
        options: dict[str, str],
        reference: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        warn_of_missing_language(
            metrics,
            MetricOptions(**options),  # type: ignore[arg-type]
            [reference],
        )

        assert not caplog.messages


@pytest.mark.parametrize(
    "name", ["bleu", "chrf", "ter", "rouge", "accuracy", "macro_f1"]
)
def test_metrics_give_the_scores_they_announce(name: str) -> None:
    references = ["A", "B", "A"]

    options = MetricOptions(target_lang="de", labels=["A", "B"])

    [row] = (
        METRICS[name]
        .create(options)
        .measure([references], [[r] for r in references], None)
    )

    # A score that cannot be computed is reported under the same names.
    assert {m.key: m.name for m in row} == METRICS[name].names


def test_keys_are_unique() -> None:
    keys = [key for entry in METRICS.values() for key in entry.names]

    assert len(keys) == len(set(keys))


def test_options_name_default_models() -> None:
    docs = get_field_docs(MetricOptions)

    assert f", else {DEFAULT_MODEL})" in docs["comet_model"]
    assert f"(default: {DEFAULT_KIWI_MODEL})" in docs["cometkiwi_model"]
    assert f"(default: {metricx.DEFAULT_MODEL})" in docs["metricx_model"]
