"""Answers from the database: runs, show, compare, report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from benchfleet_controller import metrics as registry
from benchfleet_controller.checks import Warned, check
from benchfleet_controller.commands import UsageError, store_of
from benchfleet_controller.compare import Compared, Comparison, Rounds, Verdict, compare
from benchfleet_controller.report import (
    CASE_COLUMNS,
    Column,
    ReportData,
    clean,
    comparison_rows,
    human,
    render_table,
    to_json,
    write_report,
)
from benchfleet_controller.store import Row, Store

EXIT_DONE, EXIT_CASE_FAILED, EXIT_REGRESSION = 0, 1, 3

_SHOWN = tuple(
    Column(*pair)
    for pair in (
        ("host", "Host"),
        ("model", "Model"),
        ("device", "Device"),
        ("concurrency", "Conc."),
        ("status", "Status"),
        ("rounds", "Rounds"),
        ("requests", "Requests"),
        ("ttft_p50_s", "TTFT p50 (s)"),
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
    cases = store.case_results([run_id])
    if options.format in ("json", "csv"):
        sys.stdout.write(render_table(cases, CASE_COLUMNS, options.format))
    else:
        sys.stdout.write(results_text(cases, store.hosts_of_runs([run_id]), options.format))
    return EXIT_DONE


def results_text(cases: Sequence[Row], hosts: Sequence[Row], style: str) -> str:
    """A run for people: the table, what failed, what may mislead."""
    parts = [render_table(cases, _SHOWN, style)]
    parts += [
        clean(f"{case['host']} {case['model']}: {case['status']} ({case['reason']}): {case['message'] or ''}") + "\n"
        for case in cases
        if case["reason"]
    ]
    return "".join(parts) + warnings_text(check(cases, hosts))


def warnings_text(warnings: Sequence[Warned]) -> str:
    """Warnings as lines; what is said of several subjects is said once."""
    subjects: dict[tuple[str, str], list[str]] = {}
    for warned in warnings:
        subjects.setdefault((warned.message, warned.advice), []).append(warned.subject)
    return "".join(
        clean(f"warning: {', '.join(names)}: {message}; {advice}") + "\n"
        for (message, advice), names in subjects.items()
    )


def comparison_of(
    store: Store, run_ids: Sequence[str], by: tuple[str, ...], baseline: str | None, metrics: Sequence[str]
) -> Comparison:
    """Compare the cases of runs; reads the values by round that intervals need."""
    cases = store.case_results(run_ids, itl=any(name.startswith("itl_") for name in metrics))
    rounds: dict[tuple[str, str], Rounds] = {}
    for name in metrics:
        if registry.BY_NAME[name].by_round is None:
            continue
        values = store.round_values(name, run_ids)
        for case_id in {*values.case_id.tolist()}:
            mine = values.case_id == case_id
            rounds[name, case_id] = Rounds(values.value[mine], values.weight[mine])
    return compare(cases, by, baseline, metrics, rounds)


def comparison_text(comparison: Comparison, style: str = "table") -> str:
    """A comparison for people: what all rows share in a line above, then a row a metric and group."""
    conditions = [row.conditions for row in comparison.rows]
    varying = [name for name in (conditions[0] if conditions else ()) if len({str(c[name]) for c in conditions}) > 1]
    shared = ", ".join(
        f"{name} {value}" for name, value in (conditions[0] if conditions else {}).items() if name not in varying
    )
    rows = [_compared_for_people(row) for row in comparison.rows]
    columns = [
        *(Column(name, name.capitalize()) for name in varying),
        Column("metric", "Metric"),
        Column("group", comparison.by[0].capitalize()),
        Column("value", "Value"),
        Column("n", "n"),
        Column("ratio", "Ratio"),
        Column("interval", "95 % interval"),
        Column("verdict", "Verdict"),
    ]
    head = f"By {' and '.join(comparison.by)}, against {clean(comparison.baseline)} ({clean(shared)}):\n"
    flags = sorted({clean(f"note: {row.group}: {flag}") for row in comparison.rows for flag in row.flags})
    return head + render_table(rows, columns, style) + "".join(f"{flag}\n" for flag in flags)


def _compared_for_people(row: Compared) -> dict[str, Any]:
    interval = "" if row.low is None or row.high is None else f"{row.low:.2f}–{row.high:.2f}"
    return {
        **row.conditions,
        "group": row.group,
        "metric": registry.BY_NAME[row.metric].label,
        "value": human(row.metric, row.value),
        "n": row.n,
        "ratio": _ratio(1.0 if row.verdict is Verdict.BASELINE else row.ratio),
        "interval": interval,
        "verdict": row.verdict.value.replace("_", " ") + (f": {row.why}" if row.why else ""),
    }


def compare_command(options: argparse.Namespace) -> int:
    """Which is better, by how much, how sure."""
    store = store_of(options)
    run_ids = [store.resolve_run(text) for text in options.run or ["last"]]
    metrics = tuple(options.metric) or registry.DEFAULT_COMPARED
    if unknown := [name for name in metrics if name not in registry.BY_NAME]:
        raise UsageError(f"no metric {unknown[0]!r}; there are: {', '.join(registry.BY_NAME)}")
    by: tuple[str, ...] = (options.by,)
    baseline = options.baseline
    if baseline is not None and (base_run := _run_named(store, baseline)):
        by, baseline = ("run",), base_run
        run_ids = list(dict.fromkeys([base_run, *run_ids]))
    elif len(run_ids) > 1 and options.baseline is None:
        by = ("run",)
    try:
        comparison = comparison_of(store, run_ids, by, baseline, metrics)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if options.format == "json":
        sys.stdout.write(to_json(comparison_rows(comparison)))
    elif options.format == "csv":
        rows = comparison_rows(comparison)
        sys.stdout.write(render_table(rows, list(rows[0]) if rows else [], "csv"))
    else:
        sys.stdout.write(comparison_text(comparison, options.format))
    return _gate(comparison, options.fail_on_regression)


def report(options: argparse.Namespace) -> int:
    """Write a run's report."""
    store = store_of(options)
    run_id = store.resolve_run(options.run)
    write_report(options.output, report_data(store, run_id), force=options.force)
    print(options.output)
    return EXIT_DONE


