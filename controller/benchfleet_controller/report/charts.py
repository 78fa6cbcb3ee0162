"""Charts of a run as Vega-Lite specifications: plain rows in, plain dicts out. Pure, apart from `chart_images`.

Every chart is a single view as wide as its container, so that it fits a phone; colour never stands alone, marks differ
in shape, dash or place too. Text from the database reaches a chart only as data or as a title, never as an expression.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchfleet_controller.checks import load_shape
from benchfleet_controller.outliers import Outlier
from benchfleet_controller.report.exports import Row, clean
from benchfleet_controller.store import Timeline

Spec = dict[str, Any]

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
"""Okabe & Ito's colours, which people with any colour vision tell apart; yellow left out, as it is lost on white."""
_LABEL_CHARACTERS = 60
_MOST_NUMBERED_BANDS = 40
_STEP = 52
"""Height of a case among distributions: its name, its box, its requests."""
_IMAGE_WIDTH = 760
_ROUNDS = {
    "counted": "round",
    "warmup": "warm-up round",
    "calibration": "calibration",
    "idle": "request after a pause",
    "keepwarm": "keeping the model warm",
}
_SPREADS = {"ttft_s": "Time to first token (s)", "e2e_s": "Latency (s)", "tpot_s": "Time per output token (s)"}
_LINES = {
    "runtime_rss_bytes": ("RAM of the runtime (MiB)", 2**-20),
    "device_memory_used_bytes": ("Device memory in use by everyone (MiB)", 2**-20),
    "device_memory_runtime_bytes": ("Device memory of the runtime (MiB)", 2**-20),
    "device_busy_ratio": ("Device busy (%)", 100.0),
    "device_power_w": ("Device power (W)", 1.0),
    "device_temperature_c": ("Device temperature (°C)", 1.0),
    "host_cpu_busy_ratio": ("Processors busy (%)", 100.0),
}


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart: ``name`` is unique on its page and good for a file; ``case_id`` None: of the whole run."""

    name: str
    title: str
    caption: str
    """What it shows, for people who do not see it too."""
    spec: Spec
    case_id: str | None = None


def labels_of(cases: Sequence[Row]) -> dict[str, str]:
    """A short name for each case by case_id: its number (from 1), host and device, and of the rest what varies."""
    parts = [
        {name: case.get(name) for name in ("host", "device", "model", "runtime", "prompt_set")}
        | {"load": load_shape(case)}
        for case in cases
    ]
    varying = {name for name in (parts[0] if parts else ()) if len({str(part[name]) for part in parts}) > 1}
    labels: dict[str, str] = {}
    for number, (case, part) in enumerate(zip(cases, parts, strict=True), start=1):
        shown = [clean(str(v)) for n, v in part.items() if v and (n in varying or n in ("host", "device"))]
        text = f"#{number} {' · '.join(shown)}"
        labels[str(case["case_id"])] = text if len(text) <= _LABEL_CHARACTERS else text[: _LABEL_CHARACTERS - 1] + "…"
    return labels


def spread_charts(labels: Mapping[str, str], spreads: Sequence[Row], requests: Sequence[Row]) -> list[Chart]:
    """Distributions of TTFT, latency and TPOT, a line a case; for each metric that was measured."""
    import altair as alt

    charts = []
    for metric, title in _SPREADS.items():
        boxes = [
            {"case": labels[row["case_id"]], "n": row["n"]}
            | dict(zip(("p5", "p25", "p50", "p75", "p95"), map(_short, row["q"]), strict=True))
            | {"least": _short(row["least"]), "most": _short(row["most"])}
            for row in spreads
            if row["metric"] == metric and row["case_id"] in labels
        ]
        if not boxes:
            continue
        points = [
            {"case": labels[row["case_id"]], "value": _short(row[metric]), "prompt": clean(str(row["prompt_id"] or ""))}
            for row in requests
            if row.get(metric) is not None and row["case_id"] in labels
        ]
        known = {box["case"] for box in boxes}
        order = [label for label in labels.values() if label in known]
        # Names stand above their boxes: beside them they would leave no room for the chart on a phone.
        axis = alt.Axis(
            title=None, ticks=False, domain=False, labelAlign="left", labelBaseline="bottom", labelOffset=-9,
            labelPadding=-4, labelLimit=330, labelFontWeight="bold",
        )  # fmt: skip
        y = alt.Y("case:N", sort=order, axis=axis, scale=alt.Scale(paddingInner=0, paddingOuter=0))
        x = alt.X("value:Q", title=title, scale=alt.Scale(zero=True))
        told = [alt.Tooltip("case:N", title="Case"), alt.Tooltip("n:Q", title="Requests")]
        told += [alt.Tooltip(f"{name}:Q", title=name) for name in ("least", "p5", "p25", "p50", "p75", "p95", "most")]
        base = alt.Chart(alt.NamedData("boxes")).encode(y=y, tooltip=told)
        chart = alt.layer(
            alt.Chart(alt.NamedData("points"))
            .mark_tick(size=11, thickness=1, opacity=0.6, yOffset=17, color=PALETTE[1])
            .encode(y=y, x=x, tooltip=[alt.Tooltip("value:Q", title=title), alt.Tooltip("prompt:N", title="Prompt")]),
            base.mark_rule(yOffset=5).encode(x=alt.X("p5:Q", title=title), x2="p95:Q"),
            base.mark_bar(size=11, yOffset=5, color=PALETTE[0], opacity=0.55).encode(x="p25:Q", x2="p75:Q"),
            base.mark_tick(size=15, thickness=3, yOffset=5).encode(x="p50:Q"),
        ).properties(height=_STEP * len(order))
        caption = (
            f"{title} of each case: the thick tick is the median, the box holds the middle half of the requests, the "
            "line 5 % to 95 %; each thin tick below is a request."
        )
        charts.append(
            Chart(f"spread-{metric[:-2]}", title, caption, _filled(_form(chart), caption, boxes=boxes, points=points))
        )
    return charts


def memory_bytes(case: Row) -> float | None:
    """Peak memory of a case: RAM of the runtime plus device memory; None: RAM was not measured."""
    ram = case.get("ram_peak_bytes")
    return None if ram is None else float(ram) + float(case.get("vram_peak_bytes") or 0)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the (memory, speed) points that no other beats in one without losing in the other, by memory."""
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front


