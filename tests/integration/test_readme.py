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

DOCS: Final = ROOT / "docs"

FILES: Final = DOCS / "files.md"

PAGES: Final = [README, *sorted(DOCS.glob("*.md"))]

pytestmark = pytest.mark.skipif(
    not README.exists(), reason="needs the files of a clone"
)

# What makes each command quick, appended to it.
SHORTER: Final = {
    "synthetic-pivot": ["--num-leg", "500", "--num-valid", "5", "--num-test", "5"],
    "recipes.train": [
        "regime.num_steps=2",
        "regime.validate_every_n_steps=2",
        "regime.checkpoint_every_n_steps=2",
        "regime.publish_metrics_every_n_steps=2",
        # What has learned nothing ends nowhere.
        "generation.max_len_a=0.0",
        "generation.max_len_b=8",
    ],
    # The text of the tests is in no language, and is little.
    "scripts/filter_pairs.py": ["--language-id", "none"],
    "--vocab-size 8000": ["--vocab-size", "120"],
    # Of a run that does not start from another.
    "translation/demo_pivot_legs": ["model.arch=llama_test"],
}


DOCTOR: Final = "python -m warmup_plugin doctor"


def read_section(page: Path, title: str) -> str:
    """Returns the text between a heading and the next one."""
    text = page.read_text(encoding="utf-8")

    match = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)

    assert match is not None, title

    return match[1]


def read_blocks(section: str, language: str) -> list[str]:
    blocks = re.findall(
        rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL
    )

    assert blocks

    return blocks


def read_tour() -> list[list[str]]:
    section = read_section(DOCS / "tutorial_pivot.md", "The same by hand")

    [block] = read_blocks(section, "sh")

    return [shlex.split(line) for line in block.splitlines()]


def shorten(command: list[str]) -> list[str]:
    """Returns the arguments of ``python``."""
    assert command[0] == "python"

    line, args = " ".join(command), command[1:]

    for name, further in SHORTER.items():
        if name in line:
            args = args + further

    return args


class TestTour:
    @pytest.mark.integration
    def test_commands_run_in_order(self, tmp_path: Path) -> None:
        # For `recipes`, which is not installed.
        env = command_environment(PYTHONPATH=str(ROOT))

        commands = read_tour()

        assert shlex.split(DOCTOR) in commands

        for command in commands:
            process = subprocess.run(
                python_command(*shorten(command), env=env),
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


def run_here(
    monkeypatch: pytest.MonkeyPatch, line: str, *further: str, stdin: str = ""
) -> None:
    """Runs a command in this process, which has fairseq2 loaded: a start costs 8 seconds."""
    args = [*shorten(shlex.split(line)), *further]

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))

    is_module = args[0] == "-m"

    monkeypatch.setattr(sys, "argv", args[1:] if is_module else args)

    with pytest.raises(SystemExit) as info:
        if is_module:
            runpy.run_module(args[1], run_name="__main__")
        else:
            runpy.run_path(str(ROOT / args[0]), run_name="__main__")

    assert info.value.code == 0, line