def report_data(store: Store, run_id: str, baseline: str | None = None) -> ReportData:
    """Everything a report of a run says; hosts are compared when there are several, else models."""
    cases, hosts = store.case_results([run_id]), store.hosts_of_runs([run_id])
    by = "host" if len({case["host"] for case in cases}) > 1 else "model"
    return ReportData(
        run=store.run(run_id),
        hosts=hosts,
        cases=cases,
        comparison=comparison_of(store, [run_id], (by,), baseline, registry.DEFAULT_COMPARED),
        warnings=check(cases, hosts),
        answers=store.sample_answers(run_id),
        failures=store.failure_reasons([run_id]),
    )


def _run_named(store: Store, text: str) -> str | None:
    """The run a baseline names (by id, name or the beginning of an id), if it names one rather than a group."""
    rows = store.runs()
    exact = [row.run_id for row in rows if text in (row.run_id, row.name)]
    begun = [row.run_id for row in rows if len(text) >= 6 and row.run_id.startswith(text)]
    return next(iter(exact or begun), None)


def _gate(comparison: Comparison, percent: str | None) -> int:
    if percent is None:
        return EXIT_DONE
    try:
        limit = float(percent.rstrip("%"))
    except ValueError:
        raise UsageError(f"--fail-on-regression takes a percentage such as 5 or 5%, not {percent!r}") from None
    worse = comparison.regressions(limit)
    for row in worse:
        print(f"regression: {row.group} {row.metric} is {_ratio(row.ratio)} × the baseline", file=sys.stderr)
    return EXIT_REGRESSION if worse else EXIT_DONE


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"
