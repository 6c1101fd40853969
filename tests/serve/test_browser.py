"""The page in headless Chromium, by mouse, by keyboard, wide and as narrow as a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="axnet serve needs the extra [serve]")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if BROWSER is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

from serving import encoded, film, serving, small_predictor  # noqa: E402

from axnet.serve.limits import Limits  # noqa: E402

SHOTS = os.environ.get("AXNET_SCREENSHOTS")  # a folder, for who wants to look


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(small_predictor(), Limits(films=3)) as port:
        yield port


@pytest.fixture(params=[1100, 400])
def page(request: pytest.FixtureRequest, browser: Any, port: int) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": request.param, "height": 800}, accept_downloads=True)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.problems, page.elsewhere = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    own = (f"http://127.0.0.1:{port}/", "data:", "blob:")
    page.on("request", lambda asked: None if asked.url.startswith(own) else page.elsewhere.append(asked.url))
    page.goto(f"http://127.0.0.1:{port}/")
    yield page
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{request.node.name}.png", full_page=True)
    assert (page.problems, page.elsewhere) == ([], [])
    across = page.evaluate("document.documentElement.scrollWidth")
    assert across == request.param  # nothing is cut off at the side
    context.close()


@pytest.fixture
def films(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one.png", tmp_path / "<b>two<b>.jpg", tmp_path / "notes.txt", tmp_path / "four.png"]
    for path, content in zip(paths, (encoded(film(96)), encoded(film(80, 2), "JPEG"), b"no film", b""), strict=True):
        path.write_bytes(content)
    return paths


def test_films_are_read_and_shown(page: Any, films: list[Path]) -> None:
    page.set_input_files("#files", films)
    page.get_by_text("2 of 3 films read.").wait_for()  # of four, three at most
    assert page.locator("#films li").count() == 3
    assert "begins as none of these" in page.locator("#films .failed").inner_text()
    assert page.locator("#name").inner_text() == "one.png"
    assert page.locator("#findings tr").count() == 3  # two findings, and no map
    page.get_by_text("<b>two<b>.jpg").click()
    assert page.locator("#name").inner_text() == "<b>two<b>.jpg"
    assert page.locator("#pixels").get_attribute("width") == "80"
    page.get_by_label("Mass <b>").check()
    assert page.locator("#map").get_attribute("href").startswith("data:image/png")
    assert page.locator("#peak").inner_text()
    page.get_by_label("No map").check()
    assert page.locator("#map").get_attribute("href") is None
    page.get_by_label("Organs").uncheck()
    assert not page.locator("#organs").is_visible()
    page.get_by_text("Remove all").click()
    assert not page.locator("#work").is_visible()


def test_window_and_level_by_keyboard(page: Any, films: list[Path]) -> None:
    page.set_input_files("#files", films[:1])
    page.get_by_text("1 of 1 films read.").wait_for()
    slope = page.locator("#levels feComponentTransfer > *").first
    before = float(slope.get_attribute("slope"))
    page.locator("#window").focus()
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    assert float(slope.get_attribute("slope")) > before  # a narrower window has more contrast
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "level"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert float(slope.get_attribute("slope")) == pytest.approx(before)


def test_everything_by_keyboard(page: Any, films: list[Path]) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    page.set_input_files("#files", films[:2])
    page.get_by_text("2 of 2 films read.").wait_for()
    reached = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "document.activeElement.id || document.activeElement.name || document.activeElement.textContent"
            )
        )
    assert {"clear", "window", "level", "reset", "show-organs", "show-widths", "finding", "report"} <= reached


def test_films_are_dropped(page: Any) -> None:
    dropped = page.evaluate_handle(
        """bytes => { const given = new DataTransfer();
        given.items.add(new File([new Uint8Array(bytes)], "dropped.png")); return given; }""",
        list(encoded(film(64))),
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": dropped})
    page.get_by_text("1 of 1 films read.").wait_for()
    assert page.locator("#name").inner_text() == "dropped.png"


def test_the_report_is_downloaded(page: Any, films: list[Path], tmp_path: Path) -> None:
    page.set_input_files("#files", films[:1])
    page.get_by_text("1 of 1 films read.").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Download report").click()
    assert download.value.suggested_filename == "one-report.html"
    download.value.save_as(tmp_path / "report.html")
    assert "Reading of one.png" in (tmp_path / "report.html").read_text()
