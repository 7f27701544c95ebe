# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from warmup_plugin.parsing import (
    check_tree,
    parse_json,
    parse_json_leniently,
    parse_yaml,
    read_yaml,
)

DEEP = "[" * 3000 + "]" * 3000

# Ten to the power of nine values in a few lines.
BOMB = "a0: &a0 [1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


class TestParseJson:
    def test_call_returns_value(self) -> None:
        assert parse_json('{"a": ["\\ud83d\\ude00", 1]}') == {"a": ["😀", 1]}

        # Many brackets, but beside each other.
        assert len(parse_json(f"[{','.join(['[]'] * 3000)}]")) == 3000

    @pytest.mark.parametrize(
        "text", ["", "{", DEEP, "[" * 102 + "]" * 102, '{"a": "\\ud800"}', "9" * 5000]
    )
    def test_call_refuses(self, text: str) -> None:
        with pytest.raises(ValueError):
            parse_json(text)

    def test_lenient_call_takes_half_a_surrogate_pair(self) -> None:
        assert parse_json_leniently('"\\ud800"') == "\ud800"

        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json_leniently(DEEP)


class TestParseYaml:
    def test_text_is_read_once_and_its_values_are_nobody_elses(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        text = "nothing: [else, is, so]"

        first = parse_yaml(text)

        assert isinstance(first, dict)

        first["nothing"].append("changed")

        def load(self: YAML, stream: object) -> object:
            raise AssertionError()

        monkeypatch.setattr(YAML, "load", load)

        assert parse_yaml(text) == {"nothing": ["else", "is", "so"]}

    def test_call_returns_value(self) -> None:
        assert parse_yaml("a: &x [1, 2]\nb: *x\n") == {"a": [1, 2], "b": [1, 2]}

    @pytest.mark.parametrize(
        "text,message",
        [
            ("[" * 500 + "]" * 500, "nested too deeply"),
            ("a: &a [*a]\n", "in itself"),
            ("a: &a {b: *a}\n", "in itself"),
            (BOMB, "too many values"),
            ('a: "\\ud800"', "surrogate"),
            ("2001-13-45", "month"),
            ("a: [", "expected"),
            ("? [a]\n: b\n? {c: d}\n: e", ""),
            ("a: b\n---\na: c\n", "single document"),
            ("a: !!python/object:os.system x", "python"),
        ],
    )
    def test_call_refuses_in_a_line(self, text: str, message: str) -> None:
        with pytest.raises(ValueError) as info:
            parse_yaml(text)

        assert message in str(info.value) and "\n" not in str(info.value)

    def test_file_is_not_read_beyond_the_limit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("warmup_plugin.parsing.MAX_YAML_BYTES", 10)

        file = tmp_path / "a.yaml"

        file.write_text("a: 345678\n")

        assert read_yaml(file) == {"a": 345678}

        file.write_text("a: 34567890\n")

        with pytest.raises(ValueError, match="larger than 10 bytes"):
            read_yaml(file)

    def test_deep_tree_of_python_ends(self) -> None:
        value: list[object] = []

        value.append(value)

        with pytest.raises(ValueError, match="in itself"):
            check_tree(value)
