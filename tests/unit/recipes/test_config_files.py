# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.errors import WarmupError
from warmup_plugin.recipes.config_files import read_config


@dataclass(kw_only=True)
class PartSection:
    name: str = "default"

    config: Any = field(default_factory=lambda: {"d": 0})


@dataclass(kw_only=True)
class NamedSection:
    name: str = "default"

    size: int = 0


@dataclass(kw_only=True)
class SmallConfig:
    part: PartSection = field(default_factory=lambda: PartSection())

    named: NamedSection = field(default_factory=lambda: NamedSection())

    values: dict[str, Any] = field(default_factory=lambda: {"old": 1})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)

    return tmp_path


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)


def merge(*names: str, settings: Sequence[str] = ()) -> Any:
    """Merges files and settings into the defaults."""
    return read_config(SmallConfig, names, settings)


class TestFiles:
    def test_preset_is_found(self) -> None:
        for name in ("directions/en_zh", "directions/en_zh.yaml"):
            assert merge(name)["dataset"]["target_lang"] == "zh"

    def test_file_goes_before_preset(self, folder: Path) -> None:
        file = folder / "directions" / "en_zh"

        file.parent.mkdir()
        file.write_text("named: {size: 1}")

        assert merge("directions/en_zh")["named"]["size"] == 1

    def test_no_file_leaves_the_defaults(self) -> None:
        assert merge() == {
            "part": {"name": "default", "config": {"d": 0}},
            "named": {"name": "default", "size": 0},
            "values": {"old": 1},
        }


class TestSettings:
    def test_settings_go_before_files(self, folder: Path) -> None:
        write(folder, a="named: {size: 1, name: a}\nvalues: {x: 1}")

        config = merge(
            "a.yaml", settings=["named.size=2", " set:values.y = {z: [1]}", "del:part"]
        )

        assert config == {
            "named": {"name": "a", "size": 2},
            "values": {"old": 1, "x": 1, "y": {"z": [1]}},
        }

    def test_value_is_replaced_as_a_whole(self) -> None:
        assert merge(settings=["values={x: 1}"])["values"] == {"x": 1}

    @pytest.mark.parametrize("setting", ["a", "a=[", "del:a=b"])
    def test_what_is_no_pair_is_refused(self, setting: str) -> None:
        with pytest.raises(WarmupError, match="`--config|behind `--config`"):
            merge(settings=[setting])

    @pytest.mark.parametrize(
        "setting",
        [f"a={'[' * 3000}", "a=&a [*a]", f"{'a.' * 3000}b=1", 'a=["\\ud800"]'],
    )
    def test_setting_that_is_no_tree_is_refused(self, setting: str) -> None:
        with pytest.raises(WarmupError, match="^`--config a.* cannot be read"):
            merge(settings=["b=1", setting])


class TestMerging:
    def test_later_file_goes_before_earlier_one(self, folder: Path) -> None:
        write(
            folder,
            a="values: {m: {x: 1, y: 2}, list: [1, 2], n: {x: 1}}\nnamed: {size: 1}",
            b="values: {m: {y: 3, z: 4}, list: [5], n: null}",
        )

        config = merge("a.yaml", "b.yaml")

        # Mappings are merged, all else is replaced.
        assert config["values"] == {
            **{"old": 1, "m": {"x": 1, "y": 3, "z": 4}},
            **{"list": [5], "n": None},
        }

        assert config["named"] == {"name": "default", "size": 1}

        assert merge("b.yaml", "a.yaml")["values"]["list"] == [1, 2]

    def test_base_comes_first(self, folder: Path) -> None:
        sub_folder = folder / "sub"

        sub_folder.mkdir()

        # Found beside the file that names it.
        write(sub_folder, a="base: b.yaml\nvalues: {x: a, y: a}")
        write(sub_folder, b="values: {x: b, y: b, z: b}")
        write(
            folder, c="values: {y: c}", d="base: [sub/a.yaml, c.yaml]\nvalues: {w: d}"
        )

        config = merge("d.yaml")

        assert config["values"] == {"old": 1, "x": "a", "y": "c", "z": "b", "w": "d"}
        assert "base" not in config

    def test_base_may_be_preset(self, folder: Path) -> None:
        write(folder, a="base: directions/en_zh\ndataset: {source_lang: zh}")

        dataset = merge("a.yaml")["dataset"]

        assert (dataset["source_lang"], dataset["target_lang"]) == ("zh", "zh")

    @pytest.mark.parametrize(
        "text,part",
        [
            ("{name: two, config: {y: 2}}", {"name": "two", "config": {"y": 2}}),
            # The defaults of the new component.
            ("{name: two}", {"name": "two", "config": {}}),
            ("{name: one, config: {y: 2}}", None),
            ("{config: {y: 2}}", None),
        ],
    )
    def test_component_that_is_chosen_anew_loses_old_config(
        self, folder: Path, text: str, part: object
    ) -> None:
        write(folder, a="part: {name: one, config: {x: 1}}", b=f"part: {text}")

        kept = {"name": "one", "config": {"d": 0, "x": 1, "y": 2}}

        assert merge("a.yaml", "b.yaml")["part"] == (part or kept)

    def test_component_of_defaults_is_merged_as_by_fairseq2(self, folder: Path) -> None:
        write(folder, a="part: {name: one, config: {x: 1}}", b="named: {size: 1}")

        assert merge("a.yaml", "b.yaml")["part"]["config"] == {"d": 0, "x": 1}

    def test_section_without_config_is_no_component(self, folder: Path) -> None:
        write(folder, a="named: {name: one, size: 1}", b="named: {name: two}")

        assert merge("a.yaml", "b.yaml")["named"] == {"name": "two", "size": 1}

    def test_directives_of_fairseq2_work(self, folder: Path) -> None:
        (folder / "sub").mkdir()

        write(folder, a="values: {_del_: [old], x: '${dir}', m: {y: 1}}")
        write(folder / "sub", b="values: {w: ['${dir}'], _set_: {m: {z: 1}}}")

        # The folder of each file.
        assert merge("a.yaml", "sub/b.yaml")["values"] == {
            **{"x": str(folder), "w": [str(folder / "sub")]},
            "m": {"z": 1},
        }


