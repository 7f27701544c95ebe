# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fairseq2.composition.lib import _register_library
from fairseq2.recipe.composition import _register_train_recipe
from fairseq2.recipe.error import (
    LRSchedulerNotKnownError,
    OptimizerNotKnownError,
    RecipeError,
)
from fairseq2.recipe.internal.config import (
    _RecipeConfigStructurer,
    _StandardRecipeConfigStructurer,
)
from fairseq2.recipe.run import _swap_default_resolver
from fairseq2.runtime.dependency import DependencyContainer
from fairseq2.utils.structured import StructureError, ValueConverter
from fairseq2.utils.validation import ObjectValidator, ValidationError
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.inputs import TEXTS, VALUES, changed, check, new_folder, to_json
from tests.fuzz.test_runs import FEW, call_command
from tests.tiny_runs import tiny_options, to_args
from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes.config_files import resolve_config_files
from warmup_plugin.recipes.train import TrainConfig, TranslationTrainRecipe
from warmup_plugin.suite.grid import load_grid
from warmup_plugin.suite.steps import make_plan


@pytest.fixture(scope="module")
def container() -> Iterator[DependencyContainer]:
    """What fairseq2 has within a recipe."""
    container = DependencyContainer()

    with _swap_default_resolver(container):
        _register_library(container, no_progress=True)

        _register_train_recipe(container, TranslationTrainRecipe())

        container.register_type(
            _RecipeConfigStructurer, _StandardRecipeConfigStructurer
        )

        yield container


@given(data=st.data())
def test_values_of_a_config(
    container: DependencyContainer, data: st.DataObject
) -> None:
    structurer = container.resolve(_RecipeConfigStructurer)

    converter = container.resolve(ValueConverter)

    defaults: Any = converter.unstructure(
        structurer.structure(TrainConfig, converter.unstructure(TrainConfig()))
    )

    content = data.draw(changed(defaults))

    try:
        config = structurer.structure(TrainConfig, content)

        container.resolve(ObjectValidator).validate(config)
    # All of these fairseq2 tells in a sentence.
    except (
        *(WarmupError, StructureError, ValidationError, RecipeError),
        *(LRSchedulerNotKnownError, OptimizerNotKnownError),
    ):
        pass


YAML_TEXTS = st.text(alphabet='{}[]:,"\\ud80 &*-!?|>\n\t#%@19.e', max_size=40)


@given(
    st.one_of(
        st.binary(),
        YAML_TEXTS.map(str.encode),
        st.dictionaries(
            st.sampled_from(["model", "base", "_del_", "_set_", "warmup", "x"]), VALUES
        ).map(to_json),
    )
)
def test_config_files(data: bytes) -> None:
    with new_folder() as folder:
        file = folder / "a.yaml"

        file.write_bytes(data)

        def read() -> None:
            # A second one, so that they are merged.
            args = ["--config-file", str(file), "--config-file", "base/from_scratch"]

            with resolve_config_files(args, TrainConfig):
                pass

        check(read)


@given(st.lists(TEXTS, max_size=3), TEXTS, YAML_TEXTS)
def test_settings(names: list[str], name: str, text: str) -> None:
    def read() -> None:
        args = ["out", "--config", f"{'.'.join(names)}={name}", f"a={text}", name]

        with resolve_config_files(args, TrainConfig):
            pass

    check(read)


GRID: Any = {
    "name": "a",
    "out": "out",
    "seeds": [1, 2],
    "tasks": {
        "t": {"config_files": ["a"], "settings": {"dataset.path": "data"}},
    },
    "systems": {
        "s": {"tasks": ["t"], "settings": {"x": 1}},
        "u": {"tasks": ["t"], "init_from": "s"},
    },
}


@given(st.one_of(st.binary(), changed(GRID).map(to_json), VALUES.map(to_json)))
def test_suites(data: bytes) -> None:
    with new_folder() as folder:
        file = folder / "grid.yaml"

        file.write_bytes(data)

        check(lambda: make_plan(load_grid(file)))


@FEW
@given(
    key=st.sampled_from(
        [
            *("model.config_overrides", "tokenizer.config_overrides", "model.arch"),
            *("model.family", "model.name", "dataset.path", "dataset.prompt"),
            *("tokenizer.path", "tokenizer.family", "init_from", "task.name"),
            *("dataset.directions", "common.assets.extra_paths", "lr_scheduler.config"),
            *("warmup.objective.config", "optimizer.groups", "validation.labels"),
        ]
    ),
    value=VALUES,
)
def test_training_command(
    text_folder: Path, tokenizer_file: Path, key: str, value: object
) -> None:
    with new_folder() as folder:
        options = tiny_options(text_folder, tokenizer_file)

        # It may be one that trains; that is tried elsewhere.
        options["criterion.name"] = "none"

        options[key] = to_json(value).decode()

        call_command("train", *to_args(folder / "run", options))
