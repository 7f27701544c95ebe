# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Final

import pytest

from tests.tiny_runs import ROOT, command_environment, python_command
from warmup_plugin.presets import get_presets_dir
from warmup_plugin.runs.run_dir import RunDir

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        not (ROOT / "setup.py").exists(), reason="needs the files of a clone"
    ),
]

SOURCES: Final = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def run(cwd: Path, *args: object, **variables: str) -> str:
    process = subprocess.run(
        python_command(*args, is_warm=False),
        cwd=cwd,
        env=command_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )

    assert process.returncode == 0, process.stdout

    return process.stdout


def copy_sources(folder: Path) -> None:
    """Copies what a wheel is built from; building would leave files in the clone."""
    ignore = shutil.ignore_patterns("__pycache__")

    for name in ("warmup_plugin", "recipes"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)

    for name in SOURCES:
        if (ROOT / name).exists():
            shutil.copyfile(ROOT / name, folder / name)


def test_wheel_trains_outside_clone(
    tmp_path: Path, text_folder: Path, tokenizer_file: Path
) -> None:
    copy_sources(tmp_path / "sources")

    pip = ("-m", "pip", "--disable-pip-version-check")

    dist = tmp_path / "dist"

    run(tmp_path / "sources", "setup.py", "--quiet", "sdist", "--dist-dir", dist)

    [sdist] = dist.glob("warmup_plugin-*.tar.gz")

    # From what is in the sdist alone.
    options = ("--no-deps", "--no-build-isolation", "--wheel-dir", dist)

    run(tmp_path, *pip, "wheel", sdist, *options)

    output = run(tmp_path, "-m", "twine", "check", "--strict", *dist.iterdir())

    assert output.count("PASSED") == 2

    [wheel] = (tmp_path / "dist").glob("warmup_plugin-*.whl")

    names = zipfile.ZipFile(wheel).namelist()

    for preset in get_presets_dir().rglob("*.yaml"):
        relative = preset.relative_to(get_presets_dir()).as_posix()

        assert f"warmup_plugin/configs/{relative}" in names

    assert "warmup_plugin/py.typed" in names

    [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]

    description = zipfile.ZipFile(wheel).read(metadata).decode("utf-8")

    # Of the README; PyPI has nothing beside it.
    assert "# warmup_plugin" in description and "(https://arxiv.org/" in description

    assert "](docs/" not in description and "<picture>" not in description

    for name in ("page.css", "page.html.j2", "page.js", "theme.js"):
        assert f"warmup_plugin/report/{name}" in names

    assert "warmup_plugin/interop/model_card.md.j2" in names

    # With what is beside it, COMET's environment can be built without a clone.
    assert "warmup_plugin/metrics/comet/requirements.txt" in names

    # The programs of a clone and the tests stay there.
    assert not [n for n in names if n.startswith(("recipes/", "tests/", "scripts/"))]

    target = tmp_path / "target"

    run(tmp_path, *pip, "install", "--no-deps", "--no-index", "--target", target, wheel)

    # In front of an editable installation.
    variables = {"PYTHONPATH": str(target)}

    code = "import warmup_plugin; print(warmup_plugin.__file__)"

    file = run(tmp_path, "-c", code, **variables).strip()

    assert file == str(target / "warmup_plugin" / "__init__.py")

    script = target / "bin" / "warmup-plugin"

    assert run(tmp_path, script, "--version", **variables).startswith("warmup_plugin ")

    # Reads the sources of the package.
    assert "--beam-size N" in run(tmp_path, script, "generate", "--help", **variables)

    out = run(tmp_path, script, "train", "--list-presets", **variables)

    assert "translation/from_scratch_sft " in out

    run(
        tmp_path,
        *("-m", "warmup_plugin", "train", "run", "--no-rich"),
        *("--config-file", "translation/synthetic_pair_sft", "--config"),
        *(f"dataset.path={text_folder}", f"tokenizer.path={tokenizer_file}"),
        *("model.arch=transformer_test", "regime.num_steps=2"),
        *("regime.validate_every_n_steps=2", "regime.checkpoint_every_n_steps=2"),
        "regime.publish_metrics_every_n_steps=1",
        **variables,
    )

    run_dir = RunDir(tmp_path / "run")

    assert run_dir.checkpoint_steps() == [2]

    [versions] = json.loads(run_dir.versions_file.read_text())

    # The clone would have told its commit.
    assert versions["git_commit"] is None
    assert versions["warmup_plugin"] is not None
