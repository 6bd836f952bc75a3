"""The page in a browser: it sorts, filters, opens, prints, is accessible and logs no error.

Skipped where no Chromium with its driver is; Debian's packages are `chromium`, `chromium-driver`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from saebench_recovery.results.pages import write_boards
from saebench_recovery.results.report.html.write import write_report
from tests.boards import HOSTILE, board

LARGEST = 2_500_000  # bytes of the page of the committed boards


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("itables")
    pytest.importorskip("vl_convert")
    folder = tmp_path_factory.mktemp("report")
    hostile = board(2, target="other", task="tpp", defense=HOSTILE)
    write_boards([board(30), hostile], folder / "boards")
    write_report([folder / "boards"], folder / "page.html")
    assert (folder / "page.html").stat().st_size < LARGEST
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Any]:
    """A browser with the page, once everything on it is drawn."""
    webdriver = pytest.importorskip("selenium.webdriver")
    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip("no chromium with its driver")
    options = webdriver.ChromeOptions()
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(word)
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    try:
        driver.get(page.as_uri())
        waiting = pytest.importorskip("selenium.webdriver.support.ui").WebDriverWait(driver, 120)
        waiting.until(lambda d: d.execute_script("return document.documentElement.dataset.drawn"))
        yield driver
    finally:
        driver.quit()


def cells(browser: Any, column: int) -> list[str]:
    script = (
        "const place = `#board > tbody > tr > td:nth-child(${arguments[0]})`;"
        "return [...document.querySelectorAll(place)].map((td) => td.textContent)"
    )
    return list(browser.execute_script(script, column))


def click(browser: Any, selector: str) -> None:
    browser.execute_script("document.querySelector(arguments[0]).click()", selector)


def choose(browser: Any, name: str, value: str) -> None:
    browser.execute_script(
        "const s = document.querySelector(`select[name=${arguments[0]}]`);"
        "s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
        name,
        value,
    )


def test_it_filters_and_sorts(browser: Any) -> None:
    choose(browser, "target", "organism")
    assert set(cells(browser, 2)) == {"organism"}
    assert cells(browser, 6)[0] == "defense 0"
    for first in ("defense 0", "defense 9"):  # ascending, then descending
        click(browser, "#board thead th:nth-child(6) .dt-column-order")
        assert cells(browser, 6)[0] == first
    choose(browser, "target", "")


def test_a_line_opens_with_its_flags_and_commands(browser: Any) -> None:
    click(browser, "#board button.open")
    text = browser.execute_script("return document.querySelector('.inside').textContent")
    for words in ("injection-as-easy is so", "mend it", "saebench run", "2.13.0", "Members of the"):
        assert words in text
    click(browser, "#board button.open")
    assert not browser.execute_script("return document.querySelector('.inside')")


def test_names_of_strangers_are_text(browser: Any) -> None:
    choose(browser, "target", "other")
    click(browser, "#board button.open")
    assert "<script>alert(1)</script>" in cells(browser, 6)[0]
    count = "return document.querySelectorAll('main script, main img, main a').length"
    assert browser.execute_script(count) == 0
    click(browser, "#board button.open")
    choose(browser, "target", "")


def test_it_prints_every_line(browser: Any) -> None:
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert len(cells(browser, 6)) == 32
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert len(cells(browser, 6)) == 25
    assert browser.execute_cdp_cmd("Page.printToPDF", {})["data"]


def test_it_is_accessible(browser: Any) -> None:
    axe = resources.files(pytest.importorskip("axe_core_python")) / "axe.min.js"
    click(browser, "#board button.open")
    browser.execute_script(axe.read_text("utf-8"))
    found = browser.execute_async_script("axe.run().then(arguments[0])")["violations"]
    click(browser, "#board button.open")
    assert not [one["id"] for one in found if one["impact"] in ("serious", "critical")]


def test_no_error_and_no_request(browser: Any) -> None:
    assert not [one for one in browser.get_log("browser") if one["level"] == "SEVERE"]
    loaded = "return performance.getEntriesByType('resource').map((one) => one.name)"
    assert not [name for name in browser.execute_script(loaded) if name.startswith("http")]
