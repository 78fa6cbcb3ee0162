"""Cases as rows: under stable names for programs, with marks and intervals for people. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchfleet_controller import stats
from benchfleet_controller.checks import load_shape
from benchfleet_controller.metrics import BY_NAME, CASE_METRICS
from benchfleet_controller.report.exports import Column, Figure

Row = Mapping[str, Any]

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
    "ttft_error_s", "itl_error_s", "ttft_n", "e2e_n", "itl_n", "rounds_s",
    "device_proof", "ram_baseline_bytes", "ram_steady_bytes", "ram_anon_peak_bytes", "ram_file_peak_bytes",
    "ram_given_back_bytes", "vram_basis", "vram_given_back_bytes", "energy_scope", "energy_method",
    "energy_per_token_j", "energy_per_request_j", "kwh_per_million_tokens", "cost_per_million_tokens",
    "energy_reason", "decode_limit_ratio", "prefill_limit_ratio", "efficiency", "efficiency_reason", "device_name",
    "driver_version", "agent_version", "path", "marginal_per_token_j", "marginal_per_request_j", "marginal_reason",
    "instrument_reason", "server_prefill_avg_s", "server_decode_tokens_per_s", "unloads",
)  # fmt: skip
"""Keys of a case in JSON and CSV, in this order; additions go to the end."""
DOCUMENT_COLUMNS = (
    "intervals", "goodput", "device_evidence", "energy", "rounds_invalid", "rounds_suspicious", "round_troubles",
    "spread_ratio", "spread_metric",
)  # fmt: skip
"""What JSON adds: what CSV has no cells for, and what only `results.results_of` knows."""

_WITH_INTERVAL = ("ttft_p50_s", "e2e_avg_s", "decode_tokens_per_s")
"""What people see an interval of; more would hide the values."""
_INSTRUMENT = {"ttft_p50_s": "ttft_error_s", "itl_p50_s": "itl_error_s"}
"""What the instrument's own error is shown beside, and that error."""
INTERVAL_NOTE = "± is half the 95 % interval, over rounds."
INSTRUMENT_NOTE = "Instrument error: how far our own times may be off, the 99th percentile of its check."
PERCENTILE_NOTE = "* n is too small for this percentile."


def case_document(case: Row) -> dict[str, Any]:
    """A case as a JSON object: ``CASE_COLUMNS`` and ``DOCUMENT_COLUMNS``."""
    return {name: case.get(name) for name in (*CASE_COLUMNS, *DOCUMENT_COLUMNS)}


def case_for_people(case: Row) -> dict[str, Any]:
    """A case with ``load`` (its load shape), intervals beside values, unsupported percentiles marked, and goodput."""
    row = dict(case) | {"load": load_shape(case)}
    for metric in CASE_METRICS:
        value = case.get(metric.name)
        if value is None:
            continue
        text = metric.human(value)
        if metric.quantile is not None and not stats.supports_percentile(
            1_000_000 if (n := case.get(metric.n_column or "")) is None else n, metric.quantile
        ):
            text += "*"
        elif metric.name in _WITH_INTERVAL and (ends := (case.get("intervals") or {}).get(metric.name)):
            text += f" ±{half_width(metric.name, ends)}"
        row[metric.name] = Figure(text)
    for metric_name, error_name in _INSTRUMENT.items():
        if (error := case.get(error_name)) is not None:
            row[f"{metric_name}_instrument"] = Figure(f"±{error * 1e3:.3g} ms")
    good = case.get("goodput")
    if good:
        share = "" if good["good_ratio"] is None else f" ({good['good_ratio']:.0%})"
        row["good"] = Figure(f"{good['good']}/{good['requests']}{share}")
        row["goodput_per_s"] = None if good["goodput_per_s"] is None else Figure(f"{good['goodput_per_s']:.2f}")
    return row


def half_width(name: str, ends: Sequence[float]) -> str:
    """Half an interval in the digits of its metric; what these would show as 0 with the one digit it takes."""
    half = (ends[1] - ends[0]) / 2
    text = BY_NAME[name].human(half)
    if half == 0 or float(text.replace(",", "")) > 0:
        return text
    return f"{half:.{-math.floor(math.log10(half))}f}"


def notes_of(rows: Sequence[Row], columns: Sequence[Column]) -> list[str]:
    """What the marks in these columns mean, for those there are."""
    own = [column for column in columns if not column.name.endswith("_instrument")]
    figures = [value for row in rows for column in own if isinstance(value := row.get(column.name), Figure)]
    notes = [INTERVAL_NOTE] if any("±" in figure for figure in figures) else []
    if len(own) < len(columns):
        notes.append(INSTRUMENT_NOTE)
    return [*notes, PERCENTILE_NOTE] if any(figure.endswith("*") for figure in figures) else notes


def with_instrument(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """The columns of rows for people, each followed by the instrument's error where it is known of any."""
    found = []
    for column in columns:
        found.append(column)
        name = f"{column.name}_instrument"
        if any(row.get(name) is not None for row in rows):
            found.append(Column(name, "instrument error"))
    return found


def prompt_set_column(cases: Sequence[Row]) -> tuple[Column, ...]:
    """The prompt set, where a run has several."""
    return (Column("prompt_set", "Prompts"),) if len({case.get("prompt_set") for case in cases}) > 1 else ()


def proof_column(cases: Sequence[Row]) -> tuple[Column, ...]:
    """Whether devices did what is said of them, where that is not sure of all."""
    sure = all(case.get("device_proof") in (None, "confirmed") for case in cases)
    return () if sure else (Column("device_proof", "Proof"),)


def goodput_columns(cases: Sequence[Row]) -> tuple[Column, ...]:
    """Requests within the limits, where there are limits."""
    if not any(case.get("goodput") for case in cases):
        return ()
    return (Column("good", "Good"), Column("goodput_per_s", "Goodput/s"))
