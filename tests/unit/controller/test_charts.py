"""Charts as specifications: what they draw, and that any text from the database is only ever text."""

from __future__ import annotations

import json
from typing import Any
from xml.etree import ElementTree

import pytest

from benchfleet_controller.outliers import Outlier, Reason, Request
from benchfleet_controller.store import Timeline

pytest.importorskip("altair", reason="the extra `report` is not installed")

from benchfleet_controller.report import charts

_CASES: list[dict[str, Any]] = [
    {"case_id": "a", "host": "alpha", "device": "cpu", "model": "tiny", "runtime": "foundry", "concurrency": 1},
    {"case_id": "b", "host": "beta", "device": "gpu", "model": "tiny", "runtime": "foundry", "concurrency": 1},
]
_LABELS = {"a": "#1 alpha · cpu", "b": "#2 beta · gpu"}


def _spread(case_id: str, metric: str = "ttft_s") -> dict[str, Any]:
    return {"case_id": case_id, "metric": metric, "n": 9, "q": [1.0, 2.0, 3.0, 4.0, 5.0], "least": 0.5, "most": 6.0}


def _request(case_id: str, request_id: str, start_s: float) -> Request:
    return Request(case_id, "r", request_id, "p", start_s, start_s + 1, 0.1, 0.01, 1.0)


def _outlier(case_id: str, request_id: str) -> Outlier:
    return Outlier(request_id, case_id, "e2e_s", 5.0, 1.0, 5.0, 9.0, Reason.STALL, "one gap of 4 s")


def test_a_label_names_host_and_device_and_what_varies() -> None:
    assert charts.labels_of(_CASES) == _LABELS
    assert charts.labels_of([_CASES[0], _CASES[1] | {"model": "large"}])["b"] == "#2 beta · gpu · large"
    loads = charts.labels_of([_CASES[0], _CASES[0] | {"case_id": "b", "concurrency": 8}])
    assert loads == {"a": "#1 alpha · cpu · ×1", "b": "#2 alpha · cpu · ×8"}


def test_labels_are_short_unique_and_without_control_characters() -> None:
    long = [{**_CASES[0], "case_id": str(place), "host": "h\u202e" + "x" * 200} for place in range(3)]
    labels = list(charts.labels_of(long).values())
    assert len(set(labels)) == 3
    assert all(len(label) <= 60 and "\u202e" not in label for label in labels)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([], []),
        ([(1.0, 1.0)], [0]),
        ([(1.0, 1.0), (2.0, 2.0), (3.0, 1.5)], [0, 1]),  # the third is larger and slower than the second
        ([(2.0, 5.0), (1.0, 5.0)], [1]),  # as fast and larger
        ([(1.0, 1.0), (1.0, 2.0)], [1]),  # as large and slower
        ([(3.0, 9.0), (1.0, 1.0), (2.0, 4.0)], [1, 2, 0]),
    ],
)
def test_the_front_holds_what_nothing_beats(points: list[tuple[float, float]], front: list[int]) -> None:
    assert charts.pareto_front(points) == front


def test_memory_is_ram_and_device_memory_and_unknown_without_ram() -> None:
    assert charts.memory_bytes({"ram_peak_bytes": 100, "vram_peak_bytes": 50}) == 150
    assert charts.memory_bytes({"ram_peak_bytes": 100, "vram_peak_bytes": None}) == 100
    assert charts.memory_bytes({"ram_peak_bytes": None, "vram_peak_bytes": 50}) is None


def test_cases_without_speed_or_memory_are_left_out_of_the_scatter_and_counted() -> None:
    measured = {"decode_tokens_per_s": 50.0, "ram_peak_bytes": 100 << 20}
    chart = charts.tradeoff_chart(_LABELS, [_CASES[0] | measured, _CASES[1] | {"decode_tokens_per_s": 60.0}])
    assert chart is not None
    drawn = chart.spec["datasets"]["cases"]
    assert [(row["case"], row["memory"], row["speed"], row["front"]) for row in drawn] == [
        ("#1 alpha · cpu", 100.0, 50.0, "on the front")
    ]
    assert "not drawn: 1" in chart.caption
    assert charts.tradeoff_chart(_LABELS, _CASES) is None


def test_axes_begin_at_zero_and_numbers_of_points_that_lie_together_are_written_together() -> None:
    points = [(1000, 50.0), (1010, 50.5), (1000, 90.0), (400, 20.0)]
    cases = [
        {"case_id": f"c{n}", "host": "a", "device": "cpu", "ram_peak_bytes": memory << 20, "decode_tokens_per_s": rate}
        for n, (memory, rate) in enumerate(points)
    ]
    chart = charts.tradeoff_chart(charts.labels_of(cases), cases)
    assert chart is not None
    assert [row["number"] for row in chart.spec["datasets"]["cases"]] == ["", "#1 #2", "#3", "#4"]
    encoding = chart.spec["layer"][1]["encoding"]
    for axis, most in (("x", 1010), ("y", 90)):
        scale = encoding[axis]["scale"]
        assert scale["domainMin"] == 0
        assert "padding" not in scale
        assert most < scale["domainMax"] < 1.2 * most


