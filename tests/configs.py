# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from warmup_plugin.recipes.config_files import read_config
from warmup_plugin.recipes.running import RecipeRunner, unstructure_config
from warmup_plugin.recipes.train import TranslationTrainRecipe
from warmup_plugin.recipes.train_arguments import read_train_arguments
from warmup_plugin.recipes.train_config import TrainConfig


def create_runner() -> RecipeRunner[TrainConfig]:
    return RecipeRunner(TranslationTrainRecipe(), TrainConfig)


def type_config(args: Sequence[str]) -> TrainConfig:
    """Returns the config of a training command."""
    arguments = read_train_arguments(args)

    config = read_config(TrainConfig, arguments.config_files, arguments.settings)

    return create_runner().structure(config)


def read_train_config(args: Sequence[str]) -> dict[str, Any]:
    """Returns the config of a training command as values for YAML."""
    return unstructure_config(type_config(args))
