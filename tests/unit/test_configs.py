# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pytest
from fairseq2.models.llama import LLaMAConfig
from fairseq2.models.nllb import NllbConfig
from fairseq2.runtime.dependency import DependencyContainer

from tests.configs import read_train_config
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.presets import register_presets
from warmup_plugin.presets import find_preset, list_presets

# What presets are made of.
PARTS = [
    name
    for name in list_presets()
    if name.startswith(("base/", "models/", "directions/", "hardware/"))
]

PRESETS = [name for name in list_presets() if name not in PARTS]

MODELS = [n.removeprefix("models/") for n in PARTS if n.startswith("models/")]

DIRECTIONS = [n for n in PARTS if n.startswith("directions/") and "_" in n]

OF_MODELS = [n for n in PRESETS if any(f"/{model}_" in n for model in MODELS)]


@lru_cache(maxsize=None)
def dump(names: Sequence[str], overrides: Sequence[str]) -> str:
    args = ["OUT", "--no-rich"]

    for name in names:
        args += ["--config-file", name]

    if overrides:
        args += ["--config", *overrides]

    return json.dumps(read_train_config(args))


def resolve(*names: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Reads presets as the command line does."""
    config: dict[str, Any] = json.loads(dump(names, overrides))

    return config


class TestWarmupKeys:
    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("warmup.num_warmups=0", "`warmup.num_warmups` must be greater"),
            ("warmup.keep.name=nope", "`warmup.keep.name` must be `resample`, `top`"),
            ("warmup.keep.mass=0", "`warmup.keep.mass` must be greater than 0"),
            ("warmup.sampler.name=nope", "`warmup.sampler.name` is `nope`, which is"),
            (
                "warmup.sampler.config.temperature=0",
                "`warmup.sampler.config.temperature` must be",
            ),
            ("warmup.sampler.config.nope=0", "nope` is not known"),
            ("warmup.objective.name=nope", "`warmup.objective.name` is `nope`"),
            ("warmup.objective.config.nope=0", "nope` is not known"),
            ("warmup.weight_temperature=0", "`warmup.weight_temperature` must be"),
            ("warmup.max_num_tokens=0", "`warmup.max_num_tokens` must be greater"),
            (
                "criterion={name: mrt, config: {metric: {name: nope}}}",
                "`criterion.config.metric.name` is `nope`, which is",
            ),
            (
                "criterion={name: mrt, config: {metric: {name: comet}}}",
                "`criterion.config.metric.config.model` must be set to a checkpoint",
            ),
            (
                "criterion={name: mrt, config: {num_samples: 1}}",
                "`criterion.config.num_samples` must be at least 2",
            ),
            # Of former versions.
            ("warmup.num_kept=1", "num_kept` is not known"),
            ("warmup.temperature=1", "temperature` is not known"),
        ],
    )
    def test_bad_value_is_named(self, override: str, message: str) -> None:
        with pytest.raises(WarmupError, match=re.escape(message)):
            read_train_config(["OUT", "--config", override])

    def test_components_have_their_own_settings(self) -> None:
        warmup = read_train_config(
            [
                *("OUT", "--config"),
                *("warmup.sampler={name: stochastic_beam}", "warmup.keep.name=mass"),
                *("warmup.objective={name: joint}", "warmup.kl_weight=0.1"),
            ],
        )["warmup"]

        assert warmup["sampler"] == {"name": "stochastic_beam", "config": {}}
        assert warmup["objective"] == {"name": "joint", "config": {}}
        assert warmup["keep"]["name"] == "mass"


def test_presets_are_found() -> None:
    assert len(PRESETS) >= 30
    assert len(DIRECTIONS) == 8


class TestPreset:
    @pytest.mark.parametrize("name", PRESETS)
    def test_preset_resolves(self, name: str) -> None:
        config = resolve(name)

        # The legs of a pivot are trained without warmups.
        criterion = name.rpartition("_")[2].replace("legs", "sft")

        assert config["criterion"]["name"] == criterion

        # The runs that `import` writes are named by the file of the model.
        models = [f"runs/{model}" for model in MODELS if f"/{model}_" in name]

        assert config["init_from"] == (models[0] if models else None)

        # Where the data is, is the user's.
        assert config["dataset"]["path"] is None
        assert config["tokenizer"]["path"] is None

        assert config["task"]["name"] == name.partition("/")[0]

    # Whether `mrt` writes warmups stands in its config.
    @pytest.mark.parametrize("name", [n for n in PRESETS if not n.endswith("_mrt")])
    def test_criterion_is_one_key_apart(self, name: str) -> None:
        config = resolve(name)

        other_name = "sft" if name.endswith("_warmup") else "warmup"

        other = resolve(name, overrides=(f"criterion.name={other_name}",))

        config["criterion"]["name"] = other_name

        assert other == config

    @pytest.mark.parametrize("name", [n for n in PRESETS if n not in OF_MODELS])
    def test_architecture_exists(self, name: str) -> None:
        container = DependencyContainer()

        register_presets(container)

        model = resolve(name)["model"]

        config_kls: Any = {"nllb": NllbConfig, "llama": LLaMAConfig}[model["family"]]

        assert model["arch"] in set(container.iter_keys(config_kls))

    @pytest.mark.parametrize("idx,name", [*enumerate(OF_MODELS)], ids=OF_MODELS)
    def test_preset_takes_direction_and_hardware(self, idx: int, name: str) -> None:
        # Each preset one of them; each of them some presets.
        direction = DIRECTIONS[idx % len(DIRECTIONS)]

        source_lang, target_lang = direction.removeprefix("directions/").split("_")

        one = resolve(name, direction)
        eight = resolve(name, direction, "hardware/eight_gpus")

        for config in (one, eight):
            assert config["dataset"]["source_lang"] == source_lang
            assert config["dataset"]["target_lang"] == target_lang

            # T5 overflows in float16.
            precision = config["trainer"]["mixed_precision"]

            assert precision == {"mode": "auto", "dtype": "bfloat16"}

        assert one == resolve(name, direction, "hardware/one_gpu")

        sizes = [
            config["dataset"]["max_num_tokens"]
            * config["trainer"]["grad_accumulation"]["num_batches"]
            for config in (one, eight)
        ]

        # A step has as many tokens.
        assert sizes[0] == 8 * sizes[1]

        # Nothing else depends on the number of GPUs.
        eight["trainer"]["grad_accumulation"] = one["trainer"]["grad_accumulation"]

        assert one == eight

    def test_settings_of_mrt_tell_whether_there_are_warmups(self) -> None:
        def has_warmups(*overrides: str) -> object:
            config = resolve("translation/finetune_mrt", overrides=overrides)

            return config["criterion"]["writes_warmups"]

        assert has_warmups() is False

        assert has_warmups("criterion.config.with_warmups=true") is True

        # Another criterion has none of its settings.
        assert has_warmups("criterion.name=sft", "criterion.config=null") is None

    def test_direction_takes_the_place_of_all(self) -> None:
        config = resolve("directions/all", "directions/de_en")

        assert config["dataset"]["directions"] is None

    def test_all_directions_are_those_of_single_ones(self) -> None:
        config = resolve("translation/mt5_base_warmup", "directions/all")

        names = [n.removeprefix("directions/").replace("_", "-") for n in DIRECTIONS]

        assert len(names) == 8

        assert sorted(config["dataset"]["directions"]) == sorted(names)
        assert config["dataset"]["sampling_temperature"] > 1.0

    @pytest.mark.parametrize("name", [n for n in OF_MODELS if n.endswith("_sft")])
    def test_warmup_is_sft_with_another_criterion(self, name: str) -> None:
        sft = resolve(name)
        warmup = resolve(name.removesuffix("_sft") + "_warmup")

        for section in ("criterion", "warmup"):
            sft[section] = warmup[section]

        assert sft == warmup

    @pytest.mark.parametrize("name", [*PARTS, *PRESETS])
    def test_numbers_for_public_models_are_marked_as_ours(self, name: str) -> None:
        from_scratch = (
            "demo_",
            "from_scratch_",
            "multi30k_",
            "pivot_",
            "synthetic_pair_",
        )

        if name.startswith(tuple(f"translation/{model}" for model in from_scratch)):
            return

        file = find_preset(name)

        assert file is not None

        for line in file.read_text(encoding="utf-8").splitlines():
            if re.search(r": [\d.]+\b", line) and not line.startswith("#"):
                assert line.endswith("  # ours")
