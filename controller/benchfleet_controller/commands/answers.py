"""Answers from the database: runs, show, and what reports say."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from benchfleet_controller import metrics as registry
from benchfleet_controller.capacity import Limits
from benchfleet_controller.checks import check, load_shape
from benchfleet_controller.commands import UsageError, store_of
from benchfleet_controller.commands.cautions import warnings_text
from benchfleet_controller.commands.comparing import comparison_of, price_of
from benchfleet_controller.commands.devices import devices_section
from benchfleet_controller.commands.evidence import outliers_text
from benchfleet_controller.findings import findings
from benchfleet_controller.outliers import Outlier
from benchfleet_controller.report import (
    CASE_COLUMNS,
    Column,
    ReportData,
    case_document,
    render_table,
    sentence,
    to_json,
)
from benchfleet_controller.report.cases import (
    case_for_people,
    goodput_columns,
    notes_of,
    prompt_set_column,
    proof_column,
    with_instrument,
)
from benchfleet_controller.report.sections import (
    LIFECYCLE_COLUMNS,
    certificate_section,
    energy_section,
    failure_text,
    lifecycle_rows,
    lifecycle_sections,
    limits_text,
)
from benchfleet_controller.report.sweeps import sweep_section, sweeps_of
from benchfleet_controller.results import TABLE_INTERVALS, results_of
from benchfleet_controller.store import Row, Store

EXIT_DONE, EXIT_CASE_FAILED = 0, 1
_MOST_REQUESTS_READ = 20_000
"""About a second."""

_SHOWN = tuple(
    Column(*pair)
    for pair in (
        ("host", "Host"),
        ("model", "Model"),
        ("device", "Device"),
        ("load", "Load"),
        ("status", "Status"),
        ("rounds", "Rounds"),
        ("requests", "Requests"),
        ("ttft_p50_s", "TTFT p50 (s)"),
        ("itl_p50_s", "ITL p50 (s)"),
        ("e2e_avg_s", "Latency avg (s)"),
        ("e2e_p95_s", "p95 (s)"),
        ("decode_tokens_per_s", "Tokens/s"),
        ("load_s", "Load (s)"),
        ("ram_peak_bytes", "RAM peak"),
        ("vram_peak_bytes", "VRAM peak"),
        ("cpu_busy_ratio", "CPU busy"),
    )
)
_RUNS = tuple(
    Column(*pair)
    for pair in (
        ("run_id", "Run"),
        ("name", "Name"),
        ("created_at", "Created"),
        ("jobs", "Jobs"),
        ("jobs_open", "Open"),
        ("cases", "Cases"),
        ("succeeded", "Succeeded"),
        ("failed", "Failed"),
        ("skipped", "Skipped"),
        ("held_by", "By"),
    )
)


def runs(options: argparse.Namespace) -> int:
    """List runs, newest first."""
    rows = [dataclasses.asdict(row) for row in store_of(options).runs()]
    sys.stdout.write(render_table(rows, _RUNS, options.format))
    return EXIT_DONE


def show(options: argparse.Namespace) -> int:
    """One run's results."""
    store = store_of(options)
    run_id = store.resolve_run(options.run)
    if options.outliers:
        sys.stdout.write(
            outliers_text(store.outliers([run_id]), store.case_results([run_id], itl=False), options.format)
        )
    elif options.lifecycle:
        sys.stdout.write(lifecycle_text(store, run_id, options.format))
    else:
        sys.stdout.write(run_text(store, run_id, options.format, options.goodput, price_of(options)))
    return EXIT_DONE


def run_text(
    store: Store, run_id: str, style: str, goodput: str | None = None, price_per_kwh: float | None = None
) -> str:
    """A run's results in one of `report.FORMATS`; ``goodput`` wins over the plan's limits. Raises `UsageError`."""
    if style == "csv":
        return render_table(store.case_results([run_id]), CASE_COLUMNS, style)
    run = store.run(run_id)
    limits = limits_of(run, goodput)
    if style == "json":
        return to_json(
            [case_document(case) for case in results_of(store, [run_id], limits, price_per_kwh=price_per_kwh)]
        )
    cases = results_of(store, [run_id], limits, TABLE_INTERVALS, price_per_kwh)
    certificates = store.certificates([run_id])
    instrument = certificate_section(certificates, cases, asked=(run["plan"] or {}).get("certificate"))
    metered = energy_section(cases)
    devices = devices_section(store, run, cases)
    sections = [*(sweep_section(sweep) for sweep in sweeps_of(cases))]
    sections += [one for one in (devices, metered, instrument) if one]
    return "\n".join(
        part
        for part in (
            _table_text(cases, style),
            *(section.text(style) for section in sections),
            warnings_text(check(cases, store.hosts_of_runs([run_id]), certificates), style),
            findings_text(cases, outliers_for_findings(store, run_id, cases), style),
        )
        if part
    )


