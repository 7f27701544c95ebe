# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from typing_extensions import override

from warmup_plugin.errors import WarmupError
from warmup_plugin.tasks.base import (
    TaskContext,
    TaskSettings,
    TextTask,
    choose_prompt,
    limit_to_targets,
)


@dataclass(kw_only=True)
class SummarizationConfig:
    """Configures the task ``summarization``."""

    t5_prompt: str = "summarize: {source}"
    """What T5 and mT5 read. T5 was pretrained with this prefix, mT5 with none."""

    decoder_prompt: str = "Summarize the text.\n\n{source}\n\nSummary:\n"
    """What decoder-only models read."""

    cross_lingual: bool = False
    """Whether summaries are in another language than their sources."""


@final
class SummarizationTask(TextTask):
    """Summarizes; the best checkpoint has the highest ROUGE-L."""

    def __init__(self, config: SummarizationConfig) -> None:
        self._config = config

    @override
    def get_settings(self, context: TaskContext) -> TaskSettings:
        if context.target_lang is None:
            raise WarmupError(
                "The task `summarization` needs the language of the summaries, which selects the tokenizer of ROUGE; set `dataset.target_lang`, such as `en`."
            )

        # The defaults of the data are those of a translation, and ROUGE would take the
        # tokenizer of the wrong language without a word.
        if (
            context.source_lang != context.target_lang
            and not self._config.cross_lingual
        ):
            raise WarmupError(
                f"The sources are in `{context.source_lang}` and the summaries in `{context.target_lang}`; set `dataset.target_lang` to the language of the summaries, which selects the tokenizer of ROUGE, or `task.config='{{cross_lingual: true}}'`."
            )

        return TaskSettings(
            prompt=choose_prompt(
                context,
                t5=self._config.t5_prompt,
                decoder_only=self._config.decoder_prompt,
            ),
            metrics=("rouge",),
            score_metric="rougeL",
            generation=limit_to_targets(context),
        )
