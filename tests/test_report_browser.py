"""The report in headless Chromium: panels, hover, keys, light and dark, wide and narrow, print."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from browser import chromium, opened
from mllm_selector.config import ReportOptions
from mllm_selector.progress import SilentProgress
from mllm_selector.rundir import RunDirectory
from mllm_selector.stages import report
from report_fixtures import write_run

# Colours of a canvas, and how much of it is not see-through.
PAINTED = """canvas => {
  const image = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  const pixels = new Uint32Array(image.data.buffer);
  return [new Set(pixels).size, pixels.filter(pixel => pixel !== 0).length / pixels.length];
}"""
# Where a point of the map is on the screen.
PLACE = """number => {
  const canvas = document.querySelector("canvas[data-plot=map]");
  const chart = Chart.getChart(canvas);
  const box = canvas.getBoundingClientRect();
  const point = chart.getDatasetMeta(1).data[number];
  return [box.left + point.x, box.top + point.y];
}"""
CHOSEN = """number => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  return data.map.points.filter(point => point.chosen)[number];
}"""
IS_SHOWN = "id => document.querySelector('#map-detail .id').textContent === id"
CHARTS = ["map", "histogram", "rates", *["source"] * 8, "groups", "coverage"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def page_path(report_run: Path) -> Path:
    with RunDirectory(report_run) as run:
        report.run(run, ReportOptions(gallery=8), SilentProgress())
        return run.report


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 400])
def test_every_panel_is_drawn_and_fits(browser, page_path, width, scheme):
    with opened(browser, page_path, width, scheme) as shown:
        page = shown.page
        assert page.evaluate("document.documentElement.scrollWidth") == width
        canvases = page.locator("canvas")
        assert [canvas.get_attribute("data-plot") for canvas in canvases.all()] == CHARTS
        for canvas in canvases.all():
            colours, painted = canvas.evaluate(PAINTED)
            assert colours > 4
            assert painted > 0.01
            box = canvas.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["height"] > 60
        for section in page.locator("section").all():
            assert section.bounding_box()["height"] > 80
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 27)")


def detail(page: Page) -> str:
    return page.locator("#map-detail .id").inner_text()


def test_pointing_at_a_sample_shows_it(browser, page_path):
    with opened(browser, page_path) as shown:
        page = shown.page
        page.locator("canvas[data-plot=map]").scroll_into_view_if_needed()
        ids = [page.evaluate(CHOSEN, number)["id"] for number in range(100)]
        for number in (0, 20, 40, 60, 80):
            point = page.evaluate(CHOSEN, number)
            page.mouse.move(*page.evaluate(PLACE, number))
            page.wait_for_function(IS_SHOWN, arg=ids[number])
            panel = page.locator("#map-detail").inner_text()
            for text in (point["question"], point["answer"], "nats, entropy", "chosen"):
                assert text in panel
            assert page.locator("#map-detail img, #map-detail .placeholder").count() == 1
        page.mouse.click(*page.evaluate(PLACE, 40))
        page.wait_for_function(IS_SHOWN, arg=ids[40])
        page.mouse.move(*page.evaluate(PLACE, 0))
        page.wait_for_timeout(200)
        assert detail(page) == ids[40], "a click holds the sample"
        page.mouse.click(*page.evaluate(PLACE, 40))
        page.mouse.move(*page.evaluate(PLACE, 0))
        page.wait_for_function(IS_SHOWN, arg=ids[0])


def test_pointing_at_a_bar_says_what_it_holds(browser, page_path):
    with opened(browser, page_path) as shown:
        canvas = shown.page.locator("canvas[data-plot=histogram]")
        canvas.hover(position={"x": 90, "y": 60})
        told = canvas.evaluate("canvas => Chart.getChart(canvas).tooltip.body.flatMap(part => part.lines)")
        assert len(told) == 1
        assert "samples" in told[0]
        assert "chosen" in told[0]


def test_all_of_it_works_by_keyboard(browser, page_path):
    with opened(browser, page_path) as shown:
        page = shown.page
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.dataset.plot") == "map":
                break
        else:
            pytest.fail("the map is not reached by Tab")
        places = [detail(page)]
        for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown"):
            page.keyboard.press(key)
            places.append(detail(page))
        assert len(set(places)) > 3
        page.locator("canvas[data-plot=coverage]").focus()
        page.keyboard.press("ArrowRight")
        first = page.locator("#spoken").inner_text()
        page.keyboard.press("ArrowRight")
        assert "half are nearer" in first
        assert page.locator("#spoken").inner_text() != first
        for kind in ("histogram", "rates", "groups"):
            page.locator(f"canvas[data-plot={kind}]").focus()
            page.keyboard.press("ArrowLeft")
            assert "chosen" in page.locator("#spoken").inner_text()


def test_the_map_is_coloured_by_what_is_asked(browser, page_path):
    with opened(browser, page_path) as shown:
        page = shown.page
        by = [radio.get_attribute("value") for radio in page.locator("input[name=colour]").all()]
        assert by == ["necessity", "score:entropy", "score:visnec", "source", "group"]
        canvas = page.locator("canvas[data-plot=map]")
        seen = {}
        for value in by:
            page.check(f"input[value='{value}']")
            assert len(page.locator("#map-legend li").all()) >= 6
            seen[value] = canvas.evaluate("canvas => canvas.toDataURL()")
        assert len(set(seen.values())) == len(by)
        page.check("input[value=source]")
        assert "nlvr-exists" in page.locator("#map-legend").inner_text()
        page.check("#only-chosen")
        assert canvas.evaluate("canvas => Chart.getChart(canvas).isDatasetVisible(0)") is False


def test_charts_follow_the_scheme_and_print_on_white(browser, page_path, tmp_path):
    with opened(browser, page_path) as shown:
        page = shown.page
        canvas = page.locator("canvas[data-plot=histogram]")
        light = canvas.evaluate("canvas => canvas.toDataURL()")
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(
            "before => document.querySelector('canvas[data-plot=histogram]').toDataURL() !== before",
            arg=light,
        )
        printed = page.pdf(path=str(tmp_path / "report.pdf"), print_background=True)
        assert printed.startswith(b"%PDF")
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible()
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 22, 27)"


def test_without_scripts_the_page_still_tells_its_numbers(browser, page_path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_path.as_uri())
    assert page.locator("noscript p").is_visible()
    assert page.locator("article").first.is_visible()
    context.close()


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"


def test_texts_of_a_pool_run_nothing(browser, tmp_path):
    records = [
        {
            "id": f"{EVIL}{number}",
            "source": f"{EVIL}{number % 3}",
            "conversations": [{"from": "human", "value": EVIL}, {"from": "gpt", "value": EVIL}],
        }
        for number in range(60)
    ]
    path = write_run(tmp_path / "run", records, None, budget=0.3)
    with RunDirectory(path) as run:
        report.run(run, ReportOptions(), SilentProgress())
        with opened(browser, run.report) as shown:
            assert EVIL in shown.page.locator("#map-detail").inner_text()
            shown.page.check("input[value=source]")
            assert EVIL[:20] in shown.page.locator("#map-legend").inner_text()
