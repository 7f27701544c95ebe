# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.configs import create_runner
from tests.fuzz.inputs import TEXTS, VALUES, changed, check, new_folder, to_json
from tests.fuzz.test_runs import FEW, call_command
from tests.tiny_runs import tiny_options, to_args
from warmup_plugin.recipes.config_files import read_config
from warmup_plugin.recipes.running import RecipeRunner, unstructure_config
from warmup_plugin.recipes.train_config import TrainConfig
from warmup_plugin.suite.load import load_grid
from warmup_plugin.suite.plan import make_plan


@pytest.fixture(scope="module")
def runner() -> RecipeRunner[TrainConfig]:
    return create_runner()


@given(data=st.data())
def test_values_of_a_config(
    runner: RecipeRunner[TrainConfig], data: st.DataObject
) -> None:
    defaults = runner.structure(unstructure_config(TrainConfig()))

    content = data.draw(changed(unstructure_config(defaults)))

    check(lambda: runner.structure(content))


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
            read_config(TrainConfig, [str(file), "base/from_scratch"], [])

        check(read)


@given(st.lists(TEXTS, max_size=3), TEXTS, YAML_TEXTS)
def test_settings(names: list[str], name: str, text: str) -> None:
    def read() -> None:
        settings = [f"{'.'.join(names)}={name}", f"a={text}", name]

        read_config(TrainConfig, [], settings)

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
