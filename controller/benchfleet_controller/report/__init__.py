"""Reports: one run with its hosts, results, comparison and warnings, as Markdown, JSON or CSV; and every listing."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchfleet_controller.checks import Warned
from benchfleet_controller.compare import Comparison, Verdict
from benchfleet_controller.report.exports import (
    FORMATS,
    Column,
    Row,
    clean,
    human,
    markdown_cell,
    render_table,
    to_json,
)

__all__ = [
    "CASE_COLUMNS",
    "FORMATS",
    "REPORT_ENDINGS",
    "SCHEMA_VERSION",
    "Column",
    "ReportData",
    "ReportError",
    "clean",
    "comparison_rows",
    "human",
    "render_report",
    "render_table",
    "to_json",
    "write_report",
]

SCHEMA_VERSION = 1
"""Of the JSON report; raised when a name changes its meaning or goes away."""
REPORT_ENDINGS = (".md", ".json", ".csv")
_ANSWER_CHARACTERS = 300

CASE_COLUMNS: tuple[str, ...] = (
    "host", "device", "runtime", "model", "variant", "status", "reason", "rounds", "requests", "failed", "ttft_p50_s",
    "ttft_p95_s", "e2e_avg_s", "e2e_p50_s", "e2e_p95_s", "itl_p50_s", "tpot_avg_s", "decode_tokens_per_s",
    "prefill_tokens_per_s", "output_tokens_per_s", "output_tokens", "prompt_tokens", "tokens_source", "accounting",
    "load_s", "ram_peak_bytes", "vram_peak_bytes", "gpu_busy_ratio", "cpu_busy_ratio", "energy_j", "samples",
    "case_id", "run_id", "job_id", "message", "concurrency", "prompt_set", "execution_provider", "size_bytes",
    "license", "stamp_source", "ttft_avg_s", "cold_ttft_s", "itl_p95_s", "decode_basis", "cached_prompt_tokens",
    "ep_requested", "ep_actual", "planned_rounds", "warmup_rounds", "max_tokens", "temperature", "top_p", "seed",
    "stream", "context_length", "remote", "dropped_readings", "unmeasured", "components",
    "request_rate_per_s", "arrival", "requests_per_s", "lateness_avg_s", "lateness_p95_s", "round_duration_s",
    "minimum_duration_s", "interval_ratio", "maximum_rounds", "prompt_token_count", "prompt_tokens_min",
    "prompt_tokens_max", "prefix_cache", "deterministic", "page_cache", "page_cache_ratio", "idle_pause_s",
    "idle_ttft_s", "unload_s", "ram_loaded_bytes", "ram_before_unload_bytes", "ram_after_unload_bytes",
    "ttft_error_s", "itl_error_s",
)  # fmt: skip
"""Keys of a case in JSON and CSV, in this order; additions go to the end."""

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
    Column("concurrency", "Concurrency"),
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
        ("energy_j", "Energy (J)"),
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


class ReportError(Exception):
    """The report could not be written; ``str()`` says what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReportData:
    """Everything a report says; rows are what the methods of `store.Store` of these names answer."""

    run: Row
    hosts: Sequence[Row]
    cases: Sequence[Row]
    comparison: Comparison | None = None
    warnings: Sequence[Warned] = ()
    answers: Sequence[Row] = ()
    failures: Sequence[Row] = ()


def comparison_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """A comparison as flat rows: conditions, group, metric, value, ratio, low, high, verdict, why, flags."""
    return [
        {
            **row.conditions,
            "group": row.group,
            "baseline": comparison.baseline,
            "metric": row.metric,
            "unit": row.unit,
            "value": row.value,
            "n": row.n,
            "rounds": row.rounds,
            "ratio": row.ratio,
            "interval": None if row.low is None or row.high is None else [row.low, row.high],
            "verdict": row.verdict.value,
            "why": row.why or None,
            "flags": list(row.flags),
        }
        for row in comparison.rows
    ]


