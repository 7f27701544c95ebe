# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import fairseq2.recipe  # noqa: F401  # Before the trainer, which is in a circle with it.
import pytest
import torch
from fairseq2.checkpoint import StandardCheckpointManager
from fairseq2.checkpoint.model_metadata import ModelMetadataDumper
from fairseq2.file_system import NativeLocalFileSystem
from fairseq2.gang import create_fake_gangs
from fairseq2.io import TensorFileDumper, TensorFileLoader
from fairseq2.nn import BatchLayout
from fairseq2.recipe.config import RegimeSection
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.trainer import Trainer
from fairseq2.utils.validation import StandardObjectValidator, ValidationResult
from torch import Tensor
from torch.nn import Linear

from tests.common import assert_equal, device
from tests.doors import Doors
from tests.tiny_runs import tiny_options, to_args
from warmup_plugin.fairseq2_doors import (
    CHECKPOINT_PARTS,
    MODEL_FILE,
    MODEL_METADATA_FILE,
    change_class,
    checked_once,
    fill_batch_layout,
    find_safe_global,
    get_score_file,
    get_step_folder,
    parse_step_folder,
)
from warmup_plugin.models.t5 import T5Config
from warmup_plugin.recipes.train import main

_CONTAINER: Final = "fairseq2.runtime.dependency:DependencyContainer"
_TRAINER: Final = "fairseq2.trainer:Trainer"
_STATE: Final = "fairseq2.trainer:_TrainerState"
_LAYOUT: Final = "fairseq2.nn:BatchLayout"
_ATTENTION: Final = "fairseq2.models.transformer:StandardMultiheadAttention"
_COMPOSITION: Final = "fairseq2.recipe.composition"

DOORS: Final = Doors(
    "warmup_plugin/fairseq2_doors.py",
    "fairseq2",
    {
        "late_compiler": [
            "torch._compile:_disable_dynamo/2",
            "torch._functorch.config:__name__",
            "torch.compiler:disable",
        ],
        "keep_compiler_out": [
            "torch:_dynamo",
            "torch._dynamo:maybe_mark_dynamic/2",
        ],
        "_skip_meta_values": [
            "fairseq2.models.family:StandardModelFamily._do_create_model/5",
            "fairseq2.models.family:to_empty/2",
            "fairseq2.nn:ReferenceRotaryEncoder.reset_non_persistent_buffers/1",
            "fairseq2.nn:RotaryEncoder.reset_non_persistent_buffers/1",
            "fairseq2.nn:SinusoidalPositionEncoder.reset_non_persistent_buffers/1",
        ],
        "keep_s3_out": ["fairseq2.file_system:filesystem/1"],
        "take_provider": [f"{_CONTAINER}._registrations"],
        "remove_provider": [f"{_CONTAINER}._registrations", f"{_CONTAINER}._keys"],
        "checked_once": [
            "fairseq2.utils.validation:StandardObjectValidator.validate/2"
        ],
        "broadcast_under_fsdp": [
            "fairseq2.nn.fsdp:to_fsdp/3",
            "fairseq2.recipe.internal.data_parallel:_DataParallelModelWrapper",
            "fairseq2.recipe.internal.data_parallel:_FSDPModelWrapper/4",
        ],
        "find_dependency_resolver": ["fairseq2.runtime.dependency:_resolver"],
        "set_structurer": [
            "fairseq2.utils.structured:StandardValueConverter._structurers"
        ],
        "list_components": ["fairseq2.recipe.component:_ComponentEntry"],
        "register_optimizers": [
            f"{_COMPOSITION}.lr_schedulers:_register_lr_schedulers/1",
            f"{_COMPOSITION}.optim:_register_optim/1",
        ],
        "create_recipe_resolver": [
            "fairseq2.composition:_register_library/1",
            "fairseq2.recipe.cli:_register_cli_errors/1",
            f"{_COMPOSITION}:_register_train_recipe/2",
            "fairseq2.recipe.internal.config:_RecipeConfigHolder/1",
        ],
        "structure_recipe_config": [
            "fairseq2.recipe.internal.config:_StandardRecipeConfigStructurer.structure/3"
        ],
        "handled_errors": ["fairseq2.recipe.cli:_handle_errors/2"],
        "register_file_system": [
            "fairseq2.file_system:FileSystemRegistry._resolvers",
            "fairseq2.file_system:FileSystemRegistry.register/2",
        ],
        "find_safe_global": [
            "torch:_weights_only_unpickler",
            "torch._weights_only_unpickler:_get_allowed_globals/0",
            "torch._weights_only_unpickler:_get_user_allowed_globals/0",
        ],
        "replace_early_stopper": [f"{_TRAINER}._early_stopper"],
        "is_last_step": [f"{_TRAINER}._max_num_steps"],
        "request_stop": [
            f"{_TRAINER}._max_num_steps",
            f"{_TRAINER}._validator",
            f"{_TRAINER}.request_stop/1",
            "fairseq2.validator:NOOP_VALIDATOR",
        ],
        "call_when_restored": [
            f"{_TRAINER}._maybe_restore_state/1",
            f"{_TRAINER}._state",
            f"{_STATE}.STOPPED",
            f"{_STATE}.END_OF_TRAINING",
            f"{_STATE}.POST_STEP",
            f"{_STATE}.EARLY_STOP",
        ],
        "is_scored_checkpoint": [
            f"{_TRAINER}._should_validate/1",
            f"{_TRAINER}._should_save_checkpoint/1",
        ],
        "validate": [f"{_TRAINER}._validate/1"],
        "should_stop_early": [f"{_TRAINER}._maybe_request_early_stop/2"],
        "fill_batch_layout": [
            f"{_LAYOUT}._width",
            f"{_LAYOUT}._packed",
            f"{_LAYOUT}._padded",
            f"{_LAYOUT}._position_indices",
            f"{_LAYOUT}._max_seq_len",
        ],
        "project_queries": [f"{_ATTENTION}._project_q/3"],
        "project_keys_and_values": [f"{_ATTENTION}._project_kv/4"],
        "call_layer_hooks": [
            "fairseq2.models.transformer:TransformerEncoder._layer_hooks",
            "fairseq2.models.transformer:TransformerDecoder._layer_hooks",
        ],
        "get_nllb_parts": [
            "fairseq2.models.nllb:NllbTokenizer._langs",
            "fairseq2.models.nllb:NllbTokenizer._model",
        ],
        "find_transformers_tokenizer": [
            "fairseq2.models.llama:LLaMAHuggingFaceTokenizer._model",
            "fairseq2.models.llama:LLaMAHuggingFaceTokenizer._eos_token",
            "fairseq2.models.qwen:QwenTokenizer._model",
            "fairseq2.models.qwen:QwenTokenizer._eos_token",
            "fairseq2.data.tokenizers.hg:HuggingFaceTokenModel._tok",
        ],
    },
)


