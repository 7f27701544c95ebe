# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import io
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.hub_files import write_mt5_model
from tests.tiny_runs import ROOT, command_environment, python_command

README: Final = ROOT / "README.md"

FILES: Final = ROOT / "docs" / "files.md"

pytestmark = pytest.mark.skipif(
    not README.exists(), reason="needs the files of a clone"
)

# What makes each command quick, appended to it.
SHORTER: Final = {
    "synthetic-pivot": ["--num-leg", "500", "--num-valid", "5", "--num-test", "5"],
    "recipes.train": [
        "regime.num_steps=4",
        "regime.validate_every_n_steps=2",
        "regime.checkpoint_every_n_steps=2",
        "regime.publish_metrics_every_n_steps=2",
    ],
    # Of a run that does not start from another.
    "translation/demo_pivot_legs": ["model.arch=llama_test"],
}


def read_section(title: str) -> str:
    """Returns the text between a heading and the next one."""
    text = README.read_text(encoding="utf-8")

    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)

    assert match is not None, title

    return match[1]


def read_block(section: str, language: str) -> str:
    match = re.search(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)

    assert match is not None

    return match[1]


def read_tour() -> list[list[str]]:
    block = read_block(read_section("A tour"), "sh").replace("\\\n", " ")

    return [shlex.split(line) for line in block.splitlines() if line.strip()]


def shorten(command: list[str]) -> list[str]:
    assert command[:2] == ["python", "-m"]

    args = command[2:]

    for name, further in SHORTER.items():
        if name in args:
            args = args + further

    return args


