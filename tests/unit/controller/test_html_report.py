"""The HTML report as text: what it says, that it is one file, and that nothing of the database becomes markup."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchfleet_controller.commands.answers import report_data
from benchfleet_controller.outliers import outliers
from benchfleet_controller.report import ReportData
from fakes.lab import HOSTILE, lab_store

pytest.importorskip("altair", reason="the extra `report` is not installed")

from benchfleet_controller.report.html import HtmlReport, chart_images, render_html


class _Parsed(html.parser.HTMLParser):
    """Tags with their attributes, the text of each script, and all other text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._texts: list[str] = []
        self._inside = ""
        self.feed(page)
        self.text = " ".join(" ".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self._texts.append(data)


def _data(folder: Path, **lab: Any) -> HtmlReport:
    store = lab_store(folder / "bench.duckdb", **lab)
    timeline = store.timeline("r1")
    return HtmlReport(report_data(store, "r1"), timeline, outliers(timeline.measured))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> HtmlReport:
    return _data(tmp_path_factory.mktemp("lab"))


@pytest.fixture(scope="module")
def page(data: HtmlReport) -> _Parsed:
    return _Parsed(render_html(data))


def test_the_page_has_all_parts(page: _Parsed) -> None:
    headings = ("Results", "Comparison by host", "Speed against memory", "Distributions", "Time lines",
                "Outlying requests", "Hosts", "Warnings", "Failures", "Sample answers", "How to reproduce")  # fmt: skip
    assert [heading for heading in headings if heading not in page.text] == []
    assert "Fingerprint of beta" in page.text
    assert "GPU of tiny" in page.text


def test_every_link_of_the_contents_leads_somewhere(page: _Parsed) -> None:
    targets = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    ids = {"#" + str(attributes["id"]) for _, attributes in page.tags if "id" in attributes}
    assert len(targets) >= 9
    assert set(targets) <= ids


def test_the_page_loads_nothing(page: _Parsed) -> None:
    assert [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "object", "embed", "base", "form")] == []
    assert [a for _, a in page.tags if "src" in a or a.get("href", "#")[:1] != "#"] == []  # type: ignore[index]


def test_the_policy_allows_the_two_scripts_of_the_page_and_no_other(page: _Parsed) -> None:
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    allowed = set(re.findall(r"'(sha256-[^']+)'", policy))
    ran = [text for text in page.scripts if not text.startswith("{")]
    assert allowed == {"sha256-" + base64.b64encode(hashlib.sha256(t.encode()).digest()).decode() for t in ran}
    assert len(ran) == 2
    assert policy.startswith("default-src 'none'; script-src ")
    assert "unsafe-eval" not in policy


def test_the_library_is_there_once(page: _Parsed) -> None:
    assert sum("vegaEmbed" in text and len(text) > 100_000 for text in page.scripts) == 1


def test_every_chart_has_its_specification(page: _Parsed) -> None:
    (told,) = [json.loads(text) for text in page.scripts if text.startswith("{")]
    boxes = [attributes["data-chart"] for _, attributes in page.tags if "data-chart" in attributes]
    assert sorted(told["specs"]) == sorted(str(box) for box in boxes)
    assert len(boxes) == 24


def test_verdicts_are_words_and_symbols(page: _Parsed) -> None:
    verdicts = {a["class"] for tag, a in page.tags if tag == "td" and (a.get("class") or "").startswith("verdict ")}
    assert verdicts >= {"verdict baseline", "verdict better", "verdict same"}
    for symbol, word in (("▲", "better"), ("=", "same"), ("●", "baseline"), ("?", "inconclusive")):
        assert f"{symbol} {word}" in page.text


def test_hosts_that_ran_on_other_devices_stand_side_by_side(page: _Parsed) -> None:
    row = re.search(
        r"Metric alpha beta .+? TTFT p50 \(s\) concurrency 1 ● baseline 0.100 ▲ better 0.050 (.+?) ●", page.text
    )
    assert row
    assert re.match(r"0.50 × \(0.5\d to 0.5\d\), 4 rounds .*device gpu instead of cpu", row[1])


def test_tables_have_headers_that_say_of_what(page: _Parsed) -> None:
    headers = [attributes for tag, attributes in page.tags if tag == "th"]
    assert headers
    assert {attributes.get("scope") for attributes in headers} == {"col", "row"}
    assert sum(tag == "table" for tag, _ in page.tags) == sum(tag == "caption" for tag, _ in page.tags)


def test_the_slow_request_is_marked_and_listed(page: _Parsed, data: HtmlReport) -> None:
    assert {one.request_id for one in data.outliers} == {"beta-1-4-3"}
    (told,) = [json.loads(text) for text in page.scripts if text.startswith("{")]
    marks = told["specs"]["case3-runtime_rss_bytes"]["datasets"]["marks"]
    assert {mark["at"] for mark in marks} == {47.75}
    assert told["specs"]["case1-runtime_rss_bytes"]["datasets"]["marks"] == []


def test_failures_are_told(page: _Parsed) -> None:
    assert "http_error" in page.text
    assert "HTTP 500" in page.text


def test_hostile_text_never_becomes_markup(tmp_path: Path, page: _Parsed) -> None:
    hostile = _Parsed(render_html(_data(tmp_path, name=HOSTILE)))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in page.tags]
    names = {name for _, attributes in hostile.tags for name in attributes}
    assert names == {name for _, attributes in page.tags for name in attributes}
    assert "</script><script>alert('x')</script><img src=x onerror=alert(1)>{{7*7}}" in hostile.text
    assert "\u202e" not in hostile.text


@pytest.mark.slow
def test_a_large_run_stays_small_and_says_what_it_left_out(tmp_path: Path) -> None:
    data = _data(tmp_path, rounds=11, requests=60, samples=3000, tokens=200)
    text = render_html(data)
    assert data.timeline.requests_total == 2400
    assert len(text.encode()) < 4_000_000
    parsed = _Parsed(text)
    assert re.search(r"[\d,]+ of 2,400 requests are drawn", parsed.text)
    assert re.search(r"[\d,]+ of [\d,]+ readings are drawn: the least and the most of each", parsed.text)


def test_a_run_without_results_still_has_a_page(tmp_path: Path) -> None:
    store = lab_store(tmp_path / "bench.duckdb", rounds=1, samples=1)  # warm-up only
    parsed = _Parsed(render_html(HtmlReport(report_data(store, "r1"))))
    assert "Results" in parsed.text
    assert "Time lines" not in parsed.text


def test_a_run_that_reached_no_host_still_has_a_page() -> None:
    plan = {"name": "never \u202e ran"}
    parsed = _Parsed(render_html(HtmlReport(ReportData(run={"name": "lost", "plan": plan}, hosts=[], cases=[]))))
    assert "Benchmark report: lost" in parsed.text
    assert "0 cases (0 failed) on 0 hosts" in parsed.text
    assert '"name": "never \\u202e ran"' in parsed.text


@pytest.mark.slow
def test_all_charts_can_be_written_as_images(tmp_path: Path, data: HtmlReport) -> None:
    drawn = chart_images(data, tmp_path / "charts")
    assert len(drawn) == 24
    assert all(path.read_text(encoding="utf-8").startswith("<svg") for _, path in drawn)
    assert all(caption for caption, _ in drawn)
