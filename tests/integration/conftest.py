# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.commands import Command, Start

CHROMIUM: Final = shutil.which("chromium")

CHROMEDRIVER: Final = shutil.which("chromedriver")

OPTIONS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--window-size=1200,900",
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A browser, for pages that are made for people."""
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("needs the programs `chromium` and `chromedriver`")

    webdriver = pytest.importorskip("selenium.webdriver")

    options = webdriver.ChromeOptions()

    options.binary_location = CHROMIUM

    profile = tmp_path_factory.mktemp("profile")

    for option in (*OPTIONS, f"--user-data-dir={profile}"):
        options.add_argument(option)

    options.set_capability(
        "goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"}
    )

    service = webdriver.ChromeService(executable_path=CHROMEDRIVER)

    driver = webdriver.Chrome(options=options, service=service)

    yield driver

    driver.quit()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    commands = []

    def start(
        name: str, *args: object, is_warm: bool = True, **environment: str
    ) -> Command:
        log_file = tmp_path / f"{name}.log"

        command = Command(log_file, *args, is_warm=is_warm, **environment)

        commands.append(command)

        return command

    yield start

    # Only after a failure.
    for command in commands:
        if command.process.poll() is None:
            command.process.kill()
            command.process.wait()
