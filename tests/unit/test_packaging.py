# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import warmup_plugin
from warmup_plugin.parsing import read_yaml

ROOT = Path(__file__).resolve().parents[2]

# The tests may run against an installed wheel, without the files of a clone.
pytestmark = pytest.mark.skipif(
    not (ROOT / "setup.py").exists(), reason="needs the files of a clone"
)


class TestSetup:
    def test_every_module_is_in_a_package(self) -> None:
        # setuptools leaves a folder without `__init__.py` out of the wheel.
        for module in (ROOT / "warmup_plugin").rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), module

    def test_version_is_that_of_the_package(self) -> None:
        process = subprocess.run(
            [sys.executable, "setup.py", "--version"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )

        assert process.stdout.split() == [warmup_plugin.__version__]

    def test_citation_has_the_version(self) -> None:
        citation: Any = read_yaml(ROOT / "CITATION.cff")

        assert citation["version"] == warmup_plugin.__version__
        assert citation["license"] == "MIT"


class TestDockerfile:
    def test_image_has_what_git_has(self) -> None:
        ignored = (ROOT / ".dockerignore").read_text().splitlines()

        for line in (ROOT / ".gitignore").read_text().splitlines():
            if line and not line.startswith("#"):
                # There, a name is meant in all folders unless it begins with a slash.
                assert {line.lstrip("/"), f"**/{line}"} & {*ignored}, line

    def test_image_has_the_pytorch_of_fairseq2(self) -> None:
        text = (ROOT / "Dockerfile").read_text()

        assert f"/fairseq2/whl/pt{version('torch').partition('+')[0]}/" in text
        assert f"fairseq2 {version('fairseq2')} is built for" in text


class TestMakefile:
    def make(self, *args: str) -> subprocess.CompletedProcess[str]:
        # Flags of a `make test` that runs this test are not for this one.
        env = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}

        return subprocess.run(
            ["make", *args], cwd=ROOT, env=env, capture_output=True, text=True
        )

    @pytest.mark.parametrize("target", ["install", "test", "demo", "lint"])
    def test_target_installs_into_environment_of_its_own(
        self, tmp_path: Path, target: str
    ) -> None:
        venv = tmp_path / "venv"

        output = self.make("--dry-run", f"VENV={venv}", target).stdout

        steps = [
            f"-m venv {venv}",
            "install --editable '.[test]'",
            "-m warmup_plugin link-libsndfile",
            f"touch {venv}/.installed",
        ]

        positions = [output.index(step) for step in steps]

        assert positions == sorted(positions)

        # Announced before the long wait.
        assert output.index("7 GB") < positions[1]

    def test_comet_gets_environment_of_its_own(self, tmp_path: Path) -> None:
        venv = tmp_path / "venv"

        output = self.make("--dry-run", f"COMET_VENV={venv}", "comet").stdout

        assert f"warmup_plugin/metrics/comet/make_env.py {venv}\n" in output

        # Ours is not needed for that.
        assert "pip" not in output

        venv.mkdir()

        (venv / ".installed").touch()

        output = self.make("--dry-run", f"COMET_VENV={venv}", "comet").stdout

        assert "make_env.py" not in output

    def test_tests_run_in_several_processes(self) -> None:
        output = self.make("--dry-run", "test").stdout

        assert re.search(r"pytest --numprocesses [1-4] --dist loadfile ", output)

        # The last one counts.
        output = self.make("--dry-run", "test", "PYTEST_ARGS=-n 0").stdout

        assert output.rstrip().endswith(" -n 0")

    def test_install_does_nothing_until_setup_changes(self, tmp_path: Path) -> None:
        stamp = tmp_path / ".installed"

        stamp.touch()

        args = ("--dry-run", f"VENV={tmp_path}", "install")

        setup_time = (ROOT / "setup.py").stat().st_mtime

        os.utime(stamp, (setup_time + 1, setup_time + 1))

        assert "pip" not in self.make(*args).stdout

        os.utime(stamp, (setup_time - 1, setup_time - 1))

        assert "pip" in self.make(*args).stdout

    def test_install_stops_when_python_is_not_supported(self, tmp_path: Path) -> None:
        python = tmp_path / "python"

        # Runs the check of the Makefile as if it was 3.13.
        python.write_text(f"""#!/bin/sh
            [ "$1" = -c ] || exit 99
            exec {sys.executable} -c "import sys; sys.version_info = (3, 13, 0)
$2"
            """)
        python.chmod(0o755)

        process = self.make(f"PYTHON={python}", f"VENV={tmp_path / 'venv'}", "install")

        assert process.returncode == 2
        assert "error: Python 3.10, 3.11 or 3.12 is needed" in process.stderr
        assert "is 3.13; name another one with `make PYTHON=" in process.stderr
        assert not (tmp_path / "venv").exists()
