# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.common import create_layout, create_tiny_model
from warmup_plugin.errors import WarmupError
from warmup_plugin.generation.config import create_generation_config
from warmup_plugin.generation.generator import WarmupGenerator
from warmup_plugin.models.scorable import create_conditional_model
from warmup_plugin.recipes.common import check_lengths, get_rank


class FakeModel:
    max_source_len = 10

    def get_max_target_len(self, source_len: int) -> int:
        # A prompt of the longest source leaves 20.
        return 30 - source_len


class TestCheckLengths:
    @pytest.mark.parametrize(
        "max_target_len,max_warmup_len",
        # The last token is predicted, not read.
        [(21, None), (15, 5), (20, 0)],
    )
    def test_call_accepts_what_fits(
        self, max_target_len: int, max_warmup_len: int | None
    ) -> None:
        model = cast(Any, FakeModel())

        check_lengths(model, create_layout(), 10, max_target_len, max_warmup_len)

    @pytest.mark.parametrize(
        "args,message",
        [
            ((11, 5, None), "`dataset.max_source_len` is 11, but"),
            ((10, 22, None), "`dataset.max_target_len` \\(22\\)"),
            ((10, 16, 5), "`warmup.max_warmup_len` \\(5\\)"),
        ],
    )
    def test_call_raises_error_when_limits_exceed_model(
        self, args: Any, message: str
    ) -> None:
        with pytest.raises(WarmupError, match=message):
            check_lengths(cast(Any, FakeModel()), create_layout(), *args)

    @pytest.mark.parametrize("max_warmup_len", [None, 0, 3])
    def test_what_is_trained_can_be_generated(self, max_warmup_len: int | None) -> None:
        layout = create_layout()

        model = create_conditional_model(create_tiny_model(max_seq_len=16))

        config = create_generation_config(max_warmup_len, beam_size=1)

        generator = WarmupGenerator(model, layout, config)

        # BOS, words and EOS.
        longest = layout.prefix_len + generator.get_room(source_len=5)

        check_lengths(model, layout, 5, longest, max_warmup_len)

        with pytest.raises(WarmupError, match="longer than the 16 tokens"):
            check_lengths(model, layout, 5, longest + 1, max_warmup_len)


class TestGetRank:
    @pytest.mark.parametrize(
        "variables,rank",
        [
            ({}, 0),
            ({"RANK": "3"}, 3),
            ({"SLURM_PROCID": "2"}, 2),
            ({"RANK": "1", "SLURM_PROCID": "2"}, 1),
            ({"RANK": ""}, 0),
        ],
    )
    def test_call_reads_environment(
        self, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], rank: int
    ) -> None:
        for name in ("RANK", "SLURM_PROCID"):
            monkeypatch.delenv(name, raising=False)

        for name, value in variables.items():
            monkeypatch.setenv(name, value)

        assert get_rank() == rank
