# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass

from warmup_plugin.components import ComponentSection
from warmup_plugin.tasks.base import TextTask


@dataclass(kw_only=True)
class TaskSection(ComponentSection[TextTask]):
    """Chooses what a model is trained for, from which the settings follow that are left open."""

    kls = TextTask
    key = "task"
    known = ("translation", "summarization", "multiple_choice")

    name: str = "translation"
    """The registered name: `translation`, `summarization` or `multiple_choice`. It sets ``dataset.prompt``, ``validation.metrics``, ``validation.labels``, ``tokenizer.source_lang``, ``tokenizer.target_lang`` and some of ``generation`` where they are ``None``, and ``regime.score_metric`` where it is `task`."""

    config: object = None
    """The settings of the task; ``None`` for its defaults."""
