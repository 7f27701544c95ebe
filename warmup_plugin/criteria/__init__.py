# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from warmup_plugin.criteria.base import Criterion as Criterion
from warmup_plugin.criteria.base import CriterionContext as CriterionContext
from warmup_plugin.criteria.base import CriterionTrainUnit as CriterionTrainUnit
from warmup_plugin.criteria.base import WeighedWarmup as WeighedWarmup
from warmup_plugin.criteria.base import num_target_tokens as num_target_tokens
from warmup_plugin.criteria.base import update_loss as update_loss
from warmup_plugin.criteria.config import CriterionSection as CriterionSection
from warmup_plugin.criteria.config import ObjectiveSection as ObjectiveSection
from warmup_plugin.criteria.config import SamplerSection as SamplerSection
from warmup_plugin.criteria.config import WarmupSection as WarmupSection
from warmup_plugin.criteria.registry import CriterionFactory as CriterionFactory
from warmup_plugin.criteria.registry import register_criterion as register_criterion
