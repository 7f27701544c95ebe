# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import pytest
import torch

from tests.common import assert_equal, device
from warmup_plugin.generation import top_tokens
from warmup_plugin.generation.top_tokens import find_top


class TestFindTop:
    @pytest.mark.parametrize("num_top", [1, 2, 10])
    @pytest.mark.parametrize("vocab_size", [7 * 64, 1000, 6001, 500, 12])
    def test_call_equals_topk(
        self, vocab_size: int, num_top: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(top_tokens, "_MIN_NUM_LOGITS", 0)

        torch.manual_seed(0)

        logits = torch.randn((40, vocab_size), device=device)

        # The largest ones lie in one block in some rows, and at the end in others.
        logits[:5, 64:80] += 9.0
        logits[5:10, -12:] += 9.0

        # Most tokens may be banned.
        logits[10:15, 10:] = -torch.inf

        top, tokens = find_top(logits, num_top)

        expected = logits.topk(num_top, dim=1)

        assert_equal(top, expected.values)

        assert_equal(logits.gather(1, tokens), expected.values)

        finite = expected.values.isfinite()

        assert_equal(tokens[finite], expected.indices[finite])

    @pytest.mark.parametrize("num_rows", [2, 200])
    def test_what_is_not_a_number_is_not_lost(self, num_rows: int) -> None:
        logits = torch.zeros((num_rows, 1000), device=device)

        logits[1, 700] = torch.nan

        assert bool(find_top(logits, 1)[0][1].isnan().all())
        assert bool(find_top(logits, 4)[0][1].isnan().any())