_APART = (0.07, 0.1)
"""Points nearer than these shares of the axes have their numbers written together."""


def _number_apart(rows: Sequence[dict[str, Any]], largest: tuple[float, float]) -> None:
    """Write the numbers of points that lie together above the fastest of them: numbers over each other read as none."""
    groups: list[list[dict[str, Any]]] = []
    for row in sorted(rows, key=lambda one: -float(one["speed"])):
        near = next((group for group in groups if any(_near(row, one, largest) for one in group)), None)
        if near is None:
            groups.append([row])
        else:
            near.append(row)
    for group in groups:
        numbers = sorted((row["number"] for row in group), key=lambda text: int(text[1:]))
        for row in group:
            row["number"] = ""
        shown = " ".join(numbers[:_MOST_NUMBERS]) + " …" * (len(numbers) > _MOST_NUMBERS)
        group[0]["number"] = shown


_MOST_NUMBERS = 4


def _near(one: Row, other: Row, largest: tuple[float, float]) -> bool:
    return all(
        abs(float(one[name]) - float(other[name])) < share * most
        for name, share, most in zip(("memory", "speed"), _APART, largest, strict=True)
    )


def tradeoff_chart(labels: Mapping[str, str], cases: Sequence[Row]) -> Chart | None:
    """Decode speed against memory with the Pareto front; None when no case has both."""
    import altair as alt

    known = [
        (case, memory, float(case["decode_tokens_per_s"]))
        for case in cases
        if case.get("decode_tokens_per_s") is not None and (memory := memory_bytes(case)) is not None
    ]
    if not known:
        return None
    front = pareto_front([(memory, speed) for _, memory, speed in known])
    rows = [
        {
            "case": labels[str(case["case_id"])],
            "model": clean(str(case.get("model"))),
            "memory": _short(memory / 2**20),
            "speed": _short(speed),
            "number": labels[str(case["case_id"])].split()[0],
            "front": "on the front" if place in front else "beaten",
        }
        for place, (case, memory, speed) in enumerate(known)
    ]
    largest = max(memory for _, memory, _ in known) / 2**20, max(speed for _, _, speed in known)
    # Both begin at 0, with room for the marks and numbers at the far ends.
    across, up = (
        alt.Scale(domainMin=0, domainMax=1.08 * largest[0]),
        alt.Scale(domainMin=0, domainMax=1.15 * largest[1]),
    )
    axis = alt.Axis(tickCount=8, labelOverlap=True)
    x = alt.X("memory:Q", title="Peak RAM + device memory (MiB)", scale=across, axis=axis)
    y = alt.Y("speed:Q", title="Decode tokens/s", scale=up)
    _number_apart(rows, largest)
    names = ("case", "model", "memory", "speed", "front")
    points = alt.Chart(alt.NamedData("cases")).encode(
        x=x,
        y=y,
        color=alt.Color("model:N", title="Model", scale=alt.Scale(range=list(PALETTE)), legend=_legend(alt)),
        shape=alt.Shape("front:N", title="Pareto front", scale=alt.Scale(
            domain=["on the front", "beaten"], range=["diamond", "circle"]), legend=_legend(alt)),
        tooltip=[alt.Tooltip(f"{name}:{'Q' if name in ('memory', 'speed') else 'N'}") for name in names],
    )  # fmt: skip
    line = alt.Chart(alt.NamedData("front"))
    chart = alt.layer(
        line.mark_line(interpolate="step-after", strokeDash=[6, 4], color=PALETTE[-1]).encode(x=x, y=y),
        points.mark_point(size=110, filled=True, opacity=0.9),
        alt.Chart(alt.NamedData("cases")).mark_text(dy=-13, fontWeight="bold").encode(x=x, y=y, text="number:N"),
    ).properties(height=320)
    missing = len(cases) - len(known)
    caption = (
        "Decode speed against peak memory, by the numbers of the cases; up and left is better. Diamonds on the dashed "
        "line are the Pareto front: no other case is both faster and smaller."
        + (f" Without one of the two, and so not drawn: {missing}." if missing else "")
    )
    spec = _filled(_form(chart), caption, cases=rows, front=[rows[place] for place in front])
    return Chart("tradeoff", "Speed against memory", caption, spec)


