# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""What is run to build the environment; `make comet` itself takes minutes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

import pytest

from warmup_plugin.metrics.comet import make_env

PYTHON: Final = """#!/bin/sh
# A Python of a given version that notes what it is told.
case "$*" in
    "-I -c "*) echo {version}; exit ;;
    "-m venv "*) mkdir -p $4/bin; touch $4/pyvenv.cfg; cp $0 $4/bin/python ;;
    "-m pip "*) status={pip_status} ;;
esac
echo "$0 PYTHONPATH=$PYTHONPATH $*" >> {log}
exit $status
"""


@pytest.fixture(autouse=True)
def variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No Python or uv of this machine, and no settings."""
    (tmp_path / "bin").mkdir()

    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}/usr/bin:/bin")

    monkeypatch.setenv("PYTHONPATH", "elsewhere")

    for name in ("COMET_PYTHON", "COMET_TORCH", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


def write_python(
    tmp_path: Path, name: str, version: str = "3 11", *, pip_status: int = 0
) -> Path:
    file = tmp_path / "bin" / name

    file.write_text(
        PYTHON.format(version=version, pip_status=pip_status, log=tmp_path / "log")
    )

    file.chmod(0o755)

    return file


def read_log(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


class TestMain:
    def test_packages_are_installed_by_pip(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        python = write_python(tmp_path, "python3.11")

        monkeypatch.setattr(sys, "executable", str(python))

        folder = tmp_path / "comet"

        # Also where there is an environment already.
        for _ in range(2):
            assert make_env.main([str(folder)]) == 0

        requirements = Path(make_env.__file__).with_name("requirements.txt")

        pip = "-m pip --disable-pip-version-check install --quiet"

        assert read_log(tmp_path)[:2] == [
            f"{python} PYTHONPATH= -m venv --clear {folder}",
            f"{folder}/bin/python PYTHONPATH= {pip} torch --requirement {requirements}",
        ]

        # Both times all was tried in the end.
        assert [line.split()[2:5] for line in read_log(tmp_path)[2::3]] == 2 * [
            ["-W", "ignore", "-c"]
        ]

        assert f"WARMUP_COMET_PYTHON={folder}/bin/python" in capfd.readouterr().out

    def test_packages_are_installed_by_uv_where_there_is_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "executable", str(write_python(tmp_path, "python")))

        uv = write_python(tmp_path, "uv")

        monkeypatch.setenv("PIP_FIND_LINKS", "/a /b")
        monkeypatch.setenv("COMET_TORCH", "torch==2.9.1")

        folder = tmp_path / "comet"

        assert make_env.main([str(folder)]) == 0

        line = read_log(tmp_path)[1]

        assert line.startswith(
            f"{uv} PYTHONPATH= pip install --quiet --python {folder}/bin/python "
            "torch==2.9.1 --requirement "
        )

        assert line.endswith(" --find-links /a --find-links /b")

    def test_python_that_fits_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            sys, "executable", str(write_python(tmp_path, "python3", "3 13"))
        )

        # The command of a version manager for a version that it does not have.
        broken = tmp_path / "bin" / "python3.12"

        broken.write_text("#!/bin/sh\nexit 127\n")

        broken.chmod(0o755)

        python = write_python(tmp_path, "python3.11")

        folder = tmp_path / "comet"

        assert make_env.main([str(folder)]) == 0

        assert read_log(tmp_path)[0].startswith(f"{python} ")

        # One that is named goes before those that are found.
        named = write_python(tmp_path, "mine", "3 10")

        monkeypatch.setenv("COMET_PYTHON", str(named))

        assert make_env.main([str(folder)]) == 0

        assert read_log(tmp_path)[3].startswith(f"{named} ")

    def test_call_fails_when_no_python_fits(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(make_env, "_COMMANDS", ("python3.12",))

        python = write_python(tmp_path, "python3", "3 13")

        write_python(tmp_path, "python3.12", "3 9")

        monkeypatch.setattr(sys, "executable", str(python))

        assert make_env.main([str(tmp_path / "comet")]) == 2

        message = f"error: COMET needs Python 3.10, 3.11 or 3.12, but {python} is none"

        assert capsys.readouterr().err.startswith(message)

        assert make_env.main([str(tmp_path / "comet"), "--python", "nowhere"]) == 2

        message = "error: COMET needs Python 3.10, 3.11 or 3.12, which nowhere is not"

        assert capsys.readouterr().err.startswith(message)

        assert not (tmp_path / "comet").exists()

    def test_call_fails_when_folder_holds_something_else(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(sys, "executable", str(write_python(tmp_path, "python")))

        for path in (tmp_path / "thesis", tmp_path / "thesis" / "chapter"):
            (tmp_path / "thesis").mkdir(exist_ok=True)
            (tmp_path / "thesis" / "chapter").touch()

            assert make_env.main([str(path)]) == 2

            message = f"error: {path} is something else than an environment"

            assert capsys.readouterr().err.startswith(message)

        assert (tmp_path / "thesis" / "chapter").exists()

    def test_call_fails_when_installation_fails(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        python = write_python(tmp_path, "python", pip_status=3)

        monkeypatch.setattr(sys, "executable", str(python))

        assert make_env.main([str(tmp_path / "comet")]) == 2

        err = capsys.readouterr().err

        assert err.startswith("error: The environment of COMET cannot be built, as `")

        assert err.endswith("ended with status 3; its own words are above.\n")

        # The last step was the one that failed.
        assert "-m pip" in read_log(tmp_path)[-1]

        # What is there is expected to work.
        assert not (tmp_path / "comet").exists()
