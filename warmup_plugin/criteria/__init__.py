# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from warmup_plugin.criteria.base import Criterion as Criterion
from warmup_plugin.criteria.base import CriterionContext as CriterionContext
from warmup_plugin.criteria.base import CriterionFactory as CriterionFactory
from warmup_plugin.criteria.config import CriterionSection as CriterionSection
from warmup_plugin.criteria.config import ObjectiveSection as ObjectiveSection
from warmup_plugin.criteria.config import WarmupSection as WarmupSection