def render_report(data: ReportData, ending: str) -> str:
    """The report's text. Raises `ReportError` for an unknown ending, naming the known ones."""
    if ending == ".md":
        return _markdown(data)
    if ending == ".json":
        return to_json(_document(data))
    if ending == ".csv":
        return render_table(data.cases, CASE_COLUMNS, "csv")
    raise ReportError(f"unknown report format {ending or '(no ending)'!r}: end the file in {', '.join(REPORT_ENDINGS)}")


def write_report(path: Path | str, data: ReportData, *, force: bool = False) -> None:
    """Write the report whole or not at all, in the format its ending names.

    Raises `ReportError`: unknown ending, a file that exists (unless ``force``), or a place that cannot be written.
    """
    target = Path(path)
    text = render_report(data, target.suffix.lower())
    if target.is_dir():
        raise ReportError(f"{target} is a directory: name a file")
    if target.exists() and not force:
        raise ReportError(f"{target} exists: use --force to replace it or name another file")
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(target)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ReportError(f"cannot write {target}: {error.strerror or error}; name another file") from error


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current


def _document(data: ReportData) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "run": dict(data.run),
        "hosts": [dict(host) for host in data.hosts],
        "cases": [_case(case) for case in data.cases],
        "comparison": None
        if data.comparison is None
        else {
            "by": list(data.comparison.by),
            "baseline": data.comparison.baseline,
            "rows": comparison_rows(data.comparison),
        },
        "warnings": [dataclasses.asdict(warned) for warned in data.warnings],
        "failures": [dict(row) for row in data.failures],
        "answers": [dict(row) for row in data.answers],
    }


def _case(case: Row) -> dict[str, Any]:
    """A case under its own names and under those of the script many began with (Foundry Local's workshop)."""
    return {name: case.get(name) for name in CASE_COLUMNS} | {
        "alias": case.get("model"),
        "latency_avg": case.get("e2e_avg_s"),
        "latency_p95": case.get("e2e_p95_s"),
        "tokens_per_sec_avg": case.get("decode_tokens_per_s"),
        "first_token_latency_avg": case.get("ttft_avg_s"),
    }


def _markdown(data: ReportData) -> str:
    run = data.run
    name = markdown_cell(str(run.get("name") or "run"))
    when = human("created_at", run.get("created_at"))
    asker = markdown_cell(str(run.get("held_by") or "somebody"))
    parts = [
        f"# Benchmark report: {name}\n",
        f"Run `{clean(str(run.get('run_id')))}`, {when}, asked for by {asker}.\n",
        "## Hosts\n",
        render_table([_host(host) for host in data.hosts], _HOSTS, "md"),
        "## Results\n",
        render_table(data.cases, _SUMMARY, "md"),
        _LEGEND,
        render_table(data.cases, _DETAIL, "md"),
    ]
    parts += _comparison_part(data) + _warnings_part(data) + _failures_part(data) + _answers_part(data)
    parts += ["## How to reproduce\n", _reproduction(data)]
    return "\n".join(parts)


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
            "times": "–" if row["ratio"] is None else f"{row['ratio']:.2f} ×",
            "between": "–" if row["interval"] is None else "{:.2f} to {:.2f}".format(*row["interval"]),
            "notes": "; ".join([row["why"] or "", *row["flags"]]).strip("; ") or None,
        }
        for row in comparison_rows(data.comparison)
    ]
    held = [key for key in data.comparison.rows[0].conditions if len({str(row.get(key)) for row in rows}) > 1]
    pairs = [("group", by), ("metric", "Metric"), ("shown", "Value"), ("times", "Ratio"), ("between", "95 % interval")]
    pairs += [("verdict", "Verdict"), ("notes", "Notes")]
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
    rows = [dict(case) | {"what": case["status"]} for case in data.cases if case.get("reason")]
    rows += [dict(of_case.get(str(r["case_id"]), {})) | dict(r) | {"what": f"{r['n']} requests"} for r in data.failures]
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
    lines = [
        "The plan below with the same seed gives the same cases in the same order:\n",
        "```json",
        to_json(run["plan"]).rstrip().replace("```", "` ` `") if run.get("plan") else "(collected without its plan)",
        "```",
        f"\nbenchfleet {clean(str(run.get('benchfleet_version') or 'unknown'))}, seed {run.get('seed')}.",
    ]
    return "\n".join(lines) + "\n"
