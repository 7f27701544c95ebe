# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from fairseq2.models import ModelHubAccessor
from fairseq2.models.transformer import TransformerModel

from warmup_plugin.models.t5.config import T5_FAMILY, T5Config

get_t5_model_hub = ModelHubAccessor(
    T5_FAMILY, kls=TransformerModel, config_kls=T5Config
)
