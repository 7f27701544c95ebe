# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What many tests need: tensors compared, a tiny vocabulary, tiny models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, Final, TypeAlias, TypeVar

import pytest
import torch
from fairseq2.models.llama import LLaMAConfig
from fairseq2.models.llama.factory import create_llama_model
from fairseq2.models.nllb import NllbConfig
from fairseq2.models.nllb.factory import create_nllb_model
from fairseq2.models.qwen import QwenConfig
from fairseq2.models.qwen.factory import create_qwen_model
from fairseq2.models.transformer import TransformerModel
from fairseq2.models.transformer_lm import TransformerLM
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import Module

from warmup_plugin.layout import DecoderLayout
from warmup_plugin.models.t5 import T5Config, create_t5_model
from warmup_plugin.sampling import Candidates

device: Final = torch.device("cpu")

PAD_IDX, UNK_IDX, BOS_IDX, EOS_IDX, SEPARATOR_IDX = range(5)

VOCAB_SIZE: Final = 8

WORDS: Final = (5, 6, 7)
"""The tokens that are text."""

Model: TypeAlias = TransformerModel | TransformerLM

ModelT = TypeVar("ModelT", TransformerModel, TransformerLM)


def assert_close(
    a: Tensor, b: Any, rtol: float | None = None, atol: float | None = None
) -> None:
    """Asserts that ``a`` and ``b``, a tensor or numbers, are element-wise close."""
    if not isinstance(b, Tensor):
        b = torch.tensor(b, device=device, dtype=a.dtype)

    torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def assert_equal(a: Tensor, b: Any) -> None:
    """Asserts that ``a`` and ``b``, a tensor or numbers, are element-wise equal."""
    assert_close(a, b, rtol=0, atol=0)


def create_layout(
    *, prefix_len: int = 1, vocab_size: int = VOCAB_SIZE
) -> DecoderLayout:
    """Creates the layout of the tiny vocabulary."""
    return DecoderLayout(
        separator_idx=SEPARATOR_IDX,
        eos_idx=EOS_IDX,
        pad_idx=PAD_IDX,
        prefix_len=prefix_len,
        vocab_size=vocab_size,
        banned_in_warmup=(PAD_IDX, UNK_IDX, BOS_IDX, EOS_IDX),
        banned_in_target=(PAD_IDX, UNK_IDX, BOS_IDX, SEPARATOR_IDX),
        unk_idx=UNK_IDX,
    )


def create_tiny_model(
    *,
    vocab_size: int = VOCAB_SIZE,
    num_layers: int = 1,
    dropout_p: float = 0.0,
    max_seq_len: int = 64,
    seed: int = 6,
) -> TransformerModel:
    """
    Creates an encoder-decoder in evaluation mode.

    All its weights are random, biases and layer norms as well, so that what it
    predicts depends on every token that it sees.
    """
    config = NllbConfig(
        model_dim=16,
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
        pad_idx=PAD_IDX,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        num_encoder_attn_heads=2,
        num_decoder_attn_heads=2,
        ffn_inner_dim=32,
        dropout_p=dropout_p,
    )

    return _randomize(lambda: create_nllb_model(config), seed)


def create_tiny_lm(
    *,
    vocab_size: int = VOCAB_SIZE,
    num_layers: int = 1,
    dropout_p: float = 0.0,
    max_seq_len: int = 64,
    seed: int = 6,
) -> TransformerLM:
    """
    Creates a decoder-only model in evaluation mode, as :func:`create_tiny_model` does.

    It is a LLaMA; two heads of queries share one of keys and values.
    """
    config = LLaMAConfig(
        model_dim=16,
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
        pad_idx=PAD_IDX,
        num_layers=num_layers,
        num_attn_heads=4,
        num_key_value_heads=2,
        ffn_inner_dim=32,
        ffn_inner_dim_multiple_of=32,
        dropout_p=dropout_p,
    )

    return _randomize(lambda: create_llama_model(config), seed)


def create_tiny_qwen(
    *,
    vocab_size: int = VOCAB_SIZE,
    num_layers: int = 1,
    dropout_p: float = 0.0,
    max_seq_len: int = 64,
    seed: int = 6,
) -> TransformerLM:
    """
    Creates a decoder-only model in evaluation mode, as :func:`create_tiny_model` does.

    It is a Qwen: queries and keys are normalised, the heads together are wider than the
    model, and the embedding is the output projection too.
    """
    config = QwenConfig(
        model_dim=16,
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
        tied_embeddings=True,
        num_layers=num_layers,
        num_attn_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        q_norm=True,
        k_norm=True,
        ffn_inner_dim=32,
        dropout_p=dropout_p,
    )

    return _randomize(lambda: create_qwen_model(config), seed)


