# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import pytest
from fairseq2.models.hg import HuggingFaceConverter
from fairseq2.runtime.dependency import DependencyContainer

from tests.unit.models.hugging_face.cases import assert_one_sentence
from warmup_plugin.errors import WarmupError
from warmup_plugin.models.hugging_face.nllb import NllbHuggingFaceFormat
from warmup_plugin.models.hugging_face.table import (
    find_format,
    get_format,
    register_hugging_face_converters,
)


class TestGetFormat:
    @pytest.mark.parametrize("family", ["nllb", "llama", "qwen", "t5"])
    def test_call_returns_format_of_family(self, family: str) -> None:
        assert get_format(family).family == family

    def test_call_raises_error_when_family_has_none(self) -> None:
        with pytest.raises(
            WarmupError, match="`mistral` .+ are nllb, llama, qwen, t5"
        ) as e:
            get_format("mistral")

        assert_one_sentence(str(e.value))


class TestFindFormat:
    @pytest.mark.parametrize(
        "model_type,family",
        [
            ("m2m_100", "nllb"),
            ("llama", "llama"),
            ("qwen2", "qwen"),
            ("qwen3", "qwen"),
            ("t5", "t5"),
        ],
    )
    def test_call_returns_format_of_model_type(
        self, model_type: str, family: str
    ) -> None:
        hg_format = find_format({"model_type": model_type})

        assert hg_format.family == family
        assert model_type in hg_format.model_types

    @pytest.mark.parametrize("model_type", ["mistral", "", 1, [], None])
    def test_call_raises_error_when_model_type_is_not_supported(
        self, model_type: object
    ) -> None:
        with pytest.raises(
            WarmupError, match="`model_type` is .+m2m_100, llama, qwen2, qwen3, t5"
        ) as info:
            find_format({"model_type": model_type})

        assert_one_sentence(str(info.value))

    def test_call_raises_error_when_model_type_is_missing(self) -> None:
        with pytest.raises(WarmupError, match="is missing .+ m2m_100, llama") as info:
            find_format({})

        assert_one_sentence(str(info.value))


class TestRegisterHuggingFaceConverters:
    def test_call_registers_converter_of_nllb(self) -> None:
        container = DependencyContainer()

        register_hugging_face_converters(container)

        converter = container.resolve(HuggingFaceConverter, key="nllb")

        assert isinstance(converter, NllbHuggingFaceFormat)
