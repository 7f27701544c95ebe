# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from warmup_plugin.commands import link_libsndfile
from warmup_plugin.errors import WarmupError


class Environment:
    """Stands for a Python environment in a folder."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loadable: set[str] = set()

        self.lib_dir = root / "lib"
        self.site_packages = self.lib_dir / "python3.11" / "site-packages"
        self.data_dir = self.site_packages / "_soundfile_data"
        self.data_dir.mkdir(parents=True)

        self.link = self.lib_dir / "libsndfile.so.1"
        self.bundled = self.data_dir / "libsndfile_x86_64.so"

        spec = SimpleNamespace(submodule_search_locations=[str(self.data_dir)])

        module = "warmup_plugin.commands.link_libsndfile"

        monkeypatch.delenv("CONDA_PREFIX", raising=False)
        monkeypatch.setattr(f"{module}.CDLL", self.load)
        monkeypatch.setattr(f"{module}.find_spec", lambda name: spec)
        monkeypatch.setattr("platform.system", lambda: "Linux")
        monkeypatch.setattr("site.getsitepackages", lambda: [str(self.site_packages)])

    def load(self, name: str) -> None:
        if name not in self.loadable and not Path(name).exists():
            raise OSError("cannot open shared object file")


@pytest.fixture
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Environment:
    return Environment(tmp_path, monkeypatch)


def run() -> int:
    return link_libsndfile.run(argparse.Namespace())


class TestRun:
    def test_call_makes_link_when_system_has_no_library(
        self, env: Environment, capsys: pytest.CaptureFixture[str]
    ) -> None:
        env.bundled.touch()

        assert run() == 0
        assert env.link.resolve() == env.bundled
        assert not env.link.readlink().is_absolute()
        assert capsys.readouterr().out == f"libsndfile linked: {env.link}\n"

        assert run() == 0
        assert capsys.readouterr().out == f"libsndfile found: {env.link}\n"

    def test_call_makes_no_link_when_system_has_library(
        self, env: Environment, capsys: pytest.CaptureFixture[str]
    ) -> None:
        env.bundled.touch()
        env.loadable.add("libsndfile.so.1")

        assert run() == 0
        assert not env.link.exists()
        assert capsys.readouterr().out == "libsndfile found: system\n"

    def test_call_makes_link_in_conda_even_when_system_has_library(
        self, env: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CONDA_PREFIX", "/conda")

        env.bundled.touch()
        env.loadable.add("libsndfile.so.1")

        assert run() == 0
        assert env.link.resolve() == env.bundled

    def test_call_replaces_broken_link(self, env: Environment) -> None:
        env.bundled.touch()
        env.link.symlink_to("gone.so")

        assert run() == 0
        assert env.link.resolve() == env.bundled

    def test_call_uses_name_of_macos(
        self, env: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("platform.system", lambda: "Darwin")

        bundled = env.data_dir / "libsndfile_arm64.dylib"
        bundled.touch()

        assert run() == 0
        assert (env.lib_dir / "libsndfile.1.dylib").resolve() == bundled

    def test_call_raises_error_when_nothing_is_bundled(self, env: Environment) -> None:
        with pytest.raises(WarmupError, match=r"`apt install libsndfile1`"):
            run()

    def test_call_raises_error_when_soundfile_is_not_installed(
        self, env: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = "warmup_plugin.commands.link_libsndfile"

        monkeypatch.setattr(f"{module}.find_spec", lambda name: None)

        with pytest.raises(WarmupError, match=r"`pip install soundfile`"):
            run()

    def test_call_raises_error_when_environment_is_not_writable(
        self, env: Environment, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(path: Path, target: str) -> None:
            raise PermissionError(13, "Permission denied")

        env.bundled.touch()

        # Root may write anywhere, so permissions cannot be set for this test.
        monkeypatch.setattr(Path, "symlink_to", fail)

        with pytest.raises(WarmupError, match=r"cannot be made \(Permission denied\)"):
            run()
