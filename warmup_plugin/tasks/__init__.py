# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Tasks: what a run is for, and the settings that follow from it."""

from warmup_plugin.tasks.base import TaskContext as TaskContext
from warmup_plugin.tasks.base import TaskSettings as TaskSettings
from warmup_plugin.tasks.base import TextTask as TextTask
from warmup_plugin.tasks.base import choose_prompt as choose_prompt
from warmup_plugin.tasks.base import limit_to_targets as limit_to_targets
