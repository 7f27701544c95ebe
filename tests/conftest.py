# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import IO, Final

import pytest
from fairseq2.utils.gc import StandardGarbageCollector
from fairseq2.utils.yaml import RuamelYamlLoader

from tests.tiny_runs import write_tiny_text, write_tiny_tokenizer
from warmup_plugin.late_imports import import_fairseq2

# As commands do, without what hardly any test uses.
import_fairseq2()

_LONG_FOLDERS: Final = ("interop", "recipes")

_LONG_FILES: Final = (
    *("test_bench", "test_doctor", "test_enumeration", "test_run_suite"),
    *("test_storage", "test_suite_directions", "test_warm_python"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """
    Puts files that take long before others: integration tests, then units that train or
    start commands, then files of many tests before those of few.

    Each is run by one process, and the others wait for the one that ends last.
    """
    num_tests = Counter(item.path for item in items)

    def rank(item: pytest.Item) -> tuple[int, int]:
        path = item.path

        if "unit" not in path.parts:
            return 0, 0

        is_long = path.parent.name in _LONG_FOLDERS or path.stem in _LONG_FILES

        return 1 if is_long else 2, -num_tests[path]

    items.sort(key=rank)


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


@pytest.fixture(scope="module", autouse=True)
def frozen_heap() -> None:
    """Takes what has been imported so far from the objects that garbage collection visits."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def garbage_left_for_later() -> Iterator[None]:
    """
    Lets a training begin without a collection of all garbage.

    With the libraries and the tests in memory it takes an eighth of a second, a sixth of a
    run of two steps.
    """

    def enable(self: StandardGarbageCollector, value: bool = True) -> None:
        if value:
            gc.disable()
        else:
            gc.enable()

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(StandardGarbageCollector, "enable", enable)

        yield


@pytest.fixture(scope="session", autouse=True)
def yaml_parsed_once() -> Iterator[None]:
    """
    Lets fairseq2 parse a text only once.

    It reads the configuration of a run twenty times when it starts, which takes it a
    third of the time of the many short runs of the tests.
    """
    load = RuamelYamlLoader.load

    parsed: dict[str, list[object]] = {}

    def load_once(self: RuamelYamlLoader, input_: Path | IO[str]) -> list[object]:
        if isinstance(input_, Path):
            text = input_.read_text(encoding="utf-8")
        else:
            text = input_.read()

            input_.seek(0)

        if text not in parsed:
            parsed[text] = load(self, input_)

        # What was read is changed by merging.
        return deepcopy(parsed[text])

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(RuamelYamlLoader, "load", load_once)

        yield


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic pair of a few sentences; not to be changed."""
    return write_tiny_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory, text_folder: Path) -> Path:
    """A tokenizer trained on the text; not to be changed."""
    file = tmp_path_factory.mktemp("tokenizer") / "spm.model"

    return write_tiny_tokenizer(file, text_folder)
