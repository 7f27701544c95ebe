# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_runs import write_tiny_text, write_tiny_tokenizer


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """
    Restores what fairseq2 sets when a recipe runs in this process.

    Its handler would write to the standard error of a test that has ended.
    """
    loggers = [logging.getLogger(), logging.getLogger("fairseq2")]

    states = [(lg, list(lg.handlers), list(lg.filters), lg.level) for lg in loggers]

    yield

    for logger, handlers, filters, level in states:
        logger.handlers[:] = handlers
        logger.filters[:] = filters
        logger.setLevel(level)


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic pair of a few sentences; not to be changed."""
    return write_tiny_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """A tokenizer trained on the text; not to be changed."""
    file = tmp_path_factory.mktemp("tokenizer") / "spm.model"

    return write_tiny_tokenizer(file, text_folder)
