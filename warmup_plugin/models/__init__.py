# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from warmup_plugin.models.conditional import ConditionalModel as ConditionalModel
from warmup_plugin.models.scorable import (
    create_conditional_model as create_conditional_model,
)
from warmup_plugin.models.scorable import make_scorable as make_scorable