def results_text(cases: Sequence[Row], hosts: Sequence[Row], style: str) -> str:
    """A run for people: the table, what failed, what may mislead."""
    return _table_text(cases, style) + warnings_text(check(cases, hosts), style)


def _table_text(cases: Sequence[Row], style: str) -> str:
    rows = [case_for_people(case) for case in cases]
    place = [column.name for column in _SHOWN].index("load")
    rates = [column.name for column in _SHOWN].index("decode_tokens_per_s") + 1
    shown = (
        *_SHOWN[:place],
        *proof_column(cases),
        *prompt_set_column(cases),
        *_SHOWN[place:rates],
        *goodput_columns(cases),
        *_SHOWN[rates:],
    )
    columns = with_instrument(shown, rows)
    notes = notes_of(rows, columns)
    notes += [limits_text(case["goodput"]["limits"]) for case in cases if case.get("goodput")][:1]
    failures = [
        sentence(f"{_what(case)}: {case['status']} ({case['reason']}): {failure_text(case)}", style) + "\n"
        for case in cases
        if case["reason"]
    ]
    parts = [render_table(rows, columns, style), " ".join(notes) + "\n" if notes else "", "".join(failures)]
    # In Markdown a line right below a table would be a row of it.
    return ("\n" if style == "md" else "").join(part for part in parts if part)


def _what(case: Row) -> str:
    shape = load_shape(case)
    return f"{case['host']} {case['model']}" + (f" {shape}" if shape != "×1" else "")


def lifecycle_text(store: Store, run_id: str, style: str) -> str:
    """Cold and warm times of a run's cases, and the memory of each stage."""
    cases, stages = store.case_results([run_id], itl=False), store.case_stages([run_id])
    if style in ("json", "csv"):
        return render_table(lifecycle_rows(cases, stages), LIFECYCLE_COLUMNS, style)
    sections = lifecycle_sections(cases, stages)
    if not sections:
        return "nothing is known of loads, pauses and memory in this run\n"
    return "\n".join(section.text(style) for section in sections)


def limits_of(run: Row, text: str | None) -> Limits | None:
    """Limits a good request keeps: those of the option, else those of the run's plan. Raises `UsageError`."""
    text = text if text is not None else (run.get("plan") or {}).get("goodput")
    if text is None:
        return None
    try:
        return Limits.parse(text)
    except ValueError as error:
        raise UsageError(f"--goodput: {error}") from None


def findings_text(cases: Sequence[Row], outliers: Sequence[Outlier], style: str) -> str:
    """What the results come to, as lines."""
    dash = "- " if style == "md" else ""
    return "".join(f"{dash}{sentence(found, style)}\n" for found in findings(cases, outliers))


def outliers_for_findings(store: Store, run_id: str, cases: Sequence[Row]) -> Sequence[Outlier]:
    """Outliers for the findings of every format; none among more requests than can be read while somebody waits."""
    if sum(case["requests"] for case in cases) > _MOST_REQUESTS_READ:
        return ()
    return store.outliers([run_id])


def report_data(
    store: Store,
    run_id: str,
    baseline: str | None = None,
    goodput: str | None = None,
    price_per_kwh: float | None = None,
) -> ReportData:
    """Everything a report of a run says; hosts are compared when there are several, else models.

    ``goodput`` wins over the plan's limits. Raises `UsageError` for limits that are none.
    """
    run, hosts, certificates = store.run(run_id), store.hosts_of_runs([run_id]), store.certificates([run_id])
    cases = results_of(store, [run_id], limits_of(run, goodput), price_per_kwh=price_per_kwh)
    by = "host" if len({case["host"] for case in cases}) > 1 else "model"
    return ReportData(
        run=run,
        hosts=hosts,
        cases=cases,
        comparison=comparison_of(
            store,
            [run_id],
            (by,),
            baseline,
            registry.DEFAULT_COMPARED,
            price_per_kwh=price_per_kwh,
            measured=True,
            found=cases,
        ),
        warnings=check(cases, hosts, certificates),
        answers=store.sample_answers(run_id),
        failures=store.failure_reasons([run_id]),
        certificates=certificates,
        stages=store.case_stages([run_id]),
        outliers=outliers_for_findings(store, run_id, cases),
    )
