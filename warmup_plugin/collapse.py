# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""From which shares on warmups look like a collapse; training warns, a report shows it."""

from __future__ import annotations

from typing import Final

MAX_EMPTY: Final = 0.8
"""Four in five warmups: a source has hardly one to learn from."""

MAX_DUPLICATE: Final = 0.8
"""Of the K - 1 draws that could differ from the first, four in five: the draws cost K
times as much as one and show little more."""

MAX_REPETITION: Final = 0.15
"""One token in seven. The captions of Multi30k have less than 1 % on average, and a phrase
written twice has a half; runs that collapsed passed this share within 200 steps."""

MAX_CUT: Final = 0.95
"""Nearly every warmup: the model does not learn when to end one."""

NUM_CUT_WINDOWS: Final = 4
"""The windows that pass before cut warmups alone are a reason to warn: a model that comes
from SFT has never written a separator, and needs time to learn it."""
