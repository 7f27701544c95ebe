# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from warmup_plugin.generation.beam import BeamSearch as BeamSearch
from warmup_plugin.generation.beam import BeamSearchConfig as BeamSearchConfig
from warmup_plugin.generation.beam import Hypothesis as Hypothesis
