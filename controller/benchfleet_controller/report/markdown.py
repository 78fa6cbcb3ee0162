"""A report for people, in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from benchfleet_controller import metrics as registry
from benchfleet_controller.compare import Verdict
from benchfleet_controller.findings import findings
from benchfleet_controller.plan_export import plan_document
from benchfleet_controller.report.cases import (
    case_for_people,
    goodput_columns,
    notes_of,
    prompt_set_column,
    with_instrument,
)
from benchfleet_controller.report.data import ReportData, comparison_rows
from benchfleet_controller.report.exports import (
    Column,
    Figure,
    Row,
    clean,
    human,
    markdown_cell,
    render_table,
    to_json,
)
from benchfleet_controller.report.matrix import word
from benchfleet_controller.report.sections import (
    certificate_section,
    energy_section,
    failure_text,
    goodput_section,
    lifecycle_sections,
)
from benchfleet_controller.report.sweeps import sweep_section, sweeps_of

_ANSWER_CHARACTERS = 300
_LEGEND = (
    "Ok requests of counted rounds only; – is unmeasured. Tokens/sec is the decode rate: "
    "output tokens after the first over the time between first and last.\n"
)
_SUMMARY = (
    Column("model", "Model"),
    Column("e2e_avg_s", "Avg Latency (s)"),
    Column("e2e_p95_s", "p95 (s)"),
    Column("decode_tokens_per_s", "Tokens/sec"),
    Column("rounds", "Rounds"),
    Column("ttft_avg_s", "First Token (s)"),
    Column("host", "Host"),
    Column("device", "Device"),
    Column("runtime", "Runtime"),
    Column("load", "Load"),
    Column("status", "Status"),
)
_DETAIL = tuple(
    Column(*pair)
    for pair in (
        ("host", "Host"),
        ("model", "Model"),
        ("variant", "Variant"),
        ("execution_provider", "EP"),
        ("ttft_p50_s", "TTFT p50 (s)"),
        ("ttft_p95_s", "TTFT p95 (s)"),
        ("itl_p50_s", "ITL p50 (s)"),
        ("prefill_tokens_per_s", "Prefill tokens/s"),
        ("output_tokens_per_s", "Throughput (tokens/s)"),
        ("load_s", "Load (s)"),
        ("cold_ttft_s", "Cold first token (s)"),
        ("ram_peak_bytes", "RAM peak"),
        ("vram_peak_bytes", "VRAM peak"),
        ("cpu_busy_ratio", "CPU busy"),
        ("gpu_busy_ratio", "GPU busy"),
        ("energy_per_token_j", "Energy/token (J)"),
        ("device_proof", "Proof"),
        ("decode_limit_ratio", "Of memory limit"),
        ("tokens_source", "Tokens from"),
        ("accounting", "Accounting"),
    )
)
_HOSTS = tuple(
    Column(*pair)
    for pair in (
        ("host", "Host"),
        ("cpu_model", "Processor"),
        ("logical_cores", "Logical cores"),
        ("memory_bytes", "Memory"),
        ("os", "System"),
        ("devices", "Devices"),
        ("agent_version", "Agent"),
    )
)


def render_markdown(data: ReportData) -> str:
    """The report's text."""
    run = data.run
    name = markdown_cell(str(run.get("name") or "run"))
    when = human("created_at", run.get("created_at"))
    asker = markdown_cell(str(run.get("held_by") or "somebody"))
    parts = [
        f"# Benchmark report: {name}\n",
        f"Run `{clean(str(run.get('run_id')))}`, {when}, asked for by {asker}.\n",
        "## Hosts\n",
        render_table([_host(host) for host in data.hosts], _HOSTS, "md"),
    ]
    parts[2:2] = _findings_part(data)
    parts += _results_part(data)
    sections = [
        goodput_section(data.cases),
        *(sweep_section(sweep) for sweep in sweeps_of(data.cases)),
        *lifecycle_sections(data.cases, data.stages),
        energy_section(data.cases),
    ]
    parts += [section.text("md") for section in sections if section is not None]
    parts += _comparison_part(data)
    asked = (run.get("plan") or {}).get("certificate")
    if instrument := certificate_section(data.certificates, data.cases, asked=asked):
        parts.append(instrument.text("md"))
    parts += _warnings_part(data) + _failures_part(data) + _answers_part(data)
    parts += ["## How to reproduce\n", _reproduction(data)]
    return "\n".join(parts)


def _findings_part(data: ReportData) -> list[str]:
    found = findings(data.cases, data.outliers)
    lines = [f"- {markdown_cell(sentence)}\n" for sentence in found]
    return ["## Findings\n", "".join(lines)] if found else []


def _results_part(data: ReportData) -> list[str]:
    rows = [case_for_people(case) for case in data.cases]
    prompts = prompt_set_column(data.cases)
    summary = (*_SUMMARY, *prompts, *goodput_columns(data.cases))
    detail = (*with_instrument(_DETAIL, rows), *prompts)
    notes = notes_of(rows, (*summary, *detail))
    return [
        "## Results\n",
        render_table(rows, summary, "md"),
        _LEGEND,
        *([" ".join(notes) + "\n"] if notes else []),
        render_table(rows, detail, "md"),
    ]


