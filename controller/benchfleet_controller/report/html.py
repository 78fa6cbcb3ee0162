"""A report as one HTML file that opens offline: tables for everyone, and charts that Vega draws in the browser.

All text of the database is hostile: the template escapes it, chart data is JSON in a script that never runs, and the
page's policy lets nothing run but the two scripts we put there, and nothing be loaded.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from benchfleet_controller import metrics as registry
from benchfleet_controller.findings import findings
from benchfleet_controller.outliers import Outlier
from benchfleet_controller.plan_export import plan_document
from benchfleet_controller.report import charts
from benchfleet_controller.report.cases import (
    case_for_people,
    goodput_columns,
    notes_of,
    prompt_set_column,
    with_instrument,
)
from benchfleet_controller.report.data import ReportData
from benchfleet_controller.report.exports import Column, Figure, Row, clean, human, to_json
from benchfleet_controller.report.matrix import SYMBOLS, matrix_of, word
from benchfleet_controller.report.sections import (
    Section,
    certificate_section,
    energy_section,
    failure_text,
    goodput_section,
    lifecycle_sections,
)
from benchfleet_controller.report.sweeps import sweep_section, sweeps_of
from benchfleet_controller.store import Timeline

MOST_CASES_DRAWN = 40
"""Cases with time lines on the page."""
_MOST_OUTLIERS = 100
_ANSWER_CHARACTERS = 300
_TIMELINES_TOLD = (
    "Tokens over time: the chunks with tokens that had arrived of the fastest, the median and the slowest request. "
    "In the other charts the load is shaded darkest, warm-up lightest, and counted rounds are numbered; triangles mark "
    "outlying requests. Hold Shift and turn the wheel to zoom, drag to move, double-click to see all again."
)
_NAMES = (
    ("host", "Host"), ("model", "Model"), ("variant", "Variant"), ("device", "Device"), ("execution_provider", "EP"),
    ("runtime", "Runtime"), ("load", "Load"), ("status", "Status"), ("rounds", "Rounds"), ("requests", "Requests"),
    ("failed", "Failed"),
)  # fmt: skip
_MEASURED = (
    "ttft_p50_s", "ttft_p95_s", "e2e_avg_s", "e2e_p50_s", "e2e_p95_s", "itl_p50_s", "decode_tokens_per_s",
    "prefill_tokens_per_s", "output_tokens_per_s", "load_s", "cold_ttft_s", "ram_peak_bytes", "vram_peak_bytes",
    "cpu_busy_ratio", "gpu_busy_ratio", "energy_j",
)  # fmt: skip
_COUNTED = (("tokens_source", "Tokens from"), ("accounting", "Accounting"))
_HOSTS = (
    ("host", "Host"), ("cpu_model", "Processor"), ("logical_cores", "Logical cores"), ("memory_bytes", "Memory"),
    ("os", "System"), ("devices", "Devices"), ("agent_version", "Agent"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HtmlReport:
    """What a report says, with what its charts draw."""

    report: ReportData
    timeline: Timeline = field(default_factory=Timeline)
    outliers: Sequence[Outlier] = ()


@dataclass(frozen=True, slots=True)
class _Table:
    caption: str
    columns: Sequence[tuple[str, bool]]
    """Heading, and whether it holds numbers."""
    rows: Sequence[Sequence[str]]


def render_html(data: HtmlReport) -> str:
    """The page. Raises ImportError when the libraries of the extra ``report`` are missing."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("benchfleet_controller.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False, "sort_keys": True}
    return environment.get_template("report.html").render(_page(data))


