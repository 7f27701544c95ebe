# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
How long the fuzz tests look for input that breaks something.

By default they take a minute and see the same each time. ``make fuzz`` sets
``FUZZ_EXAMPLES``, the number of examples a test, and they see something else each time.
"""

from __future__ import annotations

import os
from typing import Final

from hypothesis import HealthCheck, Phase, settings

_EXAMPLES: Final = os.environ.get("FUZZ_EXAMPLES", "")

_SLOW: Final = [HealthCheck.too_slow, HealthCheck.data_too_large]

settings.register_profile(
    "once",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    # Whoever looks for the smallest input has `make fuzz`.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=_SLOW,
)

settings.register_profile(
    "long",
    deadline=None,
    max_examples=int(_EXAMPLES or 1),
    print_blob=True,
    suppress_health_check=_SLOW,
)

settings.load_profile("long" if _EXAMPLES else "once")