def _host(host: Row) -> dict[str, Any]:
    devices = host.get("devices") or []
    return dict(host) | {
        "os": " ".join(str(host[key]) for key in ("os_edition", "os_name", "os_version") if host.get(key)),
        "devices": [f"{d.get('display_name')} (driver {d.get('driver_version') or 'unknown'})" for d in devices]
        or None,
    }


def _comparison_part(data: ReportData) -> list[str]:
    if data.comparison is None or not data.comparison.rows:
        return []
    by, baseline = " and ".join(data.comparison.by), data.comparison.baseline
    rows = [
        row
        | {
            "shown": human(row["metric"], row["value"]),
            "label": registry.BY_NAME[row["metric"]].label,
            "p": None if row["p_value"] is None else Figure(f"{row['p_value']:.2g}"),
            "verdict_shown": word(Verdict(row["verdict"])),
            "times": "–" if row["ratio"] is None else f"{row['ratio']:.2f} ×",
            "between": "–" if row["interval"] is None else "{:.2f} to {:.2f}".format(*row["interval"]),
            "notes": "; ".join([row["why"] or "", *row["flags"]]).strip("; ") or None,
        }
        for row in comparison_rows(data.comparison)
    ]
    held = [key for key in data.comparison.rows[0].conditions if len({str(row.get(key)) for row in rows}) > 1]
    pairs = [
        ("group", by),
        ("label", "Metric"),
        ("shown", "Value"),
        ("n", "n"),
        ("times", "Ratio"),
        ("between", "95 % interval"),
    ]
    pairs += [("p", "p"), ("verdict_shown", "Verdict"), ("notes", "Notes")]
    columns = [Column(key) for key in held] + [Column(*pair) for pair in pairs]
    better = sum(row["verdict"] == Verdict.BETTER for row in rows)
    worse = sum(row["verdict"] == Verdict.WORSE for row in rows)
    return [
        f"## Comparison by {by}\n",
        f"Against {markdown_cell(baseline)}: {better} better, {worse} worse.\n",
        render_table(rows, columns, "md"),
    ]


def _warnings_part(data: ReportData) -> list[str]:
    if not data.warnings:
        return []
    lines = [
        f"- **{markdown_cell(w.subject)}**: {markdown_cell(w.message)}. *{markdown_cell(w.advice)}.*"
        for w in data.warnings
    ]
    return ["## Warnings\n", "\n".join(lines) + "\n"]


def _failures_part(data: ReportData) -> list[str]:
    columns = [Column("host", "Host"), Column("model", "Model"), Column("what", "What"), Column("reason", "Reason")]
    of_case: dict[str, Mapping[str, Any]] = {str(case.get("case_id")): case for case in data.cases}
    rows = [
        dict(case) | {"what": case["status"], "message": failure_text(case)}
        for case in data.cases
        if case.get("reason")
    ]
    rows += [
        dict(of_case.get(str(r["case_id"]), {})) | dict(r) | {"what": f"{r['n']} request{'s' * (r['n'] != 1)}"}
        for r in data.failures
    ]
    if not rows:
        return []
    return ["## Failures\n", render_table(rows, [*columns, Column("message", "Message")], "md")]


def _answers_part(data: ReportData) -> list[str]:
    if not data.answers:
        return []
    of_case: dict[str, Mapping[str, Any]] = {str(case.get("case_id")): case for case in data.cases}
    rows = []
    for answer in data.answers:
        text = " ".join(str(answer.get("text") or "").split())
        shown = text[:_ANSWER_CHARACTERS] + ("…" if len(text) > _ANSWER_CHARACTERS else "")
        case = of_case.get(str(answer["case_id"]), {})
        rows.append({"host": case.get("host"), "model": case.get("model"), **answer, "text": shown})
    columns = [
        Column("host", "Host"),
        Column("model", "Model"),
        Column("prompt_id", "Prompt"),
        Column("text", "Answer"),
    ]
    return ["## Sample answers\n", render_table(rows, columns, "md")]


def _reproduction(data: ReportData) -> str:
    run = data.run
    with_what = f"benchfleet {clean(str(run.get('benchfleet_version') or 'unknown'))}, seed {run.get('seed')}."
    if not run.get("plan"):
        return f"This run was collected from its host without its plan.\n\n{with_what}\n"
    plan = to_json(plan_document(run["plan"])).rstrip()
    fence = "`" * max(4, 1 + max(map(len, re.findall("`+", plan)), default=0))
    return (
        "Save the plan below as `plan.json`; the same seed gives the same cases in the same order:\n\n"
        f"```\nbenchfleet run plan.json\n```\n\n{fence}json\n{plan}\n{fence}\n\n{with_what}\n"
    )
