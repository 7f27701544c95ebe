# Copyright (c) warmup_plugin contributors
# SPDX-License-Identifier: MIT

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_runs import SHORT_OUTPUTS, tiny_options, to_args
from tests.unit.report.cases import write_data, write_run
from warmup_plugin.__main__ import main
from warmup_plugin.recipes.train import main as train

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page about three runs; the first one is the baseline."""
    folder = tmp_path_factory.mktemp("report")

    data = write_data(folder / "data")

    runs = [
        write_run(folder / "plain", data),
        write_run(folder / "method", data, is_warmup=True),
        write_run(folder / "young", data, has_checkpoint=False, has_translations=False),
    ]

    file = folder / "report.html"

    args = [*map(str, runs), "-o", str(file), "--num-bootstrap", "20"]

    assert main(["report", *args]) == 0

    return file


class Browser:
    """Reads and uses the page."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def run(self, script: str, *args: object) -> Any:
        return self._driver.execute_script(script, *args)

    def wait(self, script: str, *args: object) -> None:
        """Waits until ``script`` returns something true."""
        from selenium.webdriver.support.wait import WebDriverWait

        WebDriverWait(self._driver, 20).until(lambda d: d.execute_script(script, *args))

    def texts(self, selector: str) -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText)"

        texts: list[str] = self.run(script, selector)

        return texts

    def lines(self) -> list[str]:
        """Returns the line numbers of the sentences, in the order shown."""
        return [t.removeprefix("Line ") for t in self.texts("#list .facts b")]

    def click(self, selector: str) -> None:
        # Not below the head, which stays on top.
        self.run(
            "document.querySelector(arguments[0]).scrollIntoView({block: 'center'})",
            selector,
        )

        self._driver.find_element("css selector", selector).click()

    def type(self, selector: str, text: str) -> None:
        self._driver.find_element("css selector", selector).send_keys(text)

    def choose(self, id_: str, value: str) -> None:
        self.click(f"#{id_} option[value='{value}']")


@pytest.fixture
def browser(driver: Any, page: Path) -> Iterator[Browser]:
    """The page, loaded anew. Whatever a test does, nothing goes wrong or is fetched."""
    # What the browser itself has done before.
    driver.get("about:blank")

    for kind in ("browser", "performance"):
        driver.get_log(kind)

    driver.get(page.as_uri())

    yield Browser(driver)

    assert [e for e in driver.get_log("browser") if e["level"] != "INFO"] == []

    messages = [
        json.loads(e["message"])["message"] for e in driver.get_log("performance")
    ]

    urls = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }

    # Images within the page are no requests.
    assert {u for u in urls if not u.startswith("data:")} == {page.as_uri()}


def test_page_draws_all_plots(browser: Browser) -> None:
    num_plots = browser.run("return document.querySelectorAll('.plot').length")

    assert num_plots > 10

    script = """
        const plots = [...document.querySelectorAll(".plot")];
        const plot = plots.find((plot) => plot.querySelector(".main-svg") === null);
        plot?.scrollIntoView();
        return plot === undefined;
    """

    browser.wait(script)

    # Curves, not only axes.
    assert browser.run("return document.querySelectorAll('.plot .trace').length") > 20


def test_page_does_not_run_what_data_holds(browser: Browser) -> None:
    assert "</script><b>fast</b>" in " ".join(browser.texts("#list .row"))
    assert (
        browser.run("return document.querySelectorAll('#list img, #list b b').length")
        == 0
    )


def test_search_finds_texts(browser: Browser) -> None:
    assert browser.lines() == ["1", "2", "3", "4", "5", "6"]
    assert browser.texts("#count") == ["1 to 6 of 6 sentences"]

    browser.type("#query", "HUNDE")
    browser.wait("return document.querySelectorAll('#list > li').length === 1")

    assert browser.lines() == ["2"]

    # Only in a warmup that was drawn.
    browser.run("document.querySelector('#query').value = ''")
    browser.type("#query", "eine zzz")
    browser.wait("return document.querySelector('#list b')?.innerText === 'Line 3'")

    browser.choose("field", "source")

    assert browser.texts("#count") == ["No sentence matches."]

    browser.click("#controls [type=reset]")
    browser.wait("return document.querySelectorAll('#list > li').length === 6")


def test_sort_and_filters_order_sentences(browser: Browser) -> None:
    def gains() -> list[float]:
        texts = [t for t in browser.texts("#list .change") if "chrF++" in t]

        return [float(text.split()[0].replace("−", "-")) for text in texts]

    browser.choose("sort", "gain down")

    best_first = browser.lines()

    assert gains() == sorted(gains(), reverse=True)
    assert gains()[0] > 0.0 > gains()[-1]

    browser.choose("sort", "gain up")

    assert gains() == sorted(gains())
    assert best_first != browser.lines()

    # It falls by one a line.
    browser.choose("sort", "logp up")

    assert browser.lines() == ["6", "5", "4", "3", "2", "1"]

    browser.choose("sort", "length down")

    # Seven words each; of the same key, by line.
    assert browser.lines()[:2] == ["3", "6"]

    browser.type("#min", "3")
    browser.type("#max", "4\t")
    browser.choose("sort", "line up")

    assert browser.lines() == ["1", "5"]

    browser.choose("change", "worse")

    assert browser.lines() == []

    browser.choose("change", "better")

    assert browser.lines() == ["1", "5"]


