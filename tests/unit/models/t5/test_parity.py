# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
The family against ``transformers``, in fp32.

Both add the same numbers, in another order. So they differ by rounding, about 1e-7 of
the largest number in a sum: a few 1e-6 in logits up to 10, and in gradients up to 100
some 1e-5. The tolerances are about three times what is seen. A wrong bucket, scale,
mask or activation changes the second digit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq2.models.hg import save_hugging_face_model
from fairseq2.models.transformer import TransformerModel
from torch.nn import Module
from transformers import AutoModelForSeq2SeqLM
from transformers.models.t5.modeling_t5 import T5Attention

from tests.common import assert_close, assert_equal, device
from tests.unit.models.cases import differentiate
from tests.unit.models.t5.cases import (
    CONFIGS,
    PAD_IDX,
    SOURCE_LENS,
    TARGET_LENS,
    compute_loss,
    create_inputs,
    create_labels,
    create_mask,
    create_random_model,
)
from warmup_plugin.models.t5 import T5Config, T5HuggingFaceFormat, T5PositionBias


def load_hg_model(model: TransformerModel, config: T5Config, folder: Path) -> Module:
    """Writes a model as Hugging Face's, and reads it with transformers."""
    fmt = T5HuggingFaceFormat()

    hg_state_dict = fmt.to_hg_state_dict(model.state_dict(), config)

    save_hugging_face_model(folder, hg_state_dict, fmt.to_hg_config(config))

    hg_model, info = AutoModelForSeq2SeqLM.from_pretrained(
        folder, output_loading_info=True
    )

    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert not info["mismatched_keys"]

    assert isinstance(hg_model, Module)

    return hg_model.to(device).eval()


class TestT5:
    @pytest.mark.parametrize("name", CONFIGS)
    def test_outputs_and_gradients_equal_those_of_transformers(
        self, name: str, tmp_path: Path
    ) -> None:
        config = CONFIGS[name]

        model = create_random_model(config)

        hg_model = load_hg_model(model, config, tmp_path / "hg")

        expected_kls = "MT5" if name == "mt5" else "T5"

        assert type(hg_model).__name__ == f"{expected_kls}ForConditionalGeneration"

        source_seqs, _, target_seqs, _ = inputs = create_inputs()

        labels = create_labels()

        output = hg_model(
            input_ids=source_seqs,
            attention_mask=create_mask(SOURCE_LENS).long(),
            decoder_input_ids=target_seqs,
            decoder_attention_mask=create_mask(TARGET_LENS).long(),
            labels=labels.masked_fill(labels == PAD_IDX, -100),
        )

        mask = create_mask(TARGET_LENS)

        assert_close(model(*inputs)[mask], output.logits[mask], rtol=0.0, atol=2e-5)

        # Theirs is a mean.
        expected_loss = output.loss * sum(TARGET_LENS)

        loss = compute_loss(model)

        assert_close(loss, expected_loss, rtol=1e-6, atol=0.0)

        names, parameters = zip(*hg_model.named_parameters())

        hg_gradients = dict(zip(names, torch.autograd.grad(expected_loss, parameters)))

        expected = T5HuggingFaceFormat().from_hg_state_dict(hg_gradients, config)

        gradients = differentiate(loss, model)

        # The names of tied weights aside.
        assert set(gradients) <= set(expected)

        for key, gradient in gradients.items():
            assert gradient.abs().max() > 1e-3, key

            assert_close(gradient, expected[key], rtol=1e-4, atol=1e-4)


class TestT5PositionBias:
    @pytest.mark.parametrize("bidirectional", [True, False])
    @pytest.mark.parametrize(
        "num_buckets, max_distance", [(32, 128), (8, 8), (6, 6), (7, 20), (64, 1000)]
    )
    def test_buckets_equal_those_of_transformers(
        self, num_buckets: int, max_distance: int, bidirectional: bool
    ) -> None:
        with device:
            module = T5PositionBias(
                1,
                num_buckets,
                max_distance,
                bidirectional=bidirectional,
                init_std=1.0,
            )

            # A bucket is told by its bias.
            with torch.no_grad():
                module.weight[:, 0] = torch.arange(num_buckets)

            relative_positions = torch.arange(-1200, 1200).unsqueeze(0)

        # (1, 1, L)
        buckets = module(relative_positions)

        expected = T5Attention._relative_position_bucket(
            relative_positions, bidirectional, num_buckets, max_distance
        )

        assert_equal(buckets[0].long(), expected)
