# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from fairseq2.recipe.component import ComponentManager

from tests.configs import create_runner
from tests.tiny_runs import ROOT
from warmup_plugin.recipes.running import unstructure_config
from warmup_plugin.recipes.train import TranslationTrainRecipe
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.tasks import TaskContext, TextTask


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example of docs/tasks.md as the module that a user would write."""
    text = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")

    [code] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)

    (tmp_path / "simplification_example.py").write_text(code, encoding="utf-8")

    monkeypatch.syspath_prepend(tmp_path)

    return importlib.import_module("simplification_example")


class TestDocs:
    def test_example_is_a_task(
        self, example: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            TranslationTrainRecipe, "register", lambda _, c: example.setup(c)
        )

        values = unstructure_config(TrainConfig())

        values["task"] = {"name": "simplification", "config": {"audience": "doctors"}}

        runner = create_runner()

        section = runner.structure(values).task

        kls: Any = TextTask

        task: Any = runner.resolver.resolve(ComponentManager).create_component(
            kls, section.name, section.config
        )

        settings = task.get_settings(
            TaskContext(
                model_family="t5",
                tokenizer_family="t5",
                is_decoder_only=False,
                source_lang="en",
                target_lang="en",
                max_target_len=128,
            )
        )

        assert settings.prompt == "simplify for doctors: {source}"
        assert settings.score_metric in settings.metrics
