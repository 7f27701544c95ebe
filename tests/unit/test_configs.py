# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fairseq2.models.nllb import NllbConfig
from fairseq2.runtime.dependency import DependencyContainer

from warmup_plugin.models.presets import register_presets
from warmup_plugin.presets import get_presets_dir
from warmup_plugin.recipes.common import dump_config
from warmup_plugin.recipes.train import TranslationTrainRecipe

PRESETS = sorted(get_presets_dir().rglob("*.yaml"))


def resolve(preset: Path, *overrides: str) -> dict[str, Any]:
    """Reads a preset with the parser of the command line."""
    args = ["OUT", "--no-rich", "--config-file", str(preset)]

    if overrides:
        args += ["--config", *overrides]

    status, config = dump_config(TranslationTrainRecipe(), args)

    assert status == 0
    assert config is not None

    return config


class TestWarmupKeys:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("warmup.num_warmups=0", "`num_warmups` must be greater than or equal"),
            ("warmup.keep.name=nope", "`name` must be `resample`, `top`, `mass` or"),
            ("warmup.keep.mass=0", "`mass` must be greater than 0 and less"),
            ("warmup.sampler.name=nope", "`warmup.sampler.name` is `nope`, which is"),
            ("warmup.sampler.config.temperature=0", "`temperature` must be greater"),
            ("warmup.sampler.config.nope=0", "extra key(s) nope"),
            ("warmup.objective.name=nope", "`warmup.objective.name` is `nope`"),
            ("warmup.objective.config.nope=0", "extra key(s) nope"),
            ("warmup.weight_temperature=0", "`weight_temperature` must be greater"),
            ("warmup.max_num_tokens=0", "`max_num_tokens` must be greater than or"),
            # Of former versions.
            ("warmup.num_kept=1", "extra key(s) num_kept"),
            ("warmup.temperature=1", "extra key(s) temperature"),
        ],
    )
    def test_bad_value_is_named(
        self, capfd: pytest.CaptureFixture[str], override: str, message: str
    ) -> None:
        args = ["OUT", "--no-rich", "--config", override]

        assert dump_config(TranslationTrainRecipe(), args) == (2, None)

        err = " ".join(capfd.readouterr().err.split())

        assert message in err
        assert "Traceback" not in err

    def test_components_have_their_own_settings(self) -> None:
        status, config = dump_config(
            TranslationTrainRecipe(),
            [
                *("OUT", "--no-rich", "--config"),
                *("warmup.sampler={name: stochastic_beam}", "warmup.keep.name=mass"),
                *("warmup.objective={name: joint}", "warmup.kl_weight=0.1"),
            ],
        )

        assert status == 0

        warmup: Any = config and config["warmup"]

        assert warmup["sampler"] == {"name": "stochastic_beam", "config": {}}
        assert warmup["objective"] == {"name": "joint", "config": {}}
        assert warmup["keep"]["name"] == "mass"


def test_presets_are_found() -> None:
    assert len(PRESETS) >= 4


@pytest.mark.parametrize("preset", PRESETS, ids=lambda file: str(file.stem))
class TestPreset:
    def test_preset_resolves(self, preset: Path) -> None:
        config = resolve(preset)

        assert config["criterion"]["name"] in preset.stem

        # Where the data is, is the user's.
        assert config["dataset"]["path"] is None
        assert config["tokenizer"]["path"] is None
        assert config["init_from"] is None

    @pytest.mark.parametrize("name", ["sft", "warmup"])
    def test_criterion_is_one_key_apart(self, preset: Path, name: str) -> None:
        config = resolve(preset)

        other = resolve(preset, f"criterion.name={name}")

        config["criterion"]["name"] = name

        assert other == config

    def test_architecture_exists(self, preset: Path) -> None:
        container = DependencyContainer()

        register_presets(container)

        model = resolve(preset)["model"]

        assert model["family"] == "nllb"
        assert model["arch"] in set(container.iter_keys(NllbConfig))
