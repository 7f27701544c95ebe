# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

"""The documentation as a site, as ``make docs`` builds it."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import pytest

import warmup_plugin
from tests.tiny_runs import ROOT, command_environment, python_command

CONF: Final = ROOT / "docs" / "conf.py"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not CONF.exists(), reason="needs the files of a clone"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")

    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")

    match = re.search(r"-m sphinx (.*) build/docs$", makefile, re.MULTILINE)

    assert match is not None

    args = shlex.split(match[1].replace("build/", f"{folder}/"))

    process = subprocess.run(
        python_command("-m", "sphinx", *args, folder / "docs"),
        cwd=ROOT,
        env=command_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=400,
    )

    # A warning is an error.
    assert process.returncode == 0, process.stdout

    return folder / "docs"


def list_pages(site: Path) -> list[Path]:
    pages = sorted(site.rglob("*.html"))

    assert len(pages) > 30

    return pages


class TestSite:
    def test_first_page_is_readme(self, site: Path) -> None:
        text = (site / "index.html").read_text(encoding="utf-8")

        # The sidebar and the text.
        for page in ("docs/tutorial_own_text.html", "docs/api/index.html"):
            assert f'href="{page}"' in text

        assert "<math" in text and "\\sum" not in text

    def test_every_public_name_is_described(self, site: Path) -> None:
        text = (site / "genindex.html").read_text(encoding="utf-8")

        missing = [
            name
            for name in warmup_plugin.__all__
            if f"#warmup_plugin.{name}" not in text
        ]

        assert missing == []

    def test_nothing_is_fetched(self, site: Path) -> None:
        for page in list_pages(site):
            text = page.read_text(encoding="utf-8")

            loaded = re.findall(
                r'<(?:script|img|iframe|source)\b[^>]*\bsrc="([^"]+)"|<link\b[^>]*\bhref="([^"]+)"',
                text,
            )

            urls = [src or href for src, href in loaded]

            assert [url for url in urls if re.match(r"\w+:|//", url)] == [], page

        for style in site.joinpath("_static").rglob("*.css"):
            assert not re.search(r"url\(['\"]?(?:https?:|//)", style.read_text("utf-8"))

    def test_figures_follow_the_switch_of_the_page(self, site: Path) -> None:
        for page in ("index.html", "docs/results.html", "docs/pivot_results.html"):
            text = (site / page).read_text(encoding="utf-8")

            for theme in ("light", "dark"):
                images = re.findall(
                    rf'<img [^>]*class="only-{theme}" src="([^"]+\.svg)"', text
                )

                assert images, page

                for image in images:
                    assert (site / page).parent.joinpath(image).is_file()
                    assert f".{theme}." in image

    def test_figure_in_code_stays_code(self, site: Path) -> None:
        text = (site / "docs" / "suite.html").read_text(encoding="utf-8")

        assert "picture" in text and "only-light" not in text

    def test_pages_fit_a_telephone(self, site: Path, driver: Any) -> None:
        size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}

        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

        too_wide = []

        for page in list_pages(site):
            # Sources, hundreds of lines of the same kind.
            if "_modules" not in page.parts:
                driver.get(page.as_uri())

                script = "return document.documentElement.scrollWidth"

                if driver.execute_script(script) > size["width"]:
                    too_wide.append(page.name)

        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

        assert too_wide == []

    def test_search_finds(self, site: Path, driver: Any) -> None:
        for query, page in (
            ("join_rows", "docs/api/layout.html"),
            ("kl_weight", "docs/config.html"),
        ):
            driver.get(f"{(site / 'search.html').as_uri()}?q={query}")

            script = "return [...document.querySelectorAll('#search-results a')].map((a) => a.href)"

            deadline = time.monotonic() + 20

            while not any(page in link for link in driver.execute_script(script)):
                assert time.monotonic() < deadline, query

                time.sleep(0.1)