def case_charts(
    labels: Mapping[str, str], case_id: str, timeline: Timeline, outliers: Sequence[Outlier] = ()
) -> list[Chart]:
    """A case's token arrivals and time lines, with its rounds shaded and its outlying requests marked."""
    place = list(labels).index(case_id)
    arrivals = [row for row in timeline.arrivals if row["case_id"] == case_id]
    charts = [_arrival_chart(place, case_id, labels[case_id], arrivals)] if arrivals else []
    readings = [row for row in timeline.readings if row["case_id"] == case_id]
    spans = [row for row in timeline.spans if row["case_id"] == case_id]
    starts_s = {request.request_id: request.start_s for request in timeline.measured if request.case_id == case_id}
    marks = [_mark(one, starts_s[one.request_id]) for one in outliers if one.request_id in starts_s]
    end_s = max([row["at_s"] for row in readings] + [row["end_s"] for row in spans], default=0.0)
    for series, (title, factor) in _LINES.items():
        mine = [row for row in readings if row["series"] == series]
        if mine:
            caption = f"{title} of {labels[case_id]} over {end_s:.0f} s; {_bands_told(spans, marks)}"
            spec = _line_spec(mine, title, factor, spans, marks, end_s, caption)
            charts.append(Chart(f"case{place + 1}-{series}", title, caption, spec, case_id))
    return charts


