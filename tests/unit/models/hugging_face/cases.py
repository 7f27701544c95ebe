# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""Tiny random models of transformers, and their twins of fairseq2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast, final

import pytest
import torch
import torch.nn.functional as F
from fairseq2.models.llama.factory import create_llama_model
from fairseq2.models.nllb.factory import create_nllb_model
from fairseq2.models.qwen.factory import create_qwen_model
from fairseq2.models.transformer import TransformerModel
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import Module
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    M2M100Config,
    M2M100ForConditionalGeneration,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.common import device
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.format import HuggingFaceFormat
from warmup_plugin.models.hugging_face.llama import LlamaHuggingFaceFormat
from warmup_plugin.models.hugging_face.nllb import (
    NllbHuggingFaceFormat,
    to_hg_token_idx,
)
from warmup_plugin.models.hugging_face.qwen import QwenHuggingFaceFormat
from warmup_plugin.models.hugging_face.weights import read_config_json, read_weights

VOCAB_SIZE: Final = 19

SOURCES: Final = [[2, 7, 18, 1, 3], [5, 3], [4, 9, 9, 11, 6, 17, 3]]
"""Tokens in fairseq2's order; BOS is 2, UNK is 1 and EOS is 3."""

TARGETS: Final = [[3, 8, 10, 5], [3, 2, 12, 1, 16, 7], [3]]

LABELS: Final = [[8, 10, 5, 3], [2, 12, 1, 16, 7, 3], [3]]


@final
@dataclass(frozen=True)
class Family:
    hg_format: HuggingFaceFormat
    create_model: Callable[[Any], Module]


FAMILIES: Final = {
    "nllb": Family(NllbHuggingFaceFormat(), create_nllb_model),
    "llama": Family(LlamaHuggingFaceFormat(), create_llama_model),
    "qwen": Family(QwenHuggingFaceFormat(), create_qwen_model),
}


def create_m2m100(**settings: object) -> PreTrainedModel:
    defaults: dict[str, object] = {
        "vocab_size": VOCAB_SIZE,
        "d_model": 16,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "decoder_ffn_dim": 24,
        "max_position_embeddings": 32,
    }

    return _create(
        M2M100ForConditionalGeneration, M2M100Config, {**defaults, **settings}
    )


def create_llama(**settings: object) -> PreTrainedModel:
    settings = {**_CAUSAL_LM, "rms_norm_eps": 1e-5, **settings}

    return _create(LlamaForCausalLM, LlamaConfig, settings)


def create_qwen2(**settings: object) -> PreTrainedModel:
    return _create(Qwen2ForCausalLM, Qwen2Config, {**_CAUSAL_LM, **settings})


def create_qwen3(**settings: object) -> PreTrainedModel:
    settings = {**_CAUSAL_LM, "head_dim": 10, **settings}

    return _create(Qwen3ForCausalLM, Qwen3Config, settings)