class TestErrors:
    @pytest.mark.parametrize(
        "text,message",
        [
            ("a: [", "`a.yaml` cannot be read as YAML .*; correct it"),
            ("- 1", "`a.yaml` must hold a mapping, but holds a list; write"),
            ("# nothing", "`a.yaml` is empty; write settings"),
            ("base: {x: y}", "`base` in `a.yaml` must be the name of a preset or file"),
            ("base: [1]", "`base` in `a.yaml` must be the name .* is \\[1\\]; correct"),
            ("base:", "`base` in `a.yaml` must be the name .* but is None; correct it"),
            (
                "base: nope",
                "^`nope`, `base` of `a.yaml`, is neither .*; the presets are base/f.*",
            ),
            ("base: c.yaml\n_del_: 1", "`a.yaml` cannot be merged \\(.*_del_.*"),
        ],
    )
    def test_bad_file_is_one_sentence(
        self, folder: Path, text: str, message: str
    ) -> None:
        write(folder, a=text, c="named: {size: 1}")

        with pytest.raises(WarmupError, match=message):
            merge("a.yaml")

    def test_text_in_other_encoding_is_refused(self, folder: Path) -> None:
        (folder / "a.yaml").write_bytes(b"values: {x: \xe9}")

        with pytest.raises(WarmupError, match="`a.yaml` cannot be read as YAML"):
            merge("a.yaml")

    def test_circle_is_refused(self, folder: Path) -> None:
        write(folder, a="base: b.yaml", b="base: [c.yaml]", c="base: b.yaml")

        b, c = folder / "b.yaml", folder / "c.yaml"

        with pytest.raises(WarmupError) as info:
            merge("a.yaml")

        assert f"circle, `{b}` to `{c}` to `{b}`; take one" in str(info.value)

    def test_file_may_be_named_twice(self, folder: Path) -> None:
        write(folder, a="base: c.yaml", b="base: c.yaml", c="named: {size: 1}")

        assert merge("a.yaml", "b.yaml")["named"]["size"] == 1

    def test_missing_file_lists_presets(self) -> None:
        with pytest.raises(
            WarmupError, match="`--config-file nope` .*synthetic_pair_sft, "
        ):
            merge("nope")

    def test_presets_of_same_kind_are_listed(self) -> None:
        message = "the presets are hardware/eight_gpus, hardware/one_gpu.$"

        with pytest.raises(WarmupError, match=message):
            merge("hardware/two_gpus")

    @pytest.mark.parametrize(
        "text",
        ["[" * 500, "a: &a [*a]\n", 'part: {name: "\\ud800"}\n', "a: 2001-13-45\n"],
    )
    def test_file_that_is_no_tree_is_refused(self, folder: Path, text: str) -> None:
        write(folder, a=text)

        with pytest.raises(WarmupError, match=r"^`a.yaml` cannot be read as YAML \("):
            merge("a.yaml")

    @pytest.mark.parametrize("setting", ["abc", "name='abc", "del:name=1"])
    def test_setting_that_is_no_pair_is_refused(self, setting: str) -> None:
        message = r"^`--config` cannot be read \(.*\); write `KEY=VALUE`"

        with pytest.raises(WarmupError, match=message):
            read_config(SmallConfig, [], [setting])