class TestTutorials:
    @pytest.mark.integration
    def test_own_text(
        self,
        tmp_path: Path,
        text_folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)

        (tmp_path / "raw").mkdir()

        for ours, theirs in (("src", "de"), ("tgt", "en")):
            text = (text_folder / f"train.{ours}").read_text()

            (tmp_path / "raw" / f"corpus.{theirs}").write_text(text)

        page = DOCS / "tutorial_own_text.md"

        for block in read_blocks(page.read_text(encoding="utf-8"), "sh"):
            if not block.startswith("python"):
                parts = [("1,500", "1,5"), ("501,1000", "6,10"), ("1001,", "11,")]

                for old, new in parts:
                    assert old in block

                    block = block.replace(old, new)

                subprocess.run(["bash", "-e", "-c", block], check=True)

                continue

            for line in block.splitlines():
                # As in the tour.
                if line == DOCTOR:
                    continue

                line, _, output = line.partition(" > ")

                line, _, source = line.partition(" < ")

                stdin = Path(source).read_text() if source else ""

                capfd.readouterr()

                run_here(monkeypatch, line, stdin=stdin)

        # Of the last one, `translate`.
        assert source and output

        assert capfd.readouterr().out.count("\n") == 5

        report = json.loads(Path("runs/warmup/evaluate/test.best.json").read_text())

        assert report["baseline"] == "sft" and "warmup" in report["systems"]

        assert Path("runs/report.html").is_file()

    def test_own_text_is_what_readme_shows(self) -> None:
        page = DOCS / "tutorial_own_text.md"

        lines = {
            line
            for block in read_blocks(page.read_text(encoding="utf-8"), "sh")
            for line in block.splitlines()
        }

        [block] = read_blocks(read_section(README, "Train on your own text"), "sh")

        shown = block.replace("DATA", "data/de-en").splitlines()

        # The tutorial has a third run.
        assert shown.pop(3) == "python -m recipes.evaluate runs/sft runs/warmup"

        assert len(shown) == 4 and set(shown) <= lines

    @pytest.mark.integration
    def test_public_checkpoint(
        self, tmp_path: Path, text_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)

        page = DOCS / "tutorial_public_checkpoint.md"

        # In place of the public one, which would have to be downloaded.
        write_mt5_model(
            tmp_path / "hub", (text_folder / "train.tgt").read_text().splitlines()
        )

        [block] = read_blocks(read_section(page, "Another model"), "sh")

        block = block.replace("google/mt5-base", str(tmp_path / "hub"))
        block = block.replace("DATA", str(text_folder))

        # The text is not German.
        text = ["dataset.source_lang=src", "dataset.target_lang=tgt"]

        rise = "lr_scheduler.config.num_warmup_steps=1"

        for line in block.splitlines():
            is_training = "recipes.train" in line

            run_here(monkeypatch, line, *([*text, rise] if is_training else []))

        assert (tmp_path / "runs" / "mt5_hf" / "README.md").is_file()

        # The same model stands for the small one, too.
        section = read_section(page, "4. Train, without and with warmups")

        [small] = read_blocks(section, "yaml")

        Path("small.yaml").write_text(small, encoding="utf-8")

        folder = Path("data/short")

        folder.mkdir(parents=True)

        for split in ("train", "valid"):
            pairs = zip(
                (text_folder / f"{split}.src").read_text().splitlines(),
                (text_folder / f"{split}.tgt").read_text().splitlines(),
            )

            lines = [json.dumps({"source": s, "target": t}) + "\n" for s, t in pairs]

            (folder / f"{split}.jsonl").write_text("".join(lines))

        block = "\n".join(read_blocks(section, "sh"))

        assert block.count("runs/smollm2") == 2

        block = block.replace("runs/smollm2", "runs/mt5_base")

        for line in block.splitlines():
            run_here(monkeypatch, line, rise)

        assert (tmp_path / "runs" / "warmup" / "checkpoints").is_dir()


def list_make_targets(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")

    # In backticks, at the start of a line of code, behind `&&`.
    return set(re.findall(r"(?:`|^|&& )make ([a-z][a-z0-9-]*)", text, re.MULTILINE))


def list_links(page: Path) -> set[Path]:
    text = page.read_text(encoding="utf-8")

    return {
        page.parent / target.partition("#")[0]
        for target in re.findall(r"\]\(([^)\s]+)\)", text)
        if "://" not in target and not target.startswith("#")
    }


def list_mentioned_paths(page: Path) -> set[str]:
    text = page.read_text(encoding="utf-8")

    tops = "recipes|warmup_plugin|scripts|tests|docs"

    return set(re.findall(rf"`((?:{tops})/[\w./-]*)`", text))


def list_tree() -> set[str]:
    """Reads the paths of the file tree; two spaces part them from their clause."""
    paths, folder = set(), ""

    for line in read_blocks(FILES.read_text(encoding="utf-8"), "")[0].splitlines():
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
    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_make_targets_exist(self, page: Path) -> None:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

        targets = set(re.findall(r"^([a-z][a-z0-9-]*):(?!=)", makefile, re.MULTILINE))

        assert list_make_targets(page) <= targets

        if page == README:
            assert {"demo", "docs", "install", "test"} <= list_make_targets(page)

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_links_exist(self, page: Path) -> None:
        links = list_links(page)

        assert [link for link in sorted(links) if not link.exists()] == []

    def test_every_page_is_linked_from_readme(self) -> None:
        assert [p.name for p in PAGES[1:] if p not in list_links(README)] == []

    @pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
    def test_mentioned_files_exist(self, page: Path) -> None:
        paths = list_mentioned_paths(page)

        missing = [
            path
            for path in sorted(paths)
            # The life of a batch names files from the package on.
            if not any((top / path).exists() for top in (ROOT, ROOT / "warmup_plugin"))
        ]

        assert missing == []

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