def create_tiny_t5(
    *,
    vocab_size: int = VOCAB_SIZE,
    num_layers: int = 1,
    dropout_p: float = 0.0,
    max_seq_len: int = 64,
    seed: int = 6,
) -> TransformerModel:
    """
    Creates an encoder-decoder in evaluation mode, as :func:`create_tiny_model` does.

    It is a T5: self-attention has a bias of positions, so few buckets of which that the
    distances in short rows share them; the heads together are wider than the model, and
    the embedding is the output projection too.
    """
    config = T5Config(
        model_dim=16,
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
        pad_idx=PAD_IDX,
        num_encoder_layers=num_layers,
        num_decoder_layers=num_layers,
        num_attn_heads=4,
        head_dim=6,
        ffn_inner_dim=32,
        gated_ffn=True,
        activation="gelu",
        num_position_buckets=6,
        max_position_distance=6,
        dropout_p=dropout_p,
    )

    return _randomize(lambda: create_t5_model(config), seed)


def _randomize(create_model: Callable[[], ModelT], seed: int) -> ModelT:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)

        with device:
            model = create_model()

        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, device=device))

            # No token nearly certain, or a few draws would not see the others.
            # The separator has a probability of 0.2 to 0.6 with the default seed.
            for parameter in get_last_layer_norm(model).parameters():
                parameter.mul_(0.5)

    return model.eval()


CREATE_MODEL: Final[dict[str, Callable[..., Model]]] = {
    "transformer": create_tiny_model,
    "t5": create_tiny_t5,
    "llama": create_tiny_lm,
    "qwen": create_tiny_qwen,
}

each_model = pytest.mark.parametrize("kind", CREATE_MODEL)
"""Runs a test with the name of each kind of model."""


def get_last_layer_norm(model: Model) -> Module:
    """Returns what stands between a decoder and its output projection."""
    layer_norm = model.decoder.layer_norm

    assert isinstance(layer_norm, Module)

    return layer_norm


def get_embedding(model: TransformerModel) -> Tensor:
    """Returns the matrix that sources, targets and output share."""
    weight = model.get_parameter("encoder_frontend.embed.weight")

    assert weight is model.get_parameter("final_proj.weight")

    return weight


def pad_rows(rows: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
    """Collates token sequences. Returns them and their lengths."""
    width = max(len(row) for row in rows)

    padded = [[*row, *[PAD_IDX] * (width - len(row))] for row in rows]

    return torch.tensor(padded, device=device), [len(row) for row in rows]


def create_source(rows: Sequence[Sequence[int]]) -> tuple[Tensor, BatchLayout]:
    """Collates sources for an encoder."""
    seqs, seq_lens = pad_rows(rows)

    return seqs, BatchLayout.of(seqs, seq_lens)


def forward_alone(model: Model, source: Sequence[int], seq: Sequence[int]) -> Tensor:
    """Returns what fairseq2's forward makes of one sequence. *Shape:* :math:`(S,V)`."""
    if isinstance(model, TransformerModel):
        logits = model(*create_source([source]), *create_source([seq]))[0]
    else:
        logits = model(*create_source([[*source, *seq]]))[0, len(source) :]

    assert isinstance(logits, Tensor)

    return logits


def list_sentences(max_len: int) -> list[list[int]]:
    """Lists every sequence of at most ``max_len`` words, the empty one first."""
    return [
        list(words)
        for length in range(max_len + 1)
        for words in product(WORDS, repeat=length)
    ]


def create_candidates(
    warmups: Sequence[Sequence[Sequence[int]]], max_warmup_len: int
) -> Candidates:
    """
    Creates candidates from the warmups of each source.

    They are cut where they are ``max_warmup_len`` tokens long, and their proposal
    gave each of them probability 1.
    """
    rows = [warmup for source in warmups for warmup in source]

    seqs, seq_lens = pad_rows(rows)

    if seqs.size(1) == 0:
        seqs = torch.full((len(rows), 1), PAD_IDX, device=device)

    return Candidates(
        seqs=seqs,
        seq_lens=torch.tensor(seq_lens, device=device),
        cut=torch.tensor([n == max_warmup_len for n in seq_lens], device=device),
        proposal_log_probs=torch.zeros((len(warmups), len(warmups[0])), device=device),
    )
