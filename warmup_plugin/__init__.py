# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Warmup Generations (arXiv 2502.12304) and translation recipes for fairseq2.

``import warmup_plugin`` is quick: fairseq2 and torch are imported only where needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fairseq2.runtime.dependency import DependencyContainer

__version__ = "0.1.0"


def setup_warmup_extension(container: DependencyContainer) -> None:
    """Registers everything; the ``fairseq2.extension`` entry point of setup.py."""
    from warmup_plugin.composition import register_warmup_plugin

    register_warmup_plugin(container)
