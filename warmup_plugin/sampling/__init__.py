# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from warmup_plugin.sampling.base import WarmupSampler as WarmupSampler
from warmup_plugin.sampling.base import enumerates_empty as enumerates_empty
from warmup_plugin.sampling.base import is_distinct as is_distinct
from warmup_plugin.sampling.candidates import Candidates as Candidates
from warmup_plugin.sampling.candidates import concat_candidates as concat_candidates
from warmup_plugin.sampling.candidates import empty_candidates as empty_candidates
from warmup_plugin.sampling.draw import draw_candidates as draw_candidates
from warmup_plugin.sampling.tokens import sample_tokens as sample_tokens