class TestTour:
    @pytest.mark.integration
    def test_commands_run_in_order(self, tmp_path: Path) -> None:
        # For `recipes`, which is not installed.
        env = command_environment(PYTHONPATH=str(ROOT))

        commands = read_tour()

        for command in commands:
            process = subprocess.run(
                python_command("-m", *shorten(command), env=env),
                cwd=tmp_path,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=400,
            )

            assert process.returncode == 0, f"{command}\n{process.stdout}"

        # What the last one prints compares both runs.
        assert "approximate randomization" in process.stdout

        for name in ("pivot_sft", "pivot_warmup"):
            run_dir = tmp_path / "runs" / name

            assert (run_dir / "generate" / "test.best.txt").is_file()
            assert (run_dir / "evaluate" / "test.best.json").is_file()

        # Nothing beside the folder that the commands name.
        assert [path.name for path in tmp_path.iterdir()] == ["runs"]

    @pytest.mark.integration
    def test_public_model_is_taken_all_the_way(
        self, tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        # In place of the public one, which would have to be downloaded.
        write_mt5_model(
            tmp_path / "hub", (text_folder / "train.tgt").read_text().splitlines()
        )

        block = read_block(read_section("Start from a public model"), "sh")

        block = block.replace("google/mt5-base", str(tmp_path / "hub"))
        block = block.replace("DATA", str(text_folder))

        for line in block.splitlines():
            command = shorten(shlex.split(line))

            if "recipes.train" in command:
                # The text is not German.
                command += ["dataset.source_lang=src", "dataset.target_lang=tgt"]

                command += ["lr_scheduler.config.num_warmup_steps=1"]

            # In this process, which has fairseq2 loaded: a start costs 8 seconds.
            monkeypatch.setattr(sys, "argv", command)

            with pytest.raises(SystemExit) as info:
                runpy.run_module(command[0], run_name="__main__")

            assert info.value.code == 0, line

        assert (tmp_path / "runs" / "warmup_hf" / "README.md").is_file()

    @pytest.mark.integration
    def test_own_text_is_trained_on_from_scratch(
        self,
        tmp_path: Path,
        text_folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)

        data = tmp_path / "data"

        data.mkdir()

        for split in ("train", "valid", "test"):
            for ours, theirs in (("src", "de"), ("tgt", "en")):
                text = (text_folder / f"{split}.{ours}").read_text()

                (data / f"{split}.{theirs}").write_text(text)

        section = read_section("Your own parallel text, from scratch")

        for line in read_block(section, "sh").splitlines():
            line, _, output = line.replace("DATA", str(data)).partition(" > ")

            line, _, source = line.partition(" < ")

            command = shorten(shlex.split(line))

            if "train-tokenizer" in command:
                command += ["--vocab-size", "120"]

            if source:
                lines = io.TextIOWrapper(io.BytesIO(Path(source).read_bytes()))

                monkeypatch.setattr(sys, "stdin", lines)

            monkeypatch.setattr(sys, "argv", command)

            capfd.readouterr()

            with pytest.raises(SystemExit) as info:
                runpy.run_module(command[0], run_name="__main__")

            assert info.value.code == 0, line

        assert source and output

        # Of the last one, `translate`.
        assert capfd.readouterr().out.count("\n") == 5

        report = json.loads(Path("runs/warmup/evaluate/test.best.json").read_text())

        assert report["baseline"] == "sft" and list(report["systems"]) == ["warmup"]

    def test_tour_shows_every_step(self) -> None:
        steps = [" ".join(c[2:4]) for c in read_tour() if c[2] == "warmup_plugin"]

        assert steps == [
            "warmup_plugin doctor",
            "warmup_plugin synthetic-pivot",
            "warmup_plugin train-tokenizer",
        ]

        programs = [c[2] for c in read_tour() if c[2] != "warmup_plugin"]

        assert programs == [
            "recipes.train",
            "recipes.train",
            "recipes.train",
            "recipes.generate",
            "recipes.evaluate",
        ]


def list_make_targets() -> set[str]:
    text = README.read_text(encoding="utf-8")

    # In backticks, at the start of a line of code, behind `&&`.
    return set(re.findall(r"(?:`|^|&& )make ([a-z][a-z-]*)", text, re.MULTILINE))


def list_links() -> set[str]:
    text = README.read_text(encoding="utf-8")

    return {
        target.partition("#")[0]
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in target and not target.startswith("#")
    }


def list_mentioned_paths() -> set[str]:
    text = README.read_text(encoding="utf-8")

    tops = "recipes|warmup_plugin|scripts|tests|docs"

    return set(re.findall(rf"`((?:{tops})/[\w./-]*)`", text))


def list_tree() -> set[str]:
    """Reads the paths of the file tree; two spaces part them from their clause."""
    paths, folder = set(), ""

    for line in read_block(FILES.read_text(encoding="utf-8"), "").splitlines():
        names = re.split(r"\s{2,}", line.strip())[0]

        if not line.startswith(" "):
            folder = ""

        # Where the first column is full, one space parts them.
        for name in re.split(r",\s*|\s+", names):
            if "/" in name or "." in name or name in ("Makefile", "LICENSE"):
                paths.add(f"{folder}{name}")

        if not line.startswith(" ") and names.endswith("/"):
            folder = names

    return paths


class TestReferences:
    def test_make_targets_exist(self) -> None:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

        targets = set(re.findall(r"^([a-z-]+):(?!=)", makefile, re.MULTILINE))

        assert {"demo", "test", "install"} <= list_make_targets() <= targets

    def test_links_exist(self) -> None:
        links = list_links()

        assert "docs/results.md" in links

        assert [link for link in sorted(links) if not (ROOT / link).exists()] == []

    def test_mentioned_files_exist(self) -> None:
        paths = list_mentioned_paths()

        assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []

    def test_files_of_tree_exist(self) -> None:
        paths = list_tree()

        assert len(paths) > 80

        assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []

    def test_every_part_of_package_is_in_tree(self) -> None:
        paths = list_tree()

        parts = {
            path.name
            for path in (ROOT / "warmup_plugin").iterdir()
            if path.name not in ("__init__.py", "__pycache__", "py.typed", "configs")
        }

        mentioned = {
            path.split("/")[1] for path in paths if path.startswith("warmup_plugin/")
        }

        assert parts <= mentioned
