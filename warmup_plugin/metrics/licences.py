# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The licences of public models that score."""

from __future__ import annotations

from typing import Final

_NON_COMMERCIAL: Final = "CC BY-NC-SA 4.0, not for commercial use"

# As the cards of the models say it.
_LICENCES: Final = {
    "wmt20-comet-da": "Apache 2.0",
    "wmt21-comet-da": "Apache 2.0",
    "wmt22-comet-da": "Apache 2.0",
    "wmt22-cometkiwi-da": _NON_COMMERCIAL,
    "wmt23-cometkiwi-da-xl": _NON_COMMERCIAL,
    "wmt23-cometkiwi-da-xxl": _NON_COMMERCIAL,
    "XCOMET-XL": _NON_COMMERCIAL,
    "XCOMET-XXL": _NON_COMMERCIAL,
    "metricx-24-hybrid-large-v2p6": "Apache 2.0",
    "metricx-24-hybrid-xl-v2p6": "Apache 2.0",
    "metricx-24-hybrid-xxl-v2p6": "Apache 2.0",
}


def find_licence(model: str) -> str | None:
    """
    Returns the licence of a model; ``None`` if it is none of the known public ones.

    :param model: The name without its owner, which its folder may have as well.
    """
    return _LICENCES.get(model.removesuffix("-bfloat16"))
