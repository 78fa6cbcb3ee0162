"""Parts of a report beside the results: what the instrument is worth, goodput, what a model holds. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchfleet_controller.checks import load_shape
from benchfleet_controller.report.cases import case_for_people, prompt_set_column
from benchfleet_controller.report.exports import Column, Figure, clean, markdown_cell, render_table

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Section:
    """A titled table with notes below; without rows only the notes."""

    title: str
    rows: Sequence[Row]
    columns: Sequence[Column]
    notes: tuple[str, ...] = ()

    def text(self, style: str) -> str:
        """As Markdown (``md``) or for a terminal (``table``), ending in a newline."""
        table = render_table(self.rows, self.columns, style) if self.rows else ""
        if style == "md":
            parts = [f"## {markdown_cell(self.title)}\n", table, *(f"{markdown_cell(note)}\n" for note in self.notes)]
            return "\n".join(part for part in parts if part)
        return f"{clean(self.title)}\n{table}" + "".join(f"{clean(note)}\n" for note in self.notes)


_TIMES = tuple(
    Column(*pair)
    for pair in (
        ("host", "Host"),
        ("model", "Model"),
        ("device", "Device"),
        ("load", "Load"),
        ("page_cache", "Page cache"),
        ("page_cache_ratio", "Cached at load"),
        ("load_s", "Load (s)"),
        ("cold_ttft_s", "Cold TTFT (s)"),
        ("ttft_p50_s", "Warm TTFT p50 (s)"),
        ("idle_pause_s", "Pause (s)"),
        ("idle_ttft_s", "TTFT after it (s)"),
        ("unload_s", "Unload (s)"),
    )
)
_SUBJECT = 4
"""How many of these columns say of what."""
_MEMORY = (("baseline", "Baseline"), ("loaded", "Loaded"), ("round_peak", "Peak in rounds"),
           ("before_unload", "Before unload"), ("after_unload", "After unload"))  # fmt: skip
_CERTIFICATE = (
    Column("host", "Host"),
    Column("concurrency", "Streams"),
    Column("ttft_p50", "TTFT error p50"),
    Column("ttft_p99", "p99"),
    Column("itl_p99", "ITL error p99"),
    Column("jitter", "Jitter"),
    Column("stamp_source", "Stamps"),
    Column("cpu_per_token", "CPU/token"),
    Column("rss_bytes", "Memory"),
)


def certificate_section(certificates: Sequence[Row], cases: Sequence[Row], *, asked: bool | None) -> Section | None:
    """How true each host's times are; None when nothing ran. ``asked``: the plan asked for it, None: unknown."""
    hosts = list(dict.fromkeys(str(case["host"]) for case in cases if case.get("status") != "skipped"))
    if not hosts:
        return None
    rows = [
        dict(row)
        | {
            "ttft_p50": _short(row["ttft_error_p50_s"]),
            "ttft_p99": _short(row["ttft_error_p99_s"]),
            "itl_p99": _short(row["itl_error_p99_s"]),
            "jitter": _short(row["jitter_s"]),
            "cpu_per_token": _short(row["cpu_per_token_s"]),
        }
        for row in certificates
        if not row.get("failure_reason")
    ]
    notes = [
        f"{row['host']}: not checked: {row.get('failure_message') or row['failure_reason']}"
        for row in certificates
        if row.get("failure_reason")
    ]
    checked = {str(row["host"]) for row in rows}
    notes += dict.fromkeys(
        f"{case['host']}: no error is known for {case.get('model')}: {reason}"
        for case in cases
        if (reason := case.get("instrument_reason")) and str(case["host"]) in checked
    )
    without = [host for host in hosts if host not in {str(row["host"]) for row in certificates}]
    if without:
        why = "the plan did not ask for it" if asked is False else "no certificate was recorded"
        notes.append(f"{', '.join(without)}: not checked: {why}")
    return Section(
        "Instrument: time stamps checked against a server that knows when it sent", rows, _CERTIFICATE, tuple(notes)
    )


_GOODPUT = tuple(
    Column(*pair)
    for pair in (
        ("good", "Good"),
        ("requests", "Requests"),
        ("share", "Share"),
        ("interval", "95 % interval"),
        ("goodput_per_s", "Goodput (requests/s)"),
        ("unmeasured", "Unmeasured"),
    )
)


