# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from pathlib import Path

import pytest

from warmup_plugin import presets
from warmup_plugin.presets import find_preset, get_presets_dir, list_presets


@pytest.fixture
def package_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package_dir = tmp_path / "warmup_plugin"

    package_dir.mkdir()

    monkeypatch.setattr(presets, "_PACKAGE_DIR", package_dir)

    return package_dir


def write_preset(configs_dir: Path, name: str) -> Path:
    path = configs_dir / name

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("criterion: {name: sft}\n")

    return path


class TestPresets:
    @pytest.mark.parametrize("folder", ["warmup_plugin/configs", "recipes/configs"])
    def test_presets_are_found_in_wheel_and_in_clone(
        self, package_dir: Path, folder: str
    ) -> None:
        configs_dir = package_dir.parent / folder

        sft = write_preset(configs_dir, "translation/sft.yaml")
        tiny = write_preset(configs_dir, "a/b/tiny.yaml")

        write_preset(configs_dir, "translation/notes.md")

        assert list_presets() == ["a/b/tiny", "translation/sft"]

        assert find_preset("translation/sft") == sft
        assert find_preset("translation/sft.yaml") == sft
        assert find_preset("a/b/tiny") == tiny

    def test_folder_beside_installed_package_is_ignored(
        self, package_dir: Path
    ) -> None:
        write_preset(package_dir.parent / "recipes" / "configs", "other.yaml")

        ours = write_preset(package_dir / "configs", "ours.yaml")

        assert list_presets() == ["ours"]
        assert find_preset("ours") == ours
        assert find_preset("other") is None

    @pytest.mark.parametrize("name", ["", "nope", "translation", "../x", "/x", "x.yml"])
    def test_find_preset_returns_none_when_there_is_none(
        self, package_dir: Path, name: str
    ) -> None:
        configs_dir = package_dir / "configs"

        write_preset(configs_dir, "translation/sft.yaml")
        write_preset(configs_dir, "../x.yaml")

        assert find_preset(name) is None

    def test_list_presets_is_empty_when_there_is_no_folder(
        self, package_dir: Path
    ) -> None:
        assert list_presets() == []

    def test_presets_of_this_package_are_found(self) -> None:
        assert get_presets_dir().is_dir()

        for name in list_presets():
            assert find_preset(name) is not None