def _arrival_chart(place: int, case_id: str, label: str, arrivals: Sequence[Row]) -> Chart:
    order = tuple(one for one in ("fastest", "median", "slowest") if one in {row["which"] for row in arrivals})
    rows: list[Row] = [{"which": which, "at": 0.0, "chunks": 0} for which in order]
    rows += [{"which": row["which"], "at": _short(row["at_s"]), "chunks": row["chunks"]} for row in arrivals]
    caption = (
        f"Token-bearing chunks that had arrived of the fastest, the median and the slowest request of {label}: "
        "flat until the first token, then one step a chunk."
    )
    spec = _filled(_arrival_form(order), caption, arrivals=rows)
    return Chart(f"case{place + 1}-tokens", "Tokens over time", caption, spec, case_id)


@functools.cache
def _arrival_form(order: tuple[str, ...]) -> Spec:
    import altair as alt

    chart = (
        alt.Chart(alt.NamedData("arrivals"))
        .mark_line(interpolate="step-after")
        .encode(
            x=alt.X("at:Q", title="Seconds since the request was sent"),
            y=alt.Y("chunks:Q", title="Token-bearing chunks"),
            color=alt.Color("which:N", title=None, scale=_scale(alt, order), legend=_legend(alt)),
            strokeDash=alt.StrokeDash("which:N", title=None, scale=alt.Scale(domain=list(order))),
            tooltip=[alt.Tooltip("which:N"), alt.Tooltip("at:Q", title="s"), alt.Tooltip("chunks:Q")],
        )
    )
    return _form(chart.properties(height=200))


def _line_spec(
    readings: Sequence[Row], title: str, factor: float, spans: Sequence[Row], marks: Sequence[Row], end_s: float,
    caption: str,
) -> Spec:  # fmt: skip
    devices = tuple(sorted({clean(row["device_id"]) for row in readings}))
    rows = [
        {"at": _short(row["at_s"], 6), "value": _short(row["value"] * factor)}
        | ({"device": clean(row["device_id"])} if len(devices) > 1 else {})
        for row in readings
    ]
    bands = [_band(span, numbered=len(spans) <= _MOST_NUMBERED_BANDS) for span in spans]
    form = _line_form(title, devices)
    form = form | {"params": [*form["params"], {"name": "end_s", "value": _short(end_s, 6)}]}
    return _filled(form, caption, readings=rows, bands=bands, marks=marks)


@functools.cache
def _line_form(title: str, devices: tuple[str, ...]) -> Spec:
    """A time line without its data, its end a parameter."""
    import altair as alt

    scale = alt.Scale(domain=[0, alt.ExprRef("end_s")], nice=False)
    x = alt.X("at:Q", title="Seconds since the case began", scale=scale)
    told = [alt.Tooltip("at:Q", title="s"), alt.Tooltip("value:Q", title=title)]
    line = (
        alt.Chart(alt.NamedData("readings"))
        .mark_line(strokeWidth=1.5, color=PALETTE[0], clip=True)
        .encode(x=x, y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=True)), tooltip=told)
    )
    if len(devices) > 1:
        line = line.encode(
            color=alt.Color("device:N", title=None, scale=_scale(alt, devices), legend=_legend(alt)),
            strokeDash=alt.StrokeDash("device:N", title=None, scale=alt.Scale(domain=list(devices))),
            tooltip=[*told, alt.Tooltip("device:N")],
        )
    band = alt.Chart(alt.NamedData("bands")).encode(x=x)
    shaded = band.mark_rect(color=PALETTE[-1], clip=True).encode(
        x2="end:Q",
        opacity=alt.Opacity("shade:Q", scale=None, legend=None),
        tooltip=[alt.Tooltip(f"{name}:N") for name in ("what", "at", "end")],
    )
    numbers = band.mark_text(align="left", baseline="top", dx=2, fontSize=9, clip=True)
    marked = alt.Chart(alt.NamedData("marks")).mark_point(
        shape="triangle-down", filled=True, size=70, color=PALETTE[1], opacity=1, clip=True
    )
    explained = [alt.Tooltip(f"{name}:N", title=name) for name in ("outlier", "times as long", "reason", "evidence")]
    # Shift and wheel: the wheel alone goes on scrolling the page.
    zoom = alt.selection_interval(bind="scales", encodings=["x"], zoom="wheel![event.shiftKey]")
    chart = alt.layer(
        shaded,
        numbers.encode(text="number:N", y=alt.value(2)),
        line.add_params(zoom),
        marked.encode(x=x, y=alt.value(14), tooltip=explained),
    )
    return _form(chart.properties(height=150))


