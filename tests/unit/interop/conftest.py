# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Final

import pytest

from tests.doors import ROOT
from tests.hub_files import WRITE_MODEL
from tests.tiny_runs import Options, tiny_options, to_args
from tests.unit.interop.hub import start_process
from warmup_plugin.interop.importing import import_model
from warmup_plugin.recipes.train import main

NUM_STEPS: Final = 30


@pytest.fixture(scope="session")
def transformers5() -> Iterator[Popen[str] | None]:
    """A process with transformers 5, where `make test-transformers5` was run."""
    venv = ROOT / ".venv-transformers5"

    if not (venv / ".installed").exists():
        yield None

        return

    with start_process(venv / "bin" / "python", ROOT) as process:
        yield process

        process.terminate()


@dataclass(frozen=True)
class Case:
    """A model in Hugging Face's layout, and what was made of it."""

    kind: str

    hub_folder: Path

    imported: Path

    text_folder: Path

    @property
    def is_decoder_only(self) -> bool:
        return self.kind in ("llama", "qwen")

    def options(self, **options: object) -> Options:
        """Returns the settings of a run of a few steps that starts from the import."""
        defaults: dict[str, object] = {
            "model__arch": None,
            "init_from": self.imported,
            "dataset__max_target_len": 60,
            "dataset__max_num_tokens": 600,
            # As transformers is given it.
            "dataset__prompt": (
                '"{source}\\n"' if self.is_decoder_only else "'{source}'"
            ),
        }

        if self.kind == "nllb":
            defaults["tokenizer__source_lang"] = "eng_Latn"
            defaults["tokenizer__target_lang"] = "deu_Latn"

        return tiny_options(self.text_folder, None, **{**defaults, **options})

    def train(self, out: Path, **options: object) -> Path:
        assert main(to_args(out, self.options(**options))) == 0

        return out


@pytest.fixture(scope="session", params=WRITE_MODEL)
def case(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    text_folder: Path,
) -> Case:
    """One of each kind of model; not to be changed."""
    kind = request.param

    folder = tmp_path_factory.mktemp(kind)

    hub_folder = folder / "hub"

    texts = [
        line
        for name in ("train.src", "train.tgt")
        for line in (text_folder / name).read_text(encoding="utf-8").splitlines()
    ]

    WRITE_MODEL[kind](hub_folder, texts)

    import_model(str(hub_folder), folder / "imported")

    return Case(kind, hub_folder, folder / "imported", text_folder)


@pytest.fixture(scope="session", params=["sft", "warmup"])
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    case: Case,
) -> tuple[Case, str, Path]:
    """A run of each criterion from each kind of model; not to be changed."""
    criterion = request.param

    folder = case.train(
        tmp_path_factory.mktemp(f"{case.kind}_{criterion}") / "run",
        criterion__name=criterion,
        optimizer__config__lr=0.01,
        lr_scheduler__config__num_warmup_steps=5,
        regime__num_steps=NUM_STEPS,
        regime__validate_every_n_steps=NUM_STEPS,
        regime__checkpoint_every_n_steps=NUM_STEPS,
        regime__publish_metrics_every_n_steps=NUM_STEPS,
    )

    return case, criterion, folder
