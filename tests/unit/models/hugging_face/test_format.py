# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""
Compares fairseq2 with transformers, which is the definition of these formats.

Both compute in fp32 on the CPU, in sums of another order. The largest logit is 7.7, the
largest difference measured 3.4e-6; that of a gradient is 2.6e-6 of the largest gradient
of the same weight. The tolerances leave ten times as much for other processors. The
tests of the single formats show what a mistake amounts to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

import pytest
import torch
from fairseq2.models.hg import save_hugging_face_model
from torch import Tensor
from torch.nn import Module
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    M2M100ForConditionalGeneration,
    PreTrainedModel,
)

from tests.common import assert_close, assert_equal
from tests.unit.models.hugging_face.cases import (
    CASES,
    Family,
    create_case,
    each_case,
    load_twin,
    run_hg_model,
    run_model,
)
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.weights import (
    check_weights,
    read_config_json,
    read_weights,
    write_model,
)

LOGIT_TOLERANCE: Final = 3e-5

GRADIENT_TOLERANCE: Final = 3e-5
"""Relative to the largest gradient of the same weight."""

LAYOUTS: Final[dict[str, dict[str, Any]]] = {
    "safetensors": {},
    "safetensors_shards": {"max_shard_size": "4KB"},
    "bin": {"safe_serialization": False},
    "bin_shards": {"safe_serialization": False, "max_shard_size": "4KB"},
}
"""How ``save_pretrained`` is called, and which file it writes then."""

LAYOUT_FILES: Final = {
    "safetensors": "model.safetensors",
    "safetensors_shards": "model.safetensors.index.json",
    "bin": "pytorch_model.bin",
    "bin_shards": "pytorch_model.bin.index.json",
}


