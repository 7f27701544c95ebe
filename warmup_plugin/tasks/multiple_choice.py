# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

from typing_extensions import override

from warmup_plugin.tasks.base import (
    TaskContext,
    TaskSettings,
    TextTask,
    choose_prompt,
    limit_to_targets,
)


@dataclass(kw_only=True)
class MultipleChoiceConfig:
    """Configures the task ``multiple_choice``."""

    labels: list[str] = field(default_factory=lambda: ["A", "B", "C", "D"])
    """All answers that are valid."""

    rank_options: bool = False
    """If ``True``, answers are not written but are the likeliest of the labels; see ``generation.rank_labels``."""

    t5_prompt: str = "answer the multiple choice question: {source}"
    """What T5 and mT5 read."""

    decoder_prompt: str = (
        "Answer the question with the letter of the right option.\n\n{source}\n\nAnswer:\n"
    )
    """What decoder-only models read."""


@final
class MultipleChoiceTask(TextTask):
    """
    Answers a question with the letter of an option.

    The source holds context, question and lettered options, one below the other, as
    ``scripts/prepare_logiqa.py`` writes it. The best checkpoint has the highest
    accuracy: macro-F1 is noisier on a small development set.
    """

    def __init__(self, config: MultipleChoiceConfig) -> None:
        self._config = config

    @override
    def get_settings(self, context: TaskContext) -> TaskSettings:
        return TaskSettings(
            prompt=choose_prompt(
                context,
                t5=self._config.t5_prompt,
                decoder_only=self._config.decoder_prompt,
            ),
            metrics=("accuracy", "macro_f1"),
            labels=self._config.labels,
            score_metric="accuracy",
            generation={
                **limit_to_targets(context),
                # No label is empty.
                "min_len_b": 1,
                "rank_labels": self._config.rank_options,
            },
        )
