# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any

from fairseq2.composition import register_model_family, register_package_assets
from fairseq2.models.hg import HuggingFaceConverter
from fairseq2.models.transformer import (
    TransformerModel,
    apply_ac_to_transformer,
    apply_fsdp_to_transformer,
)
from fairseq2.nn.fsdp import FSDPWrapper
from fairseq2.runtime.dependency import DependencyContainer
from torch.nn import Module

from warmup_plugin.models.t5.config import T5_FAMILY, T5Config, register_t5_configs
from warmup_plugin.models.t5.factory import create_t5_model
from warmup_plugin.models.t5.interop import T5HuggingFaceFormat, convert_t5_state_dict
from warmup_plugin.models.t5.stacks import T5Decoder


def register_t5_family(container: DependencyContainer) -> None:
    """Registers the family, its presets and the cards of its public models."""
    register_model_family(
        container,
        T5_FAMILY,
        TransformerModel,
        T5Config,
        factory=create_t5_model,
        state_dict_converter=convert_t5_state_dict,
        compiler=compile_t5,
        fsdp_applier=apply_fsdp_to_t5,
        layerwise_ac_applier=apply_ac_to_transformer,
    )

    register_t5_configs(container)

    container.register_type(HuggingFaceConverter, T5HuggingFaceFormat, key=T5_FAMILY)

    register_package_assets(container, "warmup_plugin.assets")


def compile_t5(model: TransformerModel, *args: Any, **kwargs: Any) -> None:
    """Compiles the layers in place, as fairseq2 does for decoder-only models."""
    # Sources and rows are of other sizes at each step. With variants for the first sizes
    # and for all others, of self-attention and of attention to the source, PyTorch would
    # reach its limit and go on without compiling.
    if kwargs.get("dynamic") is None:
        kwargs["dynamic"] = True

    for stack in (model.encoder, model.decoder):
        for layer in stack.layers:
            layer.compile(*args, **kwargs)


def apply_fsdp_to_t5(
    model: TransformerModel, granularity: str, wrapper: FSDPWrapper
) -> Module:
    """Does what fairseq2 does for each Transformer."""
    if granularity == "stack":
        # Decoder rows need it before the forward of the decoder, which gathers the
        # parameters of its stack; with layers, it belongs to the whole model.
        decoder = model.decoder

        assert isinstance(decoder, T5Decoder)

        decoder.register_module("position_bias", wrapper(decoder.position_bias))

    return apply_fsdp_to_transformer(model, granularity, wrapper)
