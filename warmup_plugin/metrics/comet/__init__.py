# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from warmup_plugin.metrics.comet.client import CometClient as CometClient
from warmup_plugin.metrics.comet.client import CometRequestError as CometRequestError
from warmup_plugin.metrics.comet.client import CometUnavailable as CometUnavailable
from warmup_plugin.metrics.comet.client import CometWorkers as CometWorkers
from warmup_plugin.metrics.comet.client import find_comet_python as find_comet_python
