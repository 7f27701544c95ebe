# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Byte-level BPE, in the files that the family ``hugging_face`` reads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final

from warmup_plugin.tokenizers.special import PROMPT_END, SEPARATOR

_PAD: Final = "<pad>"
_EOS: Final = "<eos>"


def train_byte_bpe(sentences: Iterable[str], vocab_size: int) -> dict[str, bytes]:
    """
    Trains a tokenizer whose alphabet is that of bytes, so that it loses no text.

    :param vocab_size: The most tokens. There are fewer if no two neighbours are left
        that occur together more than once.

    :returns: The contents of the files by their names.
    """
    # Seconds, and only these tokenizers need it.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())

    # No space is put before a text, or decoding would not give it back.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()

    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # What occurs once teaches nothing.
        min_frequency=2,
        # Text that spells one does not become it: words and punctuation are split before
        # anything is merged.
        special_tokens=[_PAD, _EOS, SEPARATOR, PROMPT_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    tokenizer.train_from_iterator(sentences, trainer)

    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": _PAD,
        "eos_token": _EOS,
        # It is put before no text, but CTranslate2 demands one, and outputs begin here.
        "bos_token": PROMPT_END,
        "additional_special_tokens": [SEPARATOR],
        "clean_up_tokenization_spaces": False,
        # Llama refuses types of tokens, which transformers would add.
        "model_input_names": ["input_ids", "attention_mask"],
    }

    return {
        "tokenizer_config.json": f"{json.dumps(settings, indent=2)}\n".encode(),
        "tokenizer.json": f"{tokenizer.to_str(pretty=True)}\n".encode(),
    }