def goodput_section(cases: Sequence[Row]) -> Section | None:
    """Requests within the limits, a row a case; None: there are no limits."""
    counted = [(case, case["goodput"]) for case in cases if case.get("goodput") and case["goodput"]["requests"]]
    if not counted:
        return None
    rows = [
        {
            "host": case.get("host"),
            "model": case.get("model"),
            "device": case.get("device"),
            "load": load_shape(case),
            "prompt_set": case.get("prompt_set"),
            "good": good["good"],
            "requests": good["requests"],
            "share": Figure(f"{good['good_ratio']:.0%}"),
            "interval": Figure("{:.0%} to {:.0%}".format(*good["good_ratio_interval"])),
            "goodput_per_s": None if good["goodput_per_s"] is None else Figure(f"{good['goodput_per_s']:.2f}"),
            "unmeasured": good["unmeasured"],
        }
        for case, good in counted
    ]
    what = (*_TIMES[:_SUBJECT], *prompt_set_column(rows))
    return Section("Goodput", rows, (*what, *_GOODPUT), (limits_text(counted[0][1]["limits"]),))


def limits_text(limits: Mapping[str, float | None]) -> str:
    """What a good request keeps, for people."""
    names = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "latency"}
    told = " and ".join(f"{names[key]} ≤ {value:g} s" for key, value in limits.items() if value is not None)
    return f"Good: {told}; failed and unmeasured requests are not."


LIFECYCLE_COLUMNS = (
    "host", "model", "device", "runtime", "prompt_set", "concurrency", "request_rate_per_s", "case_id",
    "page_cache", "page_cache_ratio", "load_s", "cold_ttft_s", "ttft_p50_s", "idle_pause_s", "idle_ttft_s", "unload_s",
    *(f"ram_{name}_bytes" for name, _ in _MEMORY), "ram_given_back_ratio",
    *(f"vram_{name}_bytes" for name, _ in _MEMORY if name != "round_peak"), "vram_given_back_ratio",
    "ram_steady_bytes", "ram_anon_peak_bytes", "ram_file_peak_bytes", "vram_peak_bytes", "vram_basis",
)  # fmt: skip
"""Keys of a case's lifecycle in JSON and CSV."""


def lifecycle_rows(cases: Sequence[Row], stages: Sequence[Row]) -> list[dict[str, Any]]:
    """Cold and warm times of each case and what the runtime held when: ``LIFECYCLE_COLUMNS``, None: unmeasured.

    ``vram_*`` are of the whole device; the share given back is of what was held above the baseline before unloading.
    """
    held: dict[tuple[str, str], Row] = {(str(row["case_id"]), str(row["phase"])): row for row in stages}
    rows = []
    for case in cases:
        case_id = str(case.get("case_id"))

        def at(phase: str, column: str, case_id: str = case_id) -> int | None:
            return held.get((case_id, phase), {}).get(column)

        row = {name: case.get(name) for name in LIFECYCLE_COLUMNS} | {
            "ram_baseline_bytes": at("baseline", "rss_last_bytes"),
            "ram_round_peak_bytes": at("round", "rss_peak_bytes"),
            "vram_baseline_bytes": at("baseline", "device_memory_last_bytes"),
            "vram_loaded_bytes": at("load", "device_memory_last_bytes"),
            "vram_before_unload_bytes": at("loaded", "device_memory_last_bytes"),
            "vram_after_unload_bytes": at("after", "device_memory_first_bytes"),
        }
        for kind in ("ram", "vram"):
            base = row[f"{kind}_baseline_bytes"]
            row[f"{kind}_given_back_ratio"] = _given_back(
                # A runtime that was not there yet held nothing; of a device that says nothing, nothing is known.
                0 if base is None and kind == "ram" else base,
                row[f"{kind}_before_unload_bytes"],
                row[f"{kind}_after_unload_bytes"],
            )
        rows.append(row)
    return rows


_MORE_MEMORY = {
    "ram": (
        Column("ram_given_back_ratio", "Given back"),
        Column("ram_steady_bytes", "Median in rounds"),
        Column("ram_anon_peak_bytes", "Anonymous, peak"),
        Column("ram_file_peak_bytes", "Files, peak"),
    ),
    "vram": (
        Column("vram_given_back_ratio", "Given back"),
        Column("vram_peak_bytes", "Peak"),
        Column("vram_basis", "Of"),
    ),
}