def chart_images(data: HtmlReport, directory: Path, format: Literal["png", "svg"] = "svg") -> list[tuple[str, Path]]:  # noqa: A002
    """Draw all charts into ``directory``; returns what each shows, and its file, in the order of the page.

    Raises ImportError when the libraries of the extra ``report`` are missing, and OSError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for chart in _charts(data):
        path = directory / f"{chart.name}.{format}"
        charts.write_image(chart, path)
        drawn.append((chart.caption, path))
    return drawn


def _charts(data: HtmlReport) -> list[charts.Chart]:
    """All charts, in the order of the page."""
    cases, timeline = data.report.cases, data.timeline
    labels = charts.labels_of(cases)
    tradeoff = charts.tradeoff_chart(labels, cases)
    found = [tradeoff] if tradeoff else []
    found += charts.spread_charts(labels, timeline.spreads, timeline.requests)
    for case_id in list(labels)[:MOST_CASES_DRAWN]:
        found += charts.case_charts(labels, case_id, timeline, data.outliers)
    return found


def _page(data: HtmlReport) -> dict[str, Any]:
    """The template's variables."""
    report, run = data.report, data.report.run
    labels = charts.labels_of(report.cases)
    drawn = _charts(data)
    spreads = [chart for chart in drawn if chart.name.startswith("spread-")]
    timelines = [
        (label, mine) for case_id, label in labels.items() if (mine := [c for c in drawn if c.case_id == case_id])
    ]
    results, result_notes = _results(report.cases)
    library, boot = _library(), _script("report.js")
    values: dict[str, Any] = {
        "name": clean(str(run.get("name") or "run")),
        "run_id": clean(str(run.get("run_id"))),
        "when": human("created_at", run.get("created_at")),
        "asker": clean(str(run.get("held_by") or "somebody")),
        "version": clean(str(run.get("benchfleet_version") or "unknown")),
        "seed": human("seed", run.get("seed")),
        "summary": _summary(report),
        "findings": [clean(sentence) for sentence in findings(report.cases, report.outliers)],
        "results": results,
        "result_notes": result_notes,
        "matrix": matrix_of(report.comparison),
        "symbols": [(symbol, word(verdict)) for verdict, symbol in SYMBOLS.items()],
        "tradeoff": next((chart for chart in drawn if chart.name == "tradeoff"), None),
        "spreads": spreads,
        "spread_note": _spread_note(data.timeline),
        "spread_table": _spread_table(labels, data.timeline.spreads),
        "timelines": timelines,
        "timeline_note": _timeline_note(data, len(timelines)),
        "outliers": _outlier_table(labels, data.outliers),
        "sections": _sections(report),
        "hosts": _table_of(
            "Hosts as they were", [_host(host) for host in report.hosts], [Column(*one) for one in _HOSTS]
        ),
        "fingerprints": [(clean(str(host.get("host"))), _facts(host)) for host in report.hosts],
        "warnings": [
            {name: clean(getattr(warned, name)) for name in ("subject", "message", "advice")}
            for warned in report.warnings
        ],
        "failures": _failures(report, labels),
        "answers": _answers(report, labels),
        "plan": to_json(plan_document(run["plan"])).rstrip() if run.get("plan") else None,
        "metrics": registry.CASE_METRICS,
        "page": {"light": charts.LIGHT, "dark": charts.DARK, "specs": {chart.name: chart.spec for chart in drawn}},
        "policy": _policy(library, boot),
        "style": _text("report.css"),
        "library": library,
        "boot": boot,
    }
    return values | {"contents": _contents(values)}


