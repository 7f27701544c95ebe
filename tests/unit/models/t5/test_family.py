# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.assets import AssetStore
from fairseq2.composition import _register_library
from fairseq2.device import CPU
from fairseq2.gang import create_fake_gangs
from fairseq2.models import ModelFamily
from fairseq2.models.hg import HuggingFaceConverter, save_hugging_face_model
from fairseq2.models.transformer import TransformerModel
from fairseq2.runtime.dependency import DependencyContainer
from torch.nn import Module

from tests.common import assert_equal
from tests.unit.models.t5.cases import create_config, create_inputs, create_random_model
from tests.unit.models.t5.test_config import SIZES
from warmup_plugin.models.t5 import (
    T5_FAMILY,
    T5Config,
    T5HuggingFaceFormat,
    apply_fsdp_to_t5,
)


@pytest.fixture(scope="module")
def container() -> DependencyContainer:
    # Not `init_fairseq2()`, which works once in a process. It calls our entry point.
    container = DependencyContainer()

    _register_library(container, no_progress=True)

    return container


class TestRegisterT5Family:
    def test_family_can_do_everything(self, container: DependencyContainer) -> None:
        family = container.resolve(ModelFamily, key=T5_FAMILY)

        assert family.kls is TransformerModel
        assert family.config_kls is T5Config

        assert family.supports_meta
        assert family.supports_compilation
        assert family.supports_fsdp
        assert family.supports_layerwise_ac

        assert family.get_archs() == {"t5_test", *SIZES}

        converter = container.resolve(HuggingFaceConverter, key=T5_FAMILY)

        assert isinstance(converter, T5HuggingFaceFormat)

    @pytest.mark.parametrize("kind", ["safetensors", "bin"])
    @pytest.mark.parametrize("tied", [True, False])
    def test_files_of_hugging_face_are_loaded(
        self, container: DependencyContainer, tmp_path: Path, tied: bool, kind: str
    ) -> None:
        config = create_config(tied_embeddings=tied)

        expected = create_random_model(config)

        fmt = T5HuggingFaceFormat()

        hg_state_dict = fmt.to_hg_state_dict(expected.state_dict(), config)

        if kind == "bin":
            path = tmp_path / "pytorch_model.bin"

            # As the public files of that time are.
            hg_state_dict["encoder.embed_tokens.weight"] = hg_state_dict[
                "shared.weight"
            ]

            torch.save(hg_state_dict, path, _use_new_zipfile_serialization=False)
        else:
            path = tmp_path / "hg"

            save_hugging_face_model(path, hg_state_dict, fmt.to_hg_config(config))

        family = container.resolve(ModelFamily, key=T5_FAMILY)

        model = family.load_custom_model(
            path,
            config,
            create_fake_gangs(CPU),
            torch.float32,
            load_rank0_only=False,
            mmap=False,
            restrict=None,
        )

        inputs = create_inputs()

        assert_equal(model.eval()(*inputs), expected(*inputs))

    def test_cards_are_complete(self, container: DependencyContainer) -> None:
        store = container.resolve(AssetStore)

        family = container.resolve(ModelFamily, key=T5_FAMILY)

        for name in SIZES:
            card = store.retrieve_card(name)

            assert card.field("model_family").as_(str) == T5_FAMILY
            assert card.field("tokenizer_family").as_(str) == "t5"

            config = family.get_model_config(card)

            assert config == family.maybe_get_arch_config(name)

            checkpoint, tokenizer = (
                card.field(field).as_(str) for field in ("checkpoint", "tokenizer")
            )

            repository = name.replace("_", "-").replace("v1-1", "v1_1")

            if checkpoint.startswith("hg://"):
                organisation = "google" if name.startswith("flan") else "google-t5"

                assert checkpoint == tokenizer == f"hg://{organisation}/{repository}"
            else:
                url = f"https://huggingface.co/google/{repository}/resolve/main"

                assert checkpoint == f"{url}/pytorch_model.bin"
                assert tokenizer == f"{url}/spiece.model"


class TestApplyFsdpToT5:
    @pytest.mark.parametrize("granularity", ["layer", "stack"])
    def test_bias_is_gathered_before_decoder(self, granularity: str) -> None:
        model = create_random_model(create_config())

        wrapped: list[Module] = []

        def wrap(module: Module, reshard_after_forward: bool | None = None) -> Module:
            wrapped.append(module)

            return module

        apply_fsdp_to_t5(model, granularity, wrap)

        bias = model.get_submodule("decoder.position_bias")

        if granularity == "layer":
            assert wrapped == [*model.encoder.layers, *model.decoder.layers]
        else:
            # Inner ones first.
            assert wrapped == [bias, model.encoder, model.decoder]
