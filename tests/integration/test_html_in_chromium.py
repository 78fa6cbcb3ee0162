"""The HTML report in a real browser: its charts are drawn, nothing is complained of, and it fits phone and desk."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchfleet_controller.commands.answers import report_data
from benchfleet_controller.outliers import outliers
from fakes.lab import HOSTILE, lab_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.xdist_group("chromium")]
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
_WIDTHS = (400, 1600)
# Frames of the two widths, so that one start of the browser measures both; the page itself stays as it is.
_HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">
%s<pre id="measured"></pre><script>
const charts = (page) => [...page.querySelectorAll(".chart")];
function measured(frame) {
  const page = frame.contentDocument;
  return {
    scroll_width: page.documentElement.scrollWidth,
    client_width: page.documentElement.clientWidth,
    paper: getComputedStyle(page.body).backgroundColor,
    injected: page.querySelectorAll("img").length,
    texts: page.body.innerText,
    charts: charts(page).map((box) => ({
      name: box.dataset.chart,
      drawn: box.dataset.drawn === "yes",
      box_width: box.getBoundingClientRect().width,
      svg_width: box.querySelector("svg")?.getBoundingClientRect().width ?? 0,
      marks: box.querySelectorAll("svg .role-mark path").length,
      label: box.querySelector("[role=graphics-document]")?.getAttribute("aria-label") ?? "",
    })),
  };
}
addEventListener("load", () => {
  const frames = [...document.querySelectorAll("iframe")];
  for (const frame of frames) {
    for (const details of frame.contentDocument.querySelectorAll("main details")) details.open = true;
  }
  let looks = 0;
  const timer = setInterval(() => {
    looks += 1;
    const done = frames.every((frame) => charts(frame.contentDocument).every((box) => box.dataset.drawn === "yes"));
    if (done || looks > 200) {
      clearInterval(timer);
      document.getElementById("measured").textContent = JSON.stringify(frames.map(measured));
    }
  }, 50);
});
</script>"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the browser made of a page: one entry a width, and every line of its console."""

    frames: Sequence[dict[str, Any]]
    console: Sequence[str]


def _browser() -> str:
    for name in _NAMES:
        if found := shutil.which(name):
            return found
    pytest.skip("no Chromium on this machine (Debian: apt-get install chromium): the page was NOT tried in a browser")


def _look(folder: Path, page: str, *arguments: str) -> Seen:
    (folder / "report.html").write_text(page, encoding="utf-8", newline="\n")
    frames = "".join(f'<iframe src="report.html" width="{width}" height="900"></iframe>\n' for width in _WIDTHS)
    (folder / "harness.html").write_text(_HARNESS % frames, encoding="utf-8")
    command = [
        _browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--enable-logging=stderr",
        "--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=30000", "--window-size=1700,2000", *arguments, "--dump-dom",
        (folder / "harness.html").as_uri(),
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    found = re.search(r'<pre id="measured">(.+?)</pre>', ended.stdout, re.DOTALL)
    assert found, f"the page was not measured; exit {ended.returncode}: {ended.stderr[-2000:]}"
    console = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    return Seen(json.loads(html.unescape(found[1])), console)


def _page(folder: Path, **lab: Any) -> str:
    pytest.importorskip("altair", reason="the extra `report` is not installed")
    from benchfleet_controller.report.html import HtmlReport, render_html

    store = lab_store(folder / "bench.duckdb", **lab)
    timeline = store.timeline("r1")
    return render_html(HtmlReport(report_data(store, "r1"), timeline, outliers(timeline.measured)))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _page(tmp_path_factory.mktemp("lab"))


def test_all_charts_are_drawn_at_both_widths_without_a_word_on_the_console(tmp_path: Path, page: str) -> None:
    seen = _look(tmp_path, page)

    assert seen.console == []
    expected = len(re.findall(r'data-chart="', page))
    assert expected == 1 + 3 + 2 * 3 + 2 * 7
    for frame in seen.frames:
        assert len(frame["charts"]) == expected
        assert [chart for chart in frame["charts"] if not (chart["drawn"] and chart["marks"] and chart["label"])] == []


def test_the_page_never_scrolls_sideways_and_charts_stay_in_their_boxes(tmp_path: Path, page: str) -> None:
    seen = _look(tmp_path, page)

    for frame, width in zip(seen.frames, _WIDTHS, strict=True):
        assert frame["client_width"] == pytest.approx(width, abs=20)  # a scroll bar may take its part
        assert frame["scroll_width"] <= frame["client_width"]
        for chart in frame["charts"]:
            assert 250 < chart["svg_width"] <= chart["box_width"] + 1, chart["name"]


def test_a_reader_who_prefers_dark_gets_dark(tmp_path: Path, page: str) -> None:
    dark = _look(tmp_path, page, "--blink-settings=preferredColorScheme=0")
    light = _look(tmp_path, page, "--blink-settings=preferredColorScheme=1")

    assert {frame["paper"] for frame in dark.frames} == {"rgb(22, 25, 29)"}
    assert {frame["paper"] for frame in light.frames} == {"rgb(255, 255, 255)"}
    assert dark.console == light.console == []


def test_hostile_names_are_shown_and_never_run(tmp_path: Path) -> None:
    seen = _look(tmp_path, _page(tmp_path, name=HOSTILE))

    assert seen.console == []
    for frame in seen.frames:
        assert frame["injected"] == 0
        assert "</script><script>alert('x')</script><img src=x onerror=alert(1)>{{7*7}}" in frame["texts"]
        assert all(chart["drawn"] for chart in frame["charts"])


def test_an_injected_script_would_be_refused_and_a_broken_chart_noticed(tmp_path: Path, page: str) -> None:
    broken = page.replace("</main>", "<script>document.body.dataset.ran = 1</script></main>")
    broken = broken.replace('"mark":{', '"mark":{"type":"nonsense"},"was":{', 1)
    seen = _look(tmp_path, broken)

    assert any("Content Security Policy" in line for line in seen.console)
    assert any(not chart["drawn"] for chart in seen.frames[0]["charts"])