def lifecycle_sections(cases: Sequence[Row], stages: Sequence[Row]) -> list[Section]:
    """Cold and warm times, and memory by stage, of the cases that tell any."""
    rows = [
        row | {"load": load_shape(row), "page_cache": _page_cache(row)}
        for row in lifecycle_rows(cases, stages)
        if any(row[name] is not None for name in ("page_cache_ratio", "idle_ttft_s", "unload_s", "ram_loaded_bytes"))
    ]
    if not rows:
        return []
    what = (*_TIMES[:_SUBJECT], *prompt_set_column(rows))
    found = [Section("Cold and warm", rows, (*what, *_TIMES[_SUBJECT:]))]
    for kind, name in (("ram", "Memory of the runtime by stage"), ("vram", "Memory of the devices by stage")):
        columns = [Column(f"{kind}_{key}_bytes", label) for key, label in _MEMORY]
        columns = [column for column in columns if column.name in LIFECYCLE_COLUMNS]
        if any(row[column.name] is not None for row in rows for column in columns):
            more = [column for column in _MORE_MEMORY[kind] if any(row[column.name] is not None for row in rows)]
            found.append(Section(name, rows, (*what, *columns, *more)))
    return found


def _page_cache(row: Row) -> str | None:
    """What became of the page cache: whether it was dropped is known only by what it held when loading began."""
    if row.get("page_cache") == "dropped" and row.get("page_cache_ratio") is None:
        return "asked to drop, not known"
    return None if row.get("page_cache") is None else str(row["page_cache"])


_ENERGY = tuple(
    Column(*pair)
    for pair in (
        ("energy_scope", "Metered"),
        ("energy_method", "By"),
        ("energy_per_token_j", "J/token"),
        ("energy_per_request_j", "J/request"),
        ("marginal_per_token_j", "Marginal J/token"),
        ("marginal_per_request_j", "Marginal J/request"),
        ("kwh_per_million_tokens", "kWh/1M tokens"),
        ("cost_per_million_tokens", "Electricity/1M tokens"),
        ("gross", "Gross (J)"),
        ("idle_host", "Idle host (W)"),
        ("idle_loaded", "Idle loaded (W)"),
        ("marginal", "Marginal (J)"),
    )
)


_ENERGY_NOTE = (
    "Over the counted rounds. Gross is all that was used; marginal leaves out idle power, with the model loaded where "
    "that is known. Scopes overlap and are not added up, but for processor packages and boards (parts)."
)


def energy_section(cases: Sequence[Row]) -> Section | None:
    """Energy of the cases that have any, a row a case and scope; None: none of them has."""
    metered = [case for case in cases if case.get("energy")]
    if not metered:
        return None
    rows = []
    for case in metered:
        shown: Row = case_for_people(case)
        for place, one in enumerate(case["energy"]):
            row: dict[str, Any] = {name: case.get(name) for name in ("host", "model", "device", "prompt_set")}
            row |= {"load": load_shape(case), "energy_scope": one["scope"], "energy_method": one["method"]}
            speaks = case.get("energy_scope") in (one["scope"], "parts") and one["gross_j"] is not None
            if speaks and place == 0:  # a case has one figure for a token, of all that speaks for it
                row |= {column.name: shown.get(column.name) for column in _ENERGY[2:8]}
            marginal = one["marginal_loaded_j"] if one["marginal_loaded_j"] is not None else one["marginal_host_j"]
            row |= {
                "gross": _figure(one["gross_j"]),
                "idle_host": _figure(one["idle_host_w"]),
                "idle_loaded": _figure(one["idle_loaded_w"]),
                "marginal": _figure(marginal),
            }
            rows.append(row)
    what = (*_TIMES[:_SUBJECT], *prompt_set_column(metered))
    columns = [column for column in _ENERGY if any(row.get(column.name) is not None for row in rows)]
    reasons = dict.fromkeys(
        reason
        for case in metered
        for one in case["energy"]
        for reason in (one["reasons"] if one["gross_j"] is None or one["marginal_loaded_j"] is None else ())
    )
    return Section("Energy", rows, (*what, *columns), (_ENERGY_NOTE, *reasons))


def _figure(value: float | None) -> Figure | None:
    return None if value is None else Figure(f"{value:.3g}")


def _given_back(base: int | None, before: int | None, after: int | None) -> float | None:
    if base is None or before is None or after is None or before <= base:
        return None
    return (before - after) / (before - base)


def _short(seconds: float | None) -> Figure | None:
    return None if seconds is None else Figure(f"{seconds * 1e3:.3g} ms")


def failure_text(case: Mapping[str, Any]) -> str:
    """Why a case did not succeed, with what speaks for it."""
    evidence = "; ".join(str(one) for one in case.get("evidence") or ())
    return f"{case.get('message') or ''}{f' ({evidence})' if evidence else ''}".strip()
