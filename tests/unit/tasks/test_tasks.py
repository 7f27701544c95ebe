# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any

import pytest

from warmup_plugin.errors import WarmupError
from warmup_plugin.metrics.registry import METRICS
from warmup_plugin.tasks import TaskContext, TextTask
from warmup_plugin.tasks.multiple_choice import (
    MultipleChoiceConfig,
    MultipleChoiceTask,
)
from warmup_plugin.tasks.summarization import SummarizationConfig, SummarizationTask
from warmup_plugin.tasks.translation import (
    TranslationConfig,
    TranslationTask,
    get_language_name,
    get_nllb_code,
)

_TASKS: list[TextTask] = [
    TranslationTask(TranslationConfig()),
    SummarizationTask(SummarizationConfig(cross_lingual=True)),
    MultipleChoiceTask(MultipleChoiceConfig()),
]


def context(family: str, tokenizer: str | None, **others: Any) -> TaskContext:
    options: dict[str, Any] = {
        "source_lang": "en",
        "target_lang": "de",
        "max_target_len": 128,
        **others,
    }

    return TaskContext(
        model_family=family,
        tokenizer_family=tokenizer,
        is_decoder_only=family == "llama",
        **options,
    )


T5 = context("t5", "t5")
LLAMA = context("llama", "hugging_face")
NLLB = context("nllb", "nllb")
SCRATCH = context("nllb", "warmup_spm")
SCRATCH_DECODER = context("llama", "hugging_face", prompt_end="<mid>")


class TestTextTask:
    @pytest.mark.parametrize("task", _TASKS)
    def test_best_checkpoint_is_picked_by_a_metric_of_the_task(
        self, task: TextTask
    ) -> None:
        settings = task.get_settings(T5)

        scores = [key for name in settings.metrics for key in METRICS[name].names]

        assert settings.score_metric in scores

    def test_label_is_never_empty(self) -> None:
        settings = MultipleChoiceTask(MultipleChoiceConfig()).get_settings(SCRATCH)

        assert settings.generation["min_len_b"] == 1

    @pytest.mark.parametrize("task", _TASKS)
    def test_prompt_depends_on_kind_of_model(self, task: TextTask) -> None:
        t5, llama = (task.get_settings(c).prompt for c in (T5, LLAMA))

        assert t5 is not None and t5.count("{source}") == 1 and "\n" not in t5

        # What follows a line feed is to be written.
        assert llama is not None and llama.count("{source}") == 1
        assert llama.endswith(":\n")

        assert task.get_settings(NLLB).prompt is None
        assert task.get_settings(SCRATCH).prompt is None

        # Its tokenizer ends the source.
        assert task.get_settings(SCRATCH_DECODER).prompt is None

    @pytest.mark.parametrize("task", _TASKS)
    def test_tokenizer_of_an_asset_is_that_of_its_model(self, task: TextTask) -> None:
        for asset, other in ((context("t5", None), T5), (context("nllb", None), NLLB)):
            assert task.get_settings(asset) == task.get_settings(other)


class TestTranslationTask:
    def test_prompt_names_languages(self) -> None:
        task = TranslationTask(TranslationConfig())

        assert task.get_settings(T5).prompt == "translate English to German: {source}"

        other = context("t5", "t5", source_lang="zho_Hans", target_lang="xx")

        assert task.get_settings(other).prompt == "translate Chinese to xx: {source}"

    def test_prompt_is_source_alone_when_languages_are_not_given(self) -> None:
        task = TranslationTask(TranslationConfig())

        assert task.get_settings(context("t5", "t5", source_lang=None)).prompt is None

    def test_prompt_can_be_configured(self) -> None:
        task = TranslationTask(TranslationConfig(t5_prompt="{target_lang}: {source}"))

        assert task.get_settings(T5).prompt == "German: {source}"

    def test_nllb_gets_its_own_codes(self) -> None:
        settings = TranslationTask(TranslationConfig()).get_settings(NLLB)

        assert (settings.source_lang, settings.target_lang) == ("eng_Latn", "deu_Latn")

        settings = TranslationTask(TranslationConfig()).get_settings(SCRATCH)

        assert (settings.source_lang, settings.target_lang) == (None, None)

    def test_only_a_model_that_is_told_nothing_else_gets_a_tag(self) -> None:
        task = TranslationTask(TranslationConfig())

        def get_prompt(family: str, tokenizer: str, *langs: str) -> str | None:
            asked = context(family, tokenizer, target_langs=langs)

            return task.get_settings(asked).prompt

        assert get_prompt("nllb", "warmup_spm", "de", "fr") == "de: {source}"
        assert get_prompt("t5", "warmup_spm", "de", "fr") == "de: {source}"
        assert get_prompt("nllb", "warmup_spm", "de") is None
        assert get_prompt("nllb", "warmup_spm") is None
        assert get_prompt("nllb", "nllb", "de", "fr") is None

        prompt = "translate English to German: {source}"

        assert get_prompt("t5", "t5", "de", "fr") == prompt

    def test_tag_of_a_decoder_ends_as_its_prompts_do(self) -> None:
        asked = context(
            "llama", "hugging_face", prompt_end="<mid>", target_langs=["de", "fr"]
        )

        settings = TranslationTask(TranslationConfig()).get_settings(asked)

        assert settings.prompt == "de: {source}<mid>"

    @pytest.mark.parametrize(
        "code,name", [("fr", "French"), ("zh-TW", "Chinese"), ("rus_Cyrl", "Russian")]
    )
    def test_language_has_a_name(self, code: str, name: str) -> None:
        assert get_language_name(code) == name

    def test_code_of_nllb_is_left_alone(self) -> None:
        assert get_nllb_code("ces_Latn") is None
        assert get_nllb_code("cs") == "ces_Latn"
        assert get_nllb_code(None) is None


class TestSummarizationTask:
    def test_call_raises_error_when_language_is_not_given(self) -> None:
        with pytest.raises(WarmupError, match="needs the language of the summaries"):
            _TASKS[1].get_settings(context("t5", "t5", target_lang=None))

    def test_call_raises_error_when_languages_differ(self) -> None:
        task = SummarizationTask(SummarizationConfig())

        with pytest.raises(WarmupError, match="in `en` and the summaries in `de`; set"):
            task.get_settings(T5)

        assert task.get_settings(context("t5", "t5", target_lang="en")).metrics == (
            "rouge",
        )


class TestMultipleChoiceTask:
    def test_labels_are_those_of_the_config(self) -> None:
        task = MultipleChoiceTask(MultipleChoiceConfig(labels=["yes", "no"]))

        assert list(task.get_settings(T5).labels) == ["yes", "no"]
