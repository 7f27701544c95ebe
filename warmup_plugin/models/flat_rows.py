# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The tokens of many rows, one after the other."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from warmup_plugin.layout import DecoderRows
from warmup_plugin.models.rows import Folding


@final
class FlatRows:
    """Holds the tokens of rows one after the other."""

    def __init__(self, rows: DecoderRows, begins: Tensor | None = None) -> None:
        """
        :param begins: The number of tokens of each row to leave out. *Shape:*
            :math:`(R)`.
        """
        device = rows.seqs.device

        self.num_rows, width = rows.seqs.shape

        # (R, 1)
        seq_lens = torch.tensor(rows.seq_lens, device=device).unsqueeze(1)

        at = torch.arange(width, device=device)

        # (R, S)
        mask = at < seq_lens

        if begins is not None:
            mask = mask & (at >= begins.unsqueeze(1))

        # (T), (T)
        self.row_idx, self.step_idx = mask.nonzero(as_tuple=True)

        def get(values: Tensor) -> Tensor:
            return values[self.row_idx, self.step_idx]

        # (T) each
        self.tokens = get(rows.seqs)
        self.targets = get(rows.targets)
        self.warmup_mask = get(rows.warmup_mask)
        self.target_mask = get(rows.target_mask)

        self.row_sources = rows.source_idx

        self.source_idx = rows.source_idx.index_select(0, self.row_idx)

        self.folding = Folding(self.row_idx, self.num_rows)

        self.max_len = max(rows.seq_lens)


def list_counted(flat: FlatRows) -> tuple[Tensor, int]:
    """
    Lists the tokens whose prediction counts, those of warmups first.

    :returns: Their places, *Shape:* :math:`(P)`, and the number of warmup tokens.
    """
    warmup_idx = flat.warmup_mask.nonzero().squeeze(1)
    target_idx = flat.target_mask.nonzero().squeeze(1)

    return torch.cat([warmup_idx, target_idx]), warmup_idx.size(0)
