# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Small corpora whose systems differ without ties."""

from __future__ import annotations

import random
from collections.abc import Sequence

_WORDS = (
    "the a cat dog bird man woman child sits stands runs sleeps on under near red green "
    "old young small mat house tree river quickly slowly today never"
).split()


def make_references(num: int = 60) -> list[str]:
    rng = random.Random(1)

    return [" ".join(rng.choices(_WORDS, k=rng.randint(3, 14))) for _ in range(num)]


def make_hypotheses(references: Sequence[str], rate: float, seed: int) -> list[str]:
    """Replaces words of the references, each with a probability of ``rate``."""
    rng = random.Random(seed)

    return [
        " ".join(
            rng.choice(_WORDS) if rng.random() < rate else word for word in line.split()
        )
        for line in references
    ]