_CAUSAL_LM: Final[dict[str, object]] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 37,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def _create(
    model_kls: Any, config_kls: Any, settings: dict[str, object]
) -> PreTrainedModel:
    """
    Creates a model with random weights.

    With those of transformers biases and layer norms could be swapped unnoticed, and
    attention would be nearly uniform.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)

        model = model_kls(config_kls(**settings))

        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(0.4 * torch.randn(parameter.shape))

                if name.endswith("norm.weight"):
                    parameter.add_(1.0)

    model.eval()

    return cast(PreTrainedModel, model)


_LLAMA3_ROPE: Final = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    # Of the wave lengths 6, 20, 63 and 199, which heads of size 8 have, 6 is kept, 20
    # is blended, and the others are scaled.
    "original_max_position_embeddings": 40,
}

CASES: Final[Mapping[str, tuple[str, Callable[[], PreTrainedModel]]]] = {
    "nllb": ("nllb", create_m2m100),
    "nllb_deep": (
        "nllb",
        lambda: create_m2m100(
            d_model=12,
            encoder_layers=1,
            decoder_layers=3,
            encoder_attention_heads=2,
            decoder_attention_heads=3,
        ),
    ),
    "llama": ("llama", create_llama),
    "llama_tied": ("llama", lambda: create_llama(tie_word_embeddings=True)),
    "llama_scaled_rope": (
        "llama",
        lambda: create_llama(
            # With heads of size 4, the two orders of rows undo themselves.
            hidden_size=32,
            max_position_embeddings=64,
            rope_theta=100.0,
            rope_scaling=dict(_LLAMA3_ROPE),
        ),
    ),
    # What is looked up for the token of padding gets no gradient.
    "llama_pad": ("llama", lambda: create_llama(pad_token_id=9)),
    "qwen2": ("qwen", create_qwen2),
    "qwen2_tied": (
        "qwen",
        lambda: create_qwen2(tie_word_embeddings=True, rope_theta=1e6),
    ),
    "qwen2_head_dim": ("qwen", lambda: create_qwen2(head_dim=6)),
    "qwen3": ("qwen", create_qwen3),
    "qwen3_tied": ("qwen", lambda: create_qwen3(tie_word_embeddings=True)),
}
"""The family and the model of each case."""

each_case = pytest.mark.parametrize("case", CASES)


def create_case(case: str) -> tuple[Family, PreTrainedModel]:
    family_name, create_hg_model = CASES[case]

    return FAMILIES[family_name], create_hg_model()


def load_twin(family: Family, folder: Path) -> tuple[Module, Any]:
    """Reads a folder. Returns the model of fairseq2 and its configuration."""
    config = family.hg_format.from_hg_config(read_config_json(folder))

    weights = family.hg_format.from_hg_state_dict(read_weights(folder), config)

    with device:
        model = family.create_model(config)

    model.load_state_dict(weights, strict=True)

    return model.eval(), config


@final
@dataclass
class Output:
    logits: Tensor
    """What is predicted at each token, padding excluded. *Shape:* :math:`(T,V)`."""

    loss: Tensor


def run_hg_model(model: PreTrainedModel) -> Output:
    """Runs transformers on the batch, padded and with its own loss."""
    if isinstance(model, M2M100ForConditionalGeneration):
        # The tokens have other indices there, and PAD is 1.
        def pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
            return _pad([[to_hg_token_idx(t) for t in row] for row in rows], 1)

        sources, source_mask = pad(SOURCES)
        targets, target_mask = pad(TARGETS)

        labels = pad(LABELS)[0].masked_fill(~target_mask, -100)

        output = model(
            input_ids=sources,
            attention_mask=source_mask,
            decoder_input_ids=targets,
            decoder_attention_mask=target_mask,
            labels=labels,
        )

        # BOS, PAD, EOS, UNK -> PAD, UNK, BOS, EOS
        order = [1, 3, 0, 2, *range(4, VOCAB_SIZE)]

        logits = output.logits[target_mask][:, order]
    else:
        seqs, mask = _pad(SOURCES, 0)

        labels = seqs.masked_fill(~mask, -100)

        output = model(input_ids=seqs, attention_mask=mask, labels=labels)

        logits = output.logits[mask]

    return Output(logits, output.loss)


def run_model(model: Module) -> Output:
    """Runs fairseq2 on the same batch."""
    sources, source_mask = _pad(SOURCES, 0)

    source_layout = BatchLayout.of(sources, [len(row) for row in SOURCES])

    if isinstance(model, TransformerModel):
        targets, target_mask = _pad(TARGETS, 0)

        target_layout = BatchLayout.of(targets, [len(row) for row in TARGETS])

        all_logits = model(sources, source_layout, targets, target_layout)

        logits = all_logits[target_mask]

        loss = F.cross_entropy(logits, _pad(LABELS, 0)[0][target_mask])
    else:
        all_logits = model(sources, source_layout)

        logits = all_logits[source_mask]

        loss = F.cross_entropy(
            all_logits[:, :-1][source_mask[:, 1:]], sources[:, 1:][source_mask[:, 1:]]
        )

    return Output(logits, loss)


def _pad(rows: list[list[int]], pad_idx: int) -> tuple[Tensor, Tensor]:
    """Returns sequences and the mask of what is not padding. *Shape:* :math:`(N,S)`."""
    width = max(len(row) for row in rows)

    seqs = [[*row, *[pad_idx] * (width - len(row))] for row in rows]

    mask = [[i < len(row) for i in range(width)] for row in rows]

    return torch.tensor(seqs, device=device), torch.tensor(mask, device=device)


def load_weights(
    family: Family, hg_model: PreTrainedModel, hg_state_dict: dict[str, Tensor]
) -> Module:
    """Creates the model of fairseq2 without files."""
    config = family.hg_format.from_hg_config(hg_model.config.to_dict())

    weights = family.hg_format.from_hg_state_dict(hg_state_dict, config)

    with device:
        model = family.create_model(config)

    model.load_state_dict(weights, strict=True)

    return model.eval()


def assert_refused(
    hg_format: HuggingFaceFormat,
    hg_config: Mapping[str, object],
    field: str,
    expected: str,
) -> None:
    """Asserts that one sentence names the field and what it has to be."""
    with pytest.raises(WarmupError) as info:
        hg_format.from_hg_config(hg_config)

    message = str(info.value)

    assert message.startswith(f"`{field}` is ")
    assert expected in message

    assert_one_sentence(message)


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message
    assert message.endswith(".") and ". " not in message
    # The remedy.
    assert "; " in message
