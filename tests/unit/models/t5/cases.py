# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Tiny models of every kind of T5, and ragged sequences longer than their distances.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from fairseq2.models.transformer import TransformerModel
from torch import Tensor

from tests.common import create_source, device
from warmup_plugin.models.t5 import T5Config, create_t5_model

VOCAB_SIZE: Final = 20

PAD_IDX: Final = 0

SOURCE_LENS: Final = (24, 9, 1)

TARGET_LENS: Final = (5, 18, 2)


def create_config(**options: Any) -> T5Config:
    """
    Creates the configuration of a tiny v1.0 model.

    Distances from 8 on share a bucket; the heads together are narrower than the model.
    """
    fields: dict[str, Any] = {
        "model_dim": 16,
        "vocab_size": VOCAB_SIZE,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_attn_heads": 2,
        "head_dim": 6,
        "ffn_inner_dim": 24,
        "num_position_buckets": 8,
        "max_position_distance": 8,
        "dropout_p": 0.0,
    }

    return T5Config(**{**fields, **options})


_V1_1: Final = {"tied_embeddings": False, "gated_ffn": True, "activation": "gelu"}

CONFIGS: Final = {
    "v1_0": create_config(),
    "v1_1": create_config(**_V1_1, num_attn_heads=4),
    "mt5": create_config(**_V1_1, vocab_size=250_112),
    "asymmetric": create_config(num_encoder_layers=1, num_decoder_layers=3),
    "gated_relu": create_config(gated_ffn=True),
    "gelu": create_config(activation="gelu", norm_eps=1e-2),
}


def create_random_model(config: T5Config, seed: int = 3) -> TransformerModel:
    """Creates a model in evaluation mode of which every weight matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)

        with device:
            model = create_t5_model(config)

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, device=device)

                # Larger than in new models, so that distances make a difference.
                scale = 0.7 if name.endswith("position_bias.weight") else 0.1

                parameter.add_(scale * noise)

    return model.eval()


def create_seqs(seq_lens: tuple[int, ...], seed: int) -> list[list[int]]:
    """Creates sequences of tokens other than PAD."""
    generator = torch.Generator().manual_seed(seed)

    return [
        torch.randint(1, VOCAB_SIZE, (seq_len,), generator=generator).tolist()
        for seq_len in seq_lens
    ]


def create_inputs() -> tuple[Any, ...]:
    """Creates what a model reads: sources, and targets behind PAD; both padded."""
    targets = [[PAD_IDX, *seq[:-1]] for seq in create_seqs(TARGET_LENS, seed=2)]

    return (
        *create_source(create_seqs(SOURCE_LENS, seed=1)),
        *create_source(targets),
    )


def create_labels() -> Tensor:
    """Creates what is to be predicted, with PAD where nothing is."""
    labels, _ = create_source(create_seqs(TARGET_LENS, seed=2))

    return labels


def create_mask(seq_lens: tuple[int, ...]) -> Tensor:
    """Marks the tokens that count. *Shape:* :math:`(N,S)`."""
    at = torch.arange(max(seq_lens), device=device)

    return at < torch.tensor(seq_lens, device=device).unsqueeze(1)


def compute_loss(model: TransformerModel) -> Tensor:
    """Computes the loss of all labels."""
    inputs: tuple[Any, ...] = (*create_inputs(), create_labels())

    loss: Tensor = model(*inputs)

    return loss