def _band(span: Row, *, numbered: bool) -> Row:
    kind, number = str(span["kind"]), int(span["number"])
    counted = kind == "counted"
    return {
        "at": _short(span["start_s"], 6),
        "end": _short(span["end_s"], 6),
        "what": kind if kind == "load" else f"{_ROUNDS.get(kind, kind)} {number}",
        "number": str(number) if counted and numbered else "",
        "shade": 0.36 if kind == "load" else 0.1 if not counted else 0.24 if number % 2 else 0.18,
    }


def _mark(one: Outlier, start_s: float) -> Row:
    name = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "latency", "itl_s": "gap"}[one.metric]
    return {
        "at": _short(start_s, 6),
        "outlier": f"{name} {one.value:.3g} s",
        "times as long": f"{one.times:.1f}",
        "reason": one.reason.value.replace("_", " "),
        "evidence": clean(one.evidence) or "–",
    }


def _bands_told(spans: Sequence[Row], marks: Sequence[Row]) -> str:
    counted = sum(span["kind"] == "counted" for span in spans)
    told = f"shaded: the load (darkest), warm-up (lightest) and {counted} counted rounds, numbered"
    return told + (f"; outlying requests, as triangles: {len({mark['at'] for mark in marks})}." if marks else ".")


def _legend(alt: Any) -> Any:
    return alt.Legend(orient="top", labelLimit=260)


def _scale(alt: Any, names: Collection[str]) -> Any:
    return alt.Scale(domain=list(names), range=[PALETTE[i % len(PALETTE)] for i in range(len(names))])


def _short(value: float | None, digits: int = 4) -> float | None:
    """A value in as many digits as a chart can show; None for what is no number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.{digits}g}")


def _form(chart: Any) -> Spec:
    spec: Spec = chart.properties(width="container").to_dict()
    spec.pop("config", None)  # the page brings its own, for light and dark
    return spec


def _filled(form: Spec, description: str, **datasets: Sequence[Row]) -> Spec:
    """A chart with its data, which Altair has not seen: it would check every value against Vega-Lite's schema."""
    return form | {"description": description, "datasets": datasets}


def _theme(ink: str, paper: str, grid: str) -> Spec:
    font = "system-ui, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif"
    return {
        "background": paper,
        "font": font,
        "padding": 4,
        "view": {"stroke": None},
        "axis": {"labelColor": ink, "titleColor": ink, "gridColor": grid, "domainColor": ink, "tickColor": ink,
                 "titleFontWeight": "normal", "labelOverlap": True, "labelFontSize": 11, "titleFontSize": 12},
        "legend": {"labelColor": ink, "titleColor": ink, "symbolBaseFillColor": ink, "symbolBaseStrokeColor": ink,
                   "titleFontWeight": "normal"},
        "title": {"color": ink, "anchor": "start"},
        "text": {"color": ink},
        "rule": {"color": ink},
        "tick": {"color": ink},
        "range": {"category": list(PALETTE)},
    }  # fmt: skip


LIGHT = _theme("#1b1f24", "#ffffff", "#e3e6ea")
DARK = _theme("#e6e9ed", "#16191d", "#343a41")
"""Vega-Lite configurations; the page chooses by the reader's setting."""


def write_image(chart: Chart, path: Path) -> None:
    """Draw a chart, light, into a PNG or SVG file (by its ending), with no browser. Raises OSError, ValueError."""
    import vl_convert

    spec = chart.spec | {"width": _IMAGE_WIDTH, "title": chart.title}
    if path.suffix == ".svg":
        path.write_text(vl_convert.vegalite_to_svg(spec, config=LIGHT, allowed_base_urls=[]), encoding="utf-8")
    elif path.suffix == ".png":
        path.write_bytes(vl_convert.vegalite_to_png(spec, config=LIGHT, scale=2, allowed_base_urls=[]))
    else:
        raise ValueError(f"charts are drawn as .png or .svg, not {path.suffix!r}")
