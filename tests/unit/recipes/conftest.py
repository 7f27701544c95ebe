# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.tiny_runs import tiny_options, to_args
from warmup_plugin.recipes.train import main


@pytest.fixture(scope="session")
def sft_run(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, tokenizer_file: Path
) -> Path:
    """A run of four steps with the checkpoints 2 and 4; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "sft"

    options = tiny_options(
        text_folder,
        tokenizer_file,
        regime__num_steps=4,
        regime__keep_last_n_checkpoints=2,
    )

    assert main(to_args(out, options)) == 0

    return out


@pytest.fixture(scope="session")
def warmup_run(
    tmp_path_factory: pytest.TempPathFactory, text_folder: Path, sft_run: Path
) -> Path:
    """A run of two steps that went on from ``sft_run``; not to be changed."""
    out = tmp_path_factory.mktemp("runs") / "warmup"

    options = tiny_options(
        text_folder, None, criterion__name="warmup", init_from=sft_run
    )

    assert main(to_args(out, options)) == 0

    return out


@pytest.fixture
def bare_log_filter() -> None:
    """Lets the next run read the environment anew; it does so once a process."""
    for name in ("fairseq2", None):
        # Restored by the fixture of all tests.
        logging.getLogger(name).filters.clear()