class TestHuggingFaceFormat:
    @each_case
    def test_reading_reproduces_logits_and_loss(
        self, tmp_path: Path, case: str
    ) -> None:
        family, hg_model = create_case(case)

        hg_model.save_pretrained(tmp_path)

        model, _ = load_twin(family, tmp_path)

        expected, output = run_hg_model(hg_model), run_model(model)

        assert_close(output.logits, expected.logits, rtol=0, atol=LOGIT_TOLERANCE)
        assert_close(output.loss, expected.loss, rtol=0, atol=LOGIT_TOLERANCE)

        # Otherwise the comparison would prove little.
        assert expected.logits.std() > 0.3

    @each_case
    def test_reading_reproduces_gradients(self, tmp_path: Path, case: str) -> None:
        family, hg_model = create_case(case)

        hg_model.save_pretrained(tmp_path)

        model, config = load_twin(family, tmp_path)

        run_hg_model(hg_model).loss.backward()

        run_model(model).loss.backward()

        gradients: dict[str, object] = {
            name: weight.grad
            for name, weight in model.state_dict(keep_vars=True).items()
        }

        hg_gradients = family.hg_format.to_hg_state_dict(gradients, config)

        parameters = dict(hg_model.named_parameters())

        assert set(hg_gradients) == set(parameters)

        for name, parameter in parameters.items():
            gradient = hg_gradients[name]

            assert isinstance(gradient, Tensor) and parameter.grad is not None

            largest = float(parameter.grad.abs().max())

            # Without rotation a shift of all keys changes nothing: roundings remain.
            if case.startswith("nllb") and name.endswith("k_proj.bias"):
                assert largest < 1e-6
                assert gradient.abs().max() < 1e-6
            else:
                assert largest > 1e-3

                tolerance = GRADIENT_TOLERANCE * largest

                assert_close(gradient, parameter.grad, rtol=0, atol=tolerance)

    @each_case
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_reading_does_not_depend_on_layout_of_files(
        self, tmp_path: Path, case: str, layout: str
    ) -> None:
        family, hg_model = create_case(case)

        hg_model.save_pretrained(tmp_path, **LAYOUTS[layout])

        assert (tmp_path / LAYOUT_FILES[layout]).exists()

        model, config = load_twin(family, tmp_path)

        hg_state_dict = family.hg_format.to_hg_state_dict(model.state_dict(), config)

        expected = dict(hg_model.named_parameters())

        assert set(hg_state_dict) == set(expected)

        for name, weight in hg_state_dict.items():
            assert isinstance(weight, Tensor)

            assert_equal(weight, expected[name].detach())

    @each_case
    def test_writing_is_loaded_by_transformers(self, tmp_path: Path, case: str) -> None:
        family, hg_model = create_case(case)

        hg_model.save_pretrained(tmp_path / "a")

        model, config = load_twin(family, tmp_path / "a")

        write(family, model, config, tmp_path / "b")

        assert_loaded(tmp_path / "b", hg_model)

    @each_case
    def test_writing_by_fairseq2_is_loaded_by_transformers(
        self, tmp_path: Path, case: str
    ) -> None:
        if case == "qwen2_head_dim":
            pytest.skip("fairseq2 refuses what is not a field of `Qwen2Config`.")

        family, hg_model = create_case(case)

        hg_model.save_pretrained(tmp_path / "a")

        model, config = load_twin(family, tmp_path / "a")

        hg_state_dict = family.hg_format.to_hg_state_dict(model.state_dict(), config)

        (tmp_path / "b").mkdir()

        save_hugging_face_model(
            tmp_path / "b", hg_state_dict, family.hg_format.to_hg_config(config)
        )

        assert_loaded(tmp_path / "b", hg_model)

    @each_case
    def test_written_config_is_read_as_the_same(
        self, tmp_path: Path, case: str
    ) -> None:
        family, hg_model = create_case(case)

        hg_model.save_pretrained(tmp_path / "a")

        model, config = load_twin(family, tmp_path / "a")

        write(family, model, config, tmp_path / "b")

        config_json = read_config_json(tmp_path / "b")

        assert family.hg_format.from_hg_config(config_json) == config

        # What another program reads is in the file, and the precision is its choice.
        assert config_json["model_type"] == hg_model.config.model_type
        assert config_json["architectures"] == [type(hg_model).__name__]
        assert config_json.get("dtype") is None and "torch_dtype" not in config_json

    @each_case
    def test_conversions_leave_their_argument_alone(
        self, tmp_path: Path, case: str
    ) -> None:
        family, hg_model = create_case(case)

        hg_model.save_pretrained(tmp_path)

        config = family.hg_format.from_hg_config(read_config_json(tmp_path))

        hg_weights = read_weights(tmp_path)

        copies = {name: weight.clone() for name, weight in hg_weights.items()}

        weights = family.hg_format.from_hg_state_dict(hg_weights, config)

        assert_same_weights(hg_weights, copies)

        copies = {name: weight.clone() for name, weight in weights.items()}

        family.hg_format.to_hg_state_dict(cast(Any, weights), config)

        assert_same_weights(weights, copies)

    @each_case
    def test_conversions_keep_precision(self, tmp_path: Path, case: str) -> None:
        family, hg_model = create_case(case)

        hg_model.to(torch.bfloat16).save_pretrained(tmp_path / "a")  # type: ignore[arg-type]

        hg_weights = read_weights(tmp_path / "a")

        config = family.hg_format.from_hg_config(read_config_json(tmp_path / "a"))

        weights = family.hg_format.from_hg_state_dict(hg_weights, config)

        assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}

        write_model(
            tmp_path / "b",
            family.hg_format.to_hg_config(config),
            family.hg_format.to_hg_state_dict(dict(weights), config),
            {},
        )

        assert_same_weights(read_weights(tmp_path / "b"), hg_weights)

    @each_case
    def test_unknown_and_misshapen_weights_are_left_to_comparison(
        self, tmp_path: Path, case: str
    ) -> None:
        family, hg_model = create_case(case)

        hg_model.save_pretrained(tmp_path)

        model, config = load_twin(family, tmp_path)

        hg_weights = read_weights(tmp_path)

        hg_weights["model.layers.0.adapter.weight"] = torch.zeros(2)

        rotary = next(name for name in hg_weights if name.endswith("q_proj.weight"))

        hg_weights[rotary] = torch.zeros(5, 5)

        weights = family.hg_format.from_hg_state_dict(hg_weights, config)

        expected = {name: weight.shape for name, weight in model.state_dict().items()}

        with pytest.raises(
            WarmupError,
            match=r"1 unknown \(model\.layers\.0\.adapter\.weight\), 1 of another shape \(\S+q_proj\.weight: \(5, 5\) instead of",
        ):
            check_weights(weights, expected, "x")

    @pytest.mark.parametrize("case", ["nllb", "llama", "qwen3"])
    def test_conversions_raise_error_when_config_is_of_another_family(
        self, case: str
    ) -> None:
        family, _ = create_case(case)

        for convert in (
            lambda: family.hg_format.to_hg_config("other"),
            lambda: family.hg_format.to_hg_state_dict({}, "other"),
            lambda: family.hg_format.from_hg_state_dict({}, "other"),
        ):
            with pytest.raises(TypeError, match="`config` must be of type"):
                convert()

    def test_cases_cover_each_model_type(self) -> None:
        covered = {create_case(case)[1].config.model_type for case in CASES}

        assert covered == {"m2m_100", "llama", "qwen2", "qwen3"}


def write(family: Family, model: Module, config: object, folder: Path) -> None:
    write_model(
        folder,
        family.hg_format.to_hg_config(config),
        family.hg_format.to_hg_state_dict(model.state_dict(), config),
        {},
    )


def assert_loaded(folder: Path, expected: PreTrainedModel) -> None:
    """Asserts that transformers finds every weight and gets the same logits."""
    if isinstance(expected, M2M100ForConditionalGeneration):
        auto_kls: Any = AutoModelForSeq2SeqLM
    else:
        auto_kls = AutoModelForCausalLM

    hg_model, info = auto_kls.from_pretrained(folder, output_loading_info=True)

    assert type(hg_model) is type(expected)

    assert not any(info.values()), info

    # In evaluation mode, as `from_pretrained` leaves it.
    assert_equal(run_hg_model(hg_model).logits, run_hg_model(expected).logits)


def assert_same_weights(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert set(a) == set(b)

    for name in a:
        assert_equal(a[name], b[name])
