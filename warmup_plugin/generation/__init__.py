# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from warmup_plugin.generation.config import GenerationConfig as GenerationConfig
from warmup_plugin.generation.config import GenerationSection as GenerationSection
from warmup_plugin.generation.config import (
    create_generation_config as create_generation_config,
)
from warmup_plugin.generation.generator import WarmupGenerator as WarmupGenerator
from warmup_plugin.generation.hypothesis import Hypothesis as Hypothesis
