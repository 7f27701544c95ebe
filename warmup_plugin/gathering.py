# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from fairseq2.gang import Gang


def gather_objects(
    gang: Gang, item: Any, group: dist.ProcessGroup | None = None
) -> list[Any]:
    """
    Collects one picklable object of every rank, in the order of the ranks.

    :param group: What they exchange them by; ``None`` for that of the gang.
    """
    if gang.size == 1:
        return [item]

    group = gang.as_process_group() if group is None else group

    items: list[Any] = [None] * gang.size

    dist.all_gather_object(items, item, group=group)

    return items
