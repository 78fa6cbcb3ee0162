"""compare: which is better, by how much, how sure; and the regression gate."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchfleet_controller import metrics as registry
from benchfleet_controller.baseline import Baseline
from benchfleet_controller.commands import UsageError, say, store_of
from benchfleet_controller.commands.baselines import read_baseline, rounds_of
from benchfleet_controller.commands.cautions import Cautions, warnings_text
from benchfleet_controller.commands.evidence import equality_rows, equality_text
from benchfleet_controller.compare import Compared, Comparison, Verdict, compare
from benchfleet_controller.dimensions import DIMENSIONS, FILTERS, matches
from benchfleet_controller.gate import Outcome, judge
from benchfleet_controller.report import Column, clean, comparison_rows, human, render_table, sentence, to_json
from benchfleet_controller.report.matrix import SYMBOLS, Cell, matrix_of, word
from benchfleet_controller.store import NoSuchRun, Store
from benchfleet_controller.telemetry import with_price

EXIT_DONE = 0
FEWEST_OF_A_MATRIX = 4
"""Groups from which on a matrix is easier to read than a list alone."""
_GATE_CODES = {Outcome.PASSED: EXIT_DONE, Outcome.REGRESSED: 3, Outcome.UNDECIDED: 5}


def compare_command(options: argparse.Namespace) -> int:
    """Which is better, by how much, how sure."""
    store = store_of(options)
    metrics = tuple(options.metric) or registry.DEFAULT_COMPARED
    if unknown := [name for name in metrics if name not in registry.BY_NAME]:
        raise UsageError(f"no metric {unknown[0]!r}; there are: {', '.join(registry.BY_NAME)}")
    by = tuple(part.strip() for part in (options.by or "host").split(","))
    if unknown := [name for name in by if name not in DIMENSIONS]:
        raise UsageError(f"--by takes {', '.join(DIMENSIONS)}, or several with commas, not {unknown[0]!r}")
    run_ids = [store.resolve_run(text) for text in options.run or ["last"]]
    baseline: str | None = options.baseline
    document: Baseline | None = None
    if baseline is not None:
        if document := _document(store, baseline):
            by, baseline = ("run",), document.run_id
        elif base_run := _run_named(store, baseline):
            by, baseline, run_ids = ("run",), base_run, list(dict.fromkeys([base_run, *run_ids]))
    elif len(run_ids) > 1 and options.by is None:
        by = ("run",)
    if options.answers:
        return _answers(store, run_ids, by, baseline if document is None else None, options.format)
    try:
        comparison = comparison_of(
            store, run_ids, by, baseline, metrics, document, filters_of(options.where), price_of(options)
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    cautions = Cautions.of_runs(store, run_ids, filters_of(options.where))
    sys.stdout.write(rendered(comparison, options.format, cautions))
    if all(row.verdict is Verdict.BASELINE for row in comparison.rows):
        say("there is one group only, so nothing is compared; try another --by, or name a --baseline")
    return _gate(comparison, options.fail_on_regression)


def price_of(options: argparse.Namespace) -> float | None:
    """The price of a kWh that was asked for. Raises `UsageError` for one that makes no sense."""
    price: float | None = options.price_per_kwh
    if price is not None and not 0 < price < math.inf:
        raise UsageError("--price-per-kwh takes a price above 0, such as 0.30")
    return price


def _answers(store: Store, run_ids: Sequence[str], by: tuple[str, ...], baseline: str | None, style: str) -> int:
    try:
        rows = equality_rows(store, run_ids, by, baseline)
    except ValueError as error:
        raise UsageError(str(error)) from None
    sys.stdout.write(equality_text(rows, style))
    return EXIT_DONE


def comparison_of(
    store: Store,
    run_ids: Sequence[str],
    by: tuple[str, ...],
    baseline: str | None,
    metrics: Sequence[str],
    document: Baseline | None = None,
    where: Mapping[str, str] | None = None,
    price_per_kwh: float | None = None,
) -> Comparison:
    """Compare the cases of runs, and of a baseline document, that `where` lets through.

    Raises ValueError for an unknown baseline.
    """
    found = store.case_results(run_ids, itl=any(name.startswith("itl_") for name in metrics))
    run_names = {row.run_id: row.name for row in store.runs()} if "name" in by else {}
    cases: list[Mapping[str, Any]] = [
        case | {"run_name": run_names.get(case["run_id"])} for case in with_price(found, price_per_kwh)
    ]
    rounds = rounds_of(store, run_ids, metrics)
    if document is not None:
        cases, rounds = [*document.cases, *cases], {**document.rounds, **rounds}
    kept = [case for case in cases if all(matches(case, *one) for one in (where or {}).items())]
    if where and not kept:
        raise ValueError(f"no case matches --where {' '.join(f'{key}={value}' for key, value in where.items())}")
    return compare(kept, by, baseline, metrics, rounds)


def rendered(comparison: Comparison, style: str, cautions: Cautions) -> str:
    """A comparison in one of `report.FORMATS`, with what may mislead about it; CSV: the rows alone."""
    if style == "json":
        told = {
            (str(row.conditions), row.group): cautions.of_group(row.conditions, row.group, comparison.by)
            for row in comparison.rows
        }
        pairs = zip(comparison_rows(comparison), comparison.rows, strict=True)
        return to_json([row | {"warnings": told[str(one.conditions), one.group]} for row, one in pairs])
    if style == "csv":
        rows = comparison_rows(comparison)
        return render_table(rows, list(rows[0]) if rows else [], "csv")
    gap = "\n" if style == "md" else ""
    return comparison_text(comparison, style) + gap + warnings_text(cautions.warnings(), style)


def comparison_text(comparison: Comparison, style: str = "table") -> str:
    """A comparison for people: what all rows share in a line above, then a row a metric and group; a matrix of verdicts
    where there are many groups.
    """
    conditions = [row.conditions for row in comparison.rows]
    varying = [name for name in (conditions[0] if conditions else ()) if len({str(c[name]) for c in conditions}) > 1]
    shared = ", ".join(
        f"{name} {value}"
        for name, value in (conditions[0] if conditions else {}).items()
        if name not in varying and value is not None
    )
    rows = [_for_people(row) for row in comparison.rows]
    columns = [
        *(Column(name, name.capitalize()) for name in varying),
        Column("metric", "Metric"),
        Column("group", " / ".join(comparison.by).capitalize()),
        Column("value", "Value"),
        Column("n", "n"),
        Column("ratio", "Ratio"),
        Column("interval", "95 % interval"),
        Column("p", "p"),
        Column("verdict", "Verdict"),
    ]
    head = f"By {' and '.join(comparison.by)}, against {sentence(f'{comparison.baseline} ({shared})', style)}:\n"
    flags = sorted({sentence(f"note: {row.group}: {flag}", style) for row in comparison.rows for flag in row.flags})
    text = head + render_table(rows, columns, style) + "".join(f"{flag}\n" for flag in flags)
    return text + _matrix_text(comparison, style)


def _matrix_text(comparison: Comparison, style: str) -> str:
    """Ratios and verdicts, a row a metric and a column a group; empty where a list says it as well."""
    matrix = matrix_of(comparison)
    if matrix is None or len(matrix.groups) < FEWEST_OF_A_MATRIX:
        return ""
    columns = [Column("metric", "Metric"), *(Column(str(place), name) for place, name in enumerate(matrix.groups))]
    rows = []
    for row in matrix.rows:
        cells = {str(place): _cell_text(cell) for place, cell in enumerate(row.cells)}
        rows.append({"metric": f"{row.metric} ({row.conditions})" if row.conditions else row.metric, **cells})
    legend = ", ".join(f"{symbol} {word(verdict)}" for verdict, symbol in SYMBOLS.items())
    return f"\n{render_table(rows, columns, style)}{legend}\n"


def _cell_text(cell: Cell | None) -> str:
    if cell is None:
        return "–"
    ratio = cell.ratio.split(" (")[0]
    return f"{cell.symbol} {ratio}" if ratio else f"{cell.symbol} {cell.value}"


def _for_people(row: Compared) -> dict[str, Any]:
    interval = "" if row.low is None or row.high is None else f"{row.low:.2f}–{row.high:.2f}"
    return {
        **row.conditions,
        "group": row.group,
        "metric": registry.BY_NAME[row.metric].label,
        "value": human(row.metric, row.value),
        "n": row.n,
        "ratio": _ratio(1.0 if row.verdict is Verdict.BASELINE else row.ratio),
        "interval": interval,
        "p": f"{row.p_value:.2g}" if row.p_value is not None and row.testable else "",
        "verdict": row.verdict.value.replace("_", " ") + (f": {row.why}" if row.why else ""),
    }


def _document(store: Store, text: str) -> Baseline | None:
    """The baseline document that a name or a file gives, under the name that people gave it."""
    if text.endswith(".json"):
        found = read_baseline(Path(text))
    else:
        try:
            found = Baseline.from_json(store.baseline(text), f"baseline {text}")
        except NoSuchRun:
            return None
    # Under its own name, so that the run it was made of can be held against it.
    name = f"baseline {found.name}"
    return dataclasses.replace(found, run_id=name, cases=tuple({**case, "run_id": name} for case in found.cases))


def _run_named(store: Store, text: str) -> str | None:
    """The run a baseline names (by id, name or the beginning of an id), if it names one rather than a group."""
    rows = store.runs()
    exact = [row.run_id for row in rows if text in (row.run_id, row.name)]
    begun = [row.run_id for row in rows if len(text) >= 6 and row.run_id.startswith(text)]
    return next(iter(exact or begun), None)


def filters_of(given: Sequence[str]) -> dict[str, str]:
    """What ``--where`` asks of a case, by key. Raises `UsageError`."""
    found = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator or key not in FILTERS:
            raise UsageError(f"--where takes KEY=VALUE with one of {', '.join(FILTERS)}, not {text!r}")
        found[key] = value
    return found


def _gate(comparison: Comparison, percent: str | None) -> int:
    """Say what the regression gate finds, on stderr; the exit code."""
    if percent is None:
        return EXIT_DONE
    try:
        limit = float(percent.rstrip("%"))
    except ValueError:
        raise UsageError(f"--fail-on-regression takes a percentage such as 5 or 5%, not {percent!r}") from None
    gate = judge(comparison, limit / 100)
    for one in gate.judged:
        if one.outcome is not Outcome.PASSED:
            print(clean(f"{one.outcome.value}: {one.row.group}: {one.row.metric}: {one.why}"), file=sys.stderr)
    print(f"{gate.outcome.value}: limit {limit:g} %, {len(gate.judged)} comparisons", file=sys.stderr)
    return _GATE_CODES[gate.outcome]


def _ratio(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}"
