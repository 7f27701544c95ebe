# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO

import pytest
from fairseq2.runtime.dependency import get_dependency_resolver
from fairseq2.utils.structured import StructureError, ValueConverter
from fairseq2.utils.yaml import YamlLoader
from ruamel.yaml.error import YAMLError

from warmup_plugin.config_values import CheckedYamlLoader, create_value_converter
from warmup_plugin.console import describe_causes


@dataclass
class Inner:
    num: int = 0

    weight: float | None = 0.0


@dataclass
class Outer:
    inner: Inner


@dataclass
class Numbers:
    nums: list[int]


class TestCreateValueConverter:
    @pytest.mark.parametrize(
        "value,number", [(2, 2), (2.0, 2), ("3", 3), (1e15, 10**15)]
    )
    def test_whole_numbers_are_read(self, value: object, number: int) -> None:
        result = create_value_converter().structure(value, int)

        assert result == number and type(result) is int

    @pytest.mark.parametrize(
        "value", [1.5, math.nan, math.inf, True, "x", "1.5", None, [], {}, "9" * 5000]
    )
    def test_others_are_refused(self, value: object) -> None:
        with pytest.raises(StructureError) as info:
            create_value_converter().structure(value, int)

        assert "must be a whole number" in describe_causes(info.value)

    @pytest.mark.parametrize("value", [True, "x", [], {}, 10**400])
    def test_what_is_no_number_is_refused(self, value: object) -> None:
        with pytest.raises(StructureError) as info:
            create_value_converter().structure(value, float)

        assert "must be a number" in describe_causes(info.value)

        assert create_value_converter().structure("1e-3", float) == 0.001

    @pytest.mark.parametrize("value", ["true", 1, None, []])
    def test_what_is_not_true_or_false_is_refused(self, value: object) -> None:
        with pytest.raises(StructureError) as info:
            create_value_converter().structure(value, bool)

        assert "must be `true` or `false`" in describe_causes(info.value)

    @pytest.mark.parametrize("kls", [list[str], Sequence[str]])
    @pytest.mark.parametrize("value", ["bleu", 1, {"a": "b"}])
    def test_word_is_no_list(self, value: object, kls: object) -> None:
        with pytest.raises(StructureError) as info:
            create_value_converter().structure(value, kls)

        assert "must be a list, such as `[A, B]`" in describe_causes(info.value)

    def test_lists_are_read(self) -> None:
        converter = create_value_converter()

        for value in (["1", 2], ("1", 2)):
            assert converter.structure(value, list[int]) == [1, 2]
            assert converter.structure(value, Sequence[int]) == [1, 2]

        with pytest.raises(StructureError) as info:
            converter.structure({"nums": [1, "x"]}, Numbers)

        assert describe_causes(info.value).startswith("`nums[1]` must be a whole")

    def test_error_names_the_field(self) -> None:
        with pytest.raises(StructureError) as info:
            create_value_converter().structure({"inner": {"num": 1.5}}, Outer)

        assert (
            describe_causes(info.value)
            == "`inner.num` must be a whole number, but is 1.5 instead."
        )


class TestRegistration:
    def test_fairseq2_reads_values_and_files_so(self) -> None:
        resolver = get_dependency_resolver()

        with pytest.raises(StructureError):
            resolver.resolve(ValueConverter).structure(1.5, int)

        loader = resolver.resolve(YamlLoader)

        assert isinstance(loader, CheckedYamlLoader)

        assert loader.load(StringIO("a: 1\n---\nb: 2\n")) == [{"a": 1}, {"b": 2}]

        for text in ("a: &a [*a]", "[" * 500, "2001-13-45"):
            with pytest.raises(YAMLError):
                loader.load(StringIO(text))