def test_distributions_draw_a_box_for_each_case_that_was_measured() -> None:
    spreads = [_spread("a"), _spread("b"), _spread("a", "e2e_s")]
    requests = [{"case_id": "a", "prompt_id": "p", "ttft_s": 1.23456, "e2e_s": None, "tpot_s": None}]
    found = {chart.name: chart.spec for chart in charts.spread_charts(_LABELS, spreads, requests)}
    assert list(found) == ["spread-ttft", "spread-e2e"]  # TPOT was not measured
    assert [row["case"] for row in found["spread-ttft"]["datasets"]["boxes"]] == ["#1 alpha · cpu", "#2 beta · gpu"]
    assert found["spread-ttft"]["datasets"]["points"] == [{"case": "#1 alpha · cpu", "value": 1.235, "prompt": "p"}]
    assert found["spread-e2e"]["datasets"]["points"] == []


def test_a_time_line_is_drawn_for_each_series_with_its_rounds_and_outliers() -> None:
    readings = [
        {"case_id": "a", "series": "runtime_rss_bytes", "device_id": "", "at_s": at, "value": 2.0**20 * at}
        for at in (0.0, 10.0)
    ]
    spans = [
        {"case_id": "a", "kind": "load", "number": 0, "start_s": 0.0, "end_s": 1.0},
        {"case_id": "a", "kind": "warmup", "number": 1, "start_s": 1.0, "end_s": 2.0},
        {"case_id": "a", "kind": "counted", "number": 1, "start_s": 2.0, "end_s": 12.0},
    ]
    timeline = Timeline(readings=readings, spans=spans, measured=[_request("a", "q1", 3.0), _request("b", "q2", 4.0)])
    found = charts.case_charts(_LABELS, "a", timeline, [_outlier("a", "q1"), _outlier("b", "q2")])
    assert [chart.name for chart in found] == ["case1-runtime_rss_bytes"]
    data = found[0].spec["datasets"]
    assert data["readings"] == [{"at": 0.0, "value": 0.0}, {"at": 10.0, "value": 10.0}]
    assert [(band["what"], band["number"]) for band in data["bands"]] == [
        ("load", ""),
        ("warm-up round 1", ""),
        ("round 1", "1"),
    ]
    shades = [band["shade"] for band in data["bands"]]
    assert shades[1] < shades[2] < shades[0]
    assert [(mark["at"], mark["reason"], mark["times as long"]) for mark in data["marks"]] == [(3.0, "stall", "5.0")]
    assert "outlying requests, as triangles: 1" in found[0].caption


def test_several_devices_share_a_chart_and_differ_in_dash_too() -> None:
    readings = [
        {"case_id": "a", "series": "device_power_w", "device_id": device, "at_s": at, "value": 50.0}
        for device in ("gpu0", "gpu1")
        for at in (0.0, 1.0)
    ]
    (chart,) = charts.case_charts(_LABELS, "a", Timeline(readings=readings))
    assert {row["device"] for row in chart.spec["datasets"]["readings"]} == {"gpu0", "gpu1"}
    assert '"strokeDash": {"field": "device"' in json.dumps(chart.spec)


def test_token_arrivals_begin_at_nothing() -> None:
    arrivals = [{"case_id": "b", "which": "median", "at_s": at, "chunks": n} for n, at in ((1, 0.5), (2, 0.6))]
    (chart,) = charts.case_charts(_LABELS, "b", Timeline(arrivals=arrivals))
    assert [(row["at"], row["chunks"]) for row in chart.spec["datasets"]["arrivals"]] == [(0.0, 0), (0.5, 1), (0.6, 2)]


def test_every_chart_fits_its_container_and_says_what_it_shows() -> None:
    (chart,) = charts.spread_charts(_LABELS, [_spread("a")], [])
    assert chart.spec["width"] == "container"
    assert chart.spec["description"] == chart.caption
    assert "config" not in chart.spec


def test_what_is_no_number_is_left_out() -> None:
    spread = _spread("a") | {"most": float("nan")}
    (chart,) = charts.spread_charts(_LABELS, [spread], [])
    assert chart.spec["datasets"]["boxes"][0]["most"] is None


@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<svg"), ("png", b"\x89PNG")])
def test_charts_become_images_without_a_browser(tmp_path: Any, ending: str, begins: bytes) -> None:
    (chart,) = charts.spread_charts(_LABELS, [_spread("a")], [])
    path = tmp_path / f"chart.{ending}"
    charts.write_image(chart, path)
    assert path.read_bytes().startswith(begins)


def test_hostile_names_stay_text_in_an_image(tmp_path: Any) -> None:
    labels = {"a": "</text><script>alert(1)</script>"}
    (chart,) = charts.spread_charts(labels, [_spread("a")], [])
    charts.write_image(chart, tmp_path / "chart.svg")
    tree = ElementTree.parse(tmp_path / "chart.svg")
    assert not [one for one in tree.iter() if one.tag.endswith("script")]
    assert "</text><script>alert(1)</script>" in [one.text for one in tree.iter()]


def test_an_unknown_image_format_is_refused(tmp_path: Any) -> None:
    (chart,) = charts.spread_charts(_LABELS, [_spread("a")], [])
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        charts.write_image(chart, tmp_path / "chart.jpeg")