@pytest.mark.parametrize("door,name", DOORS.cases())
def test_name_is_there(door: str, name: str) -> None:
    DOORS.check(door, name)


def test_no_other_name_is_reached() -> None:
    DOORS.check_complete()


def test_import_needs_neither_fairseq2_nor_torch() -> None:
    code = "import sys, warmup_plugin.fairseq2_doors; print({'fairseq2', 'torch'} & set(sys.modules))"

    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout

    assert output == "set()\n"


class Part:
    """A part of training that is saved."""

    def state_dict(self) -> dict[str, object]:
        return {"weight": torch.zeros(2)}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        pass


class TestCheckpoint:
    def test_files_are_where_fairseq2_writes_them(self, tmp_path: Path) -> None:
        resolver = get_dependency_resolver()

        parts: list[Any] = [Part() for _ in range(4)]

        manager = StandardCheckpointManager(
            tmp_path,
            create_fake_gangs(device),
            NativeLocalFileSystem(),
            resolver.resolve(TensorFileLoader),
            resolver.resolve(TensorFileDumper),
            thread_pool=None,  # type: ignore[arg-type]
        )

        manager.save_checkpoint(7, *parts, blocking=True)

        manager.save_score(7, 1.5)

        folder = tmp_path / "checkpoints"

        resolver.resolve(ModelMetadataDumper).dump(folder, "t5", T5Config())

        assert (folder / MODEL_METADATA_FILE).is_file()

        assert (folder / get_score_file(7)).read_text() == "1.5\n"

        step_folder = folder / get_step_folder(7)

        assert (step_folder / "model" / MODEL_FILE).is_file()

        assert {f.name for f in step_folder.iterdir()} == set(CHECKPOINT_PARTS)

        assert parse_step_folder(step_folder.name) == 7

    @pytest.mark.parametrize("name", ["step_7.tmp", "step_", "7", "step_" + "9" * 19])
    def test_other_folders_have_no_step(self, name: str) -> None:
        assert parse_step_folder(name) is None


class TestTrainer:
    def test_restoration_is_called_by_its_name(self) -> None:
        assert "_maybe_restore_state" in Trainer.run.__code__.co_names

    def test_request_is_looked_at_without_maximum(self) -> None:
        names = Trainer._run_post_step.__code__.co_names

        assert {"_max_num_steps", "_stop_requested"} <= set(names)


@dataclass
class CheckedConfig:
    num_checks: int = 0

    def validate(self) -> ValidationResult:
        self.num_checks += 1

        return ValidationResult()


class TestCheckedOnce:
    def test_others_are_checked_each_time(self) -> None:
        config, other = CheckedConfig(), CheckedConfig()

        validator = StandardObjectValidator()

        with checked_once(config):
            for _ in range(3):
                validator.validate(config)
                validator.validate(other)

        assert (config.num_checks, other.num_checks) == (1, 3)

        validator.validate(config)

        assert config.num_checks == 2

    def test_training_checks_its_config_as_read_and_as_completed(
        self,
        tmp_path: Path,
        text_folder: Path,
        tokenizer_file: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        num_checks = 0

        validate = RegimeSection.validate

        def count(self: RegimeSection) -> ValidationResult:
            nonlocal num_checks

            num_checks += 1

            return validate(self)

        monkeypatch.setattr(RegimeSection, "validate", count)

        options = tiny_options(text_folder, tokenizer_file, regime__num_steps=1)

        assert main(to_args(tmp_path / "run", options)) == 0

        # When it is structured, and when it is complete.
        assert num_checks == 2


class TestModels:
    def test_filled_layout_is_that_of_packed_batch(self) -> None:
        layout = BatchLayout.__new__(BatchLayout)

        positions = torch.tensor([0, 1, 0, 1, 2], device=device)

        fill_batch_layout(layout, positions, max_seq_len=3)

        expected = BatchLayout((5,), [2, 3], packed=True, device=device)

        for name in ("width", "max_seq_len", "packed", "padded"):
            assert getattr(layout, name) == getattr(expected, name)

        assert_equal(layout.position_indices, expected.position_indices)

    def test_class_changes_and_weights_stay(self) -> None:
        class Doubled(Linear):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        module = Linear(2, 2, device=device)

        x = torch.ones(2, device=device)

        expected, state_dict = 2 * module(x), module.state_dict()

        change_class(module, Doubled)

        assert_equal(module(x), expected)

        assert module.state_dict().keys() == state_dict.keys()


def test_safe_global_is_what_weights_need() -> None:
    assert find_safe_global("collections.OrderedDict") is not None

    assert find_safe_global("os.system") is None