def test_candidates_open_and_words_are_marked(browser: Browser) -> None:
    first = "#list > li:first-child"

    # In the reference, in the warmup.
    assert browser.texts(f"{first} > .row:not(.output) mark") == ["Mann schläft"]
    assert browser.texts(f"{first} .warmup mark") == ["Mann schläft"]

    assert (
        browser.run(f"return document.querySelector('{first} details').open") is False
    )

    browser.click("#open")

    details = " ".join(browser.texts(f"{first} details"))

    for text in (
        "0.750",
        "−2.50",
        "−9.00",
        "Ein zzz",
        "gain +1.50 nats",
        "again",
        "times",
        "with 3 warmups",
    ):
        assert text in details

    # The likeliest warmup first.
    assert browser.texts(f"{first} details .weight")[:2] == ["0.750", "0.250"]

    # Those of other pages as well.
    browser.choose("sort", "line up")

    assert browser.run(f"return document.querySelector('{first} details').open") is True


def test_pages_are_turned(browser: Browser) -> None:
    browser.run("""
        const size = document.querySelector("#size");
        size.append(new Option("2"));
        size.value = "2";
        size.dispatchEvent(new Event("change"));
    """)

    assert browser.lines() == ["1", "2"]

    browser.click("#next")

    assert browser.lines() == ["3", "4"]
    assert browser.texts("#count") == ["3 to 4 of 6 sentences"]

    browser.run("document.querySelector('#page').value = ''")
    browser.type("#page", "9\t")

    assert browser.lines() == ["5", "6"]
    assert browser.run("return document.querySelector('#next').disabled") is True


def test_runs_are_hidden_everywhere(browser: Browser) -> None:
    browser.wait(
        "return document.querySelector('[data-figure=score-bleu] .main-svg') !== null"
    )

    browser.click(".chip[data-run='1']")

    assert (
        browser.run(
            "return document.querySelector('.chip[data-run=\"1\"]').ariaPressed"
        )
        == "false"
    )
    assert set(browser.texts("#list .output .run")) == {"plain"}

    script = "return document.querySelector('[data-figure=score-bleu]').data.map((t) => t.visible)"

    assert browser.run(script) == [True, False]

    browser.click(".chip[data-run='1']")

    assert set(browser.texts("#list .output .run")) == {"plain", "method"}


def test_theme_and_axis_change_plots(browser: Browser) -> None:
    plot = "document.querySelector('[data-figure=curve-bleu]')"

    browser.run(f"{plot}.scrollIntoView()")
    browser.wait(f"return {plot}.querySelector('.main-svg') !== null")

    def read() -> Sequence[Any]:
        values: Sequence[Any] = browser.run(
            f"return [{plot}.data[0].line.color, {plot}.data[0].x, {plot}.layout.xaxis.title.text]"
        )

        return values

    light, steps, title = read()

    assert (steps, title) == ([20, 40], "step")

    browser.click("[name=axis][value=times]")

    # 6 seconds a step
    assert read()[1:] == [[2, 4], "training time (minutes)"]

    # Auto, light, dark.
    browser.run("scrollTo(0, 0)")
    browser.click("#theme")
    browser.click("#theme")

    assert browser.texts("#theme-name") == ["Dark"]
    assert read()[0] != light

    browser.click("#theme")


def test_page_is_used_by_keyboard(browser: Browser) -> None:
    browser.type("body", "/")

    assert browser.run("return document.activeElement.id") == "query"

    # Each control has a name.
    script = """
        return [...document.querySelectorAll("input, select, button")]
            .filter((e) => !e.labels?.length && !e.ariaLabel && !e.innerText.trim())
            .map((e) => e.outerHTML);
    """

    assert browser.run(script) == []


def test_narrow_page_does_not_scroll_sideways(browser: Browser, driver: Any) -> None:
    metrics = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": True}

    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    try:
        browser.click("#open")

        assert browser.run("return document.documentElement.scrollWidth") <= 400
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_report_of_real_runs_makes_what_is_missing(
    tmp_path: Path, text_folder: Path, tokenizer_file: Path
) -> None:
    sft, warmup = tmp_path / "sft", tmp_path / "warmup"

    options = tiny_options(text_folder, tokenizer_file, **SHORT_OUTPUTS)

    assert train(to_args(sft, options)) == 0

    options = tiny_options(
        text_folder, None, criterion__name="warmup", init_from=sft, **SHORT_OUTPUTS
    )

    assert train(to_args(warmup, options)) == 0

    output = tmp_path / "report.html"

    args = [str(sft), str(warmup), "-o", str(output), "--num-bootstrap", "20"]

    assert main(["report", *args]) == 0

    assert (warmup / "generate" / "test.best.txt.jsonl").is_file()
    assert (warmup / "score" / "test.best.jsonl").is_file()

    html = output.read_text(encoding="utf-8")

    text = html.split('id="browser-data">')[1].split("</script>")[0]

    sentences = json.loads(text)["sentences"]

    assert len(sentences) == 5

    for sentence in sentences:
        pair = sentence["o"][1]["k"]

        # Several warmups, with all that is known of them.
        assert sum(draw["n"] for draw in pair["d"]) > 1
        assert all(draw["a"] < 0 and draw["b"] < 0 for draw in pair["d"])
        assert sum(draw["w"] for draw in pair["d"]) == pytest.approx(1.0, abs=1e-3)
        assert pair["g"] == pytest.approx(pair["m"] - pair["y"], abs=2e-3)

    for figure in ("curve-bleu", "curve-nll-loss", "curve-effective-sample-size"):
        assert f'data-figure="{figure}"' in html
