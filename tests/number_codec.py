# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import override

from tests.common import BOS_IDX, EOS_IDX, create_layout
from warmup_plugin.tokenizers.codec import EncodedText, TextCodec


class NumberCodec(TextCodec):
    """Reads text of numbers, which are its tokens."""

    def __init__(self, *, reads_prompts: bool) -> None:
        super().__init__(create_layout(), "<sep>")

        self._reads_prompts = reads_prompts

    @override
    def encode_source(self, source: str) -> EncodedText:
        tokens = [int(token) for token in source.split()]

        if self._reads_prompts:
            return EncodedText(tokens[:-1], tokens[-1:])

        return EncodedText([*tokens, EOS_IDX], [BOS_IDX])

    @override
    def encode_target(self, target: str) -> list[int]:
        return [*(int(token) for token in target.split()), EOS_IDX]

    @override
    def decode(self, tokens: Sequence[int]) -> str:
        return " ".join(map(str, tokens))

    @override
    def to_tokens(self, tokens: Sequence[int]) -> list[str]:
        return [str(token) for token in tokens]

    @property
    @override
    def template(self) -> str:
        return "{source}"

    @property
    @override
    def num_template_tokens(self) -> int:
        return 0
