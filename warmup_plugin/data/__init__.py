# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

# `reader` is left out on purpose: it imports fairseq2, which costs seconds, and
# `train-tokenizer` and `evaluate` need only the text.
from warmup_plugin.data.text_pairs import TextPairs as TextPairs
from warmup_plugin.data.text_pairs import TextPairsConfig as TextPairsConfig
from warmup_plugin.data.text_pairs import iter_lines as iter_lines
from warmup_plugin.data.text_pairs import read_lines as read_lines
from warmup_plugin.data.text_pairs import read_split as read_split
