# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path
from typing import Any

from warmup_plugin.errors import WarmupError
from warmup_plugin.parsing import parse_json


def read_settings(file: Path) -> dict[str, Any]:
    """
    Reads a JSON file of a Hugging Face tokenizer; nothing if there is none.

    :raises WarmupError: If it is not JSON.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        content = None

    if not isinstance(content, dict):
        raise WarmupError(
            f"`{file}` cannot be read as JSON; copy the tokenizer of the checkpoint again."
        )

    return content
