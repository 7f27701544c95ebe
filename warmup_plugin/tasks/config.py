# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from dataclasses import dataclass

from fairseq2.recipe.config import SupportsStructure
from fairseq2.runtime.dependency import DependencyResolver
from typing_extensions import override

from warmup_plugin.components import structure_component
from warmup_plugin.tasks.base import TextTask


@dataclass(kw_only=True)
class TaskSection(SupportsStructure):
    """Chooses what a model is trained for, from which the settings follow that are left open."""

    name: str = "translation"
    """The registered name: `translation`, `summarization` or `multiple_choice`. It sets ``dataset.prompt``, ``validation.metrics``, ``validation.labels``, ``tokenizer.source_lang`` and ``tokenizer.target_lang`` where they are ``None``, and ``regime.score_metric`` where it is `task`."""

    config: object = None
    """The settings of the task; ``None`` for its defaults."""

    @override
    def structure(self, resolver: DependencyResolver) -> None:
        self.config = structure_component(
            resolver,
            TextTask,
            self.name,
            self.config,
            f"`task.name` is `{self.name}`, which is not registered; use `translation`, `summarization`, `multiple_choice` or one that your own package registers.",
        )
