"""The parts that the report is made of: markup, axes and small copies of images."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mllm_selector.reporting.histograms import nice_step
from mllm_selector.reporting.markup import element, join
from mllm_selector.reporting.overview import Coverage
from mllm_selector.reporting.thumbnails import Thumbnail, Thumbnails
from mllm_selector.reporting.words import larger_budget
from mllm_selector.selection import Selection


@given(st.text(), st.text())
def test_markup_gives_every_text_back(text, attribute):
    class One(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.data, self.attribute = "", ""

        def handle_starttag(self, tag, attrs):
            assert tag == "p"
            self.attribute = dict(attrs)["title"]

        def handle_data(self, data):
            self.data += data

    parser = One()
    parser.feed(element("p", text, title=attribute))
    parser.close()
    forbidden = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]"
    assert parser.data == re.sub(forbidden, "\ufffd", text)
    assert parser.attribute == re.sub(forbidden, "\ufffd", attribute)
    assert join(join(text)) == join(text)


@given(st.floats(1e-6, 1e9), st.integers(1, 100))
def test_steps_are_round_and_not_too_many(span, steps):
    step = nice_step(span, steps)
    assert span / step <= steps * (1 + 1e-6)
    assert f"{step:e}"[0] in "125"
    assert span / step >= steps / 2.51


@given(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP"]), st.integers(0, 2000), st.binary(max_size=40))
def test_damaged_images_never_stop_the_report(kind, cut, junk):
    buffer = io.BytesIO()
    Image.linear_gradient("L").save(buffer, kind)
    whole = buffer.getvalue()
    made = Thumbnails(1_000_000).make(whole[:cut] + junk + whole[cut + len(junk) :])
    assert isinstance(made, Thumbnail) or "cannot be read" in made


def test_huge_images_are_not_decoded():
    # 10,000 x 10,000 pixels in a few kilobytes.
    buffer = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(buffer, "PNG")
    assert "cannot be read" in Thumbnails(1_000_000).make(buffer.getvalue())


def test_a_selection_shows_itself_in_a_notebook(report_run):
    selection = Selection.load(report_run)
    assert repr(selection).startswith("Selection of 185 of 1,848 samples from ")
    page = selection._repr_html_()
    assert "185 of 1,848 samples (10.0%)" in page
    assert str(selection.ids[0]) in page
    assert f"{selection.necessity[0]:.3f}" in page
    assert page.count("<tr>") == page.count("</tr>") == 6 + 6


def test_a_notebook_gets_texts_of_a_pool_as_text(report_run):
    selection = Selection.load(report_run)
    selection.ids[0] = "<script>alert(1)</script>"
    assert "<script" not in selection._repr_html_()


def test_small_distances_are_told_with_two_digits():
    counts = [10, 370, 740]
    coverage = Coverage(1848, counts, [0.5, 0.000312, 0.0000843], [1, 1, 1], [0.4, 0.00123, 0.001], [1, 1, 1])
    assert larger_budget(coverage, 370) == (
        "Half of the pool lies within 0.00031 of a chosen sample; with as many samples drawn uniformly it "
        "would be 0.0012. A budget of 740 (2.0 times this one), filled up uniformly, would bring it to "
        "8.4e-05, which is 73% nearer."
    )
