# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The shapes in which ``bench_step.py`` measures, and the cost that their operations predict."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from scripts.bench_common import Setting

_CAPTIONS: Final = Setting(
    name="captions",
    model_dim=128,
    num_layers=2,
    vocab_size=6000,
    source_len=17,
    target_len=17,
    warmup_len=8,
    num_warmups=4,
)

_SENTENCE: Final = replace(
    _CAPTIONS,
    name="sentence",
    model_dim=256,
    num_layers=6,
    vocab_size=8000,
    source_len=30,
    target_len=30,
)

# Transformer base, as in "Attention Is All You Need".
_BASE: Final = replace(
    _SENTENCE,
    name="base",
    model_dim=512,
    num_heads=8,
    vocab_size=32_000,
    needs_gpu=True,
)

_T5_BASE: Final = replace(
    _BASE,
    name="t5-base",
    family="t5",
    model_dim=768,
    num_layers=12,
    num_heads=12,
    vocab_size=32_128,
    source_len=40,
    target_len=40,
)

SETTINGS: Final = {
    setting.name: setting
    for setting in (
        _CAPTIONS,
        _SENTENCE,
        replace(
            _SENTENCE,
            name="summarization",
            source_len=512,
            target_len=64,
            warmup_len=16,
        ),
        # For the memory of a large vocabulary: small where that does not matter.
        replace(
            _SENTENCE,
            name="mt5-vocab",
            num_layers=2,
            vocab_size=250_000,
            source_len=40,
            target_len=40,
            num_warmups=8,
            num_target_tokens=320,
        ),
        replace(_CAPTIONS, name="t5-captions", family="t5"),
        # Decoder-only, with as many layers as the others have in all.
        replace(_CAPTIONS, name="llama-captions", family="llama", num_layers=4),
        replace(_SENTENCE, name="llama-sentence", family="llama", num_layers=12),
        _BASE,
        _T5_BASE,
        replace(_T5_BASE, name="mt5-base", vocab_size=250_112),
    )
}


def predict_multiple(
    setting: Setting,
    num_kept: int | None,
    *,
    weighs: bool = True,
    source_repeated: bool = False,
    shares_encoder: bool = False,
    checkpoints_activations: bool = False,
) -> float:
    """
    Predicts a warmup step as a multiple of the SFT step by counting multiply-adds.

    With d dimensions, a token costs 12 d² in a layer of the encoder, 14 d² in a layer
    of the decoder, and V d in the output projection; the keys and values of a source
    token cost 2 d² in a layer of the decoder; a token of a decoder-only model costs 12 d².
    A warmup is counted with its separator. Backward costs two forwards. Attention weights, softmax and drawing are not counted.

    :param num_kept: The candidates a source in the differentiable pass; ``None`` for
        all.
    :param weighs: ``False`` if they are not weighed first. Ours are, all of them too:
        the weights must be known when a chunk of logits is differentiated, or all chunks
        would stay in memory.
    :param source_repeated: ``True`` if each candidate has its source encoded.
    :param shares_encoder: ``True`` if the encoder is called once; keys and values of the
        decoder are computed twice all the same.
    :param checkpoints_activations: ``True`` if backward computes forward once more.
    """
    squared = setting.model_dim**2

    num_layers = setting.num_layers

    layer = (12 if setting.is_decoder_only else 14) * squared

    encode = setting.source_len * num_layers * layer

    token = num_layers * layer + setting.vocab_size * setting.model_dim

    warmup = (setting.warmup_len + 1) * token

    target = setting.target_len * token

    # Passes forward that a pass with gradient is worth.
    grad = 4 if checkpoints_activations else 3

    sft = grad * (encode + target)

    num_warmups = setting.num_warmups

    num_encoded = num_warmups if source_repeated else 1

    # Once without gradient, for drawing and weighing, and once with.
    step = (1 + grad) * num_encoded * encode + num_warmups * warmup

    if shares_encoder:
        step -= setting.source_len * num_layers * 12 * squared

    if weighs:
        step += num_warmups * target

    if num_kept is None:
        num_kept = num_warmups

    step += grad * num_kept * (warmup + target)

    return step / sft