def _contents(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    known = (
        ("findings", "Findings"), ("results", "Results"), ("matrix", "Comparison"),
        ("tradeoff", "Speed against memory"),
        ("spreads", "Distributions"), ("timelines", "Time lines"), ("hosts", "Hosts"), ("warnings", "Warnings"),
        ("failures", "Failures"), ("answers", "Sample answers"),
    )  # fmt: skip
    ids = [("comparison" if name == "matrix" else name, title) for name, title in known if values[name]]
    titles = [section["title"].split(":")[0] for section in values["sections"]]
    more = [(f"more-{place}", title) for place, title in enumerate(titles, start=1)]
    before = [name for name, _ in ids].index("hosts")
    return [*ids[:before], *more, *ids[before:], ("reproduce", "How to reproduce")]


def _summary(report: ReportData) -> str:
    """The run in a line."""
    cases = report.cases
    failed = sum(case.get("status") == "failed" for case in cases)
    hosts = len({case.get("host") for case in cases})
    requests = sum(int(case.get("requests") or 0) for case in cases)
    return (
        f"{_many(len(cases), 'case')} ({failed} failed) on {_many(hosts, 'host')}, "
        f"{_many(requests, 'counted request')}, {_many(len(report.warnings), 'warning')}."
    )


def _many(n: int, what: str) -> str:
    return f"{n:,} {what}" + "s" * (n != 1)


def _results(cases: Sequence[Row]) -> tuple[_Table, str]:
    rows = [case_for_people(case) | {"number": f"#{number}"} for number, case in enumerate(cases, start=1)]
    columns = [
        Column("number", "#"),
        *(Column(*pair) for pair in _NAMES),
        *prompt_set_column(cases),
        *goodput_columns(cases),
        *with_instrument([Column(name, registry.BY_NAME[name].label) for name in _MEASURED], rows),
        *(Column(*pair) for pair in _COUNTED),
    ]
    return _table_of("Results of each case", rows, columns), " ".join(notes_of(rows, columns))


def _table(caption: str, rows: Sequence[Row], columns: Sequence[tuple[str, str]]) -> _Table | None:
    return _table_of(caption, rows, [Column(*pair) for pair in columns]) if rows else None


def _table_of(caption: str, rows: Sequence[Row], columns: Sequence[Column]) -> _Table:
    headings = [(column.heading, _numeric(rows, column.name)) for column in columns]
    return _Table(caption, headings, [[human(c.name, row.get(c.name)) for c in columns] for row in rows])


def _numeric(rows: Sequence[Row], name: str) -> bool:
    values = [value for row in rows if (value := row.get(name)) is not None]
    return bool(values) and all(isinstance(v, int | float | Figure) and not isinstance(v, bool) for v in values)


def _spread_note(timeline: Timeline) -> str:
    shown, total = len(timeline.requests), timeline.requests_total
    if shown == total:
        return f"All {total:,} requests are drawn."
    return f"{shown:,} of {total:,} requests are drawn, evenly chosen by latency; boxes rest on all of them."


def _spread_table(labels: Mapping[str, str], spreads: Sequence[Row]) -> _Table | None:
    parts = ("least", "p5", "p25", "p50", "p75", "p95", "most")
    place = {case_id: number for number, case_id in enumerate(labels)}
    rows = [
        {"case": labels[row["case_id"]], "metric": row["metric"], "n": row["n"]}
        | dict(zip(parts, (row["least"], *row["q"], row["most"]), strict=True))
        for row in sorted((row for row in spreads if row["case_id"] in place), key=lambda row: place[row["case_id"]])
    ]
    columns = [("case", "Case"), ("metric", "Metric (s)"), ("n", "Requests"), *((part, part) for part in parts)]
    return _table("Distributions in seconds", rows, columns)


def _timeline_note(data: HtmlReport, shown: int) -> str:
    timeline = data.timeline
    notes = [_TIMELINES_TOLD]
    if len(timeline.readings) < timeline.readings_total:
        notes.append(
            f"{len(timeline.readings):,} of {timeline.readings_total:,} readings are drawn: the least and the most of "
            "each short interval, so no peak is lost."
        )
    if shown < len(data.report.cases):
        notes.append(f"{shown} of {len(data.report.cases)} cases have time lines here.")
    if timeline.requests_total and not timeline.measured:
        notes.append("There are too many requests to look for outliers.")
    return " ".join(notes)


def _outlier_table(labels: Mapping[str, str], outliers: Sequence[Outlier]) -> _Table | None:
    worst = sorted(outliers, key=lambda one: one.times, reverse=True)[:_MOST_OUTLIERS]
    rows = [
        {
            "case": labels.get(one.case_id, "–"),
            "metric": one.metric,
            "value": Figure(f"{one.value:.3g}"),
            "typical": Figure(f"{one.typical:.3g}"),
            "times": Figure(f"{one.times:.1f} ×"),
            "reason": one.reason.value.replace("_", " "),
            "evidence": one.evidence or None,
        }
        for one in worst
    ]
    caption = f"The {len(rows)} largest of {len(outliers)}" if len(rows) < len(outliers) else "Outlying requests"
    columns = (("case", "Case"), ("metric", "Metric"), ("value", "Value (s)"), ("typical", "Typical (s)"),
               ("times", "Times as long"), ("reason", "Reason"), ("evidence", "Evidence"))  # fmt: skip
    return _table(caption, rows, columns)


def _sections(report: ReportData) -> list[dict[str, Any]]:
    asked = (report.run.get("plan") or {}).get("certificate")
    found = [
        goodput_section(report.cases),
        *(sweep_section(sweep) for sweep in sweeps_of(report.cases)),
        *lifecycle_sections(report.cases, report.stages),
        energy_section(report.cases),
        certificate_section(report.certificates, report.cases, asked=asked),
    ]
    return [_section(section) for section in found if section is not None]


def _section(section: Section) -> dict[str, Any]:
    table = _table_of(clean(section.title), section.rows, section.columns) if section.rows else None
    return {"title": clean(section.title), "table": table, "notes": [clean(note) for note in section.notes]}


def _host(host: Row) -> dict[str, Any]:
    devices = host.get("devices") or []
    return dict(host) | {
        "os": " ".join(str(host[key]) for key in ("os_edition", "os_name", "os_version") if host.get(key)),
        "devices": [f"{d.get('display_name')} (driver {d.get('driver_version') or 'unknown'})" for d in devices]
        or None,
    }


def _facts(host: Row) -> list[tuple[str, str]]:
    """Everything known of a host, flat."""
    facts: list[tuple[str, str]] = []
    for name, value in host.items():
        if value is None or value == []:
            continue
        if isinstance(value, list) and isinstance(value[0], Mapping):
            facts += [(f"{name} {place}", human(name, one)) for place, one in enumerate(value, start=1)]
        else:
            facts.append((name, human(name, value)))
    return facts


def _failures(report: ReportData, labels: Mapping[str, str]) -> _Table | None:
    rows = [
        {**case, "what": case["status"], "message": failure_text(case)} for case in report.cases if case.get("reason")
    ]
    rows += [{**row, "what": f"{row['n']} request{'s' * (row['n'] != 1)}"} for row in report.failures]
    named = [{**row, "case": labels.get(str(row["case_id"]), "–")} for row in rows]
    columns = (("case", "Case"), ("what", "What"), ("reason", "Reason"), ("message", "Message"))
    return _table("What failed, and why", named, columns)


def _answers(report: ReportData, labels: Mapping[str, str]) -> _Table | None:
    rows = []
    for answer in report.answers:
        text = " ".join(str(answer.get("text") or "").split())
        shown = text[:_ANSWER_CHARACTERS] + ("…" if len(text) > _ANSWER_CHARACTERS else "")
        rows.append({"case": labels.get(str(answer["case_id"]), "–"), "prompt": answer["prompt_id"], "text": shown})
    return _table(
        "First counted answer to each prompt", rows, (("case", "Case"), ("prompt", "Prompt"), ("text", "Answer"))
    )


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, brought along by vl-convert."""
    import vl_convert

    return _inline(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))


def _script(name: str) -> str:
    return _inline(_text(name))


def _inline(script: str) -> str:
    """A script as it may stand inside an HTML file, where ``</script`` ends it and CR LF would become LF."""
    return re.sub(r"<(?=/script|!--)", r"\\x3c", script.replace("\r\n", "\n").replace("\r", "\n"), flags=re.IGNORECASE)


def _text(name: str) -> str:
    return (resources.files("benchfleet_controller.report") / "templates" / name).read_text(encoding="utf-8")


def _policy(*scripts: str) -> str:
    """Only these scripts run, and nothing is loaded from anywhere; charts need styles of their own and data images."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
