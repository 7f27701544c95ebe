# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, final

_LAYER_IDX: Final = re.compile(r"(?<=\.)[0-9]+(?=\.)")


@final
class NameMap:
    """Translates the names of weights between Hugging Face and fairseq2."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        """
        :param pairs: The name of Hugging Face and the one of fairseq2 of each module
            that holds weights, with ``*`` for the index of its layer.
        """
        self._from_hg = dict(pairs)

        self._to_hg = {fs2_name: hg_name for hg_name, fs2_name in pairs}

    def from_hg(self, name: str) -> str:
        """Returns the name of fairseq2; an unknown name is returned as it is."""
        return _translate(name, self._from_hg)

    def to_hg(self, name: str) -> str:
        """Returns the name of Hugging Face; an unknown name is returned as it is."""
        return _translate(name, self._to_hg)


def _translate(name: str, modules: Mapping[str, str]) -> str:
    module, _, weight = _LAYER_IDX.sub("*", name).rpartition(".")

    translated = modules.get(module)

    if translated is None:
        return name

    for idx in _LAYER_IDX.findall(name):
        translated = translated.replace("*", idx, 1)

    return f"{translated}.{weight}"
