"""The page in a browser: offline, without errors, everything to be seen."""

import dataclasses
import shutil

import pytest
from support import finished

from s4spipe.report import page

sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install -e '.[test]'")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium: install it (apt install chromium) to test the page")
SIZES = {"desk": (1280, 800), "phone": (360, 740)}


def without(run, solver):
    """The same run with a solver fewer."""
    chosen = run.params.model_copy(update={"classical": [s for s in run.params.classical if s != solver]})
    return dataclasses.replace(run, params=chosen)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished.make(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory, run):
    """The page of a run, and that of its comparison with the same run but for one solver."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "report.html").write_text(page.report(run), encoding="utf-8")
    both = {"main": run, "less <b>": without(run, "ddim")}
    (folder / "diff.html").write_text(page.comparison(both), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, pages):
    contexts = []

    def load(name, size="desk", scheme="light"):
        width, height = SIZES[size]
        contexts.append(
            browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
        )
        tab = contexts[-1].new_page()
        tab.said, tab.asked = [], []
        tab.on("console", lambda message: tab.said.append(message.text))
        tab.on("pageerror", lambda error: tab.said.append(str(error)))
        tab.on("request", lambda request: tab.asked.append(request.url))
        tab.goto((pages / name).as_uri())
        return tab

    yield load
    for context in contexts:
        context.close()


@pytest.mark.parametrize("name", ["report.html", "diff.html"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_figure_is_seen_and_nothing_is_asked_of_anyone(opened, name, size, scheme):
    tab = opened(name, size, scheme)
    assert tab.said == []
    # The page itself, and pictures within it.
    assert [url for url in tab.asked if not url.startswith(("data:", "file:"))] == []
    assert sum(url.startswith("file:") for url in tab.asked) == 1
    drawings = tab.locator("figure > svg")
    assert drawings.count() == (5 if name == "report.html" else 2)
    for drawing in drawings.all():
        assert drawing.is_visible()
        assert drawing.bounding_box()["width"] > 250
        assert drawing.bounding_box()["height"] > 100
    for picture in tab.locator("img").all():
        assert picture.is_visible()
        assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    # Wide tables scroll within themselves.
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_text_and_lines_take_the_colour_of_the_scheme(opened):
    shades = {}
    for scheme in ("light", "dark"):
        tab = opened("report.html", scheme=scheme)
        shades[scheme] = tab.evaluate(
            """() => [getComputedStyle(document.body).backgroundColor,
                      getComputedStyle(document.querySelector("svg text")).fill]"""
        )
    (light, ink), (dark, chalk) = shades["light"], shades["dark"]
    assert light == "rgb(255, 255, 255)"
    brightness = lambda colour: sum(int(n) for n in colour[4:-1].split(","))  # noqa: E731
    assert brightness(ink) < 200 < 600 < brightness(chalk)
    assert brightness(dark) < 100


def test_a_click_on_a_head_sorts(opened):
    tab = opened("report.html")
    head = tab.locator("#table + .scroll th", has_text="FID").first
    fids = lambda: [float(x) for x in tab.locator("#table + .scroll td:nth-child(3)").all_inner_texts()]  # noqa: E731
    head.get_by_role("button").click()
    assert fids() == sorted(fids())
    assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()
    assert fids() == sorted(fids(), reverse=True)
    gaps = tab.locator("#table + .scroll th", has_text="gap closed")
    gaps.get_by_role("button").click()
    shown = tab.locator("#table + .scroll td:nth-child(4)").all_inner_texts()
    known = [text for text in shown if text]
    assert shown == [*known, *[""] * (len(shown) - len(known))]
    assert [float(text) for text in known] == sorted(map(float, known))


def test_names_are_text_and_only_what_params_name_is_shown(opened, run):
    tab = opened("diff.html")
    assert tab.locator("h1").inner_text() == "main and less <b>"
    assert "ddim" in tab.content()
    assert "ddim" not in page.report(without(run, "ddim"))
