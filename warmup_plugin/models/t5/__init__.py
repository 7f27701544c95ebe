# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from warmup_plugin.models.t5.attention import T5SDPA as T5SDPA
from warmup_plugin.models.t5.attention import T5PositionBias as T5PositionBias
from warmup_plugin.models.t5.config import T5_FAMILY as T5_FAMILY
from warmup_plugin.models.t5.config import T5Config as T5Config
from warmup_plugin.models.t5.config import register_t5_configs as register_t5_configs
from warmup_plugin.models.t5.factory import create_t5_model as create_t5_model
from warmup_plugin.models.t5.family import apply_fsdp_to_t5 as apply_fsdp_to_t5
from warmup_plugin.models.t5.family import compile_t5 as compile_t5
from warmup_plugin.models.t5.family import register_t5_family as register_t5_family
from warmup_plugin.models.t5.interop import T5HuggingFaceFormat as T5HuggingFaceFormat
from warmup_plugin.models.t5.interop import (
    convert_t5_state_dict as convert_t5_state_dict,
)
from warmup_plugin.models.t5.stacks import T5Decoder as T5Decoder
